"""The end of a run as a person enjoys it: verdict, before and after, three answers, cost, where things lie."""

from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

import pydantic
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dropforge.cli.console import GATE_SAID_NO, OK, REJECTED, RUN_FAILED, TONES, said
from dropforge.cli.stack import RunRecord, Stack
from dropforge_core import aws
from dropforge_core.contracts import Plan, Problem, ValidationReport
from dropforge_core.gate.documents import GateReport, MetricFacts, MetricsReport
from dropforge_core.gate.evidence import Estimate
from dropforge_core.gate.examples import Example, ExampleAnswers
from dropforge_core.layout import RunLayout
from dropforge_core.ledger import Status
from dropforge_core.messages.card import dollars
from dropforge_core.messages.lines import also_on, place
from dropforge_core.messages.wording import known, next_step, phrase, tone
from dropforge_core.model import Frozen

EXAMPLES_SHOWN: Final = 3
FAULTS_SHOWN: Final = 20
ANSWER_WIDTH: Final = 300
"""Characters of an answer on the screen; the report has more."""
CHANGES: Final = MappingProxyType(
    {
        "fixed": "wrong before, right after",
        "better": "better than before",
        "broken": "right before, wrong after",
        "worse": "worse than before",
        "right": "right before and after",
        "wrong": "wrong before and after",
        "same": "much the same",
    }
)
REPORTS: Final = Path(".dropforge") / "reports"
Document = TypeVar("Document", bound=pydantic.BaseModel)


class RunSummary(Frozen):
    """Everything worth knowing of a run; `--json` prints it."""

    run: RunRecord
    validation: ValidationReport | None = None
    plan: Plan | None = None
    metrics: MetricsReport | None = None
    gate: GateReport | None = None
    examples: ExampleAnswers | None = None
    report_path: str | None = None
    model_path: str | None = None
    """Where the adapter was unpacked."""
    emails: tuple[str, ...] = ()
    """Subjects of the e-mails that the local AWS kept."""
    is_over: bool = False
    """The stack is gone with the run: there is nothing to do next."""
    cause: str = ""
    """What Step Functions says, where the ledger never heard of an end."""

    @property
    def exit_code(self) -> int:
        """The status with which `dropforge local run` ends."""
        status = known(self.run.status)
        if status in (Status.REGISTERED, Status.DUPLICATE):
            return OK
        if status is Status.DATASET_REJECTED:
            return REJECTED
        return GATE_SAID_NO if status in (Status.GATE_FAILED, Status.INCONCLUSIVE) else RUN_FAILED


def read_summary(stack: Stack, run: RunRecord) -> RunSummary:
    """Gather the run's documents; one that is not there, or of another version, is left out."""
    at = RunLayout(run_id=run.run_id)
    return RunSummary(
        run=run,
        validation=_read(stack, at.validation, ValidationReport),
        plan=_read(stack, at.plan, Plan),
        metrics=_read(stack, at.metrics, MetricsReport),
        gate=_read(stack, at.gate, GateReport),
        examples=_read(stack, at.examples, ExampleAnswers),
    )


def _read(stack: Stack, key: str, kind: type[Document]) -> Document | None:
    found = stack.document(key)
    try:
        return kind.model_validate(found) if found else None
    except pydantic.ValidationError:
        return None


def download_report(stack: Stack, run: RunRecord, folder: Path | None = None) -> Path | None:
    """Fetch the report page; None where the run has none."""
    try:
        page = stack.runs_bucket.read(RunLayout(run_id=run.run_id).report)
    except aws.ObjectVanished:
        return None
    place = (folder or REPORTS / run.run_id) / "index.html"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(page)
    return place


def render(summary: RunSummary) -> RenderableType:
    """The summary for a terminal. What people uploaded or models said is never read as markup."""
    run = summary.run
    mood = TONES[tone(run.status)]
    parts: list[RenderableType] = [
        Panel(
            said(run.message or summary.cause or phrase(run.status)),
            title=Text(f"{run.model}: {phrase(run.status)}", style=f"bold {mood}"),
            title_align="left",
            border_style=mood,
            expand=False,
        )
    ]
    if run.status == Status.DATASET_REJECTED and summary.validation:
        parts.append(faults(summary.validation.errors, summary.validation.error_count))
    if summary.metrics:
        parts.append(metrics_table(summary.metrics))
    if summary.gate:
        parts.append(_gate(summary.gate))
    if summary.examples and summary.examples.examples:
        parts.append(_examples(summary.examples))
    parts.append(_facts(summary))
    return Group(*(Padding(part, (0, 0, 1, 0)) for part in parts))


