"""`validate` and `plan`: everything that can be known of a dataset before it is uploaded. No AWS needed."""

import errno
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dropforge.cli import base
from dropforge.cli.console import CommandFailed, said
from dropforge.cli.files import DataFiles
from dropforge.cli.learned import Learned
from dropforge.cli.parallel import PARALLEL_FROM, Meter, Workers, cores, part_size
from dropforge.cli.summary import faults
from dropforge.cli.tokenizer import lengths
from dropforge_core.budget import allowed_only
from dropforge_core.contracts import Plan, Problem, ValidationReport
from dropforge_core.dataset.outline import PART_BYTES
from dropforge_core.dataset.reading.parts import Part
from dropforge_core.dataset.reading.source import SourceFile, local_file
from dropforge_core.dataset.recipe_problems import read_recipe
from dropforge_core.dataset.reduction import Examination
from dropforge_core.dataset.validation import examine
from dropforge_core.messages.card import dollars, duration, size
from dropforge_core.model import Frozen
from dropforge_core.planning import BaseModelUnsuitable, headline, plan
from dropforge_core.planning.arithmetic import Line, arithmetic
from dropforge_core.recipe import Recipe

STACK_DEFAULT: Final = f"base_model: {base.STACK_DEFAULT}\n"
"""Stands for the stack's default recipe, which is not known here, so that a recipe may leave out its base
model. No check of the data looks at the base model's name."""
FAULTS_SHOWN: Final = 200
"""Kinds of faults on the screen; `--json` has all."""
LOCAL_RUN: Final = "a" * 26
"""Run id in the names of a plan that starts nothing."""


class Bar(Protocol):
    """Shows how far a command is."""

    def advance(self, count: int) -> None:
        """So many bytes more."""

    def describe(self, what: str) -> None:
        """What is being done now."""


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


class Options(Frozen):
    """How a dataset is checked."""

    jobs: int
    """Processes."""
    tokenizer: Path | None = None
    """A folder with the base model's tokenizer."""

    @classmethod
    def of(cls, jobs: int | None = None, tokenizer: Path | None = None) -> "Options":
        """One process for each core, where it is not said."""
        return cls(jobs=jobs or cores(), tokenizer=tokenizer)


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found, and how it measured lengths."""

    found: DataFiles
    recipe: Recipe | None
    examination: Examination
    lengths: str

    @property
    def report(self) -> ValidationReport:
        return self.examination.report

    def place(self, name: str) -> str | None:
        """The path of a file that the report names, from here where it lies below; None where it is no file."""
        paths = {file.name: file.path for file in self.found.files}
        if self.found.recipe is not None:
            paths[self.found.recipe.name] = self.found.recipe
        path = paths.get(name)
        if path is None or not path.is_file():
            return None
        full = path.absolute()
        return (full.relative_to(Path.cwd()) if full.is_relative_to(Path.cwd()) else full).as_posix()


def check(found: DataFiles, options: Options, bar: Bar) -> Checked:
    """Every check of the data and of its recipe.

    Args:
        found: the dataset's files, standard input not among them.
        options: see `Options`.
        bar: told bytes as they are read, and when all are.

    Raises:
        CommandFailed: when a file can't be read, or the tokenizer can't be used.
    """
    parsed, wrong = parse(found.recipe)
    measured = lengths(parsed, options.tokenizer)
    total = found.size or 0
    meter = Meter.telling(bar.advance)
    workers = Workers(options.jobs if total >= PARALLEL_FROM else 1, meter)

    def each(work: Callable[[Part], int], parts: Sequence[Part]) -> Iterator[int]:
        yield from workers.each(work, parts)
        bar.describe("comparing")

    try:
        examined = examine(
            [metered(file, meter) for file in sources(found)],
            parsed,
            tokenizer=measured.counter,
            recipe_problems=wrong,
            each=each,
            part_bytes=part_size(total, options.jobs, PART_BYTES),
        )
    except OSError as error:
        if error.errno == errno.ENOSPC:
            where = tempfile.gettempdir()
            raise CommandFailed(
                f"{where} is full: a check keeps some 200 bytes a row there. TMPDIR names another folder."
            ) from error
        raise CommandFailed(f"{error.filename or 'The data'} can't be read: {error.strerror}.") from error
    return Checked(found, parsed, examined, measured.said)


def metered(file: SourceFile, meter: Meter) -> SourceFile:
    """The same file, whose bytes are told as they are read: compressed ones, as the bar's total is."""
    return replace(file, open=partial(_metered, file.open, meter))


