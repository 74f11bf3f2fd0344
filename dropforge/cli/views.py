"""Tables of runs."""

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from dropforge.cli.console import said, status_text
from dropforge.cli.stack import RunRecord
from dropforge_core.messages.card import dollars

_MESSAGE: int = 60


def runs_table(found: Sequence[RunRecord]) -> RenderableType:
    """One run a line; the id is whole, so that it can be copied."""
    if not found:
        return Text("No run yet. `dropforge push PATH --model NAME` starts one.", style="dim")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("run", "model", "status", "received", "cost", ""):
        table.add_column(heading, no_wrap=True)
    for run in found:
        table.add_row(
            run.run_id,
            said(run.model),
            status_text(run.status),
            said(run.received_at[:19].replace("T", " ")),
            dollars(float(run.cost_usd)) if _is_number(run.cost_usd) else "",
            said(run.message[:_MESSAGE], "dim"),
        )
    return table


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
