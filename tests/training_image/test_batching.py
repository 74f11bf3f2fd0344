"""Steps over the data and shapes of micro-batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.batching import MicroBatch, plan_steps, shape_batches, shared_beginning
from tuner.conversation import Document

lengths = st.lists(st.integers(1, 700), min_size=1, max_size=120)


@given(lengths, st.integers(64, 5_000), st.integers(0, 5))
def test_an_epoch_meets_every_example_once_and_no_step_is_empty(
    sizes: list[int], batch: int, seed: int
) -> None:
    """Within each epoch the steps are a partition of the data, whatever the lengths."""
    schedule = plan_steps(sizes, batch, epochs=2, steps=None, seed=seed)
    for epoch in range(2):
        steps = [
            schedule.examples_of(epoch * schedule.steps_per_epoch + place)
            for place in range(1, schedule.steps_per_epoch + 1)
        ]
        assert all(steps)
        assert sorted(index for step in steps for index in step) == list(range(len(sizes)))


def test_steps_hold_about_the_effective_batch() -> None:
    """Mean tokens of a step stay within one example of what was asked for."""
    sizes = [50 + index % 100 for index in range(1_000)]
    schedule = plan_steps(sizes, 4_000, epochs=1, steps=None, seed=1)
    tokens = [sum(sizes[i] for i in schedule.examples_of(step)) for step in range(1, schedule.steps + 1)]
    assert max(tokens) <= 4_000 * 1.05 + 150
    assert min(tokens) >= 4_000 - 150


def test_epochs_differ_and_seeds_repeat() -> None:
    """The order changes from epoch to epoch and is the same for the same seed."""
    first = plan_steps([10] * 50, 100, epochs=2, steps=None, seed=3)
    again = plan_steps([10] * 50, 100, epochs=2, steps=None, seed=3)
    assert first.examples_of(1) == again.examples_of(1)
    assert first.examples_of(1) != first.examples_of(1 + first.steps_per_epoch)


@given(lengths, st.integers(64, 3_000), st.booleans(), st.integers(0, 40))
def test_micro_batches_cover_the_step_within_the_bound(
    sizes: list[int], bound: int, packing: bool, shared: int
) -> None:
    """Every document goes through the model once, in passes no larger than allowed."""
    shared = min(shared, min(sizes) - 1)
    plan = shape_batches([[size] for size in sizes], bound, packing=packing, hidden_size=64, shared=shared)
    assert sorted(m for part in plan for row in part.rows for m in row) == list(range(len(sizes)))
    for part in plan:
        assert all(sum(sizes[m] for m in row) <= part.width for row in part.rows)
        assert part.tokens <= bound or len(part.rows) == 1


@given(
    st.lists(st.lists(st.integers(20, 300), min_size=1, max_size=2), min_size=1, max_size=60),
    st.integers(300, 2_000),
    st.integers(0, 19),
)
def test_end_to_end_no_token_is_padding(groups: list[list[int]], bound: int, shared: int) -> None:
    """Every document is in one pass, computed once but for what is shared; a group is never parted."""
    plan = shape_batches(groups, bound, packing=True, hidden_size=64, shared=shared, end_to_end=True)
    sizes = [size for group in groups for size in group]
    owners = [index for index, group in enumerate(groups) for _ in group]
    assert sorted(m for part in plan for row in part.rows for m in row) == list(range(len(sizes)))
    for part in plan:
        members = [m for row in part.rows for m in row]
        assert part.tokens == shared + sum(sizes[m] - shared for m in members)
        assert part.width == max(sizes[m] for m in members)
        assert part.tokens <= bound or len({owners[m] for m in members}) == 1
    where = {owners[m]: index for index, part in enumerate(plan) for row in part.rows for m in row}
    assert all(where[owners[m]] == index for index, part in enumerate(plan) for row in part.rows for m in row)


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=40))
def test_a_preference_pair_is_never_parted(pairs: list[tuple[int, int]]) -> None:
    """Both answers of a pair are in the same pass: their losses are one number."""
    for part in shape_batches(pairs, 500, packing=True, hidden_size=64):
        members = sorted(m for row in part.rows for m in row)
        assert all(members[at] + 1 == members[at + 1] for at in range(0, len(members), 2))
        assert all(m % 2 == 0 for m in members[0::2])


def test_packing_is_taken_where_it_is_cheaper() -> None:
    """One long and many short documents waste padding; equal ones do not, and then rows stay short."""
    ragged = shape_batches([[400], *[[20]] * 20], 8_000, packing=True, hidden_size=4_096)
    assert any(len(row) > 1 for part in ragged for row in part.rows)
    even = shape_batches([[100]] * 20, 2_000, packing=True, hidden_size=64)
    assert all(len(row) == 1 for part in even for row in part.rows)


def test_a_shared_beginning_ends_before_the_token_that_predicts() -> None:
    """The last token before the first taught one is never shared, even where all documents have it."""
    ids = np.arange(40)
    weights = np.zeros(40, dtype=np.float32)
    weights[30:] = 1
    same = Document(ids, weights)
    other = Document(np.concatenate([ids[:20], ids[20:] + 1]), weights)
    assert shared_beginning([same, same]) == 29
    assert shared_beginning([same, other]) == 20
    assert shared_beginning([same]) == 0


@pytest.mark.parametrize(("rows", "shared", "tokens"), [(3, 0, 30), (3, 4, 22)])
def test_shared_tokens_count_once(rows: int, shared: int, tokens: int) -> None:
    """A pass computes the shared beginning once and the rest for each row."""
    assert MicroBatch(tuple((i,) for i in range(rows)), 10, shared).tokens == tokens
