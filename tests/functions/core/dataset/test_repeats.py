"""Repetitions, contradictions and leaks, against the obvious quadratic answer, in any number of chunks and passes."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness_cases import digests

from dropforge_core.dataset.likeness.columns import ArrayColumns
from dropforge_core.dataset.likeness.recurring import recurring
from dropforge_core.dataset.likeness.repeats import conflicts, leaks, repeats

ROWS = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 6), st.integers(1, 4) | st.none()), max_size=40)
CHUNK = st.integers(1, 50)
PASS = st.integers(1, 50)


def columns_of(found, rows_a_chunk):
    return ArrayColumns(
        np.array([side for side, _, _ in found], np.uint8),
        {
            "whole": digests(whole for _, whole, _ in found),
            "prompt": digests(prompt or 0 for _, _, prompt in found),
        },
        rows_a_chunk,
    )


def as_lists(answer):
    return list(zip(*(column.tolist() for column in answer), strict=True))


@settings(deadline=None)
@given(ROWS, CHUNK, PASS)
def test_repeats_are_rows_seen_before_on_the_same_side(found, chunk, rows_a_pass):
    """Each repetition names the first of its kind and its own number, in the order of the rows."""
    wanted = []
    for row, (side, whole, _) in enumerate(found):
        same = [other for other in range(row) if found[other][:2] == (side, whole)]
        if same:
            wanted.append((row, same[0], len(same) + 1))
    assert as_lists(repeats(columns_of(found, chunk), rows_a_pass)) == wanted


@settings(deadline=None)
@given(ROWS, CHUNK, PASS)
def test_conflicts_are_prompts_answered_in_two_ways(found, chunk, rows_a_pass):
    """A row conflicts with the first row of its prompt where the answers differ; one without prompt with none."""
    wanted = []
    for row, (side, whole, prompt) in enumerate(found):
        same = [o for o in range(row) if prompt is not None and (found[o][0], found[o][2]) == (side, prompt)]
        if same and found[same[0]][1] != whole:
            wanted.append((row, same[0]))
    assert as_lists(conflicts(columns_of(found, chunk), rows_a_pass)) == wanted


@settings(deadline=None)
@given(ROWS, CHUNK, PASS)
def test_leaks_are_evaluation_prompts_that_are_trained_on(found, chunk, rows_a_pass):
    """By prompt where there is one, by the whole row where there is none."""
    wanted = []
    for row, (side, whole, prompt) in enumerate(found):
        if side == 1:
            same = [
                other
                for other, (theirs, their_whole, their_prompt) in enumerate(found)
                if theirs == 0 and (their_prompt == prompt if prompt is not None else their_whole == whole)
            ]
            if same:
                wanted.append((row, same[0]))
    assert as_lists(leaks(columns_of(found, chunk), rows_a_pass)) == wanted


@settings(deadline=None)
@given(st.lists(st.integers(0, 12), max_size=60), CHUNK, PASS)
def test_recurring_values_are_those_of_several_rows(numbers, chunk, rows_a_pass):
    """Each in exactly one pass, in ascending order."""
    columns = ArrayColumns(np.zeros(len(numbers), np.uint8), {"whole": digests(numbers)}, chunk)
    passes = [known.values.tolist() for known in recurring(columns, "whole", rows_a_pass)]
    together = [value for values in passes for value in values]
    assert together == sorted(
        {value for value in digests(numbers).tolist() if (digests(numbers) == value).sum() > 1}
    )
    assert all(passes)
