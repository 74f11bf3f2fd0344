"""Which prompts resemble one another: MinHash in one permutation, banded, joined by union-find.

A prompt's features are its words and pairs of words, lower case, numbers folded to `0`, so that the
same street with another number is the same prompt. What most rows share (a fixed instruction) is no
sign of likeness and is left out. One permutation hashing with optimal densification (Shrivastava,
ICML 2017): one hash a feature whatever the size of the signature.
"""

import random
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

import xxhash

BINS: Final = 64
BANDS: Final = 16
"""Of 4 bins: pairs of Jaccard similarity 0.7 meet with a chance of 0.99, those of 0.3 with 0.12."""

ALIKE: Final = 0.6
"""From this similarity on two rows must be on one side of a cut."""

NEAR: Final = 0.8
"""From this similarity on a row is reported as near-duplicate."""

MAX_ROWS: Final = 100_000
"""Rows that are compared; beyond, only equal prompts (numbers folded) are kept together."""

_SAMPLE: Final = 1_000
"""First rows from which is learnt what most rows share."""
_SHARED: Final = 0.3
_EXACT_UP_TO: Final = 64
"""Features of a row up to which similarity is computed from the features, not estimated."""
_BUCKET: Final = 8
"""Members of a bucket that a newcomer is compared with."""

_MASK: Final = (1 << 64) - 1
_PAIR_A: Final = 0x9E3779B97F4A7C15
_PAIR_B: Final = 0xC2B2AE3D27D4EB4F
_WORD: Final = (1 << 32) - 1
_LONG: Final = 64
"""Words from which on a prompt is sampled: enough are left to tell likeness, at a quarter of the time."""
_WORDS_KEPT: Final = 200_000

_FOLD: Final = bytes(
    (
        code + 32
        if 65 <= code <= 90
        else 48
        if 48 <= code <= 57
        else code
        if code >= 128 or 97 <= code <= 122
        else 32
    )
    for code in range(256)
)


def _probes() -> list[tuple[int, ...]]:
    dice = random.Random(20_250_101)  # noqa: S311  # a fixed table, the same in every process
    return [(own, *dice.sample([b for b in range(BINS) if b != own], BINS - 1)) for own in range(BINS)]


_PROBES: Final = _probes()

_WIDE_WORD: Final = 24


