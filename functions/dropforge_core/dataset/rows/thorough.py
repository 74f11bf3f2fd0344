"""One row at a time, looked at from all sides: every fault with its path. The quick path answers to this."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

from dropforge_core.dataset.codes import Severity
from dropforge_core.dataset.faults import Fault
from dropforge_core.dataset.reading.blocks import MAX_ROW_BYTES
from dropforge_core.dataset.rows.decoding import RowBroken, decode_row, field
from dropforge_core.dataset.rows.formats import Canonical, canonical, infer
from dropforge_core.dataset.rows.messages import decode, encode
from dropforge_core.dataset.rows.private_data import Kind
from dropforge_core.dataset.rows.suspicion import PRIVATE, RESERVED, Scanner, kinds_of

_field = lru_cache(maxsize=1024)(field)


class Judge(Protocol):
    """Says how severe a fault is, and takes them."""

    @property
    def severity(self) -> Mapping[str, Severity]:
        """Of every code. Nothing that is "off" is told."""
        ...

    def add(self, line: int | None, fault: Fault) -> None:
        """Take one fault of the file that is being read."""
        ...

    def is_error(self, code: str) -> bool:
        """Whether a fault of that code costs its row."""
        ...


class Form:
    """The format of a dataset, and where it was first seen."""

    def __init__(self, name: str | None, first: str) -> None:
        self.name = name
        """None until a row shows it."""
        self.first = first
        """A place in words, such as "line 1 of train.jsonl"; the name of the file while `name` is None."""


class ThoroughReader:
    """Rows from bytes, one by one."""

    def __init__(self, judge: Judge, form: Form, special_tokens: frozenset[str]) -> None:
        self.form = form
        self.rows = 0
        """Rows read, faulty ones too."""
        self.faulty = 0
        self.private: dict[str, int] = {}
        """Rows by code of what private data they have."""
        self._judge = judge
        self._off = frozenset(code for code, severity in judge.severity.items() if severity == "off")
        tokens = sorted((token for token in special_tokens if token), key=len, reverse=True)
        self.scanner = Scanner(self._off, tokens)
        """Looks for signs of what is private or reserved."""
        self._reserved = re.compile("|".join(map(re.escape, tokens)) or r"(?!)")

    def read(self, line: int, raw: bytes) -> Canonical | None:
        """A canonical row, or None where there is none; what is wrong goes to the judge."""
        if not raw or raw.isspace():
            self._tell(line, Fault("BLANK_LINE", "", "an empty line"))
            return None
        self.rows += 1
        faults: list[Fault] = []
        try:
            source, row = self._read(line, raw, faults)
        except RowBroken as broken:
            self.faulty += 1
            self._tell(line + broken.lines_down, broken.fault)
            return None
        written = encode(source)
        signs = self.scanner.suspects(written, (written,))
        self._look(source, signs.get(0, 0), faults)
        return None if faults and self.report(line, faults) else row

    def look(self, line: int, raw: bytes, signs: int) -> bool:
        """Look at a row that is right but for the signs it has; True where it stays a valid one."""
        faults: list[Fault] = []
        self._look(decode(raw), signs, faults)
        return not (faults and self.report(line, faults))

    def _look(self, row: dict[str, Any], signs: int, faults: list[Fault]) -> None:
        if signs & PRIVATE:
            self._look_for_private(row, kinds_of(signs), faults)
        if signs & RESERVED:
            self._look_for_reserved(row, faults)

    def report(self, line: int, faults: Sequence[Fault]) -> bool:
        """Pass the faults of one row on; True where they make it a faulty one."""
        wrong = False
        for fault in faults:
            self._tell(line, fault)
            wrong = wrong or self._judge.is_error(fault.code)
        self.faulty += wrong
        return wrong

    def _tell(self, line: int, fault: Fault) -> None:
        if fault.code not in self._off:
            self._judge.add(line, fault)

    def _read(self, line: int, raw: bytes, faults: list[Fault]) -> tuple[dict[str, Any], Canonical]:
        if len(raw) > MAX_ROW_BYTES:
            raise RowBroken(Fault("LINE_TOO_LONG", "", f"{len(raw):,} bytes"))
        row = decode_row(raw, faults)
        name = infer(row)
        if name is None:
            raise RowBroken(_unknown(row, self.form.name))
        if self.form.name is None:
            self.form = Form(name, f"line {line} of {self.form.first}")
        elif name != self.form.name:
            there = f"{self.form.first} is '{self.form.name}'"
            raise RowBroken(Fault("FORMAT_MIXED", "", f"format '{name}', but {there}"))
        return row, canonical(name, row, faults)

    def _look_for_reserved(self, row: dict[str, Any], faults: list[Fault]) -> None:
        for path, text in texts({k: v for k, v in row.items() if k not in ("meta", "tools")}):
            if self._reserved.search(text):
                faults.append(Fault("RESERVED_TOKEN", path, "a control token of chat templates"))

    def _look_for_private(self, row: dict[str, Any], kinds: Sequence[Kind], faults: list[Fault]) -> None:
        seen: set[str] = set()
        for path, text in texts(row):
            for kind in kinds:
                if kind.search(text):
                    # How many and where is told; what it is, is not.
                    faults.append(Fault(kind.code, path, "something of that kind"))
                    seen.add(kind.code)
        for code in seen:
            self.private[code] = self.private.get(code, 0) + 1


def _unknown(row: dict[str, Any], form: str | None) -> Fault:
    names = [field(name) for name in list(row)[:8]]
    found = f"the fields {', '.join(names)}" if names else "no fields"
    wanted = f"the fields of format '{form}'" if form else ""
    return Fault("FORMAT_UNKNOWN", "", found, wanted)


def texts(row: dict[str, Any]) -> list[tuple[str, str]]:
    """(path, text) of everything in a row that is text."""
    found: list[tuple[str, str]] = []
    for name, value in row.items():
        if type(value) is str:
            found.append((_field(name), value))
        elif type(value) is dict or type(value) is list:
            _gather(value, _field(name), found)
    return found


def _gather(value: dict[str, Any] | list[Any], path: str, found: list[tuple[str, str]]) -> None:
    inside = (
        [(f"{path}.{_field(name)}", inner) for name, inner in value.items()]
        if type(value) is dict
        else [(f"{path}[{index}]", inner) for index, inner in enumerate(value)]
    )
    for where, inner in inside:
        if type(inner) is str:
            found.append((where, inner))
        elif type(inner) is dict or type(inner) is list:
            _gather(inner, where, found)
