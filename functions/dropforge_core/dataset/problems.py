"""Collects what is wrong, groups what is alike, and counts all of it."""

import re
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from dropforge_core.contracts import Problem
from dropforge_core.dataset.codes import CODES, Severity
from dropforge_core.dataset.faults import Fault
from dropforge_core.recipe import DatasetRules

MAX_LINES: Final = 10_000
"""Lines that one entry lists; its `count` is true beyond them."""

MAX_GROUPS: Final = 1_000
"""Entries of a report; what comes later is counted, not listed."""

_INDEX: Final = re.compile(r"\[\d+\]")


def severities(rules: DatasetRules) -> dict[str, Severity]:
    """The severity of every code under a recipe's rules; `checks` has the last word."""
    found = {code: kind.severity for code, kind in CODES.items()}
    found["DUPLICATE_ROW"] = rules.duplicates
    found["NEAR_DUPLICATE"] = rules.near_duplicates
    found["LEAKAGE_EXACT"] = rules.leakage
    # Likeness is a hint, sameness a proof: `error` makes an error of the proof only.
    found["LEAKAGE_NEAR"] = "warning" if rules.leakage == "error" else rules.leakage
    for code in CODES:
        if code.startswith(("PII_", "SECRET_")):
            found[code] = rules.pii
    return found | {code: severity for code, severity in rules.checks.items() if CODES[code].adjustable}


@dataclass(slots=True)
class _Group:
    file: str
    line: int | None
    fault: Fault
    count: int = 0
    lines: "array[int]" = field(default_factory=lambda: array("Q"))
    last: int = -1


class Problems:
    """All problems of one dataset. Memory is bounded whatever is added."""

    def __init__(self, severity: Mapping[str, Severity]) -> None:
        self.severity = dict(severity)
        self._groups: dict[tuple[str, str, str], _Group] = {}
        self._ready: list[Problem] = []
        self._unlisted = {"error": 0, "warning": 0}

    def is_error(self, code: str) -> bool:
        return self.severity[code] == "error"

    def add(self, file: str, line: int | None, fault: Fault) -> None:
        """Note one fault. Those of one file, code and path are one entry."""
        severity = self.severity[fault.code]
        if severity == "off":
            return
        key = (file, fault.code, _INDEX.sub("[*]", fault.path))
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= MAX_GROUPS:
                self._unlisted[severity] += 1
                return
            group = self._groups[key] = _Group(file, line, fault)
        if line is not None and line == group.last:
            return
        group.count += 1
        if line is not None:
            group.last = line
            if len(group.lines) < MAX_LINES:
                group.lines.append(line)

    def add_ready(self, problems: tuple[Problem, ...]) -> None:
        """Problems that were found elsewhere, such as a recipe's."""
        self._ready.extend(problems)

    def excuse_rows(self) -> None:
        """Make warnings of what is wrong with single rows: they are dropped, and said to be."""
        for code, kind in CODES.items():
            if kind.scope == "row" and self.severity[code] == "error":
                self.severity[code] = "warning"

    def count(self, code: str) -> int:
        """Lines with problems of a code, all files together."""
        return sum(group.count for group in self._groups.values() if group.fault.code == code)

    @property
    def error_count(self) -> int:
        """Faulty lines and facts, each kind counted for itself."""
        counted = sum(g.count for g in self._groups.values() if self.is_error(g.fault.code))
        return counted + sum(problem.count for problem in self._ready) + self._unlisted["error"]

    def listed(self, severity: Severity) -> tuple[Problem, ...]:
        """Entries of one severity by file, first line and code."""
        own = [_problem(g) for g in self._groups.values() if self.severity[g.fault.code] == severity]
        ready = [problem for problem in self._ready if CODES[problem.code].severity == severity]
        return tuple(sorted([*own, *ready], key=lambda p: (p.file, p.line or 0, p.code, p.path)))


def _problem(group: _Group) -> Problem:
    return make_problem(group.file, group.line, group.fault, tuple(group.lines), group.count)


def make_problem(
    file: str, line: int | None, fault: Fault, lines: tuple[int, ...] = (), count: int = 1
) -> Problem:
    """One entry of a report, its message a finished sentence or two."""
    kind = CODES[fault.code]
    expected = fault.expected or kind.expected
    at = f"{fault.path}: " if fault.path else ""
    return Problem(
        file=file,
        line=line,
        path=fault.path,
        code=fault.code,
        message=f"{at}found {fault.found}, expected {expected}. {kind.mend}",
        found=fault.found,
        expected=expected,
        mend=kind.mend,
        lines=lines,
        count=count,
    )
