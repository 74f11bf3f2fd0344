"""A sample of rows that is the same however a dataset is split."""

from typing import Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Entry = TypeVar("Entry")

HIGHEST: Final = (1 << 64) - 1
"""The highest digest: nothing was left out."""


def bound_for(rows: float, size: int) -> int:
    """A bound on digests under which a dataset of about so many rows has half as many again as `size`.

    It spares the parts of a large dataset each a whole sample of its own, of which most is left out when they
    are merged. Where there are fewer rows than was thought, the sample is smaller.
    """
    return HIGHEST if rows <= 1.5 * size else int(HIGHEST * 1.5 * size / rows)


class Lowest(Generic[Entry]):
    """The different rows with the lowest digests: as good as drawn at random, and the same in every order.

    The lowest of a whole are among the lowest of its parts, so two samples become that of both.
    """

    def __init__(self, size: int, bound: int = HIGHEST) -> None:
        self.size = size
        self.entries: dict[int, Entry] = {}
        """By digest. Between calls of `settle` these may be up to twice as many as asked for."""
        self.bound = bound
        """Every row with a digest up to this is among the entries."""

    @property
    def has_all(self) -> bool:
        """Whether no row was left out."""
        return self.bound == HIGHEST

    def wanted(self, digests: NDArray[np.uint64]) -> list[int]:
        """Places of the rows that belong to the sample as far as is known; each must become an entry."""
        if len(self.entries) >= 2 * self.size:
            self.settle()
        if self.has_all:
            return list(range(len(digests)))
        found: list[int] = np.flatnonzero(digests <= np.uint64(self.bound)).tolist()
        return found

    def settle(self) -> None:
        """Leave out all but the lowest."""
        if len(self.entries) > self.size:
            kept = sorted(self.entries)[: self.size]
            self.bound = kept[-1]
            self.entries = {digest: self.entries[digest] for digest in kept}

    def lower(self, bound: int) -> None:
        """Leave out what is above the bound of a sample that is to be merged with this one."""
        if bound < self.bound:
            self.bound = bound
            self.entries = {digest: entry for digest, entry in self.entries.items() if digest <= bound}
