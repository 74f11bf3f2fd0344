"""The same comparison inside the parts of the hold-out that the recipe names: averages hide regressions."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from dropforge_core.gate.evidence import (
    Comparison,
    Scores,
    compare,
    harm_p_value,
    pair,
    rounded,
)
from dropforge_core.gate.rules import Rule
from dropforge_core.gate.statistics import holm
from dropforge_core.model import Frozen
from dropforge_core.recipe import Gate

POWERED_ROWS: Final = 100
"""Smaller slices are reported and never block: they could not show harm."""
SLICES_AT_MOST: Final = 50
"""Values of one field that are reported, the largest first."""


class SliceResult(Frozen):
    field: str
    """Name in `meta`."""
    value: str
    """What the rows of the part have there."""
    comparison: Comparison
    """The candidate against the champion, or else the base model, within the part."""
    powered: bool
    """At least `POWERED_ROWS` rows; only then it can block."""
    p_harm: float | None
    """P-value of being worse by more than delta; None where it was not tested."""
    harmed: bool
    """Significant after Holm's correction over all powered slices."""


class Slicing(NamedTuple):
    """What to look into."""

    fields: Sequence[str] = ()
    """Names in `meta`; a row without the field is in no slice of it."""
    meta: Mapping[str, Mapping[str, Any]] = {}
    """Row id to the row's `meta`."""


def harm_allowed(gate: Gate) -> float:
    """Harm up to which no slice blocks."""
    return gate.delta if gate.slice_delta is None else gate.slice_delta


def slice_results(
    scores: Scores,
    against: Literal["base", "champion"],
    slicing: Slicing,
    clusters: Mapping[str, str],
    gate: Gate,
) -> tuple[SliceResult, ...]:
    """Compare within each value of each field; Holm over all that are large enough.

    Args:
        scores: of the primary metric.
        against: the champion where there is one, else the base model.
        slicing: fields and the rows' meta.
        clusters: row id to cluster.
        gate: alpha holds family-wise over the powered slices; harm up to `harm_allowed` is not counted.
    """
    allowed = harm_allowed(gate)
    found: list[tuple[str, str, Comparison, float | None]] = []
    for field in slicing.fields:
        rows: dict[str, list[str]] = {}
        for row_id in sorted(slicing.meta):
            if field in slicing.meta[row_id]:
                rows.setdefault(str(slicing.meta[row_id][field]), []).append(row_id)
        largest = sorted(rows.items(), key=lambda item: (-len(item[1]), item[0]))[:SLICES_AT_MOST]
        for value, ids in largest:
            paired = pair(scores, against, clusters, only=ids)
            comparison = compare(paired, against, gate.alpha, allowed)
            p_value = harm_p_value(paired, allowed) if comparison.n >= POWERED_ROWS else None
            found.append((field, value, comparison, p_value))
    tested = [index for index, item in enumerate(found) if item[3] is not None]
    rejected = holm([found[index][3] or 0.0 for index in tested], gate.alpha)
    harmed = {index for index, harm in zip(tested, rejected, strict=True) if harm}
    return tuple(
        SliceResult(
            field=field,
            value=value,
            comparison=comparison,
            powered=p_value is not None,
            p_harm=None if p_value is None else rounded(p_value),
            harmed=index in harmed,
        )
        for index, (field, value, comparison, p_value) in enumerate(found)
    )


def slices_rule(results: Sequence[SliceResult], slicing: Slicing, metric: str) -> Rule:
    """No slice that is large enough is harmed beyond delta; a field that no row has can't show it, and stays open."""
    harmed = [result for result in results if result.harmed]
    absent = [field for field in slicing.fields if not any(result.field == field for result in results)]
    powered = sum(result.powered for result in results)
    small = len(results) - powered
    beside = f"; {small} smaller than {POWERED_ROWS} rows are reported only" if small else ""
    if harmed:
        told = ", ".join(f"{one.field} = {one.value}" for one in harmed[:5])
        reason = f"Worse beyond delta in {len(harmed)} of {powered} slices ({told}){beside}."
    else:
        reason = f"No harm beyond delta in {powered} slices large enough to show it{beside}."
    if absent:
        lost = f"No held-out row has the field {' or '.join(absent)} in its meta: mend evaluation.slices or the data."
        reason = f"{reason} {lost}" if results else lost
    return Rule(
        name="slices",
        verdict="FAIL" if harmed else "INCONCLUSIVE" if absent else "PASS",
        metric=metric,
        n=len(results),
        value=len(harmed),
        threshold=0,
        method="holm",
        reason=reason,
    )