def _metered(open_: Callable[[int], Iterable[bytes]], meter: Meter, start: int) -> Iterator[bytes]:
    for chunk in open_(start):
        meter(len(chunk))
        yield chunk


class Planned(Frozen):
    """A plan, and the arithmetic behind it."""

    plan: Plan
    why: tuple[Line, ...]

    def document(self, *, why: bool) -> dict[str, Any]:
        """The plan as `plan.json` has it; with the lines of its arithmetic under `why` where they are wanted."""
        made: dict[str, Any] = self.plan.model_dump(mode="json")
        return {**made, "why": [line.model_dump() for line in self.why]} if why else made


def forecast(
    found: DataFiles, base_config: Path | None, by: Learned, bar: Bar, note: Callable[[str], None]
) -> Planned:
    """The plan of a run that is not started.

    Args:
        found: the dataset's files, standard input not among them.
        base_config: the base model's config.json, or the folder that holds it; None looks where the recipe says.
        by: GPUs, prices, measured speeds, and which instance types are allowed.
        bar: told bytes as they are read.
        note: told what a person should know of the choices made.

    Raises:
        CommandFailed: when the data or the recipe is invalid, or the base model can't be trained.
    """
    checked = check(found, Options.of(), bar)
    report, facts = checked.report, checked.examination.facts
    if checked.recipe is None or not report.valid or facts is None:
        raise CommandFailed(
            f"There is nothing to plan: {report.error_count} faults. `dropforge validate` lists them.", 1
        )
    source, shape = base.find(checked.recipe.base_model, base_config, note)
    recipe, refused = allowed_only(checked.recipe, by.allowed)
    try:
        made = plan(
            recipe=recipe,
            dataset=facts,
            shape=shape,
            base=source,
            run_id=LOCAL_RUN,
            model="plan",
            catalogue=by.table,
            measured=by.speeds,
        )
    except BaseModelUnsuitable as error:
        raise CommandFailed(str(error), 1) from error
    if refused:
        made = made.model_copy(update={"fits": False, "within_budget": False, "reason": refused})
    lines = arithmetic(made, recipe=recipe, dataset=facts, shape=shape, catalogue=by.table)
    return Planned(plan=made, why=lines)


def report_view(checked: Checked) -> RenderableType:
    """The report for a terminal."""
    report = checked.report
    verdict = Text("valid", style="bold green") if report.valid else Text("invalid", style="bold red")
    head = Text.assemble(
        verdict, f"  {report.format or 'unknown format'}, {report.rows:,} rows, {size(report.bytes)}"
    )
    warned = sum(problem.count for problem in report.warnings)
    for count, what in ((report.error_count, "fault"), (warned, "warning")):
        if count:
            head.append(f", {count:,} {what}{'s'[: count > 1]}")
    parts: list[RenderableType] = [head, said(f"lengths: {checked.lengths}", "dim")]
    if report.errors:
        parts += [Text(), faults(report.errors, report.error_count, shown=FAULTS_SHOWN)]
    if report.warnings:
        parts += [
            Text(),
            Text("warnings", style="yellow"),
            faults(report.warnings, warned, shown=FAULTS_SHOWN, style="yellow"),
        ]
    return Group(*parts)


def plan_view(told: Planned, *, why: bool = False) -> RenderableType:
    """The plan for a terminal: one sentence, every instance type that was weighed, and the arithmetic if asked."""
    made = told.plan
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
    told_first = headline(made)
    why_so = [] if made.reason in told_first else [said(made.reason, "dim")]
    parts: list[RenderableType] = [said(told_first), *why_so, Text(), table]
    if why:
        parts += [Text(), _why_view(told.why)]
    return Group(*parts, Text(), *notes)


def _why_view(lines: Iterable[Line]) -> RenderableType:
    table = Table.grid(padding=(0, 2, 0, 0))
    for line in lines:
        made_of = f"= {line.made_of}\n" if line.made_of else ""
        table.add_row(
            Text(line.name, style="bold"), said(line.value), said(f"{made_of}[{line.source}]", "dim")
        )
    return table
