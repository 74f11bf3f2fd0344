"""Whether a few rows, or one answer, outweigh all others. Constant memory."""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from dropforge_core.dataset.faults import Fault

_MOST_ANSWERS: Final = 50
"""With more different answers than this the task is no classification."""
_FEWEST_ROWS: Final = 100
_FREQUENT: Final = 0.9
_FEW_ROWS: Final = 0.01
_MUCH: Final = 0.5


class Balance:
    """Sizes by power of two, and answers while they are few."""

    def __init__(self) -> None:
        self._rows = [0] * 64
        self._bytes = [0] * 64
        self._answers: Counter[str] | None = Counter()

    def add(self, size: int, answer: str) -> None:
        power = size.bit_length()
        self._rows[power] += 1
        self._bytes[power] += size
        if self._answers is not None:
            self._answers[answer] += 1
            if len(self._answers) > _MOST_ANSWERS:
                self._answers = None

    def faults(self) -> Iterator[Fault]:
        """What is out of balance; nothing below a hundred rows."""
        rows, size = sum(self._rows), sum(self._bytes)
        if rows < _FEWEST_ROWS:
            return
        few = much = 0
        for power in reversed(range(64)):
            few += self._rows[power]
            much += self._bytes[power]
            if few > _FEW_ROWS * rows:
                break
            if much > _MUCH * size:
                yield Fault("LENGTH_IMBALANCE", "", f"{few:,} rows with {much / size:.0%} of all text")
                break
        if self._answers is not None and len(self._answers) > 1:
            most = self._answers.most_common(1)[0][1]
            if most > _FREQUENT * rows:
                yield Fault("ANSWER_IMBALANCE", "", f"one answer in {most / rows:.0%} of the rows")
