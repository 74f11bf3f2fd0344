"""From files to canonical rows, every fault reported on the way. Both passes read through here."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from dropforge_core.dataset.faults import Fault
from dropforge_core.dataset.problems import Problems
from dropforge_core.dataset.reading.blocks import MAX_ROW_BYTES, read_blocks
from dropforge_core.dataset.reading.source import SourceFile
from dropforge_core.dataset.rows.decoding import RowBroken, decode_row, field
from dropforge_core.dataset.rows.formats import Canonical, canonical, infer
from dropforge_core.dataset.rows.private_data import CODES as PRIVATE_CODES
from dropforge_core.dataset.rows.private_data import found_in, signs_of, suspects
from dropforge_core.dataset.rows.reader import WELL_KNOWN_TOKENS

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class ValidRow:
    """A row without errors."""

    line: int
    row: Canonical
    encoded: bytes
    """Canonical JSON of what makes the row what it is: messages, and both answers of a pair."""


class RowReader:
    """Reads files one after another into canonical rows of one format."""

    def __init__(
        self,
        problems: Problems,
        special_tokens: frozenset[str] = WELL_KNOWN_TOKENS,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.format: str | None = None
        self.rows = 0
        """Rows read, faulty ones too."""
        self.faulty = 0
        self.bytes = 0
        """Decompressed bytes of rows."""
        self.private: dict[str, int] = {}
        """Rows by code of what private data they have."""
        self._problems = problems
        self._progress = progress
        self._looks_for_private = any(problems.severity[code] != "off" for code in PRIVATE_CODES)
        self._first = ("", 0)
        self._reserved = re.compile(
            "|".join(sorted(map(re.escape, special_tokens), key=len, reverse=True)) or r"(?!)"
        )
        self._reserved_signs = tuple({token[:2].encode() for token in special_tokens})

    def read(self, file: SourceFile) -> Iterator[ValidRow]:
        """The valid rows of a file; what is wrong with others goes to the problems."""
        name, problems = file.name, self._problems
        for block in read_blocks(file, lambda line, fault: self._file_fault(name, line, fault)):
            text = b"\n".join(block.rows)
            signs = signs_of(text) if self._looks_for_private else None
            reserved = tuple(sign for sign in self._reserved_signs if sign[:1] in text and sign in text)
            for line, raw in zip(block.lines, block.rows, strict=True):
                if not raw or raw.isspace():
                    problems.add(name, line, Fault("BLANK_LINE", "", "an empty line"))
                    continue
                self.rows += 1
                faults: list[Fault] = []
                try:
                    source, row = self._read_row(name, line, raw, faults)
                except RowBroken as broken:
                    self.faulty += 1
                    problems.add(name, line + broken.lines_down, broken.fault)
                    continue
                if signs and (kinds := suspects(raw, signs)):
                    self._look_for_private(source, kinds, faults)
                if reserved and any(sign in raw for sign in reserved):
                    self._look_for_reserved(source, faults)
                if faults and self._report(name, line, faults):
                    continue
                yield ValidRow(line, row, _identity(row))
            self.bytes += len(text)
            if self._progress:
                self._progress(len(text))

    def _file_fault(self, name: str, line: int | None, fault: Fault) -> None:
        """A fault from below the rows; one that cost a row counts as a faulty row."""
        if fault.code in ("LINE_TOO_LONG", "CSV_FIELDS", "CSV_BROKEN", "UTF8_INVALID"):
            self.rows += 1
            self.faulty += 1
        self._problems.add(name, line, fault)

    def _report(self, name: str, line: int, faults: Sequence[Fault]) -> bool:
        """Pass faults on; True where one of them is an error."""
        wrong = False
        for fault in faults:
            self._problems.add(name, line, fault)
            wrong = wrong or self._problems.is_error(fault.code)
        self.faulty += wrong
        return wrong

    def reject(self, name: str, line: int, fault: Fault) -> bool:
        """Report what a later check found in a valid row; True where that makes it a faulty one."""
        return self._report(name, line, (fault,))

    def _read_row(
        self, name: str, line: int, raw: bytes, faults: list[Fault]
    ) -> tuple[dict[str, Any], Canonical]:
        if len(raw) > MAX_ROW_BYTES:
            raise RowBroken(Fault("LINE_TOO_LONG", "", f"{len(raw):,} bytes"))
        row = decode_row(raw, faults)
        form = infer(row)
        if form is None:
            raise RowBroken(_unknown(row, self.format))
        if self.format is None:
            self.format, self._first = form, (name, line)
        elif form != self.format:
            file, first = self._first
            there = f"line {first}" if file == name else f"line {first} of {file}"
            raise RowBroken(Fault("FORMAT_MIXED", "", f"format '{form}', but {there} is '{self.format}'"))
        return row, canonical(form, row, faults)

    def _look_for_reserved(self, row: dict[str, Any], faults: list[Fault]) -> None:
        for path, text in _texts({k: v for k, v in row.items() if k not in ("meta", "tools")}, ""):
            if self._reserved.search(text):
                faults.append(Fault("RESERVED_TOKEN", path, "a control token of chat templates"))

    def _look_for_private(self, row: dict[str, Any], kinds: Sequence[Any], faults: list[Fault]) -> None:
        seen: set[str] = set()
        for path, text in _texts(row, ""):
            for code in found_in(text, kinds):
                if self._problems.severity[code] == "off":
                    continue
                # How many and where is told; what it is, is not.
                faults.append(Fault(code, path, "something of that kind"))
                seen.add(code)
        for code in seen:
            self.private[code] = self.private.get(code, 0) + 1


def _identity(row: Canonical) -> bytes:
    encoded = _encode(row.messages)
    if row.chosen is not None:
        encoded += _encode(row.rejected)
    return encoded


def _unknown(row: dict[str, Any], form: str | None) -> Fault:
    names = [field(name) for name in list(row)[:8]]
    found = f"the fields {', '.join(names)}" if names else "no fields"
    wanted = f"the fields of format '{form}'" if form else ""
    return Fault("FORMAT_UNKNOWN", "", found, wanted)


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """(path, text) of everything in a row that is text."""
    if type(value) is str:
        yield path, value
    elif type(value) is dict:
        for name, inner in value.items():
            yield from _texts(inner, f"{path}.{field(name)}" if path else field(name))
    elif type(value) is list:
        for index, inner in enumerate(value):
            yield from _texts(inner, f"{path}[{index}]")
