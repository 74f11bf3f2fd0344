"""Faults as GitHub's workflow commands, so that they show on the lines of a pull request.

Syntax and escapes: GitHub Docs, "Workflow commands for GitHub Actions"; actions/toolkit, core/src/command.ts.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final

from dropforge.cli.console import clean
from dropforge_core.contracts import Problem, ValidationReport
from dropforge_core.messages.lines import also_on

SHOWN: Final = 50
"""Annotations of one kind. GitHub shows ten of a step and 50 of a job; all lines stand in the log."""

Place = Callable[[str], str | None]
"""A report's file to its path in the repository; None where there is no such file."""


def annotations(report: ValidationReport, place: Place) -> Iterator[str]:
    """Workflow commands, one a line: the first line of every kind of fault first, then their other lines.

    Args:
        report: of a dataset.
        place: where the files lie.
    """
    yield from islice(_of("error", report.errors, place), SHOWN)
    yield from islice(_of("warning", report.warnings, place), SHOWN)


def _of(kind: str, problems: Sequence[Problem], place: Place) -> Iterator[str]:
    for problem in problems:
        yield _command(kind, problem, problem.line, place, _more(problem))
    for problem in problems:
        for line in problem.lines[1:]:
            yield _command(kind, problem, line, place, "")


def _command(kind: str, problem: Problem, line: int | None, place: Place, more: str) -> str:
    path = place(problem.file)
    properties = {
        "file": path,
        "line": str(line) if path and line is not None else None,
        "title": problem.code,
    }
    told = ",".join(f"{name}={_property(value)}" for name, value in properties.items() if value)
    return f"::{kind} {told}::{_data(problem.message + more)}"


def _more(problem: Problem) -> str:
    also = also_on(problem.lines, problem.count)
    return f" {also}" if also else ""


def _data(text: str) -> str:
    return clean(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
