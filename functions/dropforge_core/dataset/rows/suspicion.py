"""What rows look at more closely: one scan of many rows for everything that a quick reading would miss.

Patterns are looked for in canonical JSON, where each text is written in one way only. They are cheap and broad:
a sign is a reason to look, and what has no sign needs no look.

Hyperscan makes of some sets of patterns a machine that skips most bytes, and of others one that looks at each. The
three sets here are such that all of them together read 2 GB/s, where one set of all patterns reads 0.4 GB/s.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

import hyperscan
import numpy as np

from dropforge_core.dataset.rows.messages import encode
from dropforge_core.dataset.rows.private_data import KINDS, NINE_DIGITS, Kind

BROKEN: Final = 1 << len(KINDS)
"""Characters that are faults: NUL, or those that turn the direction of text."""
RESERVED: Final = BROKEN << 1
"""A control token of chat templates."""
BLANK: Final = BROKEN << 2
"""A text that begins with white space, or is empty."""
WEIGHT: Final = BROKEN << 3
"""A message that is not to be learnt."""
PRIVATE: Final = BROKEN - 1
"""Private data; the lowest bits are of `private_data.KINDS`, in their order."""

_NUL: Final = rb"\\u0000"
_BIDI: Final = (rb"\xe2\x80[\xaa-\xae]", rb"\xe2\x81[\xa6-\xa9]")
_BLANK: Final = (
    rb':"["\x20]',
    rb':"\\[bfnrt]',
    rb':"\\u00[01]',
    # What `str.isspace` takes for white space beyond ASCII.
    rb':"\xc2[\x85\xa0]',
    rb':"\xe1\x9a\x80',
    rb':"\xe2\x80[\x80-\x8a\xa8\xa9\xaf]',
    rb':"\xe2\x81\x9f',
    rb':"\xe3\x80\x80',
)
_WEIGHT: Final = rb'"weight":0'

_HITS_PER_ROW: Final = 8
_BYTES_PER_HIT: Final = 128
"""Beyond these, being told of each hit costs more than looking at every row."""

_RUN: Final = re.compile(rb"[0-9 .()+-]*")
_ESCAPE: Final = re.compile(rb"\\(?:[bfnrt]|u[0-9a-f]{4})\Z")
_LIKELY: Final = re.compile(
    rb"(?<![0-9])(?<![0-9]\.)[0-9]{14}|[0-9]{4}[ -](?:[0-9]{4}|[0-9]{6})[ -]|[+(]|00|[0-9]{3}[.-][0-9]{4}"
)
"""Something of this is in every card and telephone number; it sorts out most decimals and dates."""
_AROUND: Final = 64
"""Bytes around the ninth digit of a number; what goes on beyond them is a table of numbers."""

_NUMBERS: Final = sum(1 << at for at, kind in enumerate(KINDS) if NINE_DIGITS in kind.signs)
_OF_NUMBERS: Final = tuple((1 << at, kind) for at, kind in enumerate(KINDS) if NINE_DIGITS in kind.signs)
# How the parts of these begin decides how fast they are: see above.
_MARKED: Final = frozenset({"PII_EMAIL", "PII_IBAN", "PII_CARD", "PII_PHONE"})

_Hit = tuple[int, int]


def _note(ident: int, _start: int, end: int, _flags: int, told: Any) -> bool:
    """Hyperscan's callback; true stops the scan."""
    hits: list[_Hit]
    limit: int
    hits, limit = told
    hits.append((ident, end))
    return len(hits) >= limit


class _Set:
    """Patterns that are looked for together; shared by all who look for the same."""

    def __init__(self, patterns: Sequence[tuple[int, bytes]], *, once: bool = False) -> None:
        self.bits = tuple(bit for bit, _ in patterns)
        self.every = sum(set(self.bits))
        flags = hyperscan.HS_FLAG_DOTALL | (hyperscan.HS_FLAG_SINGLEMATCH if once else 0)
        self.database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
        self.database.compile(
            expressions=[pattern for _, pattern in patterns],
            ids=list(range(len(patterns))),
            elements=len(patterns),
            flags=[flags] * len(patterns),
        )


def _literal(text: str) -> bytes:
    """A pattern for a text as it is written inside of canonical JSON."""
    return b"".join(b"\\x%02x" % byte for byte in encode(text)[1:-1])