def faults(
    problems: tuple[Problem, ...], total: int, shown: int = FAULTS_SHOWN, style: str = "red"
) -> RenderableType:
    """Where, what, and how to mend it; the count says how much is not shown."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("where", "code", "what is wrong"):
        table.add_column(heading, overflow="fold")
    for problem in problems[:shown]:
        told = f"{problem.message} {also_on(problem.lines, problem.count)}".rstrip()
        table.add_row(said(place(problem.file, problem.line)), said(problem.code, style), said(told))
    left = total - sum(problem.count for problem in problems[:shown])
    return Group(table, Text(f"and {left:,} more", style="dim")) if left > 0 else table


def metrics_table(report: MetricsReport) -> Table:
    """One metric a row, one variant a column: mean and bounds."""
    sides = {"base": "before", "champion": "champion", "candidate": "after"}
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("held-out metric")
    for variant in report.variants:
        table.add_column(sides.get(variant, variant), justify="right")
    for metric in report.metrics:
        arrow = "↑" if metric.direction == "higher" else "↓"
        table.add_row(said(f"{metric.label} {arrow}"), *(_cell(metric, v) for v in report.variants))
    return table


def _cell(metric: MetricFacts, variant: str) -> Text:
    found = next((e for e in metric.estimates if e.variant == variant), None)
    return Text(estimate(found) if found else "-", style="bold" if variant == "candidate" else "")


def estimate(one: Estimate) -> str:
    """`0.82 (0.76 to 0.88)`; a bound that is not known is left out."""
    if one.mean is None:
        return "-"
    if one.lower is None or one.upper is None:
        return f"{one.mean:.3g}"
    return f"{one.mean:.3f} ({one.lower:.3f} to {one.upper:.3f})"


def _gate(gate: GateReport) -> RenderableType:
    table = Table(box=None, pad_edge=False, show_header=False)
    marks = {"PASS": ("✓", "green"), "FAIL": ("✗", "red"), "INCONCLUSIVE": ("~", "yellow")}
    for rule in gate.rules:
        mark, style = marks[rule.verdict]
        table.add_row(Text(mark, style=style), said(rule.reason))
    return table


def _examples(answers: ExampleAnswers) -> RenderableType:
    shown = answers.examples[:EXAMPLES_SHOWN]
    return Group(*(Padding(_example(one), (0, 0, one is not shown[-1], 0)) for one in shown))


def _example(one: Example) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("asked", said(_cut(one.prompt.strip().rsplit("\n", 1)[-1])))
    for name, variant in (("before", "base"), ("after", "candidate")):
        if answer := one.answers.get(variant):
            table.add_row(name, said(_cut(answer.text or "(only its likelihood was measured)")))
    table.add_row("expected", said(_cut(one.reference)))
    return Group(Text(CHANGES[one.change], style="bold"), table)


def _cut(text: str) -> str:
    return text if len(text) <= ANSWER_WIDTH else text[: ANSWER_WIDTH - 1] + "…"


def _facts(summary: RunSummary) -> Table:
    run, plan = summary.run, summary.plan
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    rows: list[tuple[str, Any]] = [("run", run.run_id)]
    if run.duplicate_of:
        rows.append(("same as", run.duplicate_of))
    if plan and plan.cost_usd:
        cost = plan.cost_usd
        rows.append(
            (
                "on AWS",
                (
                    f"about {dollars(cost.expected)} ({dollars(cost.low)} to {dollars(cost.high)}) "
                    f"on {plan.compute.instance_type}, as planned"
                ),
            )
        )
    if run.cost_usd and float(run.cost_usd):
        rows.append(("measured", f"{dollars(float(run.cost_usd))}, the jobs' time at that instance's price"))
    rows += [("package", run.package_arn)] if run.package_arn else []
    rows += (
        [("report", summary.report_path or run.report_uri)] if summary.report_path or run.report_uri else []
    )
    rows += [("adapter", summary.model_path)] if summary.model_path else []
    rows += [("e-mail", subject) for subject in summary.emails]
    step = "" if summary.is_over or summary.report_path else next_step(run.status, run.run_id)
    if step:
        rows.append(("next", step))
    for label, value in rows:
        table.add_row(label, said(str(value)))
    return table
