"""Tables of runs."""

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table

from dropforge.cli.console import said, status_text
from dropforge.cli.stack import RunRecord
from dropforge_core.messages.card import dollars

_MESSAGE: int = 60


def runs_table(found: Sequence[RunRecord], model: str | None = None) -> RenderableType:
    """One run a line; the id is whole, so that it can be copied. `model` is whose runs were asked for."""
    if not found:
        of = f" of '{model}'" if model else ""
        return said(f"No run{of} yet. `dropforge push PATH --model {model or 'NAME'}` starts one.", "dim")
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
            said(_cut(run.message), "dim"),
        )
    return table


def _cut(text: str) -> str:
    return text if len(text) <= _MESSAGE else text[: _MESSAGE - 1].rstrip() + "…"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
