"""The commands. Each reads its options, calls one module, prints, and ends with a status."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from botocore.exceptions import BotoCoreError, ClientError
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from dropforge.cli import views
from dropforge.cli.console import INVALID, OK, RUN_FAILED, USAGE, CommandFailed, Terminal
from dropforge.cli.files import Each
from dropforge.cli.interrupt import INTERRUPTED, interruptible
from dropforge.cli.stack import DEFAULT_NAME, Stack
from dropforge_core.identity import is_model_name

app = typer.Typer(
    name="dropforge",
    help="Drop a dataset, get a model that has earned its place.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
local_app = typer.Typer(help="The local AWS: try, develop and test without an account.", no_args_is_help=True)
app.add_typer(local_app, name="local")
prices_app = typer.Typer(help="What AWS asks for each instance type.", no_args_is_help=True)
app.add_typer(prices_app, name="prices")

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
StackName = Annotated[
    str, typer.Option("--stack", envvar="DROPFORGE_STACK", help="Name of the CloudFormation stack.")
]
DataPaths = Annotated[
    list[Path],
    typer.Argument(
        metavar="PATH...", help="Data files, folders of them, quoted patterns, or - for standard input."
    ),
]
StdinName = Annotated[
    str | None,
    typer.Option("--name", help="What standard input is called; the suffix tells what it is."),
]
RecipePath = Annotated[
    Path | None, typer.Option("--recipe", help="The recipe; a folder's own recipe.yaml otherwise.")
]
Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or its beginning.")]


def _version(asked: bool) -> None:  # as typer calls it
    if asked:
        Terminal().result({}, f"dropforge {version('dropforge')}")
        raise typer.Exit


@app.callback()
def options(
    *,
    _show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Drop a dataset, get a model that has earned its place."""


class Format(StrEnum):
    """How a result is written."""

    TEXT = "text"
    JSON = "json"
    GITHUB = "github"


def model_name(value: str) -> str:
    """A model's name, as SageMaker and S3 take it."""
    if not is_model_name(value):
        raise typer.BadParameter("1-40 lower-case letters, digits and single hyphens, not at the ends.")
    return value


Model = Annotated[
    str, typer.Option("--model", "-m", callback=model_name, help="Which model the data is for.")
]


