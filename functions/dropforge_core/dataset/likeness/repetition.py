"""Exact repetitions, contradictions and leaks, by 64-bit digests of rows and prompts.

About 28 bytes a row, in 256 partitions that are looked through one after another. Two different
rows meet by chance with a probability of n^2 / 2^65: one in a million for six million rows.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final, NamedTuple

_PARTITIONS: Final = 256
EVAL: Final = 1


class Repeat(NamedTuple):
    row: int
    first: int
    """The row that it repeats, an ordinal like `row`."""
    copy: int
    """2 for the second of its kind, 3 for the third."""


class RowIndex:
    """Every valid row in the order read; a row's ordinal is its place in that order."""

    def __init__(self) -> None:
        self.sides = bytearray()
        """0 for training, 1 for evaluation."""
        self._lines = array("I")
        self._starts: list[int] = []
        self._files: list[str] = []
        self._whole = [array("Q") for _ in range(_PARTITIONS)]
        self._whole_rows = [array("I") for _ in range(_PARTITIONS)]
        self._prompts = [array("Q") for _ in range(_PARTITIONS)]
        self._prompt_rows = [array("I") for _ in range(_PARTITIONS)]
        self._prompt_answers = [array("Q") for _ in range(_PARTITIONS)]

    def __len__(self) -> int:
        return len(self.sides)

    def start_file(self, name: str) -> None:
        """Rows added from here on are of this file."""
        self._files.append(name)
        self._starts.append(len(self))

    def add(self, line: int, side: int, whole: int, prompt: int | None) -> None:
        """A row with its 64-bit digests; `prompt` is None where the row has nothing before its answer."""
        row = len(self.sides)
        self.sides.append(side)
        self._lines.append(line)
        part = whole & 0xFF
        self._whole[part].append(whole)
        self._whole_rows[part].append(row)
        if prompt is not None:
            part = prompt & 0xFF
            self._prompts[part].append(prompt)
            self._prompt_rows[part].append(row)
            self._prompt_answers[part].append(whole)

    def place(self, row: int) -> tuple[str, int]:
        """File and line of a row."""
        return self._files[bisect_right(self._starts, row) - 1], self._lines[row]

    def repeats(self) -> Iterator[Repeat]:
        """Rows whose messages an earlier row of the same side has, too."""
        for digests, rows in zip(self._whole, self._whole_rows, strict=True):
            seen: dict[tuple[int, int], list[int]] = {}
            for digest, row in zip(digests, rows, strict=True):
                first = seen.setdefault((digest, self.sides[row]), [row, 0])
                first[1] += 1
                if first[1] > 1:
                    yield Repeat(row, first[0], first[1])

    def conflicts(self) -> Iterator[tuple[int, int]]:
        """(row, first row with the same prompt and another answer), same side."""
        for digests, rows, answers in zip(
            self._prompts, self._prompt_rows, self._prompt_answers, strict=True
        ):
            seen: dict[tuple[int, int], tuple[int, int]] = {}
            for digest, row, answer in zip(digests, rows, answers, strict=True):
                first, known = seen.setdefault((digest, self.sides[row]), (row, answer))
                if answer != known:
                    yield row, first

    def leaks(self) -> Iterator[tuple[int, int]]:
        """(evaluation row, first training row) with the same prompt; by the whole row where it has no prompt."""
        if EVAL not in self.sides or 0 not in self.sides:
            return
        prompted = bytearray(len(self))
        for rows in self._prompt_rows:
            for row in rows:
                prompted[row] = 1
        pairs = zip([*self._prompts, *self._whole], [*self._prompt_rows, *self._whole_rows], strict=True)
        for index, (digests, rows) in enumerate(pairs):
            trained: dict[int, int] = {}
            for digest, row in zip(digests, rows, strict=True):
                if self.sides[row] != EVAL:
                    trained.setdefault(digest, row)
            for digest, row in zip(digests, rows, strict=True):
                of_interest = index < _PARTITIONS or not prompted[row]
                if of_interest and self.sides[row] == EVAL and digest in trained:
                    yield row, trained[digest]
