"""Everything that is wrong with a rejected dataset: one table of all kinds of faults, with all their lines."""

from collections.abc import Iterator, Sequence
from typing import Final

from dropforge_core.contracts import Problem
from dropforge_core.messages.lines import place
from dropforge_core.report.documents import RunDocuments
from dropforge_core.report.figures import DASH, number, plural
from dropforge_core.report.markup import Markup, tag
from dropforge_core.report.section import section, table

RANGES_AT_MOST: Final = 300
"""Runs of lines that one entry lists, and a tenth of what the page lists; validation.json has 10,000 lines of each."""
SEARCHED_FROM: Final = 8
"""Rows of a table from which on a search is worth its place."""


def is_rejected(run: RunDocuments) -> bool:
    """Whether the run ended because its data or recipe has faults."""
    return run.validation is not None and not run.validation.valid


def faults_section(run: RunDocuments) -> Markup | None:
    """All faults; nothing where there are none."""
    if run.validation is None or not run.validation.errors:
        return None
    found = run.validation
    listed = sum(problem.count for problem in found.errors)
    left = found.error_count - listed
    return section(
        "faults",
        f"Faults ({number(found.error_count)})",
        tag(
            "p",
            "Mend these and upload again. Before you do, the same check on your machine: ",
            tag("code", "dropforge validate"),
            ".",
        ),
        problems_table(found.errors),
        tag("p", f"{plural(left, 'further fault')} of other kinds were counted, not listed.", class_="muted")
        if left > 0
        else None,
    )


def is_searched(run: RunDocuments) -> bool:
    """Whether the page has a table that the script of `search.js` is for."""
    found = run.validation
    return found is not None and max(len(found.errors), len(found.warnings)) >= SEARCHED_FROM


def problems_table(problems: Sequence[Problem]) -> Markup:
    """A table of problems; a long one has a field that searches its rows, which shows where scripts may run."""
    shown = _table(problems)
    if len(problems) < SEARCHED_FROM:
        return tag("div", shown, class_="problems")
    field = tag("label", "Search ", tag("input", type="search", autocomplete="off", spellcheck="false"))
    return tag(
        "div",
        tag("p", field, " ", tag("output", aria_live="polite"), class_="search", hidden=True),
        shown,
        class_="problems",
        data_search=True,
    )


def _table(problems: Sequence[Problem]) -> Markup:
    left = RANGES_AT_MOST * 10
    rows = []
    for problem in problems:
        others = list(_ranges(problem.lines[1:]))
        shown = others[: min(RANGES_AT_MOST, left)]
        left -= len(shown)
        rows.append(
            (
                tag("code", place(problem.file, problem.line)),
                tag("code", problem.code),
                _what(problem),
                _lines(problem, shown, is_all=len(shown) == len(others)),
            )
        )
    return table(("Where", "Code", "What is wrong, and how to mend it", "Lines"), rows)


def _what(problem: Problem) -> list[object]:
    if not problem.found:
        return [problem.message]
    at = (tag("code", problem.path), ": ") if problem.path else ()
    more = tag("small", f"Others have: {', '.join(problem.others)}.") if problem.others else None
    return [at, f"found {problem.found}, expected {problem.expected}.", tag("small", problem.mend), more]


def _lines(problem: Problem, others: Sequence[str], *, is_all: bool) -> object:
    if problem.count < 2 or not others:
        return number(problem.count) if problem.line is not None else DASH
    more = "" if is_all and problem.count <= len(problem.lines) else " …"
    return tag(
        "details",
        tag("summary", f"{number(problem.count)} lines"),
        tag("p", f"also {', '.join(others)}{more}"),
        class_="lines",
    )


def _ranges(lines: Sequence[int]) -> Iterator[str]:
    """Ascending lines as `7`, `9-15`, `22`."""
    start = last = None
    for line in lines:
        if last is not None and line == last + 1:
            last = line
            continue
        if start is not None:
            yield _range(start, last or start)
        start = last = line
    if start is not None:
        yield _range(start, last or start)


def _range(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first}\u2013{last}"
