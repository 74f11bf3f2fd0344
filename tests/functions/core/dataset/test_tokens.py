"""Counting tokens: exact with a tokenizer, honest without."""

import json
import pickle
import random
from itertools import pairwise
from unittest.mock import patch

import msgspec
import numpy as np
import pytest
import xxhash
from dataset_cases import as_lines, chat, in_memory, question
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_cases import built
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from dropforge_core.dataset.rows.columns import RowBlock
from dropforge_core.dataset.rows.formats import Canonical
from dropforge_core.dataset.sampling import HIGHEST, bound_for
from dropforge_core.dataset.tokens import (
    LARGEST,
    SAMPLE,
    PiecesDisagree,
    TallyState,
    TemplateRefused,
    TokenTally,
    load_tokenizer,
)
from dropforge_core.dataset.validation import examine, validate

TEMPLATE = (
    "{% for m in messages %}<|a|>{{ m['role'] }}\n{{ m['content'] }}<|z|>\n{% endfor %}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
)
LLAMA = (
    "{{- bos_token }}{% if tools %}Tools: {{ tools | tojson(indent=4) }}{% endif %}"
    "{% for m in messages %}<|a|>{{ m.role }}\n\n{{ m.content | trim }}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}{{ c | tojson }}{% endfor %}{% endif %}<|z|>{% endfor %}"
)


def tokenizer_json(normalizer=None, **layout):
    """One token a byte, so that a test can count with len()."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = decoders.ByteLevel()
    if normalizer is not None:
        made.normalizer = normalizer
    made.add_special_tokens(["<|a|>", "<|z|>"])
    made.add_tokens(["<eot>", "<tool_call>"])
    return json.dumps(json.loads(made.to_str()) | layout).encode()


def counter_of(template=TEMPLATE, normalizer=None, config=None, **layout):
    config = {"chat_template": template, "bos_token": "<|a|>", **(config or {})}
    return load_tokenizer(tokenizer_json(normalizer, **layout), json.dumps(config).encode())


@pytest.fixture(scope="module")
def counter():
    return counter_of()


def length(row):
    return sum(len(m["role"].encode()) + len(m["content"].encode()) + 4 for m in row["messages"])


def block(*rows):
    return RowBlock.of(
        (
            line,
            Canonical(
                row["messages"],
                row.get("meta", {}),
                row["messages"][-1] if "rejected" in row else None,
                row.get("rejected"),
            ),
        )
        for line, row in enumerate(rows, 1)
    )


def test_a_conversation_is_counted_as_its_template_renders_it(counter):
    """Control tokens count one each, text its bytes."""
    row = chat("héllo", "wörld")
    assert counter.count(row["messages"]) == length(row)
    assert counter.plain().count(row["messages"]) == length(row)
    assert counter.by_pieces
    assert not counter.plain().by_pieces


def test_a_plain_text_is_counted_between_its_ends(counter):
    """A row of text is no conversation: training puts a token before it and one behind it."""
    assert counter.count([{"role": "assistant", "content": "twelve bytes"}]) == 14


def test_over_length_is_exact_to_the_token(counter, recipe):
    """A row of the limit passes, one of a token more is an error with its number of tokens."""
    fits = chat("a" * 50, "b" * 20)
    long = chat("a" * 51, "b" * 20)
    limit = length(fits)
    report = validate(
        [in_memory(as_lines(fits, long))], recipe(training={"max_seq_len": limit}), tokenizer=counter
    )
    (problem,) = [p for p in report.errors if p.code == "OVER_LENGTH"]
    assert problem.lines == (2,)
    assert f"{limit + 1} tokens" in problem.message


def test_totals_are_exact_where_all_rows_were_counted(counter, recipe):
    """The report's total is the sum over all rows, and says that it is exact."""
    rows = [chat(question(n)) for n in range(60)]
    found = examine([in_memory(as_lines(*rows))], recipe(), tokenizer=counter)
    total = sum(map(length, rows))
    assert found.report.tokens["total"] == total
    assert found.report.tokens["interval"] == (total, total)
    assert found.report.tokens["exact"] is True
    assert found.facts.tokens_exact
    assert found.facts.tokens_error == 0.0
    assert found.facts.longest_tokens == max(map(length, rows))


