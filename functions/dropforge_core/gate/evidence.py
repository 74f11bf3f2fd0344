"""Scores by row, estimates by variant, and paired comparisons: the numbers that rules are applied to."""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from dropforge_core.contracts import Prediction
from dropforge_core.evaluation.join import Asked, Joined
from dropforge_core.gate.sampling import POWER
from dropforge_core.gate.statistics import (
    Bounds,
    ClusteredMean,
    clustered_mean,
    constant_bounds,
    design_effect,
    normal_cdf,
    sample_size,
    t_bounds,
    t_cdf,
    tango,
    tango_score,
    wilson,
)
from dropforge_core.metrics.registry import Metric, nll_per_byte
from dropforge_core.model import Frozen

Method = Literal["wilson", "t", "tango", "none"]
ROUNDING: Final = 1e-12
"""A standard error below this is that of sums of equal numbers."""


class Estimate(Frozen):
    """One metric of one variant. Bounds are one-sided at alpha; None is unbounded."""

    metric: str
    variant: str
    n: int
    clusters: int
    mean: float | None
    lower: float | None
    upper: float | None
    deviation: float | None
    """Standard deviation of one row; of a proportion at the point of its interval nearest to one half."""
    method: Method


class Comparison(Frozen):
    """The candidate against one reference on one metric, row by row. Positive: the candidate is better."""

    metric: str
    """By its name."""
    against: Literal["base", "champion"]
    """Who the candidate is compared with."""
    n: int
    """Rows that both sides have."""
    clusters: int
    """Groups of rows that ask the same; only they are independent."""
    difference: float | None
    """Mean gain of the candidate, in units of the metric; null where nothing was measured."""
    lower: float | None
    """One-sided bound at alpha; null is unbounded."""
    upper: float | None
    """As `lower`, from above."""
    method: Method
    """`tango`: paired proportions, and scores that differ wholly or not at all; `t`: Student's t over clusters, corrected for skewness; `wilson`: scores of which all rows differ alike, by the share that may not; `none`: nothing was measured."""
    better: int
    """Rows on which the candidate is better."""
    worse: int
    """Rows on which the candidate is worse."""
    deviation: float | None = None
    """Standard deviation of one row's difference; of binary pairs at the upper bound of their discordance."""
    n_needed: int | None
    """Rows at which an effect of delta would be shown with 80 % power; None where no number is enough."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Score by variant and row id, for one metric; only rows that were measured."""

    metric: Metric
    by_variant: Mapping[str, Mapping[str, float]]


def score(metric: Metric, joined: Joined, compare: Callable[[str, str], float] | None = None) -> Scores:
    """Every variant's score of every row that has a good answer.

    Args:
        metric: of generated text, of the likelihood, or of preferences.
        joined: the answers.
        compare: (reference, answer) to score, for a metric of generated text; without it no row has one.
    """
    if metric.needs == "preference":
        return Scores(metric, {variant: _preferred(joined, variant) for variant in joined.variants})
    wanted = [asked for asked in joined.asked if metric.needs == "likelihood" or asked.generate]
    if metric.needs != "likelihood" and compare is None:
        wanted = []
    return Scores(
        metric,
        {
            variant: {
                asked.id: _score(metric, asked, answers[asked.id], compare)
                for asked in wanted
                if asked.id in answers
            }
            for variant, answers in joined.answers.items()
        },
    )


def estimate(scores: Scores, variant: str, clusters: Mapping[str, str], alpha: float) -> Estimate:
    """Mean and bounds of one variant: Wilson for proportions, and for scores that are all the same; Student's t for means."""
    rows = sorted(scores.by_variant.get(variant, {}).items())
    if not rows:
        return Estimate(
            metric=scores.metric.name,
            variant=variant,
            n=0,
            clusters=0,
            mean=None,
            lower=None,
            upper=None,
            deviation=None,
            method="none",
        )
    values = [value for _, value in rows]
    found = clustered_mean(values, [clusters[row_id] for row_id, _ in rows])
    bounds, method, deviation = t_bounds(found, alpha), "t", found.deviation
    if scores.metric.kind == "binary":
        effect = design_effect(found, found.mean * (1 - found.mean), len(values))
        bounds, method = wilson(sum(values) / effect, len(values) / effect, alpha), "wilson"
        p = min(max(0.5, bounds.lower), bounds.upper)
        deviation = math.sqrt(p * (1 - p) * effect)
    elif _is_constant(scores.metric, found, 0.0):
        bounds, method = constant_bounds(found.mean, 0.0, 1.0, found.clusters, alpha), "wilson"
        deviation = math.sqrt(wilson(0, found.clusters, alpha).upper)
    return Estimate(
        metric=scores.metric.name,
        variant=variant,
        n=len(values),
        clusters=found.clusters,
        mean=rounded(bounds.estimate),
        lower=rounded(bounds.lower),
        upper=rounded(bounds.upper),
        deviation=rounded(deviation),
        method=method,
    )


def _is_constant(metric: Metric, found: ClusteredMean, least: float) -> bool:
    """Whether all clusters have the same mean on a scale that is known to end at `least` and 1."""
    return metric.needs != "likelihood" and found.standard_error < ROUNDING and least <= found.mean <= 1