class _Bar:
    """A bar on stderr that can tell what is being done."""

    def __init__(self, bar: Progress | None, what: str, total: int | None) -> None:
        self._bar, self._left = bar, total
        self._task: TaskID | None = bar.add_task(what, total=total) if bar else None

    def advance(self, count: int) -> None:
        """So many bytes more; heads of files are read twice, which fills no bar beyond its end."""
        if self._bar is None or self._task is None:
            return
        if self._left is not None:
            count = min(count, self._left)
            self._left -= count
        self._bar.advance(self._task, count)

    def describe(self, what: str) -> None:
        """What is being done now."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=what)


@contextmanager
def _bar(terminal: Terminal, total: int | None, what: str) -> Iterator[_Bar]:
    """A bar on stderr with rate and time left; without a total it only counts, without a terminal there is none."""
    if not terminal.is_live:
        yield _Bar(None, what, total)
        return
    columns = (
        "{task.description}",
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=terminal.err, transient=True) as bar:
        yield _Bar(bar, what, total)


def _reading(
    terminal: Terminal, total: int | None, what: str, work: Callable[[Callable[[int], None]], Any]
) -> Any:
    """Do work that tells bytes, with a bar on stderr."""
    with _bar(terminal, total, what) as bar:
        return work(bar.advance)


@app.command()
def validate(  # noqa: PLR0913  # one parameter an option
    paths: DataPaths,
    *,
    recipe: RecipePath = None,
    name: StdinName = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            help="Folder with the base model's tokenizer.json and tokenizer_config.json: lengths are counted.",
        ),
    ] = None,
    each: Annotated[
        Each | None,
        typer.Option("--each", help="Every file, or every folder, is a dataset of its own."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Processes; one for each core otherwise.")
    ] = None,
    form: Annotated[
        Format, typer.Option("--format", help="github: annotations on the lines of a pull request.")
    ] = Format.TEXT,
    as_json: Json = False,
) -> None:
    """Check a dataset, without AWS. Every fault is told with file, line and how to mend it."""
    from dropforge.cli import validate as validating

    if as_json and form is Format.GITHUB:
        raise typer.BadParameter("--json and --format github exclude each other.")
    terminal = Terminal(as_json=as_json or form is Format.JSON)
    asked = validating.Asked(
        paths=tuple(paths), recipe=recipe, stdin_name=name, tokenizer=tokenizer, jobs=jobs, each=each
    )
    try:
        with interruptible():
            checked = validating.run(asked, terminal, lambda total, what: _bar(terminal, total, what))
    except KeyboardInterrupt:
        terminal.note("Stopped.", "yellow")
        raise typer.Exit(INTERRUPTED) from None
    validating.show(checked, terminal, github=form is Format.GITHUB)
    raise typer.Exit(OK if all(one.report.valid for one in checked) else INVALID)


def _found(paths: list[Path], recipe: Path | None, name: str | None, terminal: Terminal) -> Any:
    """The dataset that the paths make, what was left out being told."""
    from dropforge.cli import files

    found = files.find(paths, recipe=recipe, stdin_name=name)
    if told := files.told_left_out(found):
        terminal.note(told, "dim")
    return found


@app.command()
def plan(  # noqa: PLR0913  # one parameter an option
    paths: DataPaths,
    *,
    recipe: RecipePath = None,
    base_config: Annotated[
        Path | None,
        typer.Option(
            "--base-config", help="The base model's config.json or its folder; else as the recipe says."
        ),
    ] = None,
    name: StdinName = None,
    prices: Annotated[
        Path | None,
        typer.Option("--prices", help="Prices that `prices refresh --out` wrote; those that ship otherwise."),
    ] = None,
    stack: Annotated[
        str | None,
        typer.Option("--stack", help="Plan by what this stack's finished runs taught; no AWS otherwise."),
    ] = None,
    why: Annotated[
        bool, typer.Option("--why", help="Show the arithmetic: every number and where it came from.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Tell what training would need and cost. Memory, instance, hours and dollars, with the arithmetic if asked."""
    from dropforge.cli import check, files
    from dropforge.cli import learned as learning
    from dropforge.cli import prices as pricing

    terminal = Terminal(as_json=as_json)
    today = datetime.now(UTC).date()
    if stack:
        by = learning.learned(Stack.find(stack), today, terminal.note)
    else:
        by = learning.shipped(today)
        terminal.note(learning.NOTHING_ASKED, "dim")
    if prices:
        by = by.model_copy(update={"table": pricing.read(prices).believed(today)})
    dataset = _found(paths, recipe, name, terminal)
    with files.spooled(dataset) as found, _bar(terminal, found.size, "reading") as bar:
        told = check.forecast(found, base_config, by, bar, terminal.note)
    made = told.plan
    terminal.result(told.document(why=why), check.plan_view(told, why=why))
    raise typer.Exit(OK if made.fits and made.within_budget else INVALID)