@lru_cache(maxsize=8)
def _sets(off: frozenset[str], tokens: frozenset[str]) -> tuple[_Set, ...]:
    words: list[tuple[int, bytes]] = [(BROKEN, _NUL), (WEIGHT, _WEIGHT)]
    words += [(BLANK, pattern) for pattern in _BLANK]
    if "BIDI_CONTROL" not in off:
        words += [(BROKEN, pattern) for pattern in _BIDI]
    words += [(RESERVED, _literal(token)) for token in sorted(tokens) if token]
    marks: dict[bytes, int] = {}
    for at, kind in enumerate(KINDS):
        if kind.code in off:
            continue
        for sign in kind.signs:
            if kind.code in _MARKED:
                marks[sign] = marks.get(sign, 0) | 1 << at
            else:
                words.append((1 << at, sign))
    sets = [_Set(words)]
    if marks:
        sets.append(_Set([(bits, sign) for sign, bits in marks.items()]))
    return tuple(sets)


@lru_cache(maxsize=1)
def _escaped_quote() -> _Set:
    return _Set([(1, rb"\\u0022")], once=True)


class Scanner:
    """Looks for everything suspicious. Not for two threads at once.

    Args:
        off: codes that are not looked for.
        tokens: reserved by chat templates.
    """

    def __init__(self, off: Collection[str], tokens: Iterable[str]) -> None:
        reserved = frozenset(tokens) if "RESERVED_TOKEN" not in off else frozenset()
        self._sets = _sets(frozenset(off), reserved)
        self._scratches = [hyperscan.Scratch(one.database) for one in self._sets]
        self._quote = _escaped_quote()
        self._quote_scratch = hyperscan.Scratch(self._quote.database)

    def is_plain(self, text: bytes) -> bool:
        r"""Whether no quotation mark is written as `\u0022` in JSON of any form."""
        hits: list[_Hit] = []
        self._scan(self._quote, self._quote_scratch, text, hits, 1)
        return not hits

    def suspects(self, text: bytes, rows: Sequence[bytes]) -> dict[int, int]:
        r"""Signs by row, of those that have any.

        Args:
            text: `rows`, each followed by a line break.
            rows: canonical JSON.
        """
        found: dict[int, int] = {}
        for one, scratch in zip(self._sets, self._scratches, strict=True):
            hits: list[_Hit] = []
            limit = 100 + len(rows) * _HITS_PER_ROW + len(text) // _BYTES_PER_HIT
            self._scan(one, scratch, text, hits, limit)
            if not hits:
                continue
            if len(hits) < limit:
                _place(one, text, rows, hits, found)
            else:
                for row in range(len(rows)):
                    found[row] = found.get(row, 0) | one.every
        return found

    @staticmethod
    def _scan(one: _Set, scratch: Any, text: bytes, hits: list[_Hit], limit: int) -> None:
        try:
            one.database.scan(text, match_event_handler=_note, context=(hits, limit), scratch=scratch)
        except hyperscan.ScanTerminated:
            return


def _place(one: _Set, text: bytes, rows: Sequence[bytes], hits: list[_Hit], found: dict[int, int]) -> None:
    """Add the signs of hits by row."""
    ends = np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)))
    # Line breaks are not in the rows.
    ends += np.arange(1, len(rows) + 1)
    places = np.searchsorted(ends, [end for _, end in hits]).tolist()
    for row, (ident, end) in zip(places, hits, strict=True):
        bits = one.bits[ident]
        known = found.get(row, 0)
        if bits & ~known:
            if bits & _NUMBERS:
                bits &= _numbers(text, end)
                if not bits:
                    continue
            found[row] = known | bits


@lru_cache(maxsize=1024)
def kinds_of(signs: int) -> tuple[Kind, ...]:
    """The private kinds among signs."""
    return tuple(kind for at, kind in enumerate(KINDS) if signs >> at & 1)


def _numbers(text: bytes, end: int) -> int:
    """Which kinds of number there may be where nine digits end: most are times, amounts and the like."""
    before = text[max(0, end - _AROUND) : end]
    head = before.rstrip(b"0123456789 .()+-")
    start = end - len(before) + len(head)
    run = _RUN.match(text, start, end + _AROUND)
    stop = run.end() if run else end
    if not head or stop == end + _AROUND:
        return _NUMBERS
    before = text[max(0, start - 8) : start]
    if before.endswith(b"\\u"):
        # Some of the digits are of an escaped character.
        return _NUMBERS
    if not _LIKELY.search(text, start, stop):
        return 0
    # An escaped character is none of a word. What is cut in two may look like less, and be suspected more.
    if _ESCAPE.search(before):
        before = b" "
    around = (before + text[start : stop + 8]).decode("utf-8", "replace")
    return sum(bit for bit, kind in _OF_NUMBERS if kind.search(around))
