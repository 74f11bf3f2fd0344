"""`validate` and `plan`: everything that can be known of a dataset before it is uploaded. No AWS needed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dropforge.cli import base
from dropforge.cli.console import CommandFailed, said
from dropforge.cli.files import DataFiles
from dropforge.cli.summary import faults
from dropforge_core.contracts import Plan, Problem, ValidationReport
from dropforge_core.dataset.reading.source import SourceFile, local_file
from dropforge_core.dataset.recipe_problems import read_recipe
from dropforge_core.dataset.validation import examine, validate
from dropforge_core.messages.card import dollars, duration, size
from dropforge_core.planning import BaseModelUnsuitable, headline, plan
from dropforge_core.recipe import Recipe

STACK_DEFAULT: Final = f"base_model: {base.STACK_DEFAULT}\n"
"""Stands for the stack's default recipe, which is not known here, so that a recipe may leave out its base
model. No check of the data looks at the base model's name."""
LOCAL_RUN: Final = "a" * 26
"""Run id in the names of a plan that starts nothing."""


def sources(found: DataFiles) -> list[SourceFile]:
    """The dataset's files as the checks read them."""
    files = [local_file(file.path, file.name) for file in found.files]
    return [files[0].alone] if found.is_one_file else files


def parse(recipe: Path | None) -> tuple[Recipe | None, tuple[Problem, ...]]:
    """The recipe or all of its faults.

    Raises:
        CommandFailed: when the file is not UTF-8.
    """
    if recipe is None:
        return read_recipe(None, STACK_DEFAULT)
    try:
        text = recipe.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CommandFailed(f"{recipe} is not UTF-8: byte {error.start} can't be read.") from error
    return read_recipe(text, STACK_DEFAULT, recipe.name)


def check(found: DataFiles, progress: Callable[[int], None]) -> ValidationReport:
    """Every check of the data and of its recipe.

    Args:
        found: the dataset's files, standard input not among them.
        progress: called with bytes as they are read.
    """
    parsed, wrong = parse(found.recipe)
    return validate(sources(found), parsed, recipe_problems=wrong, progress=progress)


def forecast(
    found: DataFiles,
    base_config: Path | None,
    progress: Callable[[int], None],
    note: Callable[[str], None],
) -> Plan:
    """The plan of a run that is not started.

    Args:
        found: the dataset's files, standard input not among them.
        base_config: the base model's config.json, or the folder that holds it; None looks where the recipe says.
        progress: called with bytes as they are read.
        note: told what a person should know of the choices made.

    Raises:
        CommandFailed: when the data or the recipe is invalid, or the base model can't be trained.
    """
    parsed, wrong = parse(found.recipe)
    examined = examine(sources(found), parsed, recipe_problems=wrong, progress=progress)
    if parsed is None or not examined.report.valid or examined.facts is None:
        raise CommandFailed(
            f"There is nothing to plan: {examined.report.error_count} faults. `dropforge validate` lists them.",
            1,
        )
    source, shape = base.find(parsed.base_model, base_config, note)
    try:
        return plan(
            recipe=parsed, dataset=examined.facts, shape=shape, base=source, run_id=LOCAL_RUN, model="plan"
        )
    except BaseModelUnsuitable as error:
        raise CommandFailed(str(error), 1) from error


def report_view(report: ValidationReport) -> RenderableType:
    """The report for a terminal."""
    verdict = Text("valid", style="bold green") if report.valid else Text("invalid", style="bold red")
    head = Text.assemble(
        verdict, f"  {report.format or 'unknown format'}, {report.rows:,} rows, {size(report.bytes)}"
    )
    if report.error_count:
        head.append(f", {report.error_count:,} faults")
    parts: list[RenderableType] = [head]
    if report.errors:
        parts += [Text(), faults(report.errors, report.error_count)]
    if report.warnings:
        parts += [Text(), Text("warnings", style="yellow"), _warnings(report.warnings)]
    return Group(*parts)


def _warnings(found: Sequence[Problem]) -> RenderableType:
    return faults(tuple(found), sum(problem.count for problem in found))


def plan_view(made: Plan) -> RenderableType:
    """The plan for a terminal: one sentence, then every instance type that was weighed."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("instance", "GPU", "memory", "price/h", "time", "cost"):
        table.add_column(heading, justify="left" if heading in ("instance", "GPU") else "right")
    for option in made.options:
        chosen = option.instance_type == made.compute.instance_type and made.fits
        table.add_row(
            Text(option.instance_type, style="bold" if chosen else ""),
            option.gpu,
            Text(
                f"{option.predicted_memory_gib:.1f} of {option.gpu_memory_gib:.0f} GiB",
                style="" if option.fits else "red",
            ),
            f"${option.price_usd_hour:.2f}" if option.price_usd_hour is not None else "?",
            duration(option.hours.expected * 3600) if option.hours else "-",
            dollars(option.cost_usd.expected) if option.cost_usd else "-",
        )
    notes = [said(note, "dim") for note in made.notes]
    return Group(said(headline(made)), said(made.reason, "dim"), Text(), table, Text(), *notes)
