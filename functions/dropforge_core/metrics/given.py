"""Scores that somebody else gave: a model that judges, or a dataset's own code. They come in as they were declared."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dropforge_core.metrics.registry import Metric


@dataclass(frozen=True, slots=True)
class Given:
    """One metric with its scores by variant and row."""

    metric: Metric
    by_variant: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Empty where it could not be measured: then no rule that rests on it passes."""
    note: str = ""
    """What a reader of the decision must know of how it was measured."""
