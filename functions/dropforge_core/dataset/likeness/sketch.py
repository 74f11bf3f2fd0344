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

Measured on prompts of 4 to 400 words and copies with words replaced, swapped, misspelt, inserted or
cut, free or on templates: of pairs of true similarity 0.6 and more 96 to 98 % were joined (86 to 95 % where prompts
have up to 8 words, whose pairs lie just above 0.6); of those of 0.85 and more 99 to 100 % were told as
near 0.8. At most one pair in 600 below 0.5 was joined, one in 40 below 0.75 told as near. Empty bins cost nothing:
pairs of 5 to 300 features met in a band as often as theory has it for full ones.

All rows of a block are sketched at once. Each row's sketch depends on its own text alone.
"""

import random
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

_NEWLINE: Final = b"\n"
_SPACE: Final = 32
_DIGIT: Final = 48
"""Stands for all of them, and for each number."""

_FOLD: Final = bytes(
    _NEWLINE[0]
    if code == 0
    else code + 32
    if 65 <= code <= 90
    else _DIGIT
    if 48 <= code <= 57
    else code
    if code >= 128 or 97 <= code <= 122
    else _SPACE
    for code in range(256)
)
_WIDE_PUNCTUATION: Final = {ord(mark): " " for mark in "，！？：；（）"}  # noqa: RUF001  # it is these that are meant

_MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)
_SECOND: Final = np.uint64(0xC2B2AE3D27D4EB4F)
_THIRD: Final = np.uint64(0x165667B19E3779F9)
_ONES: Final = np.array([(1 << 8 * width) - 1 for width in range(9)], np.uint64)
"""Masks of so many bytes; more than eight are eight (`mode="clip"`)."""
_LONG_WORD: Final = 32
"""Bytes beyond which a word is hashed by xxh3, one by one."""
_EMPTY: Final = np.uint32(0xFFFF_FFFF)
_VALUE: Final = np.uint32((1 << 26) - 1)
"""Bits of a feature by which the least of a bin is told; the six above choose the bin."""
_TABLE_BITS: Final = 14


def _ways() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each bin the order in which it asks the eight groups of eight bins, and whom it asks first in a group.

    Returns:
        int64 [8, 64]: the first bin of the group that a bin asks at each step.
        int64 [64 * 256]: by the group's filled bins (the first is the highest bit), which of the eight lends.
    """
    dice = random.Random(20_250_101)  # noqa: S311  # a fixed table, the same in every process
    groups = np.array([dice.sample(range(0, BINS, 8), 8) for _ in range(BINS)])
    lenders = np.zeros((BINS, 256), np.int64)
    for own in range(BINS):
        for member in reversed(dice.sample(range(8), 8)):
            lenders[own, [filled for filled in range(256) if filled & (0x80 >> member)]] = member
    return np.ascontiguousarray(groups.T), lenders.ravel()


_GROUPS, _LENDERS = _ways()


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

    def of(self, some: NDArray[np.int64]) -> "_Words":
        """The words of some of the rows."""
        lengths = np.diff(self.begins)[some]
        begins = np.append(0, np.cumsum(lengths))
        inside = np.arange(begins[-1]) + np.repeat(self.begins[some] - begins[:-1], lengths)
        return _Words(self.rows[some], self.codes[inside], begins)


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
                signature[at], filled = _signatures(words, self._common)
                bare = np.flatnonzero((filled == 0) & (np.diff(words.begins) > 0))
                if len(bare):
                    signature[at[bare]], filled[bare] = _signatures(words.of(bare), _NOTHING_COMMON)
                few = np.flatnonzero(filled < LEAST)
                if len(few):
                    least[at[few]] = _least(words.of(few), self._common)
        return {"folded": folded, "signature": signature, "least": least}


def learn_common(asked: Sequence[str]) -> Digests:
    """Features that more than 30 % of the first 1,000 prompts have (and more than 30 of them), ascending."""
    sample = asked[:SAMPLE]
    found = [_features(words)[1] for _, texts in _slices(sample) for words in _read(texts)]
    values, counts = np.unique(np.concatenate([*found, np.zeros(0, np.uint64)]), return_counts=True)
    common: Digests = values[counts > max(_SHARED * len(sample), _FEW)]
    return common