def test_without_a_tokenizer_lengths_are_estimates_and_say_so(recipe):
    """A row that is probably too long is a warning, never an error, and totals are not called exact."""
    report = validate(
        [in_memory(as_lines(chat("word " * 500), chat("x y")))], recipe(training={"max_seq_len": 128})
    )
    assert report.valid
    assert {p.code: p.lines for p in report.warnings}["OVER_LENGTH_ESTIMATED"] == (1,)
    assert report.tokens["exact"] is False
    assert report.tokens["interval"] is None


def test_a_template_that_refuses_a_row_is_a_problem_of_the_row(counter, recipe):
    """What would fail in training fails here, with the template's own words."""
    row = {"messages": [{"role": "system", "content": "s"}, *chat("a b")["messages"]]}
    (problem,) = validate([in_memory(as_lines(chat("c d"), row))], recipe(), tokenizer=counter).errors
    assert (problem.code, problem.line) == ("TEMPLATE_REFUSED", 2)
    assert "System role not supported" in problem.message


def test_the_base_models_own_control_tokens_are_reserved(counter, recipe):
    """With a tokenizer at hand, its control tokens are looked for, and no others."""
    rows = as_lines(chat("the <|z|> token"), chat("the <|im_end|> token of another model"))
    report = validate([in_memory(rows)], recipe(), tokenizer=counter)
    assert [(p.code, p.lines) for p in report.errors] == [("RESERVED_TOKEN", (1,))]


def test_tokens_that_the_configuration_gives_a_part_are_reserved():
    """An end-of-text token is a control token even where the tokenizer does not call it special; others are text."""
    assert counter_of(config={"eos_token": {"content": "<eot>"}}).special == {"<|a|>", "<|z|>", "<eot>"}


def test_truncation_that_was_saved_with_a_tokenizer_is_taken_off():
    """A published tokenizer that cuts texts would call every row short."""
    short = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    counter = counter_of(truncation=short)
    assert counter.count(chat("a" * 50, "b" * 20)["messages"]) == length(chat("a" * 50, "b" * 20))


def test_templates_render_as_in_transformers():
    """Generation marks are transparent, `tojson` takes its arguments, and the date never changes."""
    marked = counter_of(
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    assert marked.count(chat("ab", "cde")["messages"]) == 5
    tools = [{"name": "f"}]
    indented = counter_of(LLAMA)
    assert indented.count(chat("ab", "cd")["messages"], tools) - indented.count(
        chat("ab", "cd")["messages"]
    ) == len("Tools: " + json.dumps(tools, indent=4))
    dated = counter_of("{{ strftime_now('%A %d %B %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}")
    assert dated.count(chat("ab", "cd")["messages"]) == len("Wednesday 30 September 2026") + 4


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{% for m in messages %}{{ m.update({'role': 'x'}) }}{% endfor %}",
    ],
)
def test_a_hostile_template_reaches_nothing(template):
    """Templates run in a sandbox: no way to Python's objects, no change to the data."""
    with pytest.raises((ValueError, TemplateRefused)):
        counter_of(template).count(chat("a")["messages"])


def test_a_model_without_a_template_has_no_counter():
    """Without a chat template nothing can be counted exactly."""
    assert load_tokenizer(tokenizer_json(), b"{}") is None


@pytest.mark.parametrize(
    "files", [(b"{}", b'{"chat_template": "x"}'), (tokenizer_json(), b'{"chat_template": "{% if"}')]
)
def test_what_is_no_tokenizer_is_refused(files):
    """Broken files are told apart from a model that has no template."""
    with pytest.raises(ValueError, match="can't be used"):
        load_tokenizer(*files)


def test_a_counter_goes_to_another_process(counter):
    """Pickled and back, it counts the same in the same way."""
    row = chat("héllo", "wörld")["messages"]
    for one in (counter, counter.plain()):
        back = pickle.loads(pickle.dumps(one))
        assert (back.count(row), back.by_pieces, back.special) == (one.count(row), one.by_pieces, one.special)


TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
CONTENT = st.one_of(
    TEXT, st.sampled_from(["<|z|>" * 3, '"\\\n' * 9, "ß" * 20, "शिक़ायत", "\u0958" * 12, "ﬁ" * 9, " x "])
)
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@st.composite
def conversations(draw):
    turns = draw(st.integers(1, 3))
    messages = [{"role": "system", "content": draw(CONTENT)}] if draw(st.booleans()) else []
    for _ in range(turns):
        messages += [
            {"role": "user", "content": draw(CONTENT)},
            {"role": "assistant", "content": draw(CONTENT)},
        ]
    if draw(st.integers(0, 5)) == 0:
        messages[-1]["tool_calls"] = [CALL]
    row = {"messages": messages}
    if draw(st.integers(0, 5)) == 0:
        row["meta"] = {"tools": [{"name": "f", "parameters": {"a": 1, "b": [2] * 9}}]}
    return row


@st.composite
def datasets(draw):
    """A few conversations, or a few pairs."""
    rows = draw(st.lists(conversations(), min_size=1, max_size=5))
    if draw(st.booleans()):
        for row in rows:
            row["rejected"] = {"role": "assistant", "content": draw(CONTENT) + "!"}
    return rows


TEMPLATES = {
    "chat": counter_of(),
    "llama": counter_of(LLAMA),
    "nfc": counter_of(LLAMA, normalizers.NFC()),
    "unbounded": counter_of(LLAMA, normalizers.NFKD()),
    "twice": counter_of("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}"),
    "wordy": counter_of("{% for m in messages %}" + "blah " * 30 + "{{ m.content }}{% endfor %}"),
    "shouting": counter_of("{% for m in messages %}{{ m.content | upper }}{% endfor %}"),
    "first only": counter_of("{{ messages[0].content }}"),
} | {
    name: load_tokenizer(
        built(name)[0].to_str().encode(),
        json.dumps({"chat_template": LLAMA, "bos_token": "<|end|>"}).encode(),
    )
    for name in ("gpt2", "pattern 2", "nfc", "gemma", "metaspace in front", "gpt2 with a prefix")
}


@settings(max_examples=200, deadline=None)
@given(
    datasets(),
    st.integers(10, 300),
    st.sampled_from(sorted(TEMPLATES)),
)
def test_no_row_that_is_too_long_is_passed_over(rows, limit, name):
    """Where only rows in doubt are counted, the verdicts are those of counting all rows."""
    counter, taken = TEMPLATES[name], block(*rows)
    doubtful = TokenTally(limit, counter, count_all=False).check(taken)
    every = TokenTally(limit, counter, count_all=True).check(taken)
    assert doubtful == every


def test_most_rows_need_no_counting(counter):
    """Rows whose bytes fit are neither rendered nor tokenised, but for the sample."""
    rows = block(*[chat(f"{question(n)} {n}", "a fine answer") for n in range(SAMPLE * 4)])
    tally = TokenTally(120, counter, count_all=False)
    tally.check(rows)
    with patch.object(type(counter), "count", autospec=True, side_effect=type(counter).count) as counted:
        summary = tally.summary()
    assert counted.call_count == SAMPLE + LARGEST
    assert summary["rows_counted"] == SAMPLE
    assert not summary["exact"]


def many_rows(seed, count):
    rng = random.Random(seed)
    return [
        chat(f"{question(n)} " + "word " * rng.randrange(30), "an answer é" * rng.randrange(1, 9))
        for n in range(count)
    ]


def test_a_sampled_total_says_how_sure_it_is(counter):
    """In nineteen of twenty datasets, or nearly so, the true total lies in the interval that is told."""
    hits = 0
    for seed in range(24):
        rows = many_rows(seed, 900)
        rows += [rows[7]] * 40
        tally = TokenTally(4_096, counter, count_all=False)
        tally.check(block(*rows))
        low, high = tally.summary()["interval"]
        assert 0 < high - low < 0.1 * tally.total()
        assert tally.error == pytest.approx((high - low) / 2 / tally.total())
        hits += low <= sum(map(length, rows)) <= high
    assert hits >= 20


