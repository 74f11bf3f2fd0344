"""Which values of a column more than one row has; the dataset may be larger than memory."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dropforge_core.dataset.likeness.columns import Columns, Digests

ROWS_A_PASS: Final = 2_000_000
"""Rows whose digests are held at once, about; 8 bytes each."""

_PIECE: Final = 1 << 18


class Known:
    """Some values, to be found again in a stream of rows."""

    def __init__(self, values: Digests) -> None:
        self.values = values
        """Ascending, each once."""

    def __len__(self) -> int:
        return len(self.values)

    def find(self, values: Digests) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(index into `values`, index into `self.values`) of each value that is known."""
        if not len(self.values):
            nothing = np.zeros(0, np.int64)
            return nothing, nothing
        at = np.flatnonzero((values >= self.values[0]) & (values <= self.values[-1]))
        sought = values[at]
        place = np.searchsorted(self.values, sought)
        hit = self.values[place] == sought
        return at[hit], place[hit]


def recurring(columns: Columns, name: str, rows_a_pass: int = ROWS_A_PASS) -> Iterator[Known]:
    """The values that more than one row has, of whatever side, range by range of the digests.

    Digests are spread evenly, so equal ranges hold about equally many. Empty ranges are left out.
    """
    bits = max(-(-columns.rows // rows_a_pass) - 1, 0).bit_length()
    for wanted in range(1 << bits):
        held = np.empty(_count(columns, name, bits, wanted), np.uint64)
        filled = 0
        for chunk in _in_range(columns, name, bits, wanted):
            held[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        held.sort()
        found = [_repeated(held[start : start + _PIECE + 1]) for start in range(0, len(held), _PIECE)]
        del held
        known = Known(np.unique(np.concatenate([*found, np.zeros(0, np.uint64)])))
        del found
        if len(known):
            yield known


def _repeated(values: Digests) -> Digests:
    repeated: Digests = np.unique(values[1:][values[1:] == values[:-1]])
    return repeated


def _count(columns: Columns, name: str, bits: int, wanted: int) -> int:
    return sum(len(chunk) for chunk in _in_range(columns, name, bits, wanted)) if bits else columns.rows


def _in_range(columns: Columns, name: str, bits: int, wanted: int) -> Iterator[Digests]:
    for _, values in columns.chunks(name):
        yield values[values >> np.uint64(64 - bits) == wanted] if bits else values


def numbered(slots: NDArray[Any], seen: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The how-manieth of its slot each entry is, from 1; `seen` counts on from call to call."""
    if not len(slots):
        return np.empty(0, np.uint32)
    order = np.argsort(slots, kind="stable")
    inside = slots[order]
    begins = np.flatnonzero(np.append(True, inside[1:] != inside[:-1]))
    lengths = np.diff(np.append(begins, len(inside)))
    out = np.empty(len(slots), np.uint32)
    out[order] = seen[inside] + (np.arange(1, len(inside) + 1) - np.repeat(begins, lengths)).astype(np.uint32)
    seen[inside[begins]] += lengths.astype(np.uint32)
    return out
