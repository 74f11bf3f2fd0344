"""The transform's input."""

import json

from hypothesis import given
from hypothesis import strategies as st

from dropforge_core.evaluation.prompts import (
    CONCURRENT_REQUESTS,
    SHARD_BYTES,
    SHARD_NEW_TOKENS,
    SHARD_PROMPTS,
    generated_ids,
    shard_length,
    shards,
)
from dropforge_core.evaluation.rows import Question

SIZES = st.lists(st.integers(1, 200_000), max_size=12)


def questions(sizes):
    asked = ({"role": "user", "content": "Q"},)
    return [(f"r{i}", Question(messages=asked, reference="x" * size)) for i, size in enumerate(sizes)]


@given(SIZES, st.integers(1, 64))
def test_every_question_is_asked_once_of_every_variant(sizes, length):
    """Nothing is lost or doubled by sharding, shards have one variant, and their size is bounded."""
    written = list(shards(questions(sizes), ("base", "candidate"), frozenset({"r0"}), length))
    asked = [(shard, json.loads(line)) for shard in written for line in shard.body.splitlines()]
    found = sorted((line["variant"], line["id"]) for _, line in asked)
    assert found == sorted((v, f"r{i}") for v in ("base", "candidate") for i in range(len(sizes)))
    assert all(shard.name.startswith(line["variant"]) for shard, line in asked)
    assert all(line["generate"] == (line["id"] == "r0") for _, line in asked)
    assert len({shard.name for shard in written}) == len(written)
    for shard in written:
        assert shard.prompts <= length
        assert len(shard.body) <= SHARD_BYTES or shard.prompts == 1


@given(st.integers(1, 8192), st.integers(0, 20_000))
def test_every_concurrent_request_has_work(max_new_tokens, rows):
    """From 8 rows on a variant's shards are at least as many as requests at the same time, and equally long."""
    length = shard_length(max_new_tokens, rows)
    assert 1 <= length <= SHARD_PROMPTS
    assert length * max_new_tokens <= max(SHARD_NEW_TOKENS, 4 * max_new_tokens)
    full, rest = divmod(rows, length)
    if rows >= 4 * CONCURRENT_REQUESTS:
        assert full + bool(rest) >= CONCURRENT_REQUESTS
        assert not rest or length - rest <= full + 1


def test_another_variant_changes_no_shard():
    """A champion that appears later leaves the other shards as they were: writing again is harmless."""
    without = set(shards(questions([10] * 200), ("base", "candidate"), frozenset(), 256))
    assert without < set(shards(questions([10] * 200), ("base", "champion", "candidate"), frozenset(), 256))


def test_plain_text_is_never_generated():
    """A row that asks nothing cannot be answered."""
    (shard,) = shards([("t", Question(messages=(), reference="x"))], ("base",), frozenset({"t"}), 16)
    assert json.loads(shard.body)["generate"] is False


@given(st.lists(st.text(max_size=4), unique=True), st.integers(0, 20), st.randoms(use_true_random=False))
def test_the_generated_rows_follow_from_the_ids(ids, at_most, shuffler):
    """Which rows are generated depends on no order, and more rows asked for keep the ones there were."""
    chosen = generated_ids(ids, at_most)
    assert len(chosen) == min(at_most, len(ids))
    assert chosen <= generated_ids(ids, at_most + 1)
    shuffler.shuffle(ids)
    assert generated_ids(ids, at_most) == chosen
