"""One JSON array: its elements, each with the line on which it begins."""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from dropforge_core.dataset.faults import Fault, FileFault
from dropforge_core.dataset.reading.shapes import MAX_ROW_BYTES, Block, Report, blocks

_TOKEN: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[][{},"]', re.DOTALL)
_WHITE: Final = b" \t\r\n"


class ArrayReader:
    """The elements of one array.

    Args:
        chunks: the text.
        report: told of elements that are too long.

    Raises:
        FileFault: ARRAY_BROKEN where brackets or commas don't fit, LINE_TOO_LONG for one element.
    """

    def __init__(self, chunks: Iterable[bytes], report: Report) -> None:
        self._chunks = chunks
        self._report = report
        self._scanner = _ArrayScanner()

    @property
    def lines(self) -> int:
        """Lines so far."""
        return self._scanner.lines

    def __iter__(self) -> Iterator[Block]:
        for chunk in self._chunks:
            if found := self._scanner.feed(chunk):
                lines, rows = zip(*found, strict=True)
                yield from blocks(lines, rows, self._report)
        self._scanner.finish()


class _ArrayScanner:
    """Cuts an array at its own commas; what lies between them is left to the JSON parser."""

    def __init__(self) -> None:
        self._buffer = b""
        self._at = 0
        self._start = 0
        self._depth = 0
        self._line = 1
        self._state = "before"
        self.lines = 0

    def feed(self, chunk: bytes) -> list[tuple[int, bytes]]:
        self.lines += chunk.count(b"\n")
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
