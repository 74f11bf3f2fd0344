"""A run's decision: the rules as they were applied, and the same decision once more from the stored answers."""

from pydantic import ValidationError
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

import dropforge.cli.functions  # noqa: F401  # puts the functions' modules on the path
from dropforge.cli.console import INVALID, CommandFailed, said
from dropforge.cli.stack import RunRecord, Stack
from dropforge_core.aws import ObjectVanished
from dropforge_core.gate.documents import GateReport
from dropforge_core.layout import RunLayout
from judging import Recomputed, recompute

_TONE = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow"}


def read_decision(stack: Stack, run: RunRecord) -> GateReport:
    """The run's gate.json.

    Raises:
        CommandFailed: when the run was not decided, or another version wrote the document.
    """
    try:
        return GateReport.model_validate_json(stack.runs_bucket.read(RunLayout(run_id=run.run_id).gate))
    except ObjectVanished as error:
        raise CommandFailed(
            f"The run {run.run_id} has no gate.json: nothing was decided.", INVALID
        ) from error
    except ValidationError as error:
        raise CommandFailed(
            f"gate.json of {run.run_id} was written by another version: {error.error_count()} fields.",
            INVALID,
        ) from error


def decide_again(stack: Stack, run: RunRecord) -> Recomputed:
    """The stored decision beside the recomputed one.

    Raises:
        CommandFailed: when what it rests on is gone, or another version wrote it.
    """
    read_decision(stack, run)
    try:
        return recompute(stack.runs_bucket, run.run_id)
    except ObjectVanished as error:
        raise CommandFailed(f"What {run.run_id} was decided by is gone: {error}", INVALID) from error
    except ValidationError as error:
        raise CommandFailed(
            f"A document of {run.run_id} was written by another version: {error.error_count()} fields.",
            INVALID,
        ) from error


def view(gate: GateReport) -> RenderableType:
    """Verdict, reason and rules for a terminal."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for rule in gate.rules:
        label = f"{rule.name} {rule.metric}" if rule.metric else rule.name
        table.add_row(Text(rule.verdict, style=_TONE[rule.verdict]), said(label), said(rule.reason))
    return Group(Text(gate.verdict, style=f"bold {_TONE[gate.verdict]}"), said(gate.summary), table)


def view_again(found: Recomputed) -> RenderableType:
    """Whether the recomputed decision is the stored one."""
    if found.same:
        return Text(
            f"{found.verdict}: the same gate.json, bit for bit (sha256 {found.digest}).", style="green"
        )
    return said(
        f"Not the same: gate.json says {found.stored_verdict} (sha256 {found.stored_digest}), the stored answers "
        f"give {found.verdict} (sha256 {found.digest}); what differs: {', '.join(found.differs) or 'the spelling'}.",
        "red",
    )
