"""The cut of the hold-out: its size, who is on which side, and what moves when a dataset grows."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from likeness_cases import columns_of, digests, families

from dropforge_core.dataset.likeness import cutting
from dropforge_core.dataset.likeness.columns import EVAL, TRAIN, ArrayColumns
from dropforge_core.dataset.likeness.cutting import LEFT_OUT, Cut, cut
from dropforge_core.dataset.likeness.nearness import near_pairs
from dropforge_core.gate.sampling import rows_needed
from dropforge_core.recipe import Evaluation, Gate

GROUPS = st.lists(st.integers(1, 12), min_size=1, max_size=120)
"""Sizes of groups of rows."""


def columns_and_groups(sizes, names=None):
    """Rows of groups one after another; each row has words of its own, named by group and place in it."""
    group, names_of_rows = [], []
    for number, size in zip(names or range(len(sizes)), sizes, strict=True):
        first = len(group)
        group += [first] * size
        names_of_rows += [number * 1000 + place + 1 for place in range(size)]
    found = digests(names_of_rows)
    columns = ArrayColumns(np.zeros(len(group), np.uint8), {"folded": found, "whole": found}, 7)
    return columns, np.array(group, np.uint32)


def side_of_each(sizes, rules, wanted, names=None):
    columns, group = columns_and_groups(sizes, names)
    chosen = cut(columns, group, rules, wanted)
    return chosen, dict(zip(columns._values["folded"].tolist(), chosen.sides.tolist(), strict=True))


@pytest.mark.parametrize(("delta", "rows"), [(0.02, 2319), (0.03, 1031), (0.05, 371)])
def test_what_the_gate_needs_is_the_known_sample_size(delta, rows):
    """Non-inferiority at a discordance of 0.15, a one-sided alpha of 0.05 and a power of 0.8."""
    assert np.ceil(rows_needed(Gate(delta=delta))) == rows
    assert rows_needed(Gate(delta=0)) == np.inf


def test_the_default_bound_allows_what_the_default_gate_needs():
    """By default a large dataset's hold-out is large enough for its gate, and not larger."""
    assert Evaluation().max_holdout >= rows_needed(Gate())
    chosen, _ = side_of_each([1] * 40_000, Evaluation(), rows_needed(Gate()))
    assert chosen.count(EVAL) == 2319


@settings(deadline=None)
@given(GROUPS, st.integers(1, 60), st.integers(0, 100), st.floats(0.01, 0.5), st.floats(0, 200))
def test_the_size_is_within_its_bounds(sizes, fewest, more, fraction, wanted):
    """At least min_holdout, at most max_holdout, never more than half; no group is on two sides."""
    rules = Evaluation(min_holdout=fewest, max_holdout=fewest + more, holdout_fraction=fraction)
    columns, group = columns_and_groups(sizes)
    chosen = cut(columns, group, rules, wanted)
    half = len(group) // 2
    assert chosen.count(EVAL) <= min(fewest + more, half)
    assert chosen.count(EVAL) >= (min(fewest, half) if half else 0)
    if chosen.basis == "similarity":
        assert all(len(set(chosen.sides[group == root].tolist())) == 1 for root in np.unique(group))
        # The last group taken may go beyond what is wanted, by less than its own size.
        assert chosen.count(EVAL) < max(wanted, fewest) + max(sizes)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=20, max_size=120),
    st.lists(st.integers(1, 12), min_size=1, max_size=120),
    st.integers(1, 30),
    st.floats(5, 60),
)
def test_no_trained_row_is_held_out_when_a_dataset_grows(sizes, new, fewest, wanted):
    """New groups may send held-out rows to training, never the other way; but for what the docstring excepts."""
    rules = Evaluation(min_holdout=fewest, max_holdout=500, holdout_fraction=0.2)
    before, small = side_of_each(sizes, rules, wanted)
    after, large = side_of_each([*sizes, *new], rules, wanted)
    assume(before.basis == after.basis == "similarity")
    largest = cutting._Size.of(sum(sizes), rules, wanted).largest
    for chosen, rows in ((before, sum(sizes)), (after, sum(sizes) + sum(new))):
        bound = cutting._Size.of(rows, rules, wanted)
        assume(chosen.count(EVAL) + bound.largest <= bound.most)
    columns, group = columns_and_groups(sizes)
    for row, name in enumerate(columns._values["folded"].tolist()):
        if (group == group[row]).sum() <= largest:
            assert not (small[name] == TRAIN and large[name] == EVAL)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=300, max_size=400), st.integers(0, 400))
