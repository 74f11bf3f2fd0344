"""What the survey of one part found, as a file; and the files of all parts as columns of rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from dropforge_core.dataset.balance import BalanceState
from dropforge_core.dataset.languages import LanguageState
from dropforge_core.dataset.problems import Tally
from dropforge_core.dataset.reading.parts import Part
from dropforge_core.dataset.tokens import TallyState

Column = npt.NDArray[Any]

CHUNK_ROWS: Final = 1 << 17
"""Rows whose values are in memory at once."""

_BLOCK_ROWS: Final = 1 << 12

_SIDE: Final = {"train": 0, "eval": 1}


class Tallies(msgspec.Struct, frozen=True):
    """What counts rows, as states that can be merged."""

    private: dict[str, int]
    """Rows by code of what private data they have."""
    tokens: TallyState
    balance: BalanceState
    languages: LanguageState | None
    """None where languages are not looked at."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What one part holds. Lines are counted from the part's beginning."""

    part: Part
    lines: int
    """Physical lines of the part (of Parquet: rows), so that those of later parts can be told."""
    rows: int
    """Rows read, faulty ones too."""
    faulty: int
    bytes: int
    """Decompressed bytes."""
    problems: Tally
    tallies: "Tallies"
    columns: Mapping[str, Column]
    """One value, or one row of values, for each valid row: `line`, `whole`, `content`, `size`, and where
    they are needed `prompt` and what `likeness` compares."""

    @property
    def valid(self) -> int:
        return len(self.columns["line"])

    def save(self, folder: Path) -> Path:
        """Write the file of this part; answers its path."""
        arrays = {name: np.ascontiguousarray(values) for name, values in self.columns.items()}
        header = msgspec.msgpack.encode(
            {
                "part": self.part,
                "lines": self.lines,
                "rows": self.rows,
                "faulty": self.faulty,
                "bytes": self.bytes,
                "valid": self.valid,
                "notes": self.problems.state(),
                "tallies": self.tallies,
                "columns": [(name, values.dtype.str, values.shape[1:]) for name, values in arrays.items()],
            }
        )
        path = folder / file_name(self.part.index)
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little"))
            file.write(header)
            for values in arrays.values():
                values.tofile(file)
        return path


def file_name(part: int) -> str:
    """Of the findings of the part with that index."""
    return f"{part:05d}.findings"


class Header(msgspec.Struct, frozen=True):
    part: Part
    lines: int
    rows: int
    faulty: int
    bytes: int
    valid: int
    notes: Any
    tallies: Tallies
    columns: list[tuple[str, str, list[int]]]

    @property
    def problems(self) -> Tally:
        return Tally.of(self.notes)


_decode_header = msgspec.msgpack.Decoder(Header).decode