class _Common:
    """Tells features that most rows share."""

    def __init__(self, features: Digests) -> None:
        # Hash tables without chains: what finds its place taken goes to the next table.
        self._tables: list[Digests] = []
        while len(features):
            # What stands in an unused place can't be looked for there.
            table = ~np.arange(1 << _TABLE_BITS, dtype=np.uint64)
            table[self._place(features)] = features
            self._tables.append(table)
            features = features[table[self._place(features)] != features]

    @staticmethod
    def _place(features: Digests) -> NDArray[np.int64]:
        place: NDArray[np.int64] = (features & np.uint64((1 << _TABLE_BITS) - 1)).view(np.int64)
        return place

    def among(self, features: Digests) -> NDArray[np.bool_] | None:
        """Which of some features are common; None where nothing is."""
        if not self._tables:
            return None
        place = self._place(features)
        found: NDArray[np.bool_] = self._tables[0].take(place) == features
        for table in self._tables[1:]:
            found |= table.take(place) == features
        return found


_NOTHING_COMMON: Final = _Common(np.zeros(0, np.uint64))


def _slices(asked: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    ends = np.cumsum(np.fromiter(map(len, asked), np.int64, len(asked)))
    start = 0
    while start < len(asked):
        before = int(ends[start - 1]) if start else 0
        end = max(int(np.searchsorted(ends, before + _SLICE)), start + 1)
        yield start, asked[start:end]
        start = end


def _read(texts: Sequence[str]) -> Iterator[_Words]:
    """The words of all rows, by kind of writing."""
    foreign = [row for row, text in enumerate(texts) if not text.isascii()]
    wide: NDArray[np.int64] = np.zeros(0, np.int64)
    if foreign:
        texts = list(texts)
        folded, wide_places = _folded([texts[row] for row in foreign])
        for row, text in zip(foreign, folded, strict=True):
            texts[row] = text
        wide = np.array(foreign)[wide_places]
        if len(wide):
            yield _characters(wide, [texts[row] for row in wide.tolist()])
    rows = np.delete(np.arange(len(texts)), wide)
    if len(rows):
        yield _spaced(rows, _joined([texts[row] for row in rows.tolist()] if len(wide) else texts))


def _joined(texts: Sequence[str]) -> bytes:
    """Texts as UTF-8, joined by NUL, which none of them has."""
    try:
        encoded = [text.encode() for text in texts]
    except UnicodeEncodeError:
        encoded = [text.encode("utf-8", "replace") for text in texts]
    joined = b"\0".join(encoded)
    if joined.count(b"\0") >= len(texts):
        joined = b"\0".join([text.replace(b"\0", b" ") for text in encoded])
    return joined


def _folded(texts: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Texts normalised and without case, and which of them are mostly of scripts that don't part words."""
    normal = [_normalised(text) for text in texts]
    points = _points(normal)
    foreign = np.unique(points[points >= 128])
    # Case is all that `translate` tells of ASCII, and most other characters have none.
    letters = foreign.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
    folded = normal if letters == letters.casefold() else [text.casefold() for text in normal]
    unspaced = _UNSPACED[np.minimum(foreign >> np.uint32(7), 0x800)]
    if not unspaced.any():
        return folded, np.zeros(0, np.int64)
    begins = np.cumsum([0, *map(len, normal)])
    wide = np.append(0, np.cumsum(_UNSPACED[np.minimum(points >> np.uint32(7), 0x800)]))
    return folded, np.flatnonzero(2 * (wide[begins[1:]] - wide[begins[:-1]]) > np.diff(begins))


def _normalised(text: str) -> str:
    # Text that is normalised but for these is normalised much faster without them.
    if "，" in text or "：" in text or "！" in text or "？" in text:  # noqa: RUF001  # it is these that are meant
        text = text.translate(_WIDE_PUNCTUATION)
    return unicodedata.normalize("NFKC", text)


def _points(texts: Sequence[str]) -> NDArray[np.uint32]:
    return np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), "<u4")


