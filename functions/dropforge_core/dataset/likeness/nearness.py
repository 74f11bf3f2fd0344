"""Which prompts resemble one another, among all rows of a dataset.

Candidates are rows that agree in a band of their signatures (`sketch.BANDS`); whether they are alike is
told from their sketches. A bucket of many rows is not compared each with each: its rows are ordered
by the bins that follow, so that the likest stand side by side, and each is compared with its neighbour
and with the first. Of rows with the same words only one of each side is compared at all. So time grows with
the number of rows, also when millions share a bucket.

What is found depends on the rows' content and, between equals, on their order; never on how the
dataset was split into files or parts.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dropforge_core.dataset.likeness.columns import EVAL, TRAIN, Columns, Rows
from dropforge_core.dataset.likeness.groups import Groups
from dropforge_core.dataset.likeness.recurring import ROWS_A_PASS, recurring
from dropforge_core.dataset.likeness.sketch import BANDS, LEAST, PAD

ALIKE: Final = 0.6
"""From this similarity on two rows must be on one side of a cut."""

NEAR: Final = 0.8
"""From this similarity on a row is near another one, unless the recipe says otherwise."""

NOTHING: Final = np.uint32(0xFFFF_FFFF)

_PIECE: Final = 1 << 15
"""Rows whose sketches are held at once; their number within a piece has 16 bits."""
_PAIRS: Final = 1 << 12
"""Pairs that are compared at once, in the processor's cache."""
_BY_CHANCE: Final = np.float32(1 / 128)
"""Share of bins that agree in two rows with nothing in common: 7 bits are stored of each."""
_LOWER: Final = np.uint64(0x7F7F_7F7F_7F7F_7F7F)
_UPPER: Final = np.uint64(0x8080_8080_8080_8080)
_EVERY_BYTE: Final = np.uint64(0x0101_0101_0101_0101)
_LOW: Final = np.uint64(0xFFFF_FFFF)
_HALF: Final = np.uint64(32)


class Pairs(NamedTuple):
    """Pairs of rows, ascending by row, at most one for each; all arrays of one length."""

    row: Rows
    other: Rows
    similarity: NDArray[np.float32]
    """Estimated Jaccard similarity, from that of near rows to 1."""


class Nearness(NamedTuple):
    group: Rows
    """For every row the smallest of its group: what is at least `ALIKE`, directly or by a chain."""
    near: Pairs
    """Rows that are near an earlier row (`other`) of their side; the likest of those compared, then the first."""
    leaks: Pairs
    """Evaluation rows that are near a training row (`other`)."""


def near_pairs(columns: Columns, rows_a_pass: int = ROWS_A_PASS, near: float = NEAR) -> Nearness:
    """Compare all rows (columns `folded`, `signature`, `least`).

    Needs about 30 bytes a row beside the columns, the answer among them.

    Args:
        columns: of all rows.
        rows_a_pass: rows whose digests are in memory at once.
        near: similarity from which on rows are near one another, at least `ALIKE`.
    """
    return _Comparison(columns, near).run(rows_a_pass)


