"""Whether a few rows, or one answer, outweigh all others. Constant memory; what parts found can be merged."""

from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from dropforge_core.dataset.faults import Fault
from dropforge_core.recipe import DatasetRules

_MOST_ANSWERS: Final = 50
"""With more different answers than this the task is no classification."""
_FEWEST_ROWS: Final = 100
_FEW_ROWS: Final = 0.01
_POWERS: Final = 1 << np.arange(63, dtype=np.int64)


class Rows(Protocol):
    """Valid rows that follow one another, as `rows.columns.RowBlock` has them."""

    @property
    def encoded(self) -> Sequence[bytes]: ...
    def sizes(self) -> NDArray[np.int64]: ...
    def answers(self) -> Sequence[str]: ...
    def __len__(self) -> int: ...


class BalanceState(msgspec.Struct):
    """What a balance has taken, as plain values for another process."""

    rows: list[int] = msgspec.field(default_factory=lambda: [0] * 64)
    """By the power of two that a row's bytes stay below."""
    bytes: list[int] = msgspec.field(default_factory=lambda: [0] * 64)
    answers: dict[int, int] | None = msgspec.field(default_factory=dict)
    """Rows by the digest of their answer; None where there are too many different ones."""


class Balance:
    """Sizes by power of two, and answers while they are few."""

    def __init__(self) -> None:
        self._taken = BalanceState()

    def add(self, rows: Rows) -> None:
        """Take the rows of a block."""
        if not len(rows):
            return
        sizes = rows.sizes()
        powers = np.searchsorted(_POWERS, sizes, side="right")
        # Sums of whole numbers far below 2^53 are exact as doubles.
        self._add_sizes(
            np.bincount(powers, minlength=64).tolist(),
            np.bincount(powers, weights=sizes, minlength=64).astype(np.int64).tolist(),
        )
        if self._taken.answers is None:
            return
        found: dict[int, int] = {}
        for answer in rows.answers():
            digest = xxhash.xxh3_64_intdigest(answer.encode())
            found[digest] = found.get(digest, 0) + 1
            if len(found) > _MOST_ANSWERS:
                self._taken.answers = None
                return
        self._add_answers(found)

    def state(self) -> BalanceState:
        """What another process needs of this balance. MessagePack and JSON take it as it is."""
        return self._taken

    @classmethod
    def from_state(cls, state: BalanceState) -> "Balance":
        """The balance whose state it was."""
        made = cls()
        made._add(state)
        return made

    def merge(self, other: "Balance") -> None:
        """Take what another balance took."""
        self._add(other.state())

    def _add(self, state: BalanceState) -> None:
        self._add_sizes(state.rows, state.bytes)
        self._add_answers(state.answers)

    def _add_sizes(self, rows: Sequence[int], sizes: Sequence[int]) -> None:
        mine = self._taken
        mine.rows = [left + right for left, right in zip(mine.rows, rows, strict=True)]
        mine.bytes = [left + right for left, right in zip(mine.bytes, sizes, strict=True)]

    def _add_answers(self, answers: dict[int, int] | None) -> None:
        mine = self._taken.answers
        if answers is None or mine is None:
            self._taken.answers = None
            return
        for digest, count in answers.items():
            mine[digest] = mine.get(digest, 0) + count
        if len(mine) > _MOST_ANSWERS:
            self._taken.answers = None

    def faults(self, rules: DatasetRules) -> Iterator[Fault]:
        """What is out of balance by a recipe's rules; nothing below a hundred rows."""
        rows, size = sum(self._taken.rows), sum(self._taken.bytes)
        if rows < _FEWEST_ROWS:
            return
        few = much = 0
        for power in reversed(range(64)):
            few += self._taken.rows[power]
            much += self._taken.bytes[power]
            if few > _FEW_ROWS * rows:
                break
            if much > rules.long_rows_share * size:
                yield Fault(
                    "LENGTH_IMBALANCE", "", f"{few:,} row{'s'[few == 1 :]} with {much / size:.0%} of all text"
                )
                break
        answers = self._taken.answers
        if answers is not None and len(answers) > 1:
            most = max(answers.values())
            if most > rules.frequent_answer_share * rows:
                yield Fault("ANSWER_IMBALANCE", "", f"one answer in {most / rows:.0%} of the rows")
