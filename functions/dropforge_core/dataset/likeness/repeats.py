"""Exact repetitions, contradictions and leaks, by 64-bit digests of rows and prompts.

Two different rows meet by chance with a probability of n^2 / 2^65: one in a million for six million
rows. Beside the answer, which is some 8 bytes for each row of the dataset, no more is held than the
digests of one range (`recurring.ROWS_A_PASS`).
"""

from typing import Final, NamedTuple

import numpy as np

from dropforge_core.dataset.likeness.columns import EVAL, TRAIN, Columns, Rows
from dropforge_core.dataset.likeness.recurring import ROWS_A_PASS, numbered, recurring

NOTHING: Final = np.uint32(0xFFFF_FFFF)


class Repeats(NamedTuple):
    """Rows that repeat an earlier one of their side, ascending by row; all arrays of one length."""

    row: Rows
    first: Rows
    """The row that is repeated, an ordinal like `row`."""
    copy: Rows
    """2 for the second of its kind, 3 for the third."""


class Meetings(NamedTuple):
    """Rows and the first row that each meets, ascending by row; both arrays of one length."""

    row: Rows
    first: Rows


def repeats(columns: Columns, rows_a_pass: int = ROWS_A_PASS) -> Repeats:
    """Rows whose messages an earlier row of the same side has, too (column `whole`)."""
    first = np.zeros(columns.rows, np.uint32)
    copy = np.zeros(columns.rows, np.uint32)
    for known in recurring(columns, "whole", rows_a_pass):
        firsts = np.full(2 * len(known), NOTHING)
        seen = np.zeros(2 * len(known), np.uint32)
        for start, values in columns.chunks("whole"):
            at, group = known.find(values)
            rows = start + at
            slots = 2 * group + columns.sides[rows]
            np.minimum.at(firsts, slots, rows.astype(np.uint32))
            first[rows] = firsts[slots]
            copy[rows] = numbered(slots, seen)
    found = np.flatnonzero(copy > 1).astype(np.uint32)
    return Repeats(found, first[found], copy[found])


def conflicts(columns: Columns, rows_a_pass: int = ROWS_A_PASS) -> Meetings:
    """Rows whose prompt the named row of the same side answers in another way.

    Columns `prompt` (0 for a row without one, which can't conflict) and `whole`.
    """
    first = np.full(columns.rows, NOTHING)
    for known in recurring(columns, "prompt", rows_a_pass):
        firsts = np.full(2 * len(known), NOTHING)
        answers = np.zeros(2 * len(known), np.uint64)
        for (start, prompts), (_, wholes) in zip(
            columns.chunks("prompt"), columns.chunks("whole"), strict=True
        ):
            at, group = known.find(prompts)
            at, group = at[prompts[at] != 0], group[prompts[at] != 0]
            rows = (start + at).astype(np.uint32)
            slots = 2 * group + columns.sides[rows]
            np.minimum.at(firsts, slots, rows)
            own = firsts[slots] == rows
            answers[slots[own]] = wholes[at[own]]
            other = answers[slots] != wholes[at]
            first[rows[other]] = firsts[slots[other]]
    return _meetings(first)


def leaks(columns: Columns, rows_a_pass: int = ROWS_A_PASS) -> Meetings:
    """Evaluation rows and the first training row with the same prompt; by the whole row where it has no prompt."""
    first = np.full(columns.rows, NOTHING)
    if not {TRAIN, EVAL} <= set(np.unique(columns.sides).tolist()):
        return _meetings(first)
    for column in ("prompt", "whole"):
        for known in recurring(columns, column, rows_a_pass):
            trained = np.full(len(known), NOTHING)
            for start, values in columns.chunks(column):
                at, group = known.find(values)
                mine = columns.sides[start + at] == TRAIN
                np.minimum.at(trained, group[mine], (start + at[mine]).astype(np.uint32))
            for (start, values), (_, prompts) in zip(
                columns.chunks(column), columns.chunks("prompt"), strict=True
            ):
                at, group = known.find(values)
                of_interest = (prompts[at] != 0) == (column == "prompt")
                mine = of_interest & (columns.sides[start + at] == EVAL)
                first[start + at[mine]] = trained[group[mine]]
    return _meetings(first)


def _meetings(first: Rows) -> Meetings:
    rows = np.flatnonzero(first != NOTHING).astype(np.uint32)
    return Meetings(rows, first[rows])
