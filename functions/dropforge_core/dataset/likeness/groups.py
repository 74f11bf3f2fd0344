"""Which rows belong together: union-find over arrays, many pairs at once."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dropforge_core.dataset.likeness.columns import Rows


class Groups:
    """Rows 0 to `size` - 1, each alone at first; 4 bytes a row."""

    def __init__(self, size: int) -> None:
        self._above: Rows = np.arange(size, dtype=np.uint32)

    def roots(self, rows: NDArray[Any]) -> Rows:
        """The smallest row of each row's group."""
        at: Rows = rows.astype(np.uint32)
        while True:
            above = self._above[at]
            higher = self._above[above]
            if np.array_equal(above, higher):
                return above
            self._above[at] = higher
            at = higher

    def join(self, ones: NDArray[Any], others: NDArray[Any]) -> None:
        """Put each pair into one group."""
        while len(ones):
            first, second = self.roots(ones), self.roots(others)
            apart = first != second
            first, second = first[apart], second[apart]
            np.minimum.at(self._above, np.maximum(first, second), np.minimum(first, second))
            ones, others = first, second

    def all_roots(self) -> Rows:
        """The smallest row of every row's group. The groups themselves are given away and used no more."""
        for start in range(0, len(self._above), 1 << 18):
            rows = np.arange(start, min(start + (1 << 18), len(self._above)), dtype=np.uint32)
            self._above[rows] = self.roots(rows)
        return self._above
