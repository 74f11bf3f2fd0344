"""Collects what is wrong, groups what is alike, and counts all of it; however a dataset is divided.

Faults of one file, code and JSON path (indices aside) are one entry. Entries are kept by the smallest
digests of what they group, not by who came first: so the entries of a whole are found among those of its
parts with their counts complete, and a report is the same for one part and for a thousand. Only beyond
`MAX_GROUPS` entries is one counted and not listed.
"""

import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, Final

import xxhash

from dropforge_core.contracts import Problem
from dropforge_core.dataset.codes import CODES, Severity
from dropforge_core.dataset.faults import Fault
from dropforge_core.dataset.reading.shapes import element_of, line_of
from dropforge_core.recipe import DatasetRules

DATASET: Final = "(dataset)"
"""Stands for the file where a problem is of all files together."""

MAX_LINES: Final = 10_000
"""Lines that one entry lists; its `count` is true beyond them."""

MAX_GROUPS: Final = 1_000
"""Entries of a report."""

MAX_OTHERS: Final = 4
"""Findings of another wording that an entry tells, each with the first line that has it."""

_INDEX: Final = re.compile(r"\[\d+\]")
_NUMBER: Final = re.compile(r"0x[0-9a-f]+|\d[\d,]*")
"""What tells two findings of one wording apart: places, bytes, counts."""
_OTHERS_SHOWN: Final = 300
"""Characters of all of them, or fewer are told."""
_PATH_SHOWN: Final = 160
"""Characters of a path by which entries are told apart."""

Key = tuple[str, str, str]
"""File, code and path with `[*]` for every index."""


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
class Entry:
    """What is alike: the first of its kind, and where the others are."""

    line: int | None
    fault: Fault
    count: int = 0
    lines: "array[int]" = field(default_factory=lambda: array("Q"))
    others: dict[str, tuple[int | None, str]] = field(default_factory=dict)
    """By its wording, the first line on which something else was found, and what; the first `MAX_OTHERS`."""

    def also(self, line: int | None, found: str) -> None:
        """Take what was found behind all that was found so far."""
        if found == self.fault.found or len(self.others) >= MAX_OTHERS:
            return
        worded = _wording(found)
        if worded not in self.others and worded != _wording(self.fault.found):
            self.others[worded] = line, found


@lru_cache(maxsize=4096)
def _wording(found: str) -> str:
    return _NUMBER.sub("0", found)


class Tally:
    """Entries by their key, and how many faults of each code there are in all."""

    def __init__(self) -> None:
        self.entries: dict[Key, Entry] = {}
        self.counts: dict[str, int] = {}

    def note(self, key: Key, line: int | None, fault: Fault, lines: Iterable[int], count: int) -> None:
        """Add faults of one kind that follow all earlier ones of that kind. `lines` ascend."""
        code = fault.code
        self.counts[code] = self.counts.get(code, 0) + count
        entry = self.entries.get(key)
        if entry is None:
            if len(self.entries) >= MAX_GROUPS and not self._makes_room(key):
                return
            entry = self.entries[key] = Entry(line, fault)
        else:
            entry.also(line, fault.found)
        entry.count += count
        entry.lines.extend(islice(lines, MAX_LINES - len(entry.lines)))

    def also(self, key: Key, line: int | None, found: str) -> None:
        """Add a finding that follows all earlier ones of its kind, and counts for none."""
        if key in self.entries:
            self.entries[key].also(line, found)

    def _makes_room(self, key: Key) -> bool:
        last = max(self.entries, key=_order)
        if _order(key) >= _order(last):
            return False
        del self.entries[last]
        return True

    def merge(self, later: "Tally", lines_before: int = 0) -> None:
        """Add what was noted in what follows, in which so many lines of the file are not counted."""
        unlisted = dict(later.counts)
        for key, entry in later.entries.items():
            line = None if entry.line is None else entry.line + lines_before
            self.note(key, line, entry.fault, (n + lines_before for n in entry.lines), entry.count)
            for at, found in entry.others.values():
                self.also(key, None if at is None else at + lines_before, found)
            unlisted[entry.fault.code] -= entry.count
        for code, count in unlisted.items():
            self.counts[code] = self.counts.get(code, 0) + count

    def state(self) -> Any:
        """Plain values, for a file."""
        entries = [
            (key, e.line, e.fault, e.count, e.lines.tobytes(), [*e.others.values()])
            for key, e in self.entries.items()
        ]
        return entries, self.counts

    @classmethod
    def of(cls, state: Any) -> "Tally":
        """What `state` gave, from a file."""
        made = cls()
        entries, made.counts = state
        for (file, code, path), line, fault, count, lines, others in entries:
            entry = Entry(line, Fault(*fault), count, array("Q", lines))
            for at, found in others:
                entry.also(at, found)
            made.entries[file, code, path] = entry
        return made


def _order(key: Key) -> tuple[int, Key]:
    return xxhash.xxh3_64_intdigest("\0".join(key).encode("utf-8", "backslashreplace")), key


