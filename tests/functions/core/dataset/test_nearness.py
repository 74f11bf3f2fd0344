"""Likeness among all rows: what is found, that it is true, and that only the rows' content decides."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness_cases import VOCABULARY, columns_of, families, jaccard

from dropforge_core.dataset.likeness import nearness
from dropforge_core.dataset.likeness.columns import EVAL, TRAIN, ArrayColumns
from dropforge_core.dataset.likeness.groups import Groups
from dropforge_core.dataset.likeness.nearness import ALIKE, NEAR, near_pairs
from dropforge_core.dataset.likeness.sketch import PAD

NOTHING_COMMON = np.zeros(0, np.uint64)


def closure(count, pairs):
    """The smallest member of everybody's group."""
    group = list(range(count))
    for a, b in pairs:
        low, high = sorted((group[a], group[b]))
        group = [low if member == high else member for member in group]
    return group


def same_answer(one, other):
    np.testing.assert_array_equal(one.group, other.group)
    for name in ("near", "leaks"):
        for ours, theirs in zip(getattr(one, name), getattr(other, name), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@given(st.lists(st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40), max_size=3))
def test_groups_are_the_closure_of_their_pairs(batches):
    """Two rows have one root exactly where pairs lead from one to the other, and it is the smallest."""
    groups = Groups(30)
    for batch in batches:
        pairs = np.array(batch, np.int64).reshape(-1, 2)
        groups.join(pairs[:, 0], pairs[:, 1])
    wanted = closure(30, [pair for batch in batches for pair in batch])
    assert groups.roots(np.arange(30)).tolist() == wanted
    assert groups.all_roots().tolist() == wanted


@pytest.mark.parametrize("piece", [nearness._PIECE, 16])
def test_short_prompts_are_grouped_by_their_true_likeness(monkeypatch, piece):
    """No two are in one group without a chain of alike prompts, and nearly all alike ones are in one group."""
    monkeypatch.setattr(nearness, "_PIECE", piece)
    texts = families(3, 120, 7)
    found = near_pairs(columns_of(texts, common=NOTHING_COMMON))
    pairs = [(a, b) for a in range(len(texts)) for b in range(a) if jaccard(texts[a], texts[b]) >= ALIKE]
    allowed = closure(len(texts), pairs)
    for row, root in enumerate(found.group.tolist()):
        assert allowed[row] == allowed[root]
    together = sum(found.group[a] == found.group[b] for a, b in pairs)
    assert together >= 0.97 * len(pairs)
    for row, other, similarity in zip(*(column.tolist() for column in found.near), strict=True):
        assert other < row
        assert jaccard(texts[row], texts[other]) == pytest.approx(similarity, abs=0.003)
        assert similarity >= NEAR - 0.003
    near = {a for a, b in pairs if jaccard(texts[a], texts[b]) >= NEAR}
    assert len(near & set(found.near.row.tolist())) >= 0.97 * len(near)


@pytest.mark.parametrize("length", [25, 120])
def test_long_prompts_are_grouped_by_estimates(length):
    """Copies with a word in twenty changed are in one group, and unlike prompts are not."""
    texts = families(7, 150, length, copies=2, changed=0.05)
    found = near_pairs(columns_of(texts))
    sizes = np.bincount(np.unique(found.group, return_inverse=True)[1])
    assert sizes.max() == 2
    assert (sizes == 2).sum() >= 145


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 300), st.booleans())
def test_how_rows_come_is_no_matter(seed, chunk, rows_a_pass, mixed):
    """The answer is the same in chunks and passes of any size."""
    texts = families(seed, 20, 8)
    sides = [(row * 7 + seed) % 5 == 0 and mixed for row in range(len(texts))]
    whole = near_pairs(columns_of(texts, sides))
    same_answer(whole, near_pairs(columns_of(texts, sides, chunk), rows_a_pass))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([5, 9, 30]), st.sampled_from([8, 1 << 15]))
