"""What is kept of a prompt to tell which prompts resemble it: 136 bytes a row.

A prompt's features are its words and pairs of neighbouring words: lower case, without punctuation,
numbers folded to `0`, so that the same street with another number is the same prompt. Where no
spaces part words (Chinese, Japanese, Thai and others) pairs of characters stand for words. What
most rows share (a fixed instruction) is no sign of likeness and is left out.

One-permutation MinHash (Li, Owen & Zhang 2012): a feature's hash chooses one of 64 bins, and each bin
keeps its smallest. Of that 7 bits are stored (b-bit minwise hashing, Li & König 2010). An empty bin
borrows from a filled one, on its own fixed way through the others (optimal densification,
Shrivastava 2017), and its eighth bit says so: borrowed bins serve to find candidates, and
Jaccard similarity is estimated from the others, without their variance. Prompts of up to 15
features are compared exactly.

All rows of a block are sketched at once. Each row's sketch depends on its own text alone.
"""

import random
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from dropforge_core.dataset.likeness.columns import Digests

BINS: Final = 64
BANDS: Final = 16
"""Of 4 bins each, one uint32 of the signature: likeness J meets in one of them with a chance of 1 - (1 - J^4)^16."""
BORROWED: Final = 0x80
"""This bit is set in a bin that no feature of the row fell into."""
LEAST: Final = 16
PAD: Final = 0xFFFF_FFFF
"""After the last feature in `least`. Where none is left for it, the row has more than 15."""

SAMPLE: Final = 1_000
"""First rows from which is learnt what most rows share."""
_SHARED: Final = 0.3
_FEW: Final = 30
"""With few rows, what a third of them share may well be what makes them alike."""

_SLICE: Final = 1 << 18
"""Characters that are sketched at once: what is computed from them stays in the processor's cache."""

_ROW_END: Final = 0xFF
"""No byte of UTF-8."""
_NEWLINE: Final = 10
_SPACE: Final = 32

_FOLD: Final = bytes(
    _NEWLINE
    if code == _ROW_END
    else code + 32
    if 65 <= code <= 90
    else 48
    if 48 <= code <= 57
    else code
    if code >= 128 or 97 <= code <= 122
    else _SPACE
    for code in range(256)
)
_DIGITS: Final = re.compile(rb"00+")
_WIDE_PUNCTUATION: Final = "，！？：；（）"  # noqa: RUF001  # it is these that are meant

_MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)
_SECOND: Final = np.uint64(0xC2B2AE3D27D4EB4F)
_THIRD: Final = np.uint64(0x165667B19E3779F9)
_ONES: Final = np.array([(1 << 8 * width) - 1 for width in range(9)], np.uint64)
_LONG_WORD: Final = 32
"""Bytes beyond which a word is hashed by xxh3, one by one."""
_EMPTY: Final = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_VALUE: Final = np.uint64((1 << 58) - 1)


def _probes() -> NDArray[np.int64]:
    dice = random.Random(20_250_101)  # noqa: S311  # a fixed table, the same in every process
    others = [[b for b in range(BINS) if b != own] for own in range(BINS)]
    return np.array([dice.sample(bins, BINS - 1) for bins in others])


_PROBES: Final = _probes()


def _unspaced() -> NDArray[np.bool_]:
    """Per 128 code points, whether their script is written without spaces."""
    out = np.zeros(0x801, np.bool_)
    for first, last in (
        (0x0E00, 0x0EFF),  # Thai, Lao
        (0x1000, 0x107F),  # Burmese
        (0x1780, 0x17FF),  # Khmer
        (0x3000, 0x30FF),  # kana
        (0x3400, 0x9FFF),  # Chinese characters
        (0xF900, 0xFAFF),
        (0x20000, 0x3FFFF),
    ):
        out[first >> 7 : (last >> 7) + 1] = True
    return out


_UNSPACED: Final = _unspaced()


class _Words(NamedTuple):
    """The words of some rows."""

    rows: NDArray[np.int64]
    """Which rows of the slice; all of one kind of writing."""
    codes: Digests
    """64 bits a word, in reading order."""
    begins: NDArray[np.int64]
    """Where each row's words begin, and at last where they end."""