@app.command()
def push(  # noqa: PLR0913  # one parameter an option
    paths: DataPaths,
    *,
    model: Model,
    version: Annotated[
        str | None, typer.Option("--version", help="Name of the version folder; from the content otherwise.")
    ] = None,
    recipe: RecipePath = None,
    name: StdinName = None,
    again: Annotated[bool, typer.Option("--again", help="Train even what was trained before.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Delete what the version holds beside these files.")
    ] = False,
    add: Annotated[
        bool, typer.Option("--add", help="Keep what the version holds beside these files.")
    ] = False,
    stack: StackName = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """Upload a dataset, `_READY` last. That starts a run."""
    from dropforge.cli import push as pushing

    terminal = Terminal(as_json=as_json)
    if replace and add:
        raise typer.BadParameter("--replace and --add exclude each other.")
    found = _found(paths, recipe, name, terminal)
    asked = pushing.Asked(found=found, model=model, version=version, again=again, replace=replace, add=add)
    try:
        pushed = pushing.push(
            asked,
            Stack.find(stack).resources.dataset_bucket,
            lambda total, what, work: _reading(terminal, total, what, work),
        )
    except KeyboardInterrupt:
        terminal.note("Stopped. Nothing was started; the next push sends everything again.", "yellow")
        raise typer.Exit(INTERRUPTED) from None
    terminal.result(pushed, pushed.uri)
    terminal.note(f"See it go: dropforge runs --model {model}", "dim")


@local_app.command("up")
def local_up(
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")
    ] = 4566,
    fast: Annotated[bool, typer.Option("--fast", help="A tiny model as the default base.")] = False,
    mlflow_uri: Annotated[
        str, typer.Option("--mlflow-uri", help="The MLflow server that recipes may name.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Serve the local AWS in the foreground; ^C stops everything. Its one line on stdout is JSON always."""
    from dropforge.cli import local

    terminal = Terminal(as_json=as_json)
    raise typer.Exit(local.up(port=port, fast=fast, mlflow_uri=mlflow_uri, terminal=terminal))


@local_app.command("run")
def local_run(  # noqa: PLR0913  # one parameter an option
    paths: DataPaths,
    *,
    model: Model,
    recipe: RecipePath = None,
    name: StdinName = None,
    fast: Annotated[bool, typer.Option("--fast", help="A tiny model: about a minute.")] = False,
    as_json: Json = False,
) -> None:
    """The whole run on this machine. Start the local AWS, upload, follow to the end, show the result, stop.

    Ends with 0 registered, 3 data rejected, 4 gate said no or inconclusive, 5 failed.
    """
    from dropforge.cli import local, summary

    terminal = Terminal(as_json=as_json)
    found = _found(paths, recipe, name, terminal)
    if fast and recipe is None and found.recipe is not None:
        terminal.note(
            f"--fast: {found.recipe} is written for a real model and is left out; --recipe would use it."
        )
        found = found.model_copy(update={"recipe": None})
    try:
        told = local.run(found, model=model, fast=fast, terminal=terminal)
    except KeyboardInterrupt:
        raise typer.Exit(RUN_FAILED) from None
    terminal.result(told, summary.render(told))
    raise typer.Exit(told.exit_code)


@app.command()
def runs(
    model: Annotated[str | None, typer.Option("--model", "-m", help="Only this model's.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, the newest.")] = 20,
    stack: StackName = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """List runs, newest first."""
    found = Stack.find(stack).records(model)[:limit]
    listed = [r.model_dump(mode="json") for r in found]
    Terminal(as_json=as_json).result(listed, views.runs_table(found, model))


@app.command()
def show(run: Run, stack: StackName = DEFAULT_NAME, as_json: Json = False) -> None:
    """Show everything about one run. Faults, plan, metrics, gate, answers, cost."""
    from dropforge.cli import summary

    found = Stack.find(stack)
    told = summary.read_summary(found, found.resolve(run))
    Terminal(as_json=as_json).result(told, summary.render(told))


@app.command()
def follow(
    run: Run,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="End with the status that `local run` would.")
    ] = False,
    stack: StackName = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """Watch a run until it ends, then show its result."""
    from dropforge.cli import follow as following
    from dropforge.cli import summary

    terminal = Terminal(as_json=as_json)
    found = Stack.find(stack)
    last = following.follow(found, found.resolve(run).run_id, terminal)
    told = summary.read_summary(found, last.run)
    report = summary.download_report(found, last.run)
    told = told.model_copy(
        update={"report_path": str(report) if report else None, "cause": last.cause if last.is_lost else ""}
    )
    terminal.result(told, summary.render(told))
    raise typer.Exit(told.exit_code if exit_code else OK)


@app.command()
def compare(first: Run, second: Run, stack: StackName = DEFAULT_NAME, as_json: Json = False) -> None:
    """Two runs side by side: recipe, data, metrics, cost."""
    from dropforge.cli import compare as comparing

    found = Stack.find(stack)
    told = comparing.compare(found, found.resolve(first), found.resolve(second))
    Terminal(as_json=as_json).result(told, comparing.view(told))


@app.command()
def gate(
    run: Run,
    again: Annotated[
        bool,
        typer.Option(
            "--recompute", help="Decide once more from the stored answers; 1 where it is not the same."
        ),
    ] = False,
    stack: StackName = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """A run's decision, rule by rule."""
    from dropforge.cli import decision

    found = Stack.find(stack)
    record, terminal = found.resolve(run), Terminal(as_json=as_json)
    if not again:
        told = decision.read_decision(found, record)
        terminal.result(told, decision.view(told))
        return
    recomputed = decision.decide_again(found, record)
    terminal.result(recomputed, decision.view_again(recomputed))
    raise typer.Exit(OK if recomputed.same else INVALID)


@app.command()
def report(
    run: Run,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; .dropforge/reports/RUN otherwise.")
    ] = None,
    stack: StackName = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """Fetch a run's report page."""
    from dropforge.cli import summary

    found = Stack.find(stack)
    record = found.resolve(run)
    place = summary.download_report(found, record, out)
    if place is None:
        raise CommandFailed(f"The run {record.run_id} has no report yet.", INVALID)
    Terminal(as_json=as_json).result({"run_id": record.run_id, "path": str(place)}, str(place))


@app.command()
def fetch(
    run: Run,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; .dropforge/models/RUN otherwise.")
    ] = None,
    stack: StackName = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """Fetch the adapter that a run trained."""
    from dropforge.cli import model

    found = Stack.find(stack)
    record = found.resolve(run)
    fetched = model.fetch_model(found, record, out)
    if fetched is None:
        raise CommandFailed(f"The run {record.run_id} has trained nothing.", INVALID)
    Terminal(as_json=as_json).result(fetched, fetched.path)


@app.command()
def cancel(run: Run, stack: StackName = DEFAULT_NAME, as_json: Json = False) -> None:
    """Stop a run and its jobs."""
    from dropforge.cli import act

    found = Stack.find(stack)
    _acted(act.cancel(found, found.resolve(run)), as_json=as_json)


@app.command()
def redrive(run: Run, stack: StackName = DEFAULT_NAME, as_json: Json = False) -> None:
    """Start an ended run again. One that failed, was cancelled, or was not approved."""
    from dropforge.cli import act

    found = Stack.find(stack)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    _acted(act.redrive(found, found.resolve(run), now), as_json=as_json)


@app.command()
def approve(run: Run, stack: StackName = DEFAULT_NAME, as_json: Json = False) -> None:
    """Let a run spend what it asked for."""
    from dropforge.cli import act

    found = Stack.find(stack)
    _acted(act.decide(found, found.resolve(run), "approve"), as_json=as_json)


@app.command()
def deny(run: Run, stack: StackName = DEFAULT_NAME, as_json: Json = False) -> None:
    """Refuse a run the money it asked for; it ends."""
    from dropforge.cli import act

    found = Stack.find(stack)
    _acted(act.decide(found, found.resolve(run), "deny"), as_json=as_json)


@prices_app.command("refresh")
def prices_refresh(
    out: Annotated[
        Path | None,
        typer.Option("--out", help="A file, for `plan --prices`; the stack's run bucket otherwise."),
    ] = None,
    region: Annotated[
        str | None, typer.Option("--region", help="Whose prices; the environment's region otherwise.")
    ] = None,
    stack: StackName = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """Ask AWS's Price List what each instance type costs in a region, and plan by that from now on."""
    from dropforge.cli import prices

    today = datetime.now(UTC).date()
    fetched = prices.fetch(prices.price_list(), prices.region_of(region), today)
    if out is not None:
        out.write_text(fetched.model_dump_json(indent=1), encoding="utf-8")
    else:
        prices.keep(Stack.find(stack), fetched)
    changed = prices.compare(fetched, today)
    Terminal(as_json=as_json).result(changed, prices.view(changed))


def _acted(answer: Any, *, as_json: bool) -> None:
    Terminal(as_json=as_json).result(answer, answer.message)
    raise typer.Exit(OK if answer.done else INVALID)


@app.command()
def doctor(stack: StackName = DEFAULT_NAME, as_json: Json = False) -> None:
    """Check a stack before its first run. What is not checked is listed too."""
    from dropforge.cli import doctor as checking

    found = checking.examine_stack(Stack.find(stack))
    Terminal(as_json=as_json).result(found, checking.view(found))
    raise typer.Exit(OK if found.healthy else INVALID)


def main() -> None:
    """Run the command line; what a person must hear is one sentence on stderr, never a traceback."""
    try:
        app()
    except CommandFailed as failed:
        Terminal().note(str(failed), "red")
        sys.exit(failed.code)
    except (ClientError, BotoCoreError) as error:
        Terminal().note(f"AWS refused: {error}", "red")
        sys.exit(USAGE)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        Terminal().note(f"{where}{error.strerror or error}.", "red")
        sys.exit(USAGE)
