"""Two runs side by side: what differed going in, and what came out."""

from collections.abc import Mapping
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dropforge.cli.console import said
from dropforge.cli.stack import RunRecord, Stack
from dropforge.cli.summary import estimate, read_summary
from dropforge_core.gate.documents import MetricsReport
from dropforge_core.layout import RunLayout
from dropforge_core.messages.card import dollars
from dropforge_core.messages.wording import phrase
from dropforge_core.model import Frozen

_DIGEST_SHOWN: Final = len("sha256:") + 12


class Difference(Frozen):
    """One setting or fact that is not the same in both."""

    name: str
    first: str
    second: str


class Comparison(Frozen):
    """What `compare` tells. Intervals that overlap are no proof of a difference, and none is claimed."""

    first: RunRecord
    second: RunRecord
    recipe: tuple[Difference, ...]
    facts: tuple[Difference, ...]
    metrics: tuple[Difference, ...]
    """The candidate's estimate of every metric, also where it is the same."""
    same_holdout: bool | None
    """Whether both were measured on the same data; None where it is not known."""


def compare(stack: Stack, first: RunRecord, second: RunRecord) -> Comparison:
    """Read both runs' documents and set them side by side."""
    one, two = read_summary(stack, first), read_summary(stack, second)
    recipes = [_flat(stack.document(RunLayout(run_id=r.run_id).recipe) or {}) for r in (first, second)]
    digests = [s.gate.provenance.dataset_digest if s.gate else "" for s in (one, two)]
    facts = [
        {
            "status": phrase(s.run.status),
            "dataset": digest,
            "rows": str(s.validation.rows) if s.validation else "",
            "instance": s.plan.compute.instance_type if s.plan else "",
            "steps": str(s.plan.steps) if s.plan else "",
            "cost": s.run.cost_usd,
            "package": s.run.package_arn,
        }
        for s, digest in zip((one, two), digests, strict=True)
    ]
    measured = [_candidate(s.metrics) for s in (one, two)]
    names = dict.fromkeys([*measured[0], *measured[1]])
    return Comparison(
        first=first,
        second=second,
        # A run that was refused has no recipe of its own: then nothing can differ.
        recipe=_differences(*recipes) if all(recipes) else (),
        facts=_differences(*facts),
        metrics=tuple(
            Difference(name=name, first=measured[0].get(name, "-"), second=measured[1].get(name, "-"))
            for name in names
        ),
        same_holdout=digests[0] == digests[1] if all(digests) else None,
    )


def _candidate(report: MetricsReport | None) -> dict[str, str]:
    if report is None:
        return {}
    return {
        metric.label: estimate(found)
        for metric in report.metrics
        for found in metric.estimates
        if found.variant == "candidate"
    }


def _flat(document: Mapping[str, Any], above: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in document.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = str(value)
    return flat


def _differences(first: Mapping[str, str], second: Mapping[str, str]) -> tuple[Difference, ...]:
    return tuple(
        Difference(name=name, first=first.get(name, ""), second=second.get(name, ""))
        for name in dict.fromkeys([*first, *second])
        if first.get(name, "") != second.get(name, "")
    )


def _shown(name: str, value: str) -> str:
    """A value as people read it; the document keeps it whole."""
    if name == "cost" and value:
        return dollars(float(value))
    return value[:_DIGEST_SHOWN] if name == "dataset" else "-" if value in ("", "None") else value


def view(found: Comparison) -> RenderableType:
    """The comparison for a terminal."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for run in (found.first, found.second):
        table.add_column(f"{run.model} {run.run_id[:8]}", overflow="fold")
    for title, rows in (
        ("result", found.facts),
        ("recipe", found.recipe),
        ("held-out metric", found.metrics),
    ):
        if rows:
            table.add_row(Text(title, style="bold"), "", "")
        for row in rows:
            table.add_row(
                said("  " + row.name), said(_shown(row.name, row.first)), said(_shown(row.name, row.second))
            )
    parts: list[RenderableType] = [table]
    if found.same_holdout is False:
        parts.append(
            Text("Measured on different data: the metrics of the two runs do not compare.", style="yellow")
        )
    return Group(*parts)