class _Stored:
    """One file of findings; its columns are read piece by piece."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            self.header = _decode_header(file.read(size))
        self._places: dict[str, tuple[int, np.dtype[Any], tuple[int, ...]]] = {}
        offset = 8 + size
        for name, kind, shape in self.header.columns:
            dtype = np.dtype(kind)
            self._places[name] = (offset, dtype, tuple(shape))
            offset += self.header.valid * dtype.itemsize * int(np.prod(shape, dtype=np.int64))

    def read(self, name: str, start: int, stop: int) -> Column:
        offset, dtype, shape = self._places[name]
        width = int(np.prod(shape, dtype=np.int64))
        values = np.fromfile(
            self._path,
            dtype,
            count=(stop - start) * width,
            offset=offset + start * width * dtype.itemsize,
        )
        return values.reshape((stop - start, *shape))

    def take(self, name: str, rows: Column) -> Column:
        """Values of some rows, ascending. Blocks small enough for the cache of a core are read, others passed over.

        Not mapped into memory: scattered rows would leave most of the file there.
        """
        offset, dtype, shape = self._places[name]
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        block = np.empty((_BLOCK_ROWS, *shape), dtype)
        found = np.empty((len(rows), *shape), dtype)
        blocks = rows // _BLOCK_ROWS
        edges = [0, *(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(rows)] if len(rows) else []
        with self._path.open("rb", buffering=0) as file:
            for low, high in pairwise(edges):
                start = int(blocks[low]) * _BLOCK_ROWS
                first, last = int(rows[low]) - start, int(rows[high - 1]) - start
                file.seek(offset + (start + first) * size)
                file.readinto(block[first : last + 1].data.cast("B"))
                found[low:high] = block[rows[low:high] - start]
        return found


class StoredColumns:
    """The columns of all valid rows, on disk. A row's ordinal is its place in the order of parts and rows."""

    def __init__(self, folder: Path, parts: Sequence[Part], sides: Sequence[str]) -> None:
        """Open the findings of all parts.

        Args:
            folder: where `Findings.save` put them.
            parts: all, in order.
            sides: `train` or `eval` for every file.
        """
        self._stored = [_Stored(folder / file_name(part.index)) for part in parts]
        counts = [stored.header.valid for stored in self._stored]
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        """First ordinal of each part, and the number of all rows."""
        self.rows = int(self.starts[-1])
        by_part = np.array([_SIDE[sides[part.file]] for part in parts], np.uint8)
        self.sides = np.repeat(by_part, counts)
        self._lines_before = self._count_lines_before()

    def _count_lines_before(self) -> list[int]:
        before: list[int] = []
        lines: dict[int, int] = {}
        for stored in self._stored:
            file = stored.header.part.file
            before.append(lines.get(file, 0))
            lines[file] = before[-1] + stored.header.lines
        return before

    def parts(self) -> Iterator[tuple[Header, int]]:
        """(what was counted, lines of the file before it) of every part in order."""
        return zip((stored.header for stored in self._stored), self._lines_before, strict=True)

    def chunks(self, name: str) -> Iterator[tuple[int, Column]]:
        """(first ordinal, values) in order, at most `CHUNK_ROWS` at a time."""
        for stored, first in zip(self._stored, self.starts, strict=False):
            for start in range(0, stored.header.valid, CHUNK_ROWS):
                stop = min(start + CHUNK_ROWS, stored.header.valid)
                yield int(first) + start, stored.read(name, start, stop)

    def take(self, name: str, rows: Column) -> Column:
        """Values of some rows, given by ascending ordinals."""
        cuts = np.searchsorted(rows, self.starts)
        pieces = [
            stored.take(name, rows[begin:end] - first)
            for stored, first, begin, end in zip(self._stored, self.starts, cuts, cuts[1:], strict=False)
            if begin < end
        ]
        if not pieces and self._stored:
            pieces.append(self._stored[0].read(name, 0, 0))
        return np.concatenate(pieces) if pieces else np.empty(0)

    def gather(self, name: str, rows: Column) -> Column:
        """Values of some rows, given by ordinals in any order."""
        ascending, back = np.unique(rows, return_inverse=True)
        return self.take(name, ascending)[back]

    def has(self, name: str) -> bool:
        """Whether that column was made."""
        return any(name == column for stored in self._stored for column, _, _ in stored.header.columns)

    def of_part(self, index: int, name: str) -> Column:
        """Values of all rows of one part."""
        stored = self._stored[index]
        return stored.read(name, 0, stored.header.valid)

    def places(self, rows: Column) -> tuple[Column, Column]:
        """(file, line) of some rows, given by ordinals in any order."""
        ascending, back = np.unique(rows, return_inverse=True)
        part = np.searchsorted(self.starts, ascending, side="right") - 1
        files = np.array([stored.header.part.file for stored in self._stored], np.int64)[part]
        before = np.array(self._lines_before, np.int64)[part]
        lines = before + self.take("line", ascending).astype(np.int64)
        return files[back], lines[back]