def test_groups_follow_the_content_in_any_order(seed, length, piece):
    """Rows in another order are grouped with the same others."""
    texts = families(seed, 25, length) * 2
    order = np.random.default_rng(seed).permutation(len(texts))
    before, nearness._PIECE = nearness._PIECE, piece
    try:
        group = near_pairs(columns_of(texts)).group
        moved = near_pairs(columns_of([texts[row] for row in order])).group
    finally:
        nearness._PIECE = before
    partition = {frozenset(np.flatnonzero(group == root).tolist()) for root in group.tolist()}
    again = {frozenset(order[np.flatnonzero(moved == root)].tolist()) for root in moved.tolist()}
    assert partition == again


def test_rows_near_the_other_side_are_told():
    """An evaluation row near a training row names it; by words alone, by copies of its own, wherever it stands."""
    texts = families(5, 40, 7, copies=2, changed=0.08)
    sides = [row % 3 == 0 for row in range(len(texts))]
    texts += [texts[0].upper() + "!", texts[1]]
    sides += [EVAL, EVAL]
    found = near_pairs(columns_of(texts, sides, common=NOTHING_COMMON))
    leaks = dict(zip(found.leaks.row.tolist(), found.leaks.other.tolist(), strict=True))
    wanted = {
        a
        for a in range(len(texts))
        for b in range(len(texts))
        if sides[a] == EVAL and sides[b] == TRAIN and jaccard(texts[a].lower().strip("!"), texts[b]) >= NEAR
    }
    assert len(wanted) > 5
    assert len(wanted & leaks.keys()) >= 0.9 * len(wanted)
    assert leaks[len(texts) - 1] == 1
    for row, other in leaks.items():
        assert (sides[row], sides[other]) == (EVAL, TRAIN)
        assert jaccard(texts[row].lower().strip("!"), texts[other]) >= NEAR - 0.003
    near = dict(zip(found.near.row.tolist(), found.near.other.tolist(), strict=True))
    assert near[len(texts) - 2] == 0
    assert all(sides[row] == sides[other] for row, other in near.items())


def test_rows_without_words_are_one_group():
    """Prompts of signs alone are equal, and like no others."""
    found = near_pairs(columns_of(["...", "one two three", "", "?!"]))
    assert found.group.tolist() == [0, 1, 0, 0]
    assert found.near.row.tolist() == [2, 3]


def test_no_rows_are_no_groups():
    """Nothing in, nothing out."""
    found = near_pairs(columns_of([]))
    assert [len(found.group), len(found.near.row), len(found.leaks.row)] == [0, 0, 0]


@pytest.mark.parametrize("shared", [4, 40, 64])
def test_a_bucket_of_everybody_is_compared_in_pieces(monkeypatch, shared):
    """Rows that agree in bands, or in everything but their words, are still found near their twins."""
    monkeypatch.setattr(nearness, "_PIECE", 32)
    dice = np.random.default_rng(2)
    signature = dice.integers(0, 128, (600, 64)).astype(np.uint8)
    signature[:, :shared] = signature[0, :shared]
    signature[300:] = signature[:300]
    least = np.zeros((600, 16), np.uint32)
    values = {
        "signature": signature,
        "least": least,
        "folded": dice.integers(1, 2**63, 600).astype(np.uint64),
    }
    found = near_pairs(ArrayColumns(np.zeros(600, np.uint8), values))
    assert PAD not in least
    if shared < 64:
        assert found.near.row.tolist() == list(range(300, 600))
        assert found.near.other.tolist() == list(range(300))
    if shared != 40:
        assert len(set(found.group.tolist())) == (300 if shared == 4 else 1)


def test_the_likest_of_several_is_named():
    """A row near two earlier ones names the likest; of equals the first."""
    words = VOCABULARY[:7]
    other = [*words[:6], VOCABULARY[20]]
    texts = [
        " ".join([*words, VOCABULARY[30]]),
        " ".join(words),
        " ".join(words),
        " ".join([*words, "1"]),
        " ".join(other),
    ]
    texts.append(" ".join([*words, "22"]))
    found = near_pairs(columns_of(texts, common=NOTHING_COMMON)).near
    named = dict(zip(found.row.tolist(), found.other.tolist(), strict=True))
    assert named[2] == 1
    assert named[5] == 3