def words(text: str) -> list[bytes]:
    """Words in lower case without punctuation, numbers as `0`; pairs of characters where no spaces part words."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).casefold()
    folded = text.encode("utf-8", "replace").translate(_FOLD)
    while b"00" in folded:
        folded = folded.replace(b"00", b"0")
    found = folded.split()
    if found and len(folded) > _WIDE_WORD * len(found) and not folded.isascii():
        letters = folded.decode("utf-8", "ignore")
        return [letters[i : i + 2].encode() for i in range(max(len(letters) - 1, 1))]
    return found


class _Codes(dict[bytes, int]):
    """Words to their 64-bit digests; bounded."""

    def __missing__(self, word: bytes) -> int:
        if len(self) > _WORDS_KEPT:
            self.clear()
        code = self[word] = xxhash.xxh3_64_intdigest(word)
        return code


def features_of(tokens: Sequence[bytes], codes_of: _Codes) -> set[int]:
    """Words and pairs of neighbouring words, 64 bits each; of long prompts those at one word in four."""
    codes = [codes_of[token] for token in tokens]
    if len(codes) <= _LONG:
        pairs = [(a * _PAIR_A + (b ^ (b >> 29)) * _PAIR_B) & _MASK for a, b in pairwise(codes)]
        return {*codes, *pairs}
    pairs = [(a * _PAIR_A + (b ^ (b >> 29)) * _PAIR_B) & _MASK for a, b in pairwise(codes) if not a & 3]
    return {*[code for code in codes if not code & 3], *pairs} or set(codes)


def signature(features: set[int]) -> "array[int]":
    """`BINS` minima of 32 bits; the same features give the same signature."""
    # The upper six bits choose the bin; going down, the smallest of each is the last to be set.
    least = {feature >> 58: (feature >> 26) & _WORD for feature in sorted(features, reverse=True)}
    if not least:
        return array("I", bytes(4 * BINS))
    bins = []
    for probes in _PROBES:
        # The bin itself comes first; an empty one borrows from the first filled one on its own way.
        for probe in probes:
            if probe in least:
                bins.append(least[probe])
                break
    return array("I", bins)


class SimilarityIndex:
    """Prompts as signatures (256 bytes each and, for short ones, their features)."""

    def __init__(self, max_rows: int = MAX_ROWS) -> None:
        self.max_rows = max_rows
        self.rows = 0
        """Rows offered; the first `max_rows` of them are compared."""
        self._codes = _Codes()
        self._sample: list[set[int]] = []
        self._shared: frozenset[int] | None = None
        self._signatures = bytearray()
        self._exact: list[array[int] | None] = []

    @property
    def compared(self) -> int:
        return min(self.rows, self.max_rows)

    def add(self, tokens: Sequence[bytes]) -> None:
        """The words of the next row's prompt."""
        self.rows += 1
        if self.rows > self.max_rows:
            return
        features = features_of(tokens, self._codes)
        if self._shared is None:
            self._sample.append(features)
            if len(self._sample) >= _SAMPLE:
                self._learn()
        else:
            self._keep(features)

    def _learn(self) -> None:
        counts = Counter(feature for features in self._sample for feature in features)
        # With few rows, what a third of them share may well be what makes them alike.
        limit = max(_SHARED * len(self._sample), 30)
        self._shared = frozenset(feature for feature, count in counts.items() if count > limit)
        for features in self._sample:
            self._keep(features)
        self._sample = []

    def _keep(self, features: set[int]) -> None:
        own = features - (self._shared or frozenset()) or features
        self._signatures += signature(own).tobytes()
        short = len(own) <= _EXACT_UP_TO
        self._exact.append(array("Q", sorted(own)) if short else None)

    def alike(self, one: int, other: int) -> float:
        """Jaccard similarity of two compared rows: exact for short prompts, else estimated to about 0.06."""
        first, second = self._exact[one], self._exact[other]
        if first is not None and second is not None:
            a, b = set(first), set(second)
            return len(a & b) / len(a | b) if a or b else 1.0
        left, right = self._bins(one), self._bins(other)
        return sum(map(int.__eq__, left, right)) / BINS

    def _bins(self, row: int) -> "array[int]":
        out = array("I")
        out.frombytes(self._signatures[row * 4 * BINS : (row + 1) * 4 * BINS])
        return out

    def pairs(self) -> Iterator[tuple[int, int, float]]:
        """(row, earlier row, similarity) of rows at least `ALIKE`; chains of likeness are kept connected."""
        if self._shared is None:
            self._learn()
        width = 4 * BINS // BANDS
        joined = Components(self.compared)
        for band in range(BANDS):
            buckets: dict[bytes, list[int]] = {}
            offset = band * width
            for row in range(self.compared):
                at = row * 4 * BINS + offset
                bucket = buckets.setdefault(bytes(self._signatures[at : at + width]), [])
                root = joined.root(row)
                for other in bucket:
                    if joined.root(other) == root:
                        break
                    similarity = self.alike(row, other)
                    if similarity >= ALIKE:
                        joined.join(row, other)
                        yield max(row, other), min(row, other), similarity
                        break
                else:
                    if len(bucket) < _BUCKET:
                        bucket.append(row)


class Components:
    """Union-find with path halving; the smallest member is the root."""

    def __init__(self, size: int) -> None:
        self._parent = array("I", range(size))

    def root(self, item: int) -> int:
        parent = self._parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def join(self, one: int, other: int) -> None:
        a, b = self.root(one), self.root(other)
        self._parent[max(a, b)] = min(a, b)