class Sketcher:
    """Sketches of prompts, for one dataset.

    Args:
        common: what `learn_common` learnt; the same for all rows that are to be compared.
    """

    def __init__(self, common: Digests) -> None:
        self._common = _Common(common)

    def sketch(self, asked: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The columns of some prompts.

        Returns:
            `folded` uint64 [n]: digest of the words in their order, equal where they are.
            `signature` uint8 [n, 64]: the bins, 4 after 4 a band.
            `least` uint32 [n, 16]: ascending, the hashes of all features where they are at most 15,
            then `PAD`; else whatever, and no `PAD` at its end.
        """
        folded = np.zeros(len(asked), np.uint64)
        signature = np.empty((len(asked), BINS), np.uint8)
        least = np.zeros((len(asked), LEAST), np.uint32)
        for start, texts in _slices(asked):
            for words in _read(texts):
                at = start + words.rows
                folded[at] = _digests(words)
                rows, features = self._common.left_of(*_features(words))
                signature[at], few = _signatures(rows, features, len(at))
                least[at[few]] = _least(rows, features, few)
        return {"folded": folded, "signature": signature, "least": least}


def learn_common(asked: Sequence[str]) -> Digests:
    """Features that more than 30 % of the first 1,000 prompts have (and more than 30 of them), ascending."""
    sample = asked[:SAMPLE]
    found: list[Digests] = []
    for _, texts in _slices(sample):
        for words in _read(texts):
            rows, features = _features(words)
            order = np.lexsort((rows, features))
            rows, features = rows[order], features[order]
            once = np.append(True, (features[1:] != features[:-1]) | (rows[1:] != rows[:-1]))
            found.append(features[once[: len(features)]])
    values, counts = np.unique(np.concatenate([*found, np.zeros(0, np.uint64)]), return_counts=True)
    common: Digests = values[counts > max(_SHARED * len(sample), _FEW)]
    return common


class _Common:
    """Tells features that most rows share."""

    def __init__(self, features: Digests) -> None:
        self._features = np.sort(features)
        # Nearly all features are told by 16 bits of theirs not to be among these.
        self._may_be = np.zeros(1 << 16, np.bool_)
        self._may_be[self._low(self._features)] = True

    @staticmethod
    def _low(features: Digests) -> NDArray[np.int64]:
        return (features & np.uint64(0xFFFF)).astype(np.int64)

    def left_of(self, rows: NDArray[np.int64], features: Digests) -> tuple[NDArray[np.int64], Digests]:
        """The others; all of a row's where it has no others."""
        if not len(self._features) or not len(features):
            return rows, features
        own = ~self._may_be[self._low(features)]
        doubtful = np.flatnonzero(~own)
        sought = features[doubtful]
        place = np.minimum(np.searchsorted(self._features, sought), len(self._features) - 1)
        own[doubtful] = self._features[place] != sought
        has_own = np.zeros(int(rows.max()) + 1, np.bool_)
        has_own[rows[own]] = True
        own |= ~has_own[rows]
        return rows[own], features[own]


def _slices(asked: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    start = length = 0
    for end, text in enumerate(asked, 1):
        length += len(text)
        if length >= _SLICE or end == len(asked):
            yield start, asked[start:end]
            start, length = end, 0


def _read(texts: Sequence[str]) -> Iterator[_Words]:
    """The words of all rows: those of spaced writing, then the others."""
    foreign = [row for row, text in enumerate(texts) if not text.isascii()]
    if not foreign:
        yield _spaced(np.arange(len(texts)), [text.encode() for text in texts])
        return
    folded = [_normalised(texts[row]) for row in foreign]
    without = _without_spaces(folded)
    encoded = [text.encode() if text.isascii() else b"" for text in texts]
    for row, text in zip(foreign, folded, strict=True):
        encoded[row] = text.encode("utf-8", "replace")
    wide = np.array(foreign)[without]
    apart = np.ones(len(texts), np.bool_)
    apart[wide] = False
    rows = np.flatnonzero(apart)
    if len(rows):
        yield _spaced(rows, [encoded[row] for row in rows])
    if len(wide):
        yield _characters(wide, [text for text, chosen in zip(folded, without, strict=True) if chosen])


def _normalised(text: str) -> str:
    # Text that is normalised but for these is normalised much faster without them.
    for mark in _WIDE_PUNCTUATION:
        if mark in text:
            text = text.replace(mark, " ")
    return unicodedata.normalize("NFKC", text).casefold()


def _without_spaces(texts: Sequence[str]) -> NDArray[np.bool_]:
    """Which texts are mostly of scripts that don't part words."""
    points = _points(texts)
    begins = np.cumsum([0, *map(len, texts)])
    wide = np.append(0, np.cumsum(_UNSPACED[np.minimum(points >> np.uint32(7), 0x800)]))
    out: NDArray[np.bool_] = 2 * (wide[begins[1:]] - wide[begins[:-1]]) > np.diff(begins)
    return out


def _points(texts: Sequence[str]) -> NDArray[np.uint32]:
    return np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), "<u4")