class Notes:
    """The faults of one part of one file, with lines counted from the part's beginning."""

    def __init__(self, severity: Mapping[str, Severity], file: str) -> None:
        self.severity = severity
        self.tally = Tally()
        self._file = file
        self._place: int | None = None
        self._seen: set[Key] = set()
        """What was said of the current line or element, which counts once however often it is said."""

    def is_error(self, code: str) -> bool:
        return self.severity[code] == "error"

    def add(self, line: int | None, fault: Fault) -> None:
        """Note one fault, unless its code is off.

        Args:
            line: or place, see `reading.shapes.place_of`: the path begins with the element's number then.
            fault: as it is told.
        """
        if self.severity[fault.code] == "off":
            return
        if line is None:
            self.tally.note(key_of(self._file, fault), None, fault, (), 1)
            return
        place, line, element = line, line_of(line), element_of(line)
        if element is not None:
            fault = fault._replace(path=f"[{element}].{fault.path}".rstrip("."))
        key = key_of(self._file, fault)
        if place != self._place:
            self._place = place
            self._seen.clear()
        if key in self._seen:
            self.tally.also(key, line, fault.found)
            return
        self._seen.add(key)
        entry = self.tally.entries.get(key)
        is_listed = entry is not None and len(entry.lines) > 0 and entry.lines[-1] == line
        self.tally.note(key, line, fault, () if is_listed else (line,), 1)


def key_of(file: str, fault: Fault) -> Key:
    """What makes faults alike."""
    return file, fault.code, _INDEX.sub("[*]", fault.path)[:_PATH_SHOWN]


class Problems:
    """All problems of one dataset. Memory is bounded whatever is added."""

    def __init__(self, severity: Mapping[str, Severity], ready: Sequence[Problem] = ()) -> None:
        """Begin with problems that were found elsewhere, such as a recipe's."""
        self.severity = dict(severity)
        self._tally = Tally()
        self._ready = tuple(ready)

    def add(self, file: str, fault: Fault, lines: Sequence[int] = (), count: int = 1) -> None:
        """Note faults of one kind in one file, of which `fault` is the first.

        Args:
            file: as it is shown.
            fault: as it is told.
            lines: the first lines of `count`, ascending; none where it is no line's fault.
            count: how many lines, or facts.
        """
        if self.severity[fault.code] != "off":
            self._tally.note(key_of(file, fault), lines[0] if lines else None, fault, lines, count)

    def merge(self, tally: Tally, lines_before: int) -> None:
        """Add what was noted in the next part; `lines_before` is how many lines of its file lie before it."""
        self._tally.merge(tally, lines_before)

    def excuse_rows(self) -> None:
        """Make warnings of what is wrong with single rows: they are dropped, and said to be."""
        for code, kind in CODES.items():
            if kind.scope == "row" and self.severity[code] == "error":
                self.severity[code] = "warning"

    @property
    def error_count(self) -> int:
        """Faulty lines and facts, each kind counted for itself."""
        counted = sum(n for code, n in self._tally.counts.items() if self.severity[code] == "error")
        return counted + sum(problem.count for problem in self._ready)

    def listed(self, severity: Severity) -> tuple[Problem, ...]:
        """Entries of one severity by file, first line and code; what is of all files, and often follows, comes last."""
        found = self._of(severity)
        return tuple(sorted(found, key=lambda p: (p.file == DATASET, p.file, p.line or 0, p.code, p.path)))

    def _of(self, severity: Severity) -> Iterator[Problem]:
        yield from (problem for problem in self._ready if CODES[problem.code].severity == severity)
        for (file, code, _), entry in self._tally.entries.items():
            if self.severity[code] == severity:
                others = tuple(entry.others.values())
                yield make_problem(
                    file, entry.line, entry.fault, tuple(entry.lines), entry.count, others=others
                )


def make_problem(  # noqa: PLR0913  # the parts of one entry
    file: str,
    line: int | None,
    fault: Fault,
    lines: tuple[int, ...] = (),
    count: int = 1,
    *,
    others: Sequence[tuple[int | None, str]] = (),
) -> Problem:
    """One entry of a report, its message a finished sentence or two.

    Args:
        file: as it is shown.
        line: the first of its kind.
        fault: found there.
        lines: all lines, the first one among them.
        count: how many there are.
        others: what else was found, and on which line first.
    """
    kind = CODES[fault.code]
    expected, mend = fault.expected or kind.expected, fault.mend or kind.mend
    at = f"{fault.path}: " if fault.path else ""
    told = tuple(_told_others(others))
    more = f" Others have: {', '.join(told)}." if told else ""
    return Problem(
        file=file,
        line=line,
        path=fault.path,
        code=fault.code,
        message=f"{at}found {fault.found}, expected {expected}. {mend}{more}",
        found=fault.found,
        expected=expected,
        mend=mend,
        others=told,
        lines=lines,
        count=count,
    )


def _told_others(others: Sequence[tuple[int | None, str]]) -> Iterator[str]:
    left = _OTHERS_SHOWN
    for line, found in others:
        told = found if line is None else f"{found} (line {line:,})"
        left -= len(told)
        if left >= 0:
            yield told
