"""Rows as bytes with exact line numbers, from JSON Lines, a JSON array, CSV or TSV. Streaming."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from dropforge_core.dataset.faults import Fault, FileFault
from dropforge_core.dataset.reading.delimited import delimited_rows
from dropforge_core.dataset.reading.source import SourceFile, text_of

MAX_ROW_BYTES: Final = 1 << 20
"""Longest row, in bytes of JSON."""

Report = Callable[[int | None, Fault], None]
"""Told (line, fault) of everything that is wrong on the way."""

_TOKEN: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[][{},"]', re.DOTALL)
_WHITE: Final = b" \t\r\n"


class Block(NamedTuple):
    """Some rows that follow one another."""

    lines: Sequence[int]
    """Line on which each row begins, from 1."""
    rows: Sequence[bytes]
    """JSON text of each row, not yet checked."""


def read_blocks(file: SourceFile, report: Report) -> Iterator[Block]:
    """All rows of a file.

    What keeps the rest of a file from being read is reported, and ends the iteration; memory does not
    grow with the file.
    """
    try:
        yield from _by_kind(file, _without_bom(text_of(file), report), report)
    except FileFault as fault:
        report(fault.line, fault.fault)


def _without_bom(chunks: Iterator[bytes], report: Report) -> Iterator[bytes]:
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= 3:
            break
    if head.startswith(b"\xef\xbb\xbf"):
        report(1, Fault("BOM", "", "a byte order mark before the first row"))
        head = head[3:]
    if head:
        yield head
    yield from chunks


def _by_kind(file: SourceFile, chunks: Iterator[bytes], report: Report) -> Iterator[Block]:
    if file.kind in ("csv", "tsv"):
        for lines, rows in delimited_rows(chunks, "\t" if file.kind == "tsv" else None, report):
            yield Block(lines, rows)
        return
    if file.kind not in ("jsonl", "json"):
        raise FileFault(Fault("FILE_KIND", "", f"a file of kind '{file.kind}'" if file.kind else "no suffix"))
    head = b""
    for chunk in chunks:
        head += chunk
        if head.strip(_WHITE) and (b"\n" in head.lstrip(_WHITE) or len(head) > MAX_ROW_BYTES):
            break
    if not head.strip(_WHITE):
        raise FileFault(Fault("FILE_EMPTY", "", "no row"))
    whole = _resumed(head, chunks)
    first, _, rest = head.lstrip(_WHITE).partition(b"\n")
    if first.startswith(b"["):
        # A stray array on the first of many lines is a bad row, not a file of another kind.
        if file.kind == "jsonl" and _is_json(first) and rest.strip(_WHITE):
            yield from json_lines(whole, report)
        else:
            yield from json_array(whole)
    elif file.kind == "json" and first.strip(_WHITE) == b"{":
        raise FileFault(Fault("ARRAY_BROKEN", "", "one object over several lines"), line=1)
    else:
        yield from json_lines(whole, report)


def _resumed(head: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from rest


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def json_lines(chunks: Iterable[bytes], report: Report) -> Iterator[Block]:
    """One row a line. A line beyond `MAX_ROW_BYTES` is reported and passed over without being held."""
    pending = b""
    parts: list[bytes] = []
    held, line, skipping = 0, 1, False
    for piece in chunks:
        chunk = piece
        if skipping:
            _, found, chunk = chunk.partition(b"\n")
            if not found:
                continue
            skipping, line = False, line + 1
        cut = chunk.rfind(b"\n")
        if cut < 0:
            parts.append(chunk)
            held += len(chunk)
            if held > MAX_ROW_BYTES:
                report(line, Fault("LINE_TOO_LONG", "", f"more than {MAX_ROW_BYTES:,} bytes"))
                parts, held, skipping = [], 0, True
            continue
        rows = b"".join((*parts, chunk[:cut])).split(b"\n")
        yield Block(range(line, line + len(rows)), rows)
        line += len(rows)
        parts = [chunk[cut + 1 :]]
        held = len(parts[0])
    pending = b"".join(parts)
    if pending and not skipping:
        yield Block((line,), (pending,))


def json_array(chunks: Iterable[bytes]) -> Iterator[Block]:
    """The elements of one array, each with the line on which it begins.

    Raises:
        FileFault: ARRAY_BROKEN where brackets or commas don't fit, LINE_TOO_LONG for one element.
    """
    scanner = _ArrayScanner()
    for chunk in chunks:
        if lines_and_rows := scanner.feed(chunk):
            yield Block(*zip(*lines_and_rows, strict=True))
    scanner.finish()


class _ArrayScanner:
    """Cuts an array at its own commas; what lies between them is left to the JSON parser."""

    def __init__(self) -> None:
        self._buffer = b""
        self._at = 0
        self._start = 0
        self._depth = 0
        self._line = 1
        self._state = "before"

    def feed(self, chunk: bytes) -> list[tuple[int, bytes]]:
        self._buffer = self._buffer[self._start :] + chunk
        self._at -= self._start
        self._start = 0
        out: list[tuple[int, bytes]] = []
        for token in _TOKEN.finditer(self._buffer, self._at):
            first = self._buffer[token.start()]
            if first == 0x22:
                if token.end() - token.start() == 1:
                    # The string goes on in the next chunk.
                    self._at = token.start()
                    break
                self._at = token.end()
                continue
            self._at = token.end()
            self._structure(first, token.start(), out)
        else:
            self._at = len(self._buffer)
        if self._state == "after":
            if self._buffer[self._start :].strip(_WHITE):
                raise self._broken("more text after the closing ']'")
            self._move_to(len(self._buffer))
        elif len(self._buffer) - self._start > MAX_ROW_BYTES:
            raise FileFault(Fault("LINE_TOO_LONG", "", f"more than {MAX_ROW_BYTES:,} bytes"), self._line)
        return out

    def _structure(self, symbol: int, at: int, out: list[tuple[int, bytes]]) -> None:
        if self._state == "after":
            raise self._broken("more text after the closing ']'")
        if symbol in b"[{":
            self._depth += 1
            if self._state == "before":
                self._state = "first"
                self._move_to(at + 1)
            return
        if symbol in b"]}":
            self._depth -= 1
        if self._depth > (1 if symbol == 0x2C else 0):
            return
        element = self._buffer[self._start : at]
        body = element.strip(_WHITE)
        if body:
            blank = element[: len(element) - len(element.lstrip(_WHITE))]
            out.append((self._line + blank.count(b"\n"), body))
        elif symbol == 0x2C or self._state == "rows":
            raise self._broken("a comma with nothing beside it")
        self._state = "rows" if symbol == 0x2C else "after"
        self._move_to(at + 1)

    def _move_to(self, end: int) -> None:
        self._line += self._buffer.count(b"\n", self._start, end)
        self._start = end

    def _broken(self, found: str) -> FileFault:
        return FileFault(Fault("ARRAY_BROKEN", "", found), self._line)

    def finish(self) -> None:
        if self._state != "after":
            self._move_to(len(self._buffer.rstrip(_WHITE)))
            raise self._broken("an array that ends in the middle")