def _spaced(rows: NDArray[np.int64], encoded: Sequence[bytes]) -> _Words:
    text = _DIGITS.sub(b"0", b"\xff".join([*encoded, b""]).translate(_FOLD))
    # Eight bytes may be read from wherever a word's last byte lies.
    padded = np.frombuffer(b" " + text + b" " * (8 + _LONG_WORD), np.uint8)
    if not text.isascii():
        padded = _without_punctuation(padded)
    inside = padded > _SPACE
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    starts, ends = edges[0::2], edges[1::2]
    begins = np.searchsorted(starts, np.flatnonzero(padded == _NEWLINE))
    return _Words(rows, _hashes(padded, starts, ends - starts), np.append(0, begins))


def _without_punctuation(text: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """General (U+2000 to U+207F), CJK (U+3000 to U+303F) and Latin-1 punctuation becomes space."""
    text = text.copy()
    two = np.flatnonzero(text == 0xC2)
    three = np.flatnonzero((text == 0xE2) | (text == 0xE3))
    follows = text[three + 1]
    three = three[(follows == 0x80) | ((follows == 0x81) & (text[three] == 0xE2))]
    text[np.concatenate([two, two + 1, three, three + 1, three + 2])] = _SPACE
    return text


def _hashes(text: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Digests:
    windows: NDArray[np.uint64] = np.ndarray((len(text) - 7,), "<u8", text, 0, (1,))
    codes = (windows[starts] & _ONES[np.minimum(lengths, 8)]) * _MULTIPLIER
    for done in range(8, _LONG_WORD, 8):
        longer = np.flatnonzero(lengths > done)
        if not len(longer):
            break
        more = windows[starts[longer] + done] & _ONES[np.minimum(lengths[longer] - done, 8)]
        before = codes[longer]
        codes[longer] = ((before ^ (before >> np.uint64(31))) + more) * _SECOND
    for word in np.flatnonzero(lengths > _LONG_WORD).tolist():
        start = int(starts[word])
        codes[word] = xxhash.xxh3_64_intdigest(text[start : start + int(lengths[word])].tobytes())
    return _mixed(codes)


def _mixed(codes: Digests) -> Digests:
    codes = (codes ^ (codes >> np.uint64(32))) * _SECOND
    codes = (codes ^ (codes >> np.uint64(29))) * _THIRD
    mixed: Digests = codes ^ (codes >> np.uint64(32))
    return mixed


def _characters(rows: NDArray[np.int64], texts: Sequence[str]) -> _Words:
    """Pairs of neighbouring characters as words; a row's only character alone."""
    points = _points(texts)
    row = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    plain = points < 128
    letter = np.frombuffer(_FOLD, np.uint8)[np.minimum(points, 127)] > _SPACE
    general = (points >= 0x2000) & (points < 0x2070)
    kept = np.where(plain, letter, ~general & ((points < 0x3000) | (points >= 0x3040)))
    points, row = points[kept].astype(np.uint64), row[kept]
    points[(points >= 48) & (points <= 57)] = 48
    again = np.append(False, (points[1:] == 48) & (points[:-1] == 48) & (row[1:] == row[:-1]))
    points, row = points[~again[: len(points)]], row[~again[: len(row)]]
    lengths = np.bincount(row, minlength=len(texts))
    last = np.append(row[1:] != row[:-1], True)[: len(row)]
    following = np.zeros(len(points), np.uint64)
    following[:-1] = points[1:]
    following[last] = 0
    pairs = points << np.uint64(32) | following
    kept = ~last | (lengths[row] == 1)
    counts = np.where(lengths > 1, lengths - 1, lengths)
    return _Words(rows, _mixed(pairs[kept] * _MULTIPLIER), np.append(0, np.cumsum(counts)))


def _features(words: _Words) -> tuple[NDArray[np.int64], Digests]:
    """(which of the rows, 64 bits) of each word and each pair of neighbouring words; not yet each once."""
    row = np.repeat(np.arange(len(words.rows)), np.diff(words.begins))
    one, other = words.codes[:-1], words.codes[1:]
    together = row[1:] == row[:-1]
    pairs = one * _MULTIPLIER + (other ^ (other >> np.uint64(29))) * _SECOND
    pairs = (pairs ^ (pairs >> np.uint64(32))) * _THIRD
    pairs ^= pairs >> np.uint64(32)
    return np.concatenate([row, row[1:][together]]), np.concatenate([words.codes, pairs[together]])


@lru_cache(maxsize=8)
def _powers(bits: int) -> Digests:
    """Of the multiplier, 0 to 2^bits - 1, modulo 2^64."""
    out = np.full(1 << bits, _MULTIPLIER)
    out[0] = 1
    powers: Digests = np.multiply.accumulate(out)
    powers.setflags(write=False)
    return powers


def _digests(words: _Words) -> Digests:
    """A polynomial of each row's words, modulo 2^64, and mixed."""
    lengths = np.diff(words.begins)
    out = np.zeros(len(lengths), np.uint64)
    filled = np.flatnonzero(lengths)
    if len(filled):
        place = np.arange(len(words.codes)) - np.repeat(words.begins[:-1], lengths)
        terms = words.codes * _powers(int(lengths.max()).bit_length())[place]
        out[filled] = np.add.reduceat(terms, words.begins[filled])
    return _mixed(out + lengths.astype(np.uint64) * _SECOND)


def _signatures(
    rows: NDArray[np.int64], features: Digests, count: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bins of `count` rows, and which rows may have few enough features to keep them all."""
    flat = np.full(count * BINS, _EMPTY)
    np.minimum.at(flat, rows * BINS + (features >> np.uint64(58)).astype(np.int64), features & _VALUE)
    bins = flat.reshape(count, BINS)
    filled = bins != _EMPTY
    out = (bins & np.uint64(0x7F)).astype(np.uint8)
    filled_bins = filled.sum(axis=1)
    row, own = np.nonzero(~filled & (filled_bins > 0)[:, None])
    for step in range(BINS - 1):
        if not len(row):
            break
        lender = _PROBES[own, step]
        lends = filled[row, lender]
        out[row[lends], own[lends]] = out[row[lends], lender[lends]] | BORROWED
        row, own = row[~lends], own[~lends]
    out[filled_bins == 0] = BORROWED
    return out, np.flatnonzero(filled_bins < LEAST)


def _least(rows: NDArray[np.int64], features: Digests, few: NDArray[np.int64]) -> NDArray[np.uint32]:
    """The smallest hashes of features of some rows, each once, ascending."""
    out = np.full((len(few), LEAST), PAD, np.uint32)
    if not len(few):
        return out
    place = np.full(max(int(rows.max(initial=0)), int(few[-1])) + 1, -1)
    place[few] = np.arange(len(few))
    mine = place[rows] >= 0
    short = np.minimum(features[mine] & np.uint64(0xFFFF_FFFF), np.uint64(PAD - 1))
    keys = np.unique(place[rows[mine]].astype(np.uint64) << np.uint64(32) | short)
    row = (keys >> np.uint64(32)).astype(np.int64)
    number = np.arange(len(row)) - np.searchsorted(row, row)
    kept = number < LEAST
    out[row[kept], number[kept]] = keys[kept] & np.uint64(0xFFFF_FFFF)
    return out