def test_no_row_moves_where_the_share_is_the_bound(sizes, new):
    """Between the size's bounds, groups of a new version are added and all others stay."""
    rules = Evaluation(min_holdout=1, max_holdout=10**6, holdout_fraction=0.1)
    _, small = side_of_each(sizes, rules, np.inf)
    _, large = side_of_each([*sizes, *[1] * new], rules, np.inf)
    assert all(large[name] == side for name, side in small.items())


@settings(deadline=None)
@given(GROUPS, st.randoms(use_true_random=False), st.integers(1, 40))
def test_the_order_of_rows_is_no_matter(sizes, dice, fewest):
    """Groups in another order are cut the same way."""
    rules = Evaluation(min_holdout=fewest, max_holdout=50)
    names = list(range(len(sizes)))
    dice.shuffle(names)
    straight, one = side_of_each(sizes, rules, 40)
    moved, other = side_of_each([sizes[name] for name in names], rules, 40, names)
    assert straight.basis == moved.basis
    assert one == other


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([6, 30]))
def test_a_prompts_side_is_its_contents_in_any_order(seed, length):
    """From the prompts to the sides: permuted rows keep their sides, near rows and equal ones share them."""
    texts = families(seed, 80, length)
    order = np.random.default_rng(seed).permutation(len(texts))
    rules = Evaluation(min_holdout=20, max_holdout=60)
    sides = []
    for rows in (texts, [texts[row] for row in order]):
        columns = columns_of(rows)
        found = near_pairs(columns)
        chosen = cut(columns, found.group, rules, 40)
        assert chosen.basis == "similarity"
        np.testing.assert_array_equal(chosen.sides[found.near.row], chosen.sides[found.near.other])
        sides.append(chosen.sides)
    np.testing.assert_array_equal(sides[0][order], sides[1])


def test_where_all_is_alike_equal_prompts_are_cut_and_then_rows():
    """Hold-outs there are always; the basis says how much they are worth."""
    rules = Evaluation(min_holdout=10)
    one_group = np.zeros(100, np.uint32)
    everything = digests(range(1, 101))
    pairs = digests(number // 2 + 1 for number in range(100))
    same = digests([1] * 100)
    for folded, whole, basis in (
        (pairs, everything, "prompt"),
        (same, everything, "row"),
        (same, same, "row"),
    ):
        columns = ArrayColumns(np.zeros(100, np.uint8), {"folded": folded, "whole": whole}, 30)
        chosen = cut(columns, one_group, rules, 10)
        assert chosen.basis == basis
        assert chosen.count(EVAL) == (0 if whole is same else 10)
        if basis == "prompt":
            np.testing.assert_array_equal(chosen.sides[::2], chosen.sides[1::2])


def test_copies_of_held_out_rows_are_left_out():
    """Each is measured once; copies in training stay."""
    chosen = Cut(np.array([EVAL, TRAIN, EVAL, TRAIN, EVAL], np.uint8), "similarity")
    chosen.leave_out(np.array([2, 3], np.uint32))
    assert chosen.sides.tolist() == [EVAL, TRAIN, LEFT_OUT, TRAIN, EVAL]
    assert [chosen.count(side) for side in (TRAIN, EVAL, LEFT_OUT)] == [2, 2, 1]