def _spaced(rows: NDArray[np.int64], joined: bytes) -> _Words:
    """The words of rows joined by NUL."""
    text = joined.translate(_FOLD)
    # Eight bytes may be read from wherever a word's last byte lies.
    padded = np.frombuffer(b"".join([b" ", text, _NEWLINE, b" " * (8 + _LONG_WORD)]), np.uint8)
    if b"00" in text:
        digit = padded == _DIGIT
        padded = padded[~np.append(False, digit[1:] & digit[:-1])]
    if not text.isascii():
        padded = _without_punctuation(padded)
    inside = padded > _SPACE
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    edges += 1
    starts = edges[0::2]
    begins = np.searchsorted(starts, np.flatnonzero(padded == _NEWLINE[0]))
    return _Words(rows, _hashes(padded, starts, edges[1::2] - starts), np.append(0, begins))


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
    codes = (windows[starts] & _ONES.take(lengths, mode="clip")) * _MULTIPLIER
    longer = np.flatnonzero(lengths > 8)
    for done in range(8, _LONG_WORD, 8):
        if not len(longer):
            break
        more = windows[starts[longer] + done] & _ONES.take(lengths[longer] - done, mode="clip")
        before = codes[longer]
        codes[longer] = ((before ^ (before >> np.uint64(31))) + more) * _SECOND
        longer = longer[lengths[longer] > done + 8]
    for word in longer.tolist():
        start = int(starts[word])
        codes[word] = xxhash.xxh3_64_intdigest(text[start : start + int(lengths[word])].tobytes())
    return _mixed(codes)


def _mixed(codes: Digests) -> Digests:
    """The codes mixed, in place."""
    codes ^= codes >> np.uint64(32)
    codes *= _SECOND
    codes ^= codes >> np.uint64(29)
    codes *= _THIRD
    codes ^= codes >> np.uint64(32)
    return codes


def _characters(rows: NDArray[np.int64], texts: Sequence[str]) -> _Words:
    """Pairs of neighbouring characters as words; a row's only character alone."""
    points = _points(texts)
    row = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    points = np.where(points < 128, np.frombuffer(_FOLD, np.uint8)[np.minimum(points, 127)], points)
    general = (points >= 0x2000) & (points < 0x2070)
    kept = (points > _SPACE) & ~general & ((points < 0x3000) | (points >= 0x3040))
    points, row = points[kept].astype(np.uint64), row[kept]
    again = np.append(False, (points[1:] == _DIGIT) & (points[:-1] == _DIGIT) & (row[1:] == row[:-1]))
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


def _pairs(codes: Digests) -> Digests:
    """64 bits of each word and the next; the last has none."""
    other: Digests = codes[1:]
    pairs: Digests = (other ^ (other >> np.uint64(29))) * _SECOND
    pairs += codes[:-1] * _MULTIPLIER
    pairs ^= pairs >> np.uint64(32)
    pairs *= _THIRD
    pairs ^= pairs >> np.uint64(32)
    return pairs


def _features(words: _Words) -> tuple[NDArray[np.int64], Digests]:
    """(which of the rows, 64 bits) of each feature of each row, once, ascending by row."""
    row = np.repeat(np.arange(len(words.rows)), np.diff(words.begins))
    together = row[1:] == row[:-1]
    rows = np.concatenate([row, row[1:][together]])
    features = np.concatenate([words.codes, _pairs(words.codes)[together]])
    order = np.lexsort((features, rows))
    rows, features = rows[order], features[order]
    once = np.append(True, (features[1:] != features[:-1]) | (rows[1:] != rows[:-1]))[: len(rows)]
    return rows[once], features[once]


@lru_cache(maxsize=8)
def _powers(bits: int) -> tuple[Digests, Digests]:
    """Of the multiplier and of its inverse, 0 to 2^bits - 1, modulo 2^64."""
    found = []
    for base in (int(_MULTIPLIER), pow(int(_MULTIPLIER), -1, 1 << 64)):
        out = np.full(1 << bits, np.uint64(base))
        out[0] = 1
        found.append(np.multiply.accumulate(out))
        found[-1].setflags(write=False)
    return found[0], found[1]


