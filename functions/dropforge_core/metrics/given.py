"""Scores that somebody else gave: a model that judges. They come in as they were declared."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dropforge_core.metrics.registry import Metric
from dropforge_core.model import Frozen


class JudgeFacts(Frozen):
    """What a model that judges was asked and said."""

    model: str
    """Bedrock's id, of one version."""
    rows: int
    """Held-out rows of which answers were compared."""
    comparisons: int
    """Rows times references."""
    missing: int
    """Comparisons without both verdicts; with any, nothing was measured."""
    won: int
    """Comparisons in which the candidate was preferred in both orders."""
    lost: int
    """The reference was preferred in both orders, or a verdict could not be read."""
    tied: int
    """Neither was; equal answers among them, which are not asked about."""
    disagreed: int
    """Of the ties, those in which the two orders said different things."""
    unreadable: int
    """Verdicts that were no single word, cut off or filtered; each counts against the candidate."""
    first_place: int
    """Verdicts for the answer that was shown first; far from half of those that were no tie, the judge looks at places."""
    asked: int
    """Verdicts, two a comparison."""
    input_tokens: int
    """Of all verdicts."""
    output_tokens: int
    """Of all verdicts."""
    cost_usd: float
    """Of these tokens, at the recipe's prices."""
    verdicts_digest: str
    """`sha256:<hex>` over requests and verdicts; they lie in evaluation/judge.json."""


@dataclass(frozen=True, slots=True)
class Given:
    """One metric with its scores by variant and row."""

    metric: Metric
    by_variant: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Empty where it could not be measured: then no rule that rests on it passes."""
    note: str = ""
    """What a reader of the decision must know of how it was measured."""
    judge: JudgeFacts | None = None
    """Where a model gave them."""
