"""The quick path: many rows at once, typed, with all that a type can't tell looked for in one scan.

It accepts only rows in which the thorough path finds no fault but private data and reserved tokens, and makes the very
same of them. What it does not accept says nothing: the thorough path reads it.
"""

from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, pairwise
from typing import Final, NamedTuple

import msgspec
import numpy as np

from dropforge_core.dataset.rows.decoding import quotes_of
from dropforge_core.dataset.rows.layouts import Became, Layout, Row, Talk
from dropforge_core.dataset.rows.messages import Assistant, Calling, Message, System, User, encode
from dropforge_core.dataset.rows.suspicion import BLANK, BROKEN, PRIVATE, RESERVED, WEIGHT, Scanner

_TOGETHER: Final = 64
"""Rows whose quotation marks are counted together, where those of a block don't add up."""
_NOT_DECODED: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Taken(NamedTuple):
    """What the quick path made of some rows."""

    places: Sequence[int]
    """Which of the rows these are, ascending."""
    missing: list[int]
    """All other rows, ascending: they are for the thorough path."""
    encoded: list[bytes]
    """Canonical JSON of messages, and behind them the rejected answer."""
    talks: list[Talk]
    metas: list[bytes] | None
    """Canonical JSON of other fields, where any row has some."""
    rejected: list[Message] | None
    refused: set[int]
    """Indices into the lists above of what is for the thorough path all the same."""
    signs: dict[int, int]
    """Index to signs of private data or reserved tokens that are yet to be looked at."""
    texts: dict[int, list[tuple[str, str]]]
    """Of those with signs, where they are at hand: index to (path, text)."""


class _Batch(NamedTuple):
    """Rows, and those of them that decode."""

    layout: Layout
    rows: Sequence[bytes]
    text: bytes
    places: Sequence[int]
    missing: list[int]
    decoded: list[Row]


class QuickReader:
    """Reads rows of one layout.

    Args:
        scanner: looks for what types can't tell.
    """

    def __init__(self, scanner: Scanner) -> None:
        self._scanner = scanner

    def read(self, layout: Layout, rows: Sequence[bytes], text: bytes) -> Taken:
        """Take what can be taken.

        Args:
            layout: of most rows.
            rows: some.
            text: the rows, joined by line breaks.
        """
        batch = _decode(layout, rows, text)
        became = layout.become(batch.decoded)
        refused = set(became.refused)
        if layout.judged:
            refused |= _out_of_order(became.talks)
        encoded, marks, signs = self._encode(became.talks)
        canonical = [marks]
        if became.rejected is not None:
            answers, marks, found = self._encode(became.rejected)
            canonical.append(marks)
            _join(signs, found)
            encoded = [left + right for left, right in zip(encoded, answers, strict=True)]
        metas = None
        if (others := layout.metas(batch.decoded)) is not None:
            metas = others.metas
            canonical.append(_Marks(metas))
            refused |= others.deep
            found = self._scanner.suspects(_lines(others.texts), others.texts)
            _join(signs, {at: bits & ~(BLANK | WEIGHT) for at, bits in found.items()})
        refused.update(_repeating(batch, canonical, plain=self._scanner.is_plain(text)))
        signs = _judge(batch, became, signs, refused)
        texts = {at: known for at in signs if (known := layout.texts(batch.decoded[at])) is not None}
        return Taken(
            batch.places,
            batch.missing,
            encoded,
            became.talks,
            metas,
            became.rejected,
            refused,
            signs,
            texts,
        )

    def _encode(self, values: Sequence[Talk | Message]) -> tuple[list[bytes], "_Marks", dict[int, int]]:
        """(canonical JSON of each, their quotation marks, signs by index)."""
        lines = list(map(encode, values))
        text = _lines(lines)
        return lines, _Marks(lines, text), self._scanner.suspects(text, lines)


def _lines(rows: list[bytes]) -> bytes:
    """Rows with a line break behind each."""
    rows.append(b"")
    text = b"\n".join(rows)
    rows.pop()
    return text


def _decode(layout: Layout, rows: Sequence[bytes], text: bytes) -> _Batch:
    decoded: list[Row] = []
    missing: list[int] = []
    left = map(layout.decode, rows)
    while len(decoded) + len(missing) < len(rows):
        # What came before an exception stays in the list, and the iterator goes on behind it.
        try:
            decoded.extend(left)
        except _NOT_DECODED:
            missing.append(len(decoded) + len(missing))
    if not missing:
        return _Batch(layout, rows, text, range(len(rows)), missing, decoded)
    places: list[int] = []
    for begin, end in pairwise((-1, *missing, len(rows))):
        places.extend(range(begin + 1, end))
    return _Batch(layout, rows, text, places, missing, decoded)


def _join(signs: dict[int, int], more: dict[int, int]) -> None:
    for at, bits in more.items():
        signs[at] = signs.get(at, 0) | bits


_LETTERS: Final[dict[type, int]] = {System: ord("s"), User: ord("u"), Assistant: ord("a")}


