"""What all readers hand on: blocks of rows, and faults with their lines."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from dropforge_core.dataset.faults import Fault

MAX_ROW_BYTES: Final = 1 << 20
"""Longest row, in bytes of JSON without its line break."""

Report = Callable[[int | None, Fault], None]
"""Told (line, fault) of everything that is wrong on the way; lines count from 1, where the part begins."""


_LINE_BITS: Final = 32
_LINE: Final = (1 << _LINE_BITS) - 1


def place_of(line: int, element: int) -> int:
    """One number for an element, from 0, of an array and the line that it shares with others; a line below is one more."""
    return line | element + 1 << _LINE_BITS


def line_of(place: int) -> int:
    """The line of a place, which may be a line by itself."""
    return place & _LINE


def element_of(place: int) -> int | None:
    """The element of a place; None where it is a line by itself."""
    return (place >> _LINE_BITS) - 1 if place > _LINE else None


class Block(NamedTuple):
    """Some rows that follow one another; about 1 MiB."""

    lines: Sequence[int]
    """Line on which each row begins, from 1, where the part begins; a `place_of` where others begin there, too."""
    rows: Sequence[bytes]
    """JSON text of each row, not yet checked, at most `MAX_ROW_BYTES` long. A blank line is a row here."""
    text: bytes
    """The rows, joined by line breaks."""


def too_long(line: int) -> tuple[int, Fault]:
    """What is reported of a row that is passed over for its length."""
    return line, Fault("LINE_TOO_LONG", "", f"more than {MAX_ROW_BYTES:,} bytes")


def blocks(
    lines: Sequence[int], rows: Sequence[bytes], report: Report, text: bytes | None = None
) -> Iterator[Block]:
    """Rows without those that are too long, which are reported in their place.

    Args:
        lines: line of each row.
        rows: at least one.
        report: told of rows that are too long.
        text: the rows joined, where that is at hand.
    """
    if (text is not None and len(text) <= MAX_ROW_BYTES) or max(map(len, rows)) <= MAX_ROW_BYTES:
        yield Block(lines, rows, b"\n".join(rows) if text is None else text)
        return
    begin = 0
    for at, row in enumerate(rows):
        if len(row) > MAX_ROW_BYTES:
            if at > begin:
                yield Block(lines[begin:at], rows[begin:at], b"\n".join(rows[begin:at]))
            report(*too_long(lines[at]))
            begin = at + 1
    if begin < len(rows):
        yield Block(lines[begin:], rows[begin:], b"\n".join(rows[begin:]))