@dataclass(frozen=True, slots=True)
class Paired:
    """Differences of the rows that both sides have, positive where the candidate is better."""

    metric: Metric
    differences: tuple[float, ...]
    clusters: tuple[Hashable, ...]

    @property
    def gains(self) -> int:
        return sum(difference > 0 for difference in self.differences)

    @property
    def losses(self) -> int:
        return sum(difference < 0 for difference in self.differences)

    def table(self, found: ClusteredMean) -> tuple[float, float, float] | None:
        """Gains, losses and pairs of right-or-wrong answers, each over the design effect of the clusters; None of others.

        Scores that differ wholly or not at all are such answers, whatever their metric is. Pairs that are all
        independent are counted as they are. A few repeated questions must not change the method: Student's t has a
        bound of 0 where no answer differs.
        """
        whole = self.metric.needs != "likelihood" and set(self.differences) <= {-1.0, 0.0, 1.0}
        if self.metric.kind != "binary" and not whole:
            return None
        n = len(self.differences)
        effect = design_effect(found, (self.gains + self.losses) / n - found.mean**2, n)
        return self.gains / effect, self.losses / effect, n / effect


def pair(
    scores: Scores, against: str, clusters: Mapping[str, str], only: Iterable[str] | None = None
) -> Paired:
    """Pair the candidate's rows with the reference's by id; `only` narrows to a slice."""
    mine, theirs = scores.by_variant.get("candidate", {}), scores.by_variant.get(against, {})
    ids = sorted(mine.keys() & theirs.keys() & (mine.keys() if only is None else frozenset(only)))
    return Paired(
        metric=scores.metric,
        differences=tuple(scores.metric.better(mine[row_id], theirs[row_id]) for row_id in ids),
        clusters=tuple(clusters[row_id] for row_id in ids),
    )


def compare(paired: Paired, against: Literal["base", "champion"], alpha: float, delta: float) -> Comparison:
    """Bounds of the mean difference: Tango for right-or-wrong pairs, clustered Student's t otherwise."""
    n = len(paired.differences)
    if n == 0:
        bounds, method, groups, deviation = Bounds(math.nan, -math.inf, math.inf), "none", 0, math.inf
    else:
        found = clustered_mean(paired.differences, paired.clusters)
        groups = found.clusters
        if (table := paired.table(found)) is not None:
            gains, losses, pairs = table
            bounds, method = tango(gains, losses, pairs, alpha), "tango"
            # The upper bound of the discordance: no discordant pair in 50 does not mean that there is none.
            discordance = wilson(gains + losses, pairs, alpha).upper
            deviation = math.sqrt(discordance * n / pairs)
        elif _is_constant(paired.metric, found, -1.0):
            bounds, method = constant_bounds(found.mean, -1.0, 1.0, groups, alpha), "wilson"
            deviation = math.sqrt(wilson(0, groups, alpha).upper)
        else:
            bounds, method = t_bounds(found, alpha), "t"
            deviation = found.deviation
    needed = sample_size(deviation, delta, alpha, POWER)
    return Comparison(
        metric=paired.metric.name,
        against=against,
        n=n,
        clusters=groups,
        difference=rounded(bounds.estimate),
        lower=rounded(bounds.lower),
        upper=rounded(bounds.upper),
        method=method,
        better=paired.gains,
        worse=paired.losses,
        deviation=rounded(deviation),
        n_needed=math.ceil(needed) if math.isfinite(needed) else None,
    )


def harm_p_value(paired: Paired, delta: float) -> float:
    """P-value of 'the candidate is worse by more than delta' (H0: it is not)."""
    found = clustered_mean(paired.differences, paired.clusters)
    if found.clusters < 2:
        return 1.0
    if (table := paired.table(found)) is not None:
        return normal_cdf(tango_score(*table, -delta))
    if found.standard_error == 0:
        return float(found.mean >= -delta)
    return t_cdf((found.mean + delta) / found.standard_error, found.clusters - 1)


def rounded(value: float) -> float | None:
    """Ten significant digits, so that documents are the same on every platform; None for no finite number."""
    return float(f"{value:.10g}") if math.isfinite(value) else None


def clusters_of(asked: Sequence[Asked]) -> dict[str, str]:
    """Row id to cluster."""
    return {one.id: one.cluster for one in asked}


def _score(
    metric: Metric, asked: Asked, answer: Prediction, compare: Callable[[str, str], float] | None
) -> float:
    if compare is None:
        return _loss(asked, answer)
    return metric.worst if answer.text is None else compare(asked.reference, answer.text)


def _loss(asked: Asked, answer: Prediction) -> float:
    return nll_per_byte(float(answer.nll or 0.0), len(asked.reference.encode()))


def _preferred(joined: Joined, variant: str) -> dict[str, float]:
    """1 where the chosen answer is the likelier one, by row; only rows of which both were measured."""
    chosen, rejected = joined.answers[variant], joined.rejected_answers.get(variant, {})
    asked = {one.id: one for one in joined.asked}
    return {
        other.id: float(_loss(asked[other.id], chosen[other.id]) < _loss(other, rejected[other.id]))
        for other in joined.rejected
        if other.id in chosen and other.id in rejected
    }