class _Turns(dict[int, bytes]):
    """Number of messages to their roles: turns of user and assistant, one more message being the system's."""

    def __missing__(self, count: int) -> bytes:
        roles = b"?" if count == 1 else b"s" * (count % 2) + b"ua" * (count // 2)
        if count < 100:
            self[count] = roles
        return roles


_TURNS: Final = _Turns()


def _out_of_order(talks: Sequence[Talk]) -> set[int]:
    """Which talks are no turns of user and assistant behind at most one system message."""
    roles = bytes(map(_LETTERS.__getitem__, map(type, chain.from_iterable(talks))))
    counts = list(map(len, talks))
    wanted = b"".join(map(_TURNS.__getitem__, counts))
    wrong = {at for at, count in enumerate(counts) if not count} if 0 in counts else set()
    if roles != wanted:
        odd = np.flatnonzero(np.frombuffer(roles, np.uint8) != np.frombuffer(wanted, np.uint8))
        wrong.update(np.searchsorted(np.cumsum(counts), odd, side="right").tolist())
    return wrong


class _Marks:
    """The quotation marks of some rows.

    Args:
        rows: JSON.
        text: the rows with a line break between them, where it is at hand.
    """

    def __init__(self, rows: Sequence[bytes], text: bytes | None = None) -> None:
        self._rows = rows
        self._marks = np.frombuffer(b"\n".join(rows) if text is None else text, np.uint8) == ord('"')
        self.total = int(np.count_nonzero(self._marks))

    def among(self, first: int, end: int) -> int:
        """How many there are in the rows from one index up to another."""
        # Each row has a line break behind it.
        return int(np.count_nonzero(self._marks[self._ends[first] + first : self._ends[end] + end]))

    @cached_property
    def _ends(self) -> list[int]:
        """Bytes of all rows before each, and of all."""
        ends: list[int] = np.cumsum(np.fromiter(map(len, self._rows), np.int64, len(self._rows))).tolist()
        return [0, *ends]

    def of(self, row: int) -> int:
        return self._rows[row].count(b'"')


def _repeating(batch: _Batch, canonical: Sequence[_Marks], *, plain: bool) -> Iterable[int]:
    """Which rows may have a name twice in one object: the second takes the quotation marks of the first along.

    Args:
        batch: the rows.
        canonical: the parts of what became of each.
        plain: whether each quotation mark is written as itself. If so no row has fewer than expected, and of
            many that have as many as expected together, each has.
    """
    if not plain:
        return [at for at in range(len(batch.decoded)) if _is_uneven(batch, canonical, at)]
    written = _Marks(batch.rows, batch.text)
    lost = sum(map(written.of, batch.missing))
    total = sum(marks.total for marks in canonical)
    if written.total - lost == batch.layout.expected(batch.decoded, total):
        return ()
    return _uneven(batch, written, canonical)


def _is_uneven(batch: _Batch, canonical: Sequence[_Marks], at: int) -> bool:
    expected = batch.layout.expected(batch.decoded[at : at + 1], sum(marks.of(at) for marks in canonical))
    return quotes_of(batch.rows[batch.places[at]]) != expected


def _uneven(batch: _Batch, written: _Marks, canonical: Sequence[_Marks]) -> Iterator[int]:
    """The rows whose quotation marks don't add up: groups are halved where theirs do not."""
    places = [*batch.places, len(batch.rows)]
    count = len(batch.decoded)
    spans = [(first, min(first + _TOGETHER, count)) for first in range(0, count, _TOGETHER)]
    while spans:
        first, end = spans.pop()
        # Between the first of a group and the first of the next one there are rows that were not taken.
        strangers = batch.missing[bisect(batch.missing, places[first]) : bisect(batch.missing, places[end])]
        own = written.among(places[first], places[end]) - sum(map(written.of, strangers))
        kept = sum(marks.among(first, end) for marks in canonical)
        if own == batch.layout.expected(batch.decoded[first:end], kept):
            continue
        if end - first == 1:
            yield first
        else:
            middle = (first + end) // 2
            spans += ((first, middle), (middle, end))


def _judge(batch: _Batch, became: Became, signs: dict[int, int], refused: set[int]) -> dict[int, int]:
    """Signs that are left when all is judged that can be judged here; what is refused is added to `refused`."""
    left: dict[int, int] = {}
    for at, bits in signs.items():
        if at in refused:
            continue
        broken = bits & BROKEN or (bits & BLANK and batch.layout.blank(batch.decoded[at]))
        if broken or (bits & WEIGHT and not _learns(became, at)):
            refused.add(at)
        elif bits & (PRIVATE | RESERVED):
            left[at] = bits & (PRIVATE | RESERVED)
    return left


def _learns(became: Became, at: int) -> bool:
    ways = [became.talks[at]]
    if became.rejected is not None:
        ways.append([*ways[0][:-1], became.rejected[at]])
    return all(
        any(isinstance(message, Assistant | Calling) and message.weight != 0 for message in way)
        for way in ways
    )
