"""What is known of every valid row, column by column."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

TRAIN: Final = 0
EVAL: Final = 1

Rows = NDArray[np.uint32]
"""Ordinals of rows."""
Digests = NDArray[np.uint64]


class Columns(Protocol):
    """Columns of all rows of a dataset; a row's ordinal is its place in reading order.

    Likeness reads these: `whole`, `prompt` and `folded` (uint64), `signature` (uint8, 64 wide), `least`
    (uint32, 16 wide). They may be larger than memory.
    """

    @property
    def rows(self) -> int: ...

    @property
    def sides(self) -> NDArray[np.uint8]:
        """`TRAIN` or `EVAL` for each row."""
        ...

    def chunks(self, name: str) -> Iterator[tuple[int, NDArray[Any]]]:
        """(ordinal of the first, values) from the first row to the last; some 100,000 rows at a time.

        The chunks of all columns begin at the same rows.
        """
        ...

    def take(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        """The values of some rows, given by their ordinals, ascending."""
        ...


class ArrayColumns:
    """Columns in memory."""

    def __init__(
        self, sides: NDArray[np.uint8], values: Mapping[str, NDArray[Any]], rows_a_chunk: int = 100_000
    ) -> None:
        self._sides = sides
        self._values = values
        self._rows_a_chunk = rows_a_chunk

    @property
    def rows(self) -> int:
        return len(self._sides)

    @property
    def sides(self) -> NDArray[np.uint8]:
        return self._sides

    def chunks(self, name: str) -> Iterator[tuple[int, NDArray[Any]]]:
        for first in range(0, self.rows, self._rows_a_chunk):
            yield first, self._values[name][first : first + self._rows_a_chunk]

    def take(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        out: NDArray[Any] = self._values[name][rows]
        return out
