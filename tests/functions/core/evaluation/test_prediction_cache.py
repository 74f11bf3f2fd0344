"""What is kept of predictions, and when it serves again."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge_core.contracts import EvaluationPrompt, Prediction, PredictionKey
from dropforge_core.evaluation.cache import (
    EntryUnusable,
    artifact_identity,
    entry,
    is_pinned,
    object_key,
    prompt_set,
    recall,
    series_of,
    worth_keeping,
)

KEY = PredictionKey(
    base_model_prefix="base-models/org/base/" + "0" * 40 + "/",
    quantization="nf4",
    chat_template=None,
    adapter=None,
    prompts_digest="sha256:p",
    max_new_tokens=64,
    temperature=0.0,
    image="registry/dropforge@sha256:" + "1" * 64,
)


def prompts(variant="base", count=4):
    return [
        EvaluationPrompt(
            id=f"r{i}",
            variant=variant,
            messages=({"role": "user", "content": f"Q{i}"},),
            reference=f"A{i}",
            generate=i < 2,
        )
        .model_dump_json()
        .encode()
        for i in range(count)
    ]


def predictions(variant="base", count=4):
    return [
        Prediction(
            id=f"r{i}", variant=variant, text="said\n" if i < 2 else None, nll=1.5 + i, reference_bytes=2
        )
        for i in range(count)
    ]


def lines_of(found):
    return [one.model_dump_json(exclude_none=True).encode() for one in found]


@given(st.permutations(predictions("candidate")))
def test_what_was_kept_comes_back_under_the_asker_s_name(found):
    """A candidate's predictions, in any order, serve as the champion's: each id once, everything else as it was."""
    asked = prompt_set(prompts("champion"))
    assert asked == prompt_set(prompts("candidate"))
    kept = worth_keeping(asked, lines_of(found))
    recalled = recall(entry(KEY, kept), KEY, asked, "champion")
    assert [Prediction.model_validate_json(line) for line in recalled.splitlines()] == predictions("champion")


@pytest.mark.parametrize("field", PredictionKey.model_fields)
def test_any_difference_is_another_key(field):
    """Base, adapter, prompts, generation settings, image: each has a say in where predictions lie."""
    value = getattr(KEY, field)
    other = KEY.model_copy(update={field: value + 1 if isinstance(value, (int, float)) else f"{value}x"})
    assert object_key(other) != object_key(KEY)
    with pytest.raises(EntryUnusable, match="something else"):
        recall(entry(other, predictions()), KEY, prompt_set(prompts()), "base")


@given(st.data())
def test_an_altered_entry_is_not_used(data):
    """Cut anywhere, or with any byte changed, an entry is refused: a wrong answer never comes from the cache."""
    whole = entry(KEY, predictions())
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        spoilt = whole[:place]
    else:
        byte = data.draw(st.integers(0, 255).filter(lambda value: value != whole[place]))
        spoilt = whole[:place] + bytes([byte]) + whole[place + 1 :]
    try:
        found = recall(spoilt, KEY, prompt_set(prompts()), "base")
    except EntryUnusable:
        return
    # White space in the header says nothing; what is answered is still the very same.
    assert found == recall(whole, KEY, prompt_set(prompts()), "base")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda found: found[1:], "other questions"),
        (lambda found: [*found, found[0]], "other questions"),
        (lambda found: [found[0].model_copy(update={"text": None}), *found[1:]], "not whole"),
        (lambda found: [*found[:-1], found[-1].model_copy(update={"nll": None})], "not whole"),
        (lambda found: [*found[:-1], found[-1].model_copy(update={"error": "no"})], "not whole"),
    ],
    ids=["missing", "twice", "no text", "no likelihood", "error"],
)
def test_answers_that_are_not_whole_are_neither_kept_nor_used(spoil, why):
    """One good answer to each question, or the questions are asked again."""
    asked = prompt_set(prompts())
    spoilt = spoil(predictions())
    assert worth_keeping(asked, lines_of(spoilt)) is None
    with pytest.raises(EntryUnusable, match=why):
        recall(entry(KEY, spoilt), KEY, asked, "base")


def test_garbled_or_mixed_output_is_not_kept():
    """What can't be read, or is another variant's, is no reason to remember the rest."""
    asked, good = prompt_set(prompts()), lines_of(predictions())
    assert worth_keeping(asked, good)
    assert worth_keeping(asked, [*good[1:], b'{"id": "r0"']) is None
    assert worth_keeping(asked, [*good[1:], b"\xff"]) is None
    assert worth_keeping(asked, [*good[1:], *lines_of(predictions("candidate")[:1])]) is None
    assert worth_keeping(prompt_set([]), []) is None


def test_other_questions_have_another_digest():
    """Order, texts, and what is generated all count; the variant's name does not."""
    digest = prompt_set(prompts()).digest
    assert prompt_set(prompts()[::-1]).digest != digest
    for change in ({"reference": "B"}, {"generate": False}, {"max_new_tokens": 3}, {"id": "other"}):
        first = json.loads(prompts()[0]) | change
        assert prompt_set([json.dumps(first).encode(), *prompts()[1:]]).digest != digest


def test_what_may_change_is_not_trusted():
    """A tag may name another image tomorrow, and an object without versions other bytes."""
    assert is_pinned(KEY.image)
    assert not is_pinned("registry/dropforge:latest")
    head = {"VersionId": "v1", "ETag": '"e"', "ContentLength": 3}
    assert artifact_identity("s3://b/k", head) == artifact_identity("s3://b/k", dict(head))
    found = {
        artifact_identity("s3://b/k", head | change) for change in ({}, {"VersionId": "v2"}, {"ETag": "f"})
    }
    assert len(found) == 3
    assert artifact_identity("s3://b/k", head | {"VersionId": "null"}) is None
    assert artifact_identity("s3://b/k", {"ETag": "e"}) is None


@pytest.mark.parametrize(
    ("name", "series"),
    [
        ("base-00001.jsonl", "base"),
        ("candidate-00000.jsonl.out", "candidate"),
        ("base-kept.jsonl.out", "base"),
        ("general-base.jsonl", "general-base"),
        ("general-base.jsonl.out", "general-base"),
        ("general-base-kept.jsonl.out", "general-base"),
    ],
)
def test_a_file_s_name_tells_its_series(name, series):
    """Questions, answers and kept answers of a series are found by name."""
    assert series_of(name) == series
