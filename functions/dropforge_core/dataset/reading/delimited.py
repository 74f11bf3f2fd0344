"""CSV and TSV: RFC 4180 with quoted line breaks and exact physical line numbers."""

import csv
import io
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Final

import msgspec

from dropforge_core.dataset.faults import Fault, FileFault
from dropforge_core.dataset.reading.columns import COLUMNS, OPTIONAL, parsed, recognised
from dropforge_core.dataset.reading.shapes import Block, Report, blocks
from dropforge_core.dataset.reading.source import READ_BYTES
from dropforge_core.dataset.renaming import renamed

MAX_FIELD: Final = 1 << 20
"""Characters in one field; also bounds what an unclosed quote can swallow."""

MAX_LINE: Final = 4 * MAX_FIELD
"""Bytes in one physical line; a longer one ends the reading."""

SEPARATORS: Final = (",", ";", "\t")

_SAID: Final = {
    "unexpected end of data": "a quote that is never closed",
    "field larger than": f"a field of more than {MAX_FIELD:,} characters, as a quote makes that is never closed",
    "new-line character seen": "a carriage return without a line feed, outside of quotes",
    "',' expected after": "text behind a closing quote",
    "';' expected after": "text behind a closing quote",
    "'\t' expected after": "text behind a closing quote",
}

_encode: Final = msgspec.json.Encoder().encode


class DelimitedReader:
    """The rows of a CSV or TSV file, each as a JSON object.

    Args:
        chunks: the text.
        separator: between fields; None takes the one that fits the header.
        report: told of lines that are no rows.

    Raises:
        FileFault: FILE_EMPTY, CSV_HEADER, or CSV_BROKEN at an unclosed quote.
    """

    def __init__(self, chunks: Iterable[bytes], separator: str | None, report: Report) -> None:
        self._text = _Lines(chunks, report)
        self._separator = separator
        self._report = report

    @property
    def lines(self) -> int:
        """Physical lines so far."""
        return self._text.number

    def __iter__(self) -> Iterator[Block]:
        # The limit is the process's; ours is the widest that any reader here asks for.
        csv.field_size_limit(MAX_FIELD)
        lines: list[int] = []
        rows: list[bytes] = []
        size = 0
        try:
            for line, row in self._rows():
                lines.append(line)
                rows.append(row)
                size += len(row)
                if size >= READ_BYTES:
                    yield from blocks(lines, rows, self._report)
                    lines, rows, size = [], [], 0
        except FileFault:
            # What was read before the fault is handed on before it.
            if rows:
                yield from blocks(lines, rows, self._report)
            raise
        if rows:
            yield from blocks(lines, rows, self._report)

    def _rows(self) -> Iterator[tuple[int, bytes]]:
        text, report = self._text, self._report
        reader, names = _begin(iter(text), self._separator)
        while True:
            line = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                report(line, Fault("CSV_BROKEN", "", _worded(error)))
                continue
            if text.broken >= line:
                continue
            if len(values) == len(names):
                yield line, _encode(_row(names, values))
            elif not values:
                report(line, Fault("BLANK_LINE", "", "an empty line"))
            else:
                wanted = f"{len(names)} fields, as in the header"
                report(line, Fault("CSV_FIELDS", "", f"{len(values)} fields", wanted))


def _begin(text: Iterator[str], separator: str | None) -> tuple[Any, list[str]]:
    """A reader behind the header line, and the header."""
    first = next(text, "")
    if not first.strip():
        raise FileFault(Fault("FILE_EMPTY", "", "no header line"), 1)
    if first.lstrip().startswith(("{", "[")):
        wanted = "a header line; or a name that ends in .jsonl, where the file is JSON"
        raise FileFault(Fault("CSV_HEADER", "", "JSON", wanted, "Rename the file."), 1)
    reader = csv.reader(chain((first,), text), delimiter=separator or _separator(first), strict=True)
    try:
        return reader, _header(next(reader))
    except csv.Error as error:
        raise FileFault(Fault("CSV_BROKEN", "", f"{_worded(error)}, in the header"), 1) from None


def _worded(error: csv.Error) -> str:
    """What Python's reader says, for who knows no Python."""
    said = str(error)
    for beginning, words in _SAID.items():
        if said.startswith(beginning):
            return words
    return f"what is no CSV ({said})"


class _Lines:
    """Physical lines as text, once."""

    def __init__(self, chunks: Iterable[bytes], report: Report) -> None:
        self.number = 0
        """Lines so far."""
        self.broken = 0
        """The last line so far that was no UTF-8."""
        self._chunks = chunks
        self._report = report

    def __iter__(self) -> Iterator[str]:
        tail = b""
        for chunk in self._chunks:
            whole, found, tail = (tail + chunk).rpartition(b"\n")
            yield from self._decoded(whole + found)
            if len(tail) > MAX_LINE:
                raise self._too_long()
        yield from self._decoded(tail)

    def _decoded(self, text: bytes) -> Iterator[str]:
        if len(text) <= MAX_LINE:
            try:
                lines = io.StringIO(text.decode(), newline="\n")
            except UnicodeDecodeError:
                pass
            else:
                self.number += text.count(b"\n") + (not text.endswith(b"\n") and text != b"")
                yield from lines
                return
        for line in io.BytesIO(text):
            if len(line) > MAX_LINE + 1:
                raise self._too_long()
            self.number += 1
            yield self._repaired(line)

    def _repaired(self, line: bytes) -> str:
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            self.broken = self.number
            found = f"byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line"
            self._report(self.number, Fault("UTF8_INVALID", "", found))
            return line.decode(errors="replace")

    def _too_long(self) -> FileFault:
        return FileFault(Fault("LINE_TOO_LONG", "", f"more than {MAX_LINE:,} bytes"), self.number + 1)


def separator_of(header: str) -> str | None:
    """What parts the columns of a header line of a known format; None where it is none."""
    for separator in SEPARATORS:
        if COLUMNS & {name.strip().strip('"').lower() for name in header.split(separator)}:
            return separator
    return None


def _separator(header: str) -> str:
    return separator_of(header) or max(SEPARATORS, key=header.count)


def _header(names: list[str]) -> list[str]:
    cleaned = [name.strip() for name in names]
    if "" in cleaned:
        found = f"column {cleaned.index('') + 1} without a name"
        mend = "Name it, or write the table without it: pandas leaves its index out with index=False."
        raise FileFault(Fault("CSV_HEADER", "", found, mend=mend), 1)
    ours = recognised(cleaned)
    if len(set(ours)) < len(ours):
        raise FileFault(Fault("CSV_HEADER", "", "two columns of one name"), 1)
    if not COLUMNS & set(ours):
        found = f"{len(cleaned)} column{'s'[len(cleaned) == 1 :]}, none of them of a known format"
        raise FileFault(Fault("CSV_HEADER", "", found, renamed(cleaned)), 1)
    return ours


def _row(names: list[str], values: list[str]) -> dict[str, Any]:
    return {
        name: parsed(name, value) if value[:1] in ("[", "{") else value
        for name, value in zip(names, values, strict=True)
        if value or name not in OPTIONAL
    }
