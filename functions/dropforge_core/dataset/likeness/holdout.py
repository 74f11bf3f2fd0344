"""Which rows are kept from training, so that the model can be judged on them.

Rows that resemble one another fall on the same side: groups of like prompts are taken whole, in the
order of a keyed hash of the group's representative. So a row keeps its side from one version of a
dataset to the next, as long as its group does; growing or shrinking the hold-out only adds groups
to it or takes some away.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import xxhash

from dropforge_core.dataset.likeness.similarity import Components
from dropforge_core.recipe import Evaluation

TRAIN: Final = 0
EVAL: Final = 1
LEFT_OUT: Final = 2
"""A second copy of a hold-out row: measured twice, it would weigh twice."""

_KEY: Final = 0x64726F70
"""Of the hash that orders groups. Changing it re-cuts everybody's hold-out."""

Basis = Literal["given", "similarity", "prompt", "row"]


@dataclass(frozen=True, slots=True)
class Cut:
    """A side for every row."""

    sides: bytearray
    basis: Basis

    def count(self, side: int) -> int:
        return self.sides.count(side)


def bounds(rows: int, rules: Evaluation) -> tuple[int, int]:
    """(fewest, most) rows of a hold-out; never more than half of all rows."""
    half = rows // 2
    return min(rules.min_holdout, half), min(rules.max_holdout, half)


def cut(
    prompts: "array[int]", rows: "Sequence[int]", alike: Components, compared: int, rules: Evaluation
) -> Cut:
    """Cut the hold-out from rows that are all for training.

    Args:
        prompts: 64-bit digest of each row's prompt, numbers folded.
        rows: 64-bit digest of each whole row.
        alike: which of the first `compared` rows belong together.
        compared: how many rows `alike` knows; only these can be held out.
        rules: the recipe's wishes.
    """
    together = Components(compared)
    first_with: dict[int, int] = {}
    for row in range(compared):
        together.join(row, alike.root(row))
        together.join(row, first_with.setdefault(prompts[row], row))
    by_likeness = [together.root(row) for row in range(compared)]
    sides = _take(by_likeness, prompts, rules)
    if sides is not None:
        return Cut(sides, "similarity")
    by_prompt = [first_with[prompts[row]] for row in range(compared)]
    sides = _take(by_prompt, prompts, rules)
    if sides is not None:
        return Cut(sides, "prompt")
    first_copy: dict[int, int] = {}
    by_row = [first_copy.setdefault(rows[row], row) for row in range(compared)]
    return Cut(_take(by_row, rows, rules) or bytearray(len(rows)), "row")


def _take(groups: Sequence[int], names: Sequence[int], rules: Evaluation) -> bytearray | None:
    """Sides where whole groups are held out, or None where they are too few or too large for that."""
    size: dict[int, int] = {}
    name: dict[int, int] = {}
    for row, group in enumerate(groups):
        size[group] = size.get(group, 0) + 1
        name[group] = min(name.get(group, names[row]), names[row])
    fewest, most = bounds(len(groups), rules)
    aim = max(min(round(rules.holdout_fraction * len(groups)), most), fewest)
    # One large group would be most of what is measured; it stays in training.
    largest = max(aim // 4, 1)
    until = int(rules.holdout_fraction * 2**64)
    held: set[int] = set()
    taken = 0
    for place, group in sorted((_place(name[group]), group) for group in size):
        if taken >= fewest and place >= until:
            break
        if size[group] <= largest and taken + size[group] <= most:
            held.add(group)
            taken += size[group]
    if taken < fewest or not taken:
        return None
    sides = bytearray(len(names))
    for row, group in enumerate(groups):
        if group in held:
            sides[row] = EVAL
    # A row that was not compared, but has a held-out prompt, may be on neither side.
    known = {names[row] for row, group in enumerate(groups) if group in held}
    for row in range(len(groups), len(names)):
        sides[row] = LEFT_OUT if names[row] in known else TRAIN
    return sides


def _place(name: int) -> int:
    return xxhash.xxh3_64_intdigest(name.to_bytes(8, "big"), seed=_KEY)