def _digests(words: _Words) -> Digests:
    """A polynomial of each row's words, modulo 2^64, and mixed."""
    lengths = np.diff(words.begins)
    out = np.zeros(len(lengths), np.uint64)
    filled = np.flatnonzero(lengths)
    if len(filled):
        begins = words.begins[filled]
        powers, inverse = _powers(len(words.codes).bit_length())
        # Each row's first word has the power 0, wherever the row stands.
        out[filled] = np.add.reduceat(words.codes * powers[: len(words.codes)], begins) * inverse[begins]
    return _mixed(out + lengths.astype(np.uint64) * _SECOND)


def _signatures(words: _Words, common: _Common) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bins of all rows, and how many of them each has filled itself."""
    count = len(words.rows)
    lengths = np.diff(words.begins)
    least = np.full(count * BINS, _EMPTY)
    base = np.repeat(np.arange(0, count * BINS, BINS), lengths)
    _lower(least, base, words.codes, common, np.zeros(0, np.int64))
    if len(base):
        _lower(least, base[:-1], _pairs(words.codes), common, words.begins[1:-1] - 1)
    return _bins(least)


def _bins(least: NDArray[np.uint32]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """What is kept of the least values, and how many bins of each row are filled."""
    count = len(least) // BINS
    parts = least.view(np.uint8).reshape(-1, 4)
    empty = parts[:, 3] > 0x7F
    bins = parts[:, 0] & np.uint8(BORROWED - 1)
    bins |= empty.view(np.uint8) << np.uint8(7)
    packed = ~np.packbits(empty)
    filled = np.bitwise_count(packed.view(np.uint64)).astype(np.int64)
    bare = np.flatnonzero(filled == 0)
    if len(bare):
        empty.reshape(count, BINS)[bare] = False
        bins.reshape(count, BINS)[bare] = BORROWED
    _borrow(bins, packed, np.flatnonzero(empty))
    return bins.reshape(count, BINS), filled


def _lower(
    least: NDArray[np.uint32],
    base: NDArray[np.int64],
    features: Digests,
    common: _Common,
    none: NDArray[np.int64],
) -> None:
    """Let features lower what their bins have; `none` are places without a feature (or -1)."""
    values = features.view("<u4")[1::2] & _VALUE
    is_common = common.among(features)
    if is_common is not None:
        np.copyto(values, _EMPTY, where=is_common)
    values[none[(none >= 0) & (none < len(values))]] = _EMPTY
    np.minimum.at(least, base + (features >> np.uint64(58)).view(np.int64), values)


def _borrow(bins: NDArray[np.uint8], packed: NDArray[np.uint8], places: NDArray[np.int64]) -> None:
    """Fill empty bins, each from the first filled one on its way: eight bins at a step, in its own order."""
    for groups in _GROUPS:
        if not len(places):
            return
        own = places & (BINS - 1)
        group = (places - own) + groups.take(own)
        among = packed.take(group >> 3)
        # Where none of the group lends, what is written here is overwritten at a later step.
        bins[places] = bins.take(group + _LENDERS.take((own << 8) | among)) | np.uint8(BORROWED)
        places = places[among == 0]


def _least(words: _Words, common: _Common) -> NDArray[np.uint32]:
    """The smallest hashes of each row's features, ascending: of all but the common ones where there are others."""
    rows, features = _features(words)
    is_common = common.among(features)
    if is_common is not None:
        has_own = np.zeros(len(words.rows), np.bool_)
        has_own[rows[~is_common]] = True
        kept = ~is_common | ~has_own[rows]
        rows, features = rows[kept], features[kept]
    out = np.full((len(words.rows), LEAST), PAD, np.uint32)
    short = np.minimum(features & np.uint64(0xFFFF_FFFF), np.uint64(PAD - 1))
    keys = np.sort(rows.astype(np.uint64) << np.uint64(32) | short)
    rows = (keys >> np.uint64(32)).astype(np.int64)
    number = np.arange(len(rows)) - np.searchsorted(rows, rows)
    kept = number < LEAST
    out[rows[kept], number[kept]] = keys[kept] & np.uint64(0xFFFF_FFFF)
    return out