def test_a_dataset_smaller_than_the_sample_is_exact(counter):
    """Where every row is in the sample the total is no estimate."""
    rows = many_rows(1, SAMPLE - 1)
    tally = TokenTally(4_096, counter, count_all=False)
    tally.check(block(*rows))
    assert tally.exact
    assert tally.total() == sum(map(length, rows))
    assert tally.longest == max(map(length, rows))


@pytest.fixture(scope="module")
def taken():
    """Rows of all kinds: many that fit, some too long, some twice, some refused."""
    rows = many_rows(2, 1_600)
    rows[5::100] = [chat("long " * 900, f"{n}") for n in range(len(rows[5::100]))]
    rows[9::90] = [rows[9]] * len(rows[9::90])
    rows[11]["messages"].insert(0, {"role": "system", "content": "s"})
    return block(*rows)


@pytest.mark.parametrize("kind", ["sampled", "bound", "all", "estimated"])
@settings(max_examples=5, deadline=None)
@given(cuts=st.lists(st.integers(0, 1_600), max_size=4))
def test_any_division_gives_the_same_tally(counter, taken, kind, cuts):
    """Parts that are counted apart, stored and merged say exactly what the whole says."""

    def new():
        return TokenTally(
            2_000,
            None if kind == "estimated" else counter,
            count_all=kind == "all",
            bound=bound_for(1_600 * 2, SAMPLE) if kind == "bound" else HIGHEST,
        )

    whole = new()
    faults = whole.check(taken)
    merged, told = None, []
    for begin, end in pairwise([0, *sorted(cuts), len(taken)]):
        part = taken.without({*range(len(taken))} - {*range(begin, end)})
        digests = np.array([xxhash.xxh3_64_intdigest(one) for one in part.encoded], np.uint64)
        tally = new()
        told += [(begin + index, fault) for index, fault in tally.check(part, digests)]
        stored = TokenTally.from_state(
            msgspec.msgpack.decode(msgspec.msgpack.encode(tally.state()), type=TallyState)
        )
        if merged is None:
            merged = stored
        else:
            merged.merge(stored)
    assert told == faults
    assert merged.state() == whole.state()
    assert merged.summary() == whole.summary()
    assert merged.total(1_000, 3) == whole.total(1_000, 3)


def test_pieces_that_are_wrong_for_a_row_are_noticed(counter):
    """A row that counts otherwise as a whole stops the count, which can then be done without pieces."""
    rows = block(*[chat(f"{question(n)} {n}") for n in range(2_000)])
    broken = counter.plain()
    broken._pieces = counter._pieces
    with (
        patch.object(type(counter._pieces), "count", return_value=7),
        pytest.raises(PiecesDisagree),
    ):
        TokenTally(None, broken, count_all=True).check(rows)
    assert TokenTally(None, broken.plain(), count_all=True).check(rows) == []


def test_a_dataset_whose_pieces_are_wrong_is_counted_again_as_a_whole(counter, recipe):
    """Nobody sees a verdict that rests on pieces once they were wrong for a row."""
    rows = [chat(f"{question(n)} {n}") for n in range(600)]
    broken = counter.plain()
    broken._pieces = counter._pieces
    with patch.object(type(counter._pieces), "count", return_value=7):
        report = validate([in_memory(as_lines(*rows))], recipe(), tokenizer=broken)
    assert report.tokens["total"] == sum(map(length, rows))
    assert not report.errors


@pytest.mark.parametrize("count_all", [True, False])
@pytest.mark.parametrize("keeps", [True, False])
def test_totals_are_of_the_rows_that_are_kept(counter, count_all, keeps):
    """Rows that are too long count where they stay in the dataset; refused ones never do."""
    rows = many_rows(3, 200)
    long = [chat("long " * 500, f"{n}") for n in range(3)]
    refused = [{"messages": [{"role": "system", "content": "s"}, *chat("a b")["messages"]]}]
    tally = TokenTally(2_000, counter, count_all=count_all, keeps_long=keeps)
    assert len(tally.check(block(*rows, *long, *refused))) == 4
    assert tally.total() == sum(map(length, rows + long * keeps))
    assert tally.exact
    assert tally.longest == max(map(length, long))
