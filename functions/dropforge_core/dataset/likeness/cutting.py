"""Which rows are kept from training, so that the model can be judged on them.

Rows that resemble one another fall on the same side: groups of like prompts are taken whole, in the
order of a keyed hash of the group's representative (the smallest digest of its prompts). A row's
side depends on what is in the dataset, not on the order of its rows.

When a dataset grows, no row that was trained on is held out, so that a champion is never judged on
what it has seen, and a held-out row goes to training only as the hold-out makes room for new ones.
Exceptions, all bounded: rows whose group the new rows join, merge or make large; groups that were too large for
the smaller dataset's hold-out; and hold-outs so near their upper bound (`max_holdout`, or half of the rows) that a
group was passed over because it would not fit.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from dropforge_core.dataset.likeness.columns import EVAL, Columns, Rows
from dropforge_core.dataset.likeness.recurring import recurring
from dropforge_core.dataset.likeness.repeats import NOTHING
from dropforge_core.recipe import Evaluation

LEFT_OUT: Final = 2
"""A second copy of a hold-out row: measured twice, it would weigh twice."""

_KEY: Final = np.uint64(0x64726F70)
"""Of the hash that orders groups. Changing it re-cuts everybody's hold-out."""
_MURMUR: Final = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))
_PIECE: Final = 1 << 18

Basis = Literal["given", "similarity", "prompt", "row"]


@dataclass(frozen=True, slots=True)
class Cut:
    """A side for every row: `TRAIN`, `EVAL` or `LEFT_OUT`."""

    sides: NDArray[np.uint8]
    basis: Basis

    def leave_out(self, copies: Rows) -> None:
        """Leave out those of some rows that are held out."""
        self.sides[copies[self.sides[copies] == EVAL]] = LEFT_OUT

    def count(self, side: int) -> int:
        return int(np.count_nonzero(self.sides == side))


def cut(columns: Columns, group: Rows, rules: Evaluation, wanted: float) -> Cut:
    """Cut the hold-out from rows that are all for training.

    Its size is `wanted`, at most `max_holdout` and about `holdout_fraction` of the rows, at least `min_holdout`,
    and never more than half of the rows. No group larger than a quarter of it is taken, nor, down to a sixteenth, one
    that could go beyond `max_holdout`. Where groups of alike
    rows are too few or too large for `min_holdout`, groups of equal prompts (numbers folded) are cut, and where these are, too,
    single rows.

    Needs about 15 bytes a row beside the columns.

    Args:
        columns: `folded`, and `whole` for a cut by single rows.
        group: `nearness.Nearness.group`.
        rules: the recipe's wishes.
        wanted: rows that the gate needs, as `gate.sampling.rows_needed` tells.
    """
    size = _Size.of(columns.rows, rules, wanted)
    sides = _take(columns, "folded", group, size)
    if sides is not None:
        return Cut(sides, "similarity")
    sides = _take(columns, "folded", _equal(columns, "folded"), size)
    if sides is not None:
        return Cut(sides, "prompt")
    sides = _take(columns, "whole", _equal(columns, "whole"), size)
    return Cut(np.zeros(columns.rows, np.uint8) if sides is None else sides, "row")


@dataclass(frozen=True, slots=True)
class _Size:
    fewest: int
    enough: int
    most: int
    largest: int
    """Rows of a group; one larger would be most of what is measured."""
    share: float
    """Of all groups, those before this share of the order."""

    @classmethod
    def of(cls, rows: int, rules: Evaluation, wanted: float) -> "_Size":
        half = rows // 2
        fewest, most = min(rules.min_holdout, half), min(rules.max_holdout, half)
        enough = max(min(math.ceil(min(wanted, rows)), most), fewest)
        about = max(min(round(rules.holdout_fraction * rows), enough), fewest)
        # Up to the bound no group is passed over, so that what a new one displaces makes room for none.
        largest = max(min(about // 4, rules.max_holdout - enough), about // 16, 1)
        return cls(fewest, enough, most, largest, rules.holdout_fraction)


def _take(columns: Columns, names: str, group: Rows, size: _Size) -> NDArray[np.uint8] | None:
    """Sides where whole groups are held out, or None where they are too few or too large for that."""
    sizes = np.zeros(columns.rows, np.uint32)
    name = np.full(columns.rows, np.uint64(0xFFFF_FFFF_FFFF_FFFF))
    for start, values in columns.chunks(names):
        mine = group[start : start + len(values)]
        np.add.at(sizes, mine, np.uint32(1))
        np.minimum.at(name, mine, values)
    share = size.share
    held, taken = _first_of(sizes, name, size, share)
    while taken < size.fewest and share < 1:
        # Too few before the recipe's share of the order: groups beyond it, as many as are needed.
        share = min(4 * share, 1.0)
        held, taken = _first_of(sizes, name, size, share)
    if taken < size.fewest or not taken:
        return None
    chosen = np.zeros(columns.rows, np.uint8)
    chosen[held] = EVAL
    for start in range(0, columns.rows, _PIECE):
        # A group's first row is the smallest: it has been looked at when the others ask.
        chosen[start : start + _PIECE] = chosen[group[start : start + _PIECE]]
    return chosen


def _first_of(sizes: Rows, name: NDArray[np.uint64], size: _Size, share: float) -> tuple[list[int], int]:
    """Groups in their order up to a share of it, and how many rows they have."""
    places, groups = [], []
    for start in range(0, len(sizes), _PIECE):
        inside = sizes[start : start + _PIECE]
        candidates = start + np.flatnonzero((inside > 0) & (inside <= size.largest))
        place = _place(name[candidates])
        before = place <= np.uint64(min(int(share * 2**64), 2**64 - 1))
        places.append(place[before])
        groups.append(candidates[before])
    place, group = np.concatenate(places), np.concatenate(groups)
    order = np.lexsort((group, place))
    held, taken = [], 0
    until = int(size.share * 2**64)
    for index in order.tolist():
        if taken >= size.enough or (taken >= size.fewest and int(place[index]) >= until):
            break
        rows = int(sizes[group[index]])
        if taken + rows <= size.most:
            held.append(int(group[index]))
            taken += rows
    return held, taken


def _equal(columns: Columns, name: str) -> Rows:
    """For every row the first one with the same value."""
    out = np.arange(columns.rows, dtype=np.uint32)
    for known in recurring(columns, name):
        firsts = np.full(len(known), NOTHING)
        for start, values in columns.chunks(name):
            at, place = known.find(values)
            np.minimum.at(firsts, place, (start + at).astype(np.uint32))
            out[start + at] = firsts[place]
    return out


def _place(names: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """MurmurHash3's finaliser (Appleby 2011) of the keyed name."""
    out = names ^ _KEY
    for multiplier in _MURMUR:
        out = (out ^ (out >> np.uint64(33))) * multiplier
    place: NDArray[np.uint64] = out ^ (out >> np.uint64(33))
    return place
