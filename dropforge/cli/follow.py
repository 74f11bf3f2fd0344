"""A run on the screen while it goes: phases with marks, the job's bar, what it has cost so far."""

import time
from typing import Final

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from dropforge.cli.console import Terminal, said, status_text
from dropforge.cli.progress import JobProgress
from dropforge.cli.stack import Stack
from dropforge.cli.watch import Snapshot, Watcher, snapshots
from dropforge_core.ledger import PHASES, Status
from dropforge_core.messages.card import dollars, duration
from dropforge_core.messages.wording import known, phrase

ALWAYS: Final = frozenset(PHASES) - {Status.RECEIVED, Status.AWAITING_APPROVAL, Status.CACHING_BASE}
"""Phases of every run; the others are shown where the run passes through them."""
LOCAL_POLL_S: Final = 0.5
CLOUD_POLL_S: Final = 5.0
_SPINNER: Final = Spinner("dots", style="cyan")
_BAR_WIDTH: Final = 32
_LINES_A_JOB: Final = 10
"""Lines of progress that a log without a screen gets of one job."""


def follow(stack: Stack, run_id: str, terminal: Terminal) -> Snapshot:
    """Show the run until it ends, and return its last state.

    Raises:
        CommandFailed: when the run is unknown, or AWS stopped answering.
    """
    watcher = Watcher(stack, run_id)
    every = LOCAL_POLL_S if stack.is_local else CLOUD_POLL_S
    if terminal.is_live:
        return _on_screen(watcher, every, terminal)
    return _in_lines(watcher, every, terminal)


def _on_screen(watcher: Watcher, every_s: float, terminal: Terminal) -> Snapshot:
    seen: set[Status] = set()
    with Live(console=terminal.err, refresh_per_second=8, transient=False) as live:
        last: Snapshot | None = None
        for last in snapshots(watcher, every_s):
            if (status := known(last.run.status)) is not None:
                seen.add(status)
            live.update(view(last, frozenset(seen)))
    return _certain(last)


def _in_lines(watcher: Watcher, every_s: float, terminal: Terminal) -> Snapshot:
    last: Snapshot | None = None
    told = ""
    for last in snapshots(watcher, every_s):
        line = _line(last)
        if line != told:
            stamp = time.strftime("%H:%M:%S")
            terminal.note(f"{stamp}  {line}")
            told = line
    return _certain(last)


def _certain(last: Snapshot | None) -> Snapshot:
    if last is None:  # `snapshots` yields at least once or raises
        raise AssertionError
    return last


def _line(shot: Snapshot) -> str:
    status, progress = known(shot.run.status), shot.progress
    if status is Status.TRAINING and progress.training and progress.training.steps:
        training = progress.training
        return _milestone(status, "step ", training.step, training.steps)
    if progress.total and status in (Status.EVALUATING, Status.CACHING_BASE):
        return _milestone(status, "", progress.done, progress.total)
    message = f": {shot.run.message}" if shot.run.message and status and status.is_terminal else ""
    return phrase(shot.run.status) + message


def _milestone(status: Status, unit: str, done: int, total: int) -> str:
    every = max(1, total // _LINES_A_JOB)
    reached = total if done == total else done // every * every
    return f"{phrase(status)}: {unit}{reached} of {total}" if reached else phrase(status)


def view(shot: Snapshot, seen: frozenset[Status] = frozenset()) -> RenderableType:
    """The whole picture of one moment."""
    status = known(shot.run.status)
    rows: list[RenderableType] = [_title(shot)]
    if status is None or status.is_terminal:
        reached = max((PHASES.index(s) for s in seen if s in PHASES), default=-1)
        rows += [
            _phase(p, "✓" if status is Status.REGISTERED else "·")
            for p in PHASES[: reached + 1]
            if p in seen or p in ALWAYS
        ]
        rows.append(Text.assemble("  ", status_text(shot.run.status)))
    else:
        now = PHASES.index(status)
        for index, one in enumerate(PHASES):
            if one is Status.RECEIVED and one is not status:
                continue
            if one is status:
                rows.append(_current(one))
                if bar := _bar(one, shot.progress):
                    rows.append(bar)
            elif one in ALWAYS or one in seen:
                rows.append(_phase(one, "✓" if index < now else " "))
    return Group(*rows)


def _title(shot: Snapshot) -> Text:
    spent = f"  {dollars(shot.spent_usd)} so far at AWS prices" if shot.spent_usd is not None else ""
    return Text.assemble(
        (shot.run.model, "bold"), f"  run {shot.run.run_id}  ", (f"{duration(shot.elapsed_s)}{spent}", "dim")
    )


def _phase(status: Status, mark: str) -> Text:
    style = {"✓": "green", "·": "dim"}.get(mark, "dim")
    return Text.assemble("  ", (mark, style), f" {phrase(status)}", style="" if mark == "✓" else "dim")


def _current(status: Status) -> Table:
    row = Table.grid(padding=(0, 1))
    row.add_row(" ", _SPINNER, Text(phrase(status), style="bold"))
    return row


def _bar(status: Status, progress: JobProgress) -> Table | None:
    training = progress.training
    if status is Status.TRAINING and training and training.steps:
        done, total, facts = training.step, training.steps, _figures(progress)
    elif progress.total and status in (Status.EVALUATING, Status.CACHING_BASE):
        done, total, facts = progress.done, progress.total, f"{progress.done}/{progress.total}"
    else:
        return None
    row = Table.grid(padding=(0, 1))
    row.add_row("   ", ProgressBar(total=total, completed=done, width=_BAR_WIDTH), said(facts, "dim"))
    return row


def _figures(progress: JobProgress) -> str:
    training = progress.training
    if training is None:
        return ""
    parts = [f"{training.step}/{training.steps}"]
    if training.loss is not None:
        parts.append(f"loss {training.loss:.3f}")
    if training.eval_loss is not None:
        parts.append(f"held-out {training.eval_loss:.3f}")
    if training.tokens_per_s is not None:
        parts.append(f"{training.tokens_per_s:.0f} tok/s")
    if training.eta_s is not None and training.step < training.steps:
        parts.append(f"{duration(training.eta_s)} left")
    return "  ".join(parts)
