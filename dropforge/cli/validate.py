"""`dropforge validate`: one dataset or several, shown for people, for programs, or on a pull request."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from dropforge.cli import check
from dropforge.cli.annotations import annotations
from dropforge.cli.check import Checked
from dropforge.cli.console import CommandFailed, Terminal, said
from dropforge.cli.files import DataFiles, Each, find, find_each, spooled, told_left_out
from dropforge_core.contracts import ValidationReport
from dropforge_core.identity import RECIPE_NAME
from dropforge_core.model import Frozen


class Asked(Frozen):
    """The command's options."""

    paths: tuple[Path, ...]
    recipe: Path | None = None
    stdin_name: str | None = None
    tokenizer: Path | None = None
    jobs: int | None = None
    each: Each | None = None


class Dataset(NamedTuple):
    """One of the datasets that were checked."""

    path: Path | None
    """What stands for it where there may be several."""
    checked: Checked

    @property
    def report(self) -> ValidationReport:
        return self.checked.report


def run(
    asked: Asked, terminal: Terminal, bar: Callable[[int | None, str], AbstractContextManager[check.Bar]]
) -> list[Dataset]:
    """Check what was asked for.

    Args:
        asked: what and how.
        terminal: told what was left out.
        bar: a bar for so many bytes of work.

    Raises:
        CommandFailed: when something can't be read or used.
    """
    options = check.Options.of(asked.jobs, asked.tokenizer)
    datasets = []
    asked_for = _found(asked)
    if not asked_for:
        terminal.note("There is no dataset beside what was named: nothing was checked.", "dim")
    for path, found in asked_for:
        if told := told_left_out(found):
            terminal.note(told, "dim")
        with spooled(found) as kept, bar(kept.size, "checking") as shown:
            datasets.append(Dataset(path, check.check(kept, options, shown)))
    return datasets


def _found(asked: Asked) -> Sequence[tuple[Path | None, DataFiles]]:
    if asked.each is None:
        return [(None, find(asked.paths, recipe=asked.recipe, stdin_name=asked.stdin_name))]
    found = find_each(asked.paths, asked.each, recipe=asked.recipe)
    # A hook is given every recipe.yaml that changed, also those of other tools.
    if not found and any(path.name != RECIPE_NAME for path in asked.paths):
        raise CommandFailed("There is no dataset in what was named.")
    return found


def show(datasets: Sequence[Dataset], terminal: Terminal, *, github: bool) -> None:
    """The reports on stdout.

    One dataset's document is its report. Several are `{"valid", "datasets"}`, each report with its `path`.

    Args:
        datasets: none where recipes were named that no data lies beside.
        terminal: where to.
        github: add workflow commands, so that faults show on a pull request's lines.
    """
    if datasets and datasets[0].path is None:
        document: Any = datasets[0].report
    else:
        listed = [{"path": str(one.path), **one.report.model_dump(mode="json")} for one in datasets]
        document = {"valid": all(one.report.valid for one in datasets), "datasets": listed}
    terminal.result(document, *(part for one in datasets for part in _shown(one)))
    if github:
        for one in datasets:
            for line in annotations(one.report, one.checked.place):
                sys.stdout.write(line + "\n")


def _shown(dataset: Dataset) -> Iterator[Any]:
    if dataset.path is None:
        yield check.report_view(dataset.checked)
        return
    yield said(str(dataset.path), "bold")
    yield check.report_view(dataset.checked)
    yield ""