def similarity(signatures: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Estimated Jaccard similarity of rows [n, 64] with others.

    The share of agreeing bins among those that at least one of both has filled itself (Li, Owen & Zhang 2012), less
    what agrees by chance: 1 bin in 128. Two rows without any feature are equal.
    """
    ones, twos = signatures.view(np.uint64), others.view(np.uint64)
    differing = ones ^ twos
    # The upper bit of each byte: whether any of its lower seven is set, or it itself.
    agreeing = ~(((differing & _LOWER) + _LOWER) | differing | ones) & _UPPER
    filled = ~(ones & twos) & _UPPER
    total = _count(filled)
    share = np.divide(_count(agreeing), total, out=np.ones_like(total), where=total > 0)
    out: NDArray[np.float32] = np.maximum((share - _BY_CHANCE) / (1 - _BY_CHANCE), np.float32(0))
    return out


def _count(flags: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Bits set in each row of eight words."""
    bits = np.bitwise_count(flags).view(np.uint64)
    sums: NDArray[np.float32] = ((bits * _EVERY_BYTE) >> np.uint64(56)).astype(np.float32).ravel()
    return sums


def exact_similarity(ones: NDArray[np.uint32], others: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Jaccard similarity of rows [n, 16] of `least` with others, all of at most 15 features."""
    common = np.zeros(ones.shape, np.bool_)
    for place in range(LEAST):
        common |= ones == others[:, place : place + 1]
    own = ones != PAD
    both = (common & own).sum(axis=1, dtype=np.float32)
    either = own.sum(axis=1, dtype=np.float32) + (others != PAD).sum(axis=1, dtype=np.float32) - both
    out: NDArray[np.float32] = np.divide(both, either, out=np.ones_like(either), where=either > 0)
    return out


class _Best:
    """For each of some rows the likest other one so far, and among equals the first; 5 bytes a row."""

    def __init__(self, size: int) -> None:
        self.other = np.full(size, NOTHING)
        self._likeness = np.zeros(size, np.uint8)

    def offer(self, places: NDArray[Any], others: NDArray[Any], likeness: NDArray[np.float32]) -> None:
        scaled = np.round(likeness * np.float32(255)).astype(np.uint8)
        order = np.lexsort((others, 255 - scaled, places))
        places, others, scaled = places[order], others[order].astype(np.uint32), scaled[order]
        leads = np.append(True, places[1:] != places[:-1])[: len(places)]
        places, others, scaled = places[leads], others[leads], scaled[leads]
        known = self._likeness[places]
        better = (scaled > known) | ((scaled == known) & (others < self.other[places]))
        self.other[places[better]] = others[better]
        self._likeness[places[better]] = scaled[better]

    def copy(self, source: NDArray[Any], target: NDArray[Any]) -> None:
        self.other[target] = self.other[source]
        self._likeness[target] = self._likeness[source]

    def pairs(self, rows: Rows | None = None) -> Pairs:
        """What was found; `rows` are those that the places stand for."""
        found = np.concatenate(
            [
                (start + np.flatnonzero(self.other[start : start + _PIECE] != NOTHING)).astype(np.uint32)
                for start in range(0, max(len(self.other), 1), _PIECE)
            ]
        )
        likeness = self._likeness[found].astype(np.float32)
        likeness /= np.float32(255)
        return Pairs(found if rows is None else rows[found], self.other[found], likeness)


class _Comparison:
    def __init__(self, columns: Columns, near: float) -> None:
        self._columns = columns
        self._from = near
        self._sides = columns.sides
        self._alike = Groups(columns.rows)
        self._near = Groups(columns.rows)
        self._earlier = _Best(columns.rows)
        self._asked = np.flatnonzero(self._sides == EVAL).astype(np.uint32)
        """Evaluation rows, where there are training rows, too."""
        if len(self._asked) == columns.rows:
            self._asked = self._asked[:0]
        self._trained = _Best(len(self._asked))
        self._compared = np.ones(columns.rows, np.bool_)
        """Less those with the words of an earlier row of their side."""

    def run(self, rows_a_pass: int) -> Nearness:
        self._collapse(rows_a_pass)
        keys = np.empty(int(self._compared.sum()), np.uint64)
        for band in range(BANDS):
            filled = 0
            for start, signatures in self._columns.chunks("signature"):
                rows = np.flatnonzero(self._compared[start : start + len(signatures)])
                keys[filled : filled + len(rows)] = _keys(signatures[rows], band, start + rows)
                filled += len(rows)
            self._compare(keys, band)
        del keys
        self._complete()
        del self._near
        return Nearness(self._alike.all_roots(), self._earlier.pairs(), self._trained.pairs(self._asked))

    def _collapse(self, rows_a_pass: int) -> None:
        """Rows with the same words: joined at once, one of each side left to compare."""
        for known in recurring(self._columns, "folded", rows_a_pass):
            firsts = np.full(2 * len(known), NOTHING)
            for start, folded in self._columns.chunks("folded"):
                at, group = known.find(folded)
                rows = (start + at).astype(np.uint32)
                slots = 2 * group + self._sides[rows]
                np.minimum.at(firsts, slots, rows)
                again = firsts[slots] != rows
                rows, first = rows[again], firsts[slots[again]]
                self._compared[rows] = False
                self._alike.join(rows, first)
                self._near.join(rows, first)
                self._earlier.offer(rows, first, np.ones(len(rows), np.float32))
            ones = firsts.reshape(-1, 2)
            ones = ones[(ones != NOTHING).all(axis=1)]
            if len(ones):
                self._alike.join(ones[:, TRAIN], ones[:, EVAL])
                self._leak(ones[:, EVAL], ones[:, TRAIN], np.ones(len(ones), np.float32))

    def _leak(self, asked: Rows, trained: Rows, likeness: NDArray[np.float32]) -> None:
        self._trained.offer(np.searchsorted(self._asked, asked), trained, likeness)

    def _compare(self, keys: NDArray[np.uint64], band: int, depth: int = 0) -> None:
        """Compare the rows of each bucket; `keys` are sorted and overwritten."""
        keys.sort()
        keys = keys[: _gather_mates(keys)]
        while len(keys):
            end = _PIECE
            if end < len(keys) and keys[end] >> _HALF == keys[end - 1] >> _HALF:
                bucket = keys[end] >> _HALF
                end = int(np.searchsorted(keys, bucket << _HALF))
                if end == 0:
                    end = int(np.searchsorted(keys, (bucket << _HALF) | _LOW, side="right"))
                    self._compare_many(keys[:end], band, depth + 1)
                    keys = keys[end:]
                    continue
            self._compare_piece(keys[:end], band + depth)
            keys = keys[end:]

    def _compare_many(self, keys: NDArray[np.uint64], band: int, depth: int) -> None:
        """A bucket that is too large to be looked at whole falls apart by the bands that follow."""
        if depth == BANDS:
            # Equal in all bands: the first stands for the others.
            for start in range(1, len(keys), _PIECE):
                self._compare_piece(np.append(keys[:1], keys[start : start + _PIECE]), band)
            return
        for start in range(0, len(keys), _PIECE):
            part = keys[start : start + _PIECE]
            rows = part & _LOW
            part[:] = _keys(self._columns.take("signature", rows), (band + depth) % BANDS, rows)
        self._compare(keys, band, depth)

    def _compare_piece(self, keys: NDArray[np.uint64], band: int) -> None:
        """Compare the rows of some whole buckets with one another."""
        rows, number = self._undecided(keys)
        if not len(rows):
            return
        back = np.argsort(rows)
        inverse = np.empty_like(back)
        inverse[back] = np.arange(len(back))
        signatures = self._columns.take("signature", rows[back])
        bands = signatures.view("<u4")[inverse].astype(np.uint64)
        content = number.astype(np.uint64) << np.uint64(48) | bands[:, (band + 1) % BANDS] << np.uint64(16)
        content |= bands[:, (band + 2) % BANDS] & np.uint64(0xFFFF)
        order = self._ordered(content, rows)
        rows, number, signatures = rows[order], number[order], signatures[inverse[order]]
        few = np.bitwise_count(~signatures.view(np.uint64) & _UPPER).sum(axis=1) < LEAST
        sides = self._sides[rows]
        near, alike = self._near.roots(rows), self._alike.roots(rows)
        neighbours = _neighbours(number, sides, mixed=len(self._asked) > 0)
        fresh = near[neighbours[0]] != near[neighbours[1]]
        led = _led(number)
        apart = alike[led[0]] != alike[led[1]]
        one = np.concatenate([neighbours[0][fresh], led[0][apart]])
        other = np.concatenate([neighbours[1][fresh], led[1][apart]])
        likeness = np.empty(len(one), np.float32)
        for start in range(0, len(one), _PAIRS):
            part = slice(start, start + _PAIRS)
            likeness[part] = similarity(signatures[one[part]], signatures[other[part]])
        short = np.flatnonzero(few[one] & few[other])
        if len(short):
            likeness[short] = self._exactly(rows[one[short]], rows[other[short]], likeness[short])
        self._found(rows[one], rows[other], likeness)

    def _ordered(self, content: NDArray[np.uint64], rows: Rows) -> NDArray[np.int64]:
        """Places in the order of what is in the rows; their own order decides nothing."""
        order = np.argsort(content)
        equal = content[order[1:]] == content[order[:-1]]
        if equal.any():
            tied = np.append(equal, False) | np.append(False, equal)
            places = np.flatnonzero(tied)
            among = np.sort(order[places])
            ascending, back = np.unique(rows[among], return_inverse=True)
            folded = self._columns.take("folded", ascending)[back]
            order[places] = among[np.lexsort((self._sides[rows[among]], folded, content[among]))]
        return order

    def _undecided(self, keys: NDArray[np.uint64]) -> tuple[Rows, NDArray[np.int64]]:
        """The rows of those buckets in which not all are known to be near one another, and the numbers of these."""
        rows = (keys & _LOW).astype(np.uint32)
        buckets = keys >> _HALF
        begins = np.flatnonzero(np.append(True, buckets[1:] != buckets[:-1]))
        groups = self._near.roots(rows)
        settled = np.minimum.reduceat(groups, begins) == np.maximum.reduceat(groups, begins)
        lengths = np.diff(np.append(begins, len(rows)))
        open_rows = np.repeat(~settled, lengths)
        return rows[open_rows], np.repeat(np.arange(len(begins)), lengths)[open_rows]

    def _exactly(self, ones: Rows, others: Rows, estimated: NDArray[np.float32]) -> NDArray[np.float32]:
        """Similarity of rows of which both have few features, where they are all kept."""
        rows, back = np.unique(np.concatenate([ones, others]), return_inverse=True)
        least = self._columns.take("least", rows)
        first, second = back[: len(ones)], back[len(ones) :]
        whole = least[:, -1] == PAD
        known = np.flatnonzero(whole[first] & whole[second])
        out = estimated.copy()
        out[known] = exact_similarity(least[first[known]], least[second[known]])
        return out

    def _found(self, ones: Rows, others: Rows, likeness: NDArray[np.float32]) -> None:
        alike = likeness >= ALIKE
        self._alike.join(ones[alike], others[alike])
        near = likeness >= self._from
        ones, others, likeness = ones[near], others[near], likeness[near]
        crossing = self._sides[ones] != self._sides[others]
        if crossing.any():
            one, other = ones[crossing], others[crossing]
            asks = self._sides[one] == EVAL
            self._leak(np.where(asks, one, other), np.where(asks, other, one), likeness[crossing])
            ones, others, likeness = ones[~crossing], others[~crossing], likeness[~crossing]
        self._near.join(ones, others)
        self._earlier.offer(np.maximum(ones, others), np.minimum(ones, others), likeness)

    def _complete(self) -> None:
        """Rows that were only compared with later ones, and rows that were not compared at all."""
        for start in range(0, self._columns.rows, _PIECE):
            rows = np.arange(start, min(start + _PIECE, self._columns.rows), dtype=np.uint32)
            first = self._near.roots(rows)
            left = (first != rows) & (self._earlier.other[rows] == NOTHING)
            rows, first = rows[left], first[left]
            named, back = np.unique(first, return_inverse=True)
            likeness = similarity(
                self._columns.take("signature", rows), self._columns.take("signature", named)[back]
            )
            likeness = self._exactly(rows, first, likeness)
            near = likeness >= self._from
            self._earlier.offer(rows[near], first[near], likeness[near])
        copies = np.flatnonzero(~self._compared[self._asked])
        stand_in = np.searchsorted(self._asked, self._earlier.other[self._asked[copies]])
        self._trained.copy(stand_in, copies)


def _keys(signatures: NDArray[np.uint8], band: int, rows: NDArray[Any]) -> NDArray[np.uint64]:
    bands = np.ascontiguousarray(signatures).view("<u4")
    keys: NDArray[np.uint64] = bands[:, band].astype(np.uint64) << _HALF | rows.astype(np.uint64)
    return keys


def _gather_mates(keys: NDArray[np.uint64]) -> int:
    """Move those that share their bucket to the front, in their order, and count them."""
    upper = keys.view("<u4")[1::2]
    same = upper[1:] == upper[:-1]
    mates = np.append(same, False)
    mates[1:] |= same
    filled = 0
    for start in range(0, len(keys), 1 << 18):
        part = keys[start : start + (1 << 18)][mates[start : start + (1 << 18)]]
        keys[filled : filled + len(part)] = part
        filled += len(part)
    return filled


def _neighbours(
    number: NDArray[np.int64], sides: NDArray[np.uint8], *, mixed: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of places in a sequence of buckets that stand side by side.

    Where both sides are there, also those with none of the same side, or none of training, between them.
    """
    place = np.arange(len(number))
    one, other = place[1:], place[:-1]
    if mixed:
        found = [one * len(place) + other]
        for side in (TRAIN, EVAL):
            before = np.maximum.accumulate(np.where(sides == side, place, -1))[:-1]
            there = before >= 0
            found.append((one * len(place) + before)[there])
        after = np.minimum.accumulate(np.where(sides == TRAIN, place, len(place))[::-1])[::-1][1:]
        there = after < len(place)
        found.append((after * len(place) + place[:-1])[there])
        one, other = np.divmod(np.unique(np.concatenate(found)), len(place))
    inside = number[one] == number[other]
    return one[inside], other[inside]


def _led(number: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each place in a sequence of buckets and the first of its bucket, but for first and second ones."""
    begins = np.flatnonzero(np.append(True, number[1:] != number[:-1]))
    first = np.repeat(begins, np.diff(np.append(begins, len(number))))
    one = np.flatnonzero(np.arange(len(number)) > first + 1)
    return one, first[one]
