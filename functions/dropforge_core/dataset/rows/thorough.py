"""One row at a time, looked at from all sides: every fault with its path. The quick path answers to this."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from functools import lru_cache
from typing import Any, Final, Protocol

from dropforge_core.dataset.codes import Severity
from dropforge_core.dataset.faults import Fault
from dropforge_core.dataset.reading.shapes import line_of
from dropforge_core.dataset.renaming import renamed
from dropforge_core.dataset.rows.decoding import RowBroken, decode_and_write, field
from dropforge_core.dataset.rows.formats import Canonical, canonical, infer
from dropforge_core.dataset.rows.messages import decode
from dropforge_core.dataset.rows.places import lines_down
from dropforge_core.dataset.rows.private_data import Kind
from dropforge_core.dataset.rows.suspicion import PRIVATE, RESERVED, Scanner, kinds_of

_field = lru_cache(maxsize=1024)(field)

_UNTRAINED: Final = re.compile(r"(?:meta|tools)(?:[.\[]|\Z)")
"""Paths of what no model is trained on."""


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
        (draft,) = self.drafts(((line, raw),))
        return self.finish(draft)

    def drafts(self, rows: Iterable[tuple[int, bytes]]) -> list["Draft"]:
        """Rows (line, bytes) of which nothing has been told yet, each to be finished in its turn."""
        found = [self._draft(line, raw) for line, raw in rows]
        whole = [draft for draft in found if draft.written]
        lines = [draft.written for draft in whole]
        if lines:
            for at, signs in self.scanner.suspects(b"\n".join((*lines, b"")), lines).items():
                whole[at].signs = signs
        return found

    def finish(self, draft: "Draft") -> Canonical | None:
        """Tell what is wrong; a canonical row where that leaves one."""
        if draft.blank:
            self._tell(draft.line, Fault("BLANK_LINE", "", "an empty line"))
            return None
        self.rows += 1
        if draft.row is None:
            self.faulty += 1
            for fault in draft.faults:
                self._tell(draft.line + draft.lines_down, fault)
            return None
        if draft.signs & (PRIVATE | RESERVED):
            self._look(texts(draft.source), draft.signs, draft.faults)
        return None if draft.faults and self.report(draft.line, draft.faults, draft.raw) else draft.row

    def look(self, line: int, raw: bytes, signs: int, found: Sequence[tuple[str, str]] | None = None) -> bool:
        """Look at a row that is right but for the signs it has; True where it stays a valid one.

        Args:
            line: on which the row begins.
            raw: the row.
            signs: of private data or reserved tokens.
            found: its texts with their paths, where they are at hand.
        """
        faults: list[Fault] = []
        self._look(texts(decode(raw)) if found is None else found, signs, faults)
        return not (faults and self.report(line, faults, raw))

    def _look(self, found: Sequence[tuple[str, str]], signs: int, faults: list[Fault]) -> None:
        if signs & PRIVATE:
            self._look_for_private(found, kinds_of(signs), faults)
        if signs & RESERVED:
            self._look_for_reserved(found, faults)

    def report(self, line: int, faults: Sequence[Fault], raw: bytes = b"") -> bool:
        """Pass the faults of one row on; True where they make it a faulty one."""
        wrong = False
        # What is wrong with one of many lines is told of that line.
        down = lines_down(raw, {fault.path for fault in faults}) if b"\n" in raw else {}
        for fault in faults:
            self._tell(line + down.get(fault.path, 0), fault)
            wrong = wrong or self._judge.is_error(fault.code)
        self.faulty += wrong
        return wrong

    def _tell(self, line: int, fault: Fault) -> None:
        if fault.code not in self._off:
            self._judge.add(line, fault)

    def _draft(self, line: int, raw: bytes) -> "Draft":
        draft = Draft(line, raw)
        if not raw or raw.isspace():
            draft.blank = True
            return draft
        try:
            draft.source, draft.written = decode_and_write(raw, draft.faults)
            form = self._form_of(line, draft.source)
        except RowBroken as broken:
            draft.faults = [broken.fault]
            draft.written = b""
            draft.lines_down = broken.lines_down
            return draft
        draft.row = canonical(form, draft.source, draft.faults)
        return draft

    def _form_of(self, line: int, row: dict[str, Any]) -> str:
        name = infer(row)
        if name is None:
            raise RowBroken(_unknown(row, self.form.name))
        if self.form.name is None:
            self.form = Form(name, f"line {line_of(line)} of {self.form.first}")
        elif name != self.form.name:
            there = f"{self.form.first} is '{self.form.name}'"
            raise RowBroken(Fault("FORMAT_MIXED", "", f"format '{name}', but {there}"))
        return name

    def _look_for_reserved(self, found: Sequence[tuple[str, str]], faults: list[Fault]) -> None:
        for path, text in found:
            if self._reserved.search(text) and not _UNTRAINED.match(path):
                faults.append(Fault("RESERVED_TOKEN", path, "a control token of chat templates"))

    def _look_for_private(
        self, found: Sequence[tuple[str, str]], kinds: Sequence[Kind], faults: list[Fault]
    ) -> None:
        seen: set[str] = set()
        for path, text in found:
            for kind in kinds:
                if kind.search(text):
                    # How many and where is told; what it is, is not.
                    faults.append(Fault(kind.code, path, "something of that kind"))
                    seen.add(kind.code)
        for code in seen:
            self.private[code] = self.private.get(code, 0) + 1


@dataclass(slots=True)
class Draft:
    """A row that was read, and what is wrong with it as far as is known."""

    line: int
    raw: bytes
    blank: bool = False
    faults: list[Fault] = dataclass_field(default_factory=list)
    lines_down: int = 0
    """Where the fault of a row that is no object lies."""
    source: dict[str, Any] = dataclass_field(default_factory=dict)
    row: Canonical | None = None
    """None where there is nothing to go on with."""
    written: bytes = b""
    """Canonical JSON of all that the row has."""
    signs: int = 0


def _unknown(row: dict[str, Any], form: str | None) -> Fault:
    names = [field(name) for name in list(row)[:8]]
    found = f"the fields {', '.join(names)}" if names else "no fields"
    wanted = f"the fields of format '{form}'" if form else renamed(row)
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
