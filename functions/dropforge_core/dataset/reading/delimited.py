"""CSV and TSV: RFC 4180 with quoted line breaks and exact physical line numbers."""

import csv
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from dropforge_core.dataset.faults import Fault, FileFault
from dropforge_core.dataset.reading.shapes import Block, Report, blocks
from dropforge_core.dataset.reading.source import READ_BYTES

MAX_FIELD: Final = 1 << 20
"""Characters in one field; also bounds what an unclosed quote can swallow."""

COLUMNS: Final = frozenset(
    {
        "messages",
        "conversations",
        "prompt",
        "completion",
        "instruction",
        "output",
        "chosen",
        "rejected",
        "text",
    }
)
"""A header that has one of these names is a header in the right separator."""

_JSON_COLUMNS: Final = frozenset({"messages", "conversations", "tools", "meta"})
_TEXT_OR_TALK: Final = frozenset({"prompt", "completion", "chosen", "rejected"})
_OPTIONAL: Final = frozenset({"input", "system", "tools", "meta"})


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
        text, report = self._text, self._report
        reader, names = _begin(text, self._separator)
        lines: list[int] = []
        rows: list[bytes] = []
        size = 0
        while True:
            line = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                report(line, Fault("CSV_BROKEN", "", f"what is no CSV ({error})"))
                continue
            if text.broken_since(line):
                continue
            if not values:
                report(line, Fault("BLANK_LINE", "", "an empty line"))
            elif len(values) != len(names):
                report(
                    line,
                    Fault(
                        "CSV_FIELDS", "", f"{len(values)} fields", f"{len(names)} fields, as in the header"
                    ),
                )
            else:
                lines.append(line)
                rows.append(msgspec.json.encode(_row(names, values)))
                size += len(rows[-1])
            if size >= READ_BYTES:
                yield from blocks(lines, rows, report)
                lines, rows, size = [], [], 0
        if rows:
            yield from blocks(lines, rows, report)


def _begin(text: "_Lines", separator: str | None) -> tuple[Any, list[str]]:
    """A reader behind the header line, and the header."""
    first = next(text, "")
    if not first.strip():
        raise FileFault(Fault("FILE_EMPTY", "", "no header line"), 1)
    reader = csv.reader(_again(first, text), delimiter=separator or _separator(first), strict=True)
    try:
        return reader, _header(next(reader))
    except csv.Error as error:
        raise FileFault(Fault("CSV_BROKEN", "", f"a header that is no CSV ({error})"), 1) from None


class _Lines:
    """Physical lines as text; remembers the last one that was no UTF-8."""

    def __init__(self, chunks: Iterable[bytes], report: Report) -> None:
        self._chunks = iter(chunks)
        self._report = report
        self._rest: list[bytes] = []
        self._tail = b""
        self.number = 0
        self._broken = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                if not self._tail:
                    raise StopIteration
                self._rest, self._tail = [self._tail], b""
                break
            *whole, self._tail = (self._tail + chunk).split(b"\n")
            self._rest = [line + b"\n" for line in reversed(whole)]
            if len(self._tail) > 4 * MAX_FIELD:
                raise FileFault(Fault("LINE_TOO_LONG", "", "more than 4 MiB"), self.number + 1)
        self.number += 1
        line = self._rest.pop()
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            self._broken = self.number
            self._report(
                self.number,
                Fault(
                    "UTF8_INVALID",
                    "",
                    f"byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line",
                ),
            )
            return line.decode(errors="replace")

    def broken_since(self, line: int) -> bool:
        return self._broken >= line


def _again(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _separator(header: str) -> str:
    for separator in (",", ";", "\t"):
        if COLUMNS & {name.strip().strip('"').lower() for name in header.split(separator)}:
            return separator
    return ","


def _header(names: list[str]) -> list[str]:
    cleaned = [name.strip() for name in names]
    if "" in cleaned:
        raise FileFault(Fault("CSV_HEADER", "", f"column {cleaned.index('') + 1} without a name"), 1)
    ours = [name.lower() if name.lower() in COLUMNS | _OPTIONAL else name for name in cleaned]
    if len(set(ours)) < len(ours):
        raise FileFault(Fault("CSV_HEADER", "", "two columns of one name"), 1)
    if not COLUMNS & {name.lower() for name in cleaned}:
        raise FileFault(Fault("CSV_HEADER", "", f"{len(cleaned)} columns, none of them of a known format"), 1)
    return ours


def _row(names: list[str], values: list[str]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in zip(names, values, strict=True):
        if name in _OPTIONAL and not value:
            continue
        row[name] = _cell(name, value) if value[:1] in ("[", "{") else value
    return row


def _cell(name: str, value: str) -> Any:
    """What a cell that begins like JSON holds. A prompt may be JSON and text all the same, unless it is a talk."""
    if name not in _JSON_COLUMNS | _TEXT_OR_TALK:
        return value
    try:
        found = msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return value
    return found if name in _JSON_COLUMNS or _is_talk(found) else value


def _is_talk(value: Any) -> bool:
    return type(value) is list and bool(value) and all(type(m) is dict and "role" in m for m in value)
