"""Repetitions, contradictions and leaks, against the obvious quadratic answer."""

from hypothesis import given
from hypothesis import strategies as st

from dropforge_core.dataset.likeness.repetition import RowIndex

rows = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5), st.integers(0, 3) | st.none()), max_size=30)


def index_of(found):
    index = RowIndex()
    index.start_file("one")
    for number, (side, whole, prompt) in enumerate(found):
        # Digests that share their lowest byte meet in one partition, like any others.
        index.add(number + 1, side, whole << 8, None if prompt is None else prompt << 8)
    return index


@given(rows)
def test_repeats_are_rows_seen_before_on_the_same_side(found):
    """Each repetition names the first of its kind and its own number."""
    index = index_of(found)
    wanted = {}
    for row, (side, whole, _) in enumerate(found):
        same = [other for other in range(row) if found[other][:2] == (side, whole)]
        if same:
            wanted[row] = (same[0], len(same) + 1)
    assert {repeat.row: (repeat.first, repeat.copy) for repeat in index.repeats()} == wanted


@given(rows)
def test_conflicts_are_prompts_answered_in_two_ways(found):
    """A row conflicts with the first row of its prompt where the answers differ."""
    wanted = set()
    for row, (side, whole, prompt) in enumerate(found):
        same = [o for o in range(row) if prompt is not None and (found[o][0], found[o][2]) == (side, prompt)]
        if same and found[same[0]][1] != whole:
            wanted.add((row, same[0]))
    assert set(index_of(found).conflicts()) == wanted


@given(rows)
def test_leaks_are_evaluation_prompts_that_are_trained_on(found):
    """By prompt where there is one, by the whole row where there is none."""
    wanted = set()
    for row, (side, whole, prompt) in enumerate(found):
        if side == 1:
            same = [
                other
                for other, (theirs, their_whole, their_prompt) in enumerate(found)
                if theirs == 0 and (their_prompt == prompt if prompt is not None else their_whole == whole)
            ]
            if same:
                wanted.add((row, same[0]))
    assert set(index_of(found).leaks()) == wanted


@given(st.lists(st.integers(0, 4), max_size=8))
def test_a_row_is_placed_in_its_file(sizes):
    """File and line of a row are right, also around empty files."""
    index, wanted = RowIndex(), []
    for number, size in enumerate(sizes):
        index.start_file(f"file-{number}")
        for line in range(size):
            index.add(line + 1, 0, len(wanted), None)
            wanted.append((f"file-{number}", line + 1))
    assert [index.place(row) for row in range(len(wanted))] == wanted
