"""The rules of the gate. Each answers PASS, FAIL or INCONCLUSIVE, with the number, its bounds and the threshold.

A rule passes when a bound shows what it asks for. It fails when the other bound shows the contrary, or
when the sample was large enough to show an effect of delta and did not. In between it is inconclusive,
and says how many rows would decide.
"""

import math
from typing import Literal

from dropforge_core.evaluation.join import Coverage
from dropforge_core.gate.evidence import POWER, Comparison, Estimate
from dropforge_core.gate.statistics import sample_size
from dropforge_core.metrics.registry import REGISTRY, Metric
from dropforge_core.model import Frozen

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]


class Rule(Frozen):
    """One rule applied. Numbers are None where there is nothing to measure."""

    name: Literal[
        "validity",
        "known_metrics",
        "sample_size",
        "minimum",
        "better_than_base",
        "not_worse_than_champion",
        "champion_comparable",
        "slices",
    ]
    verdict: Verdict
    metric: str | None = None
    against: Literal["base", "champion"] | None = None
    n: int | None = None
    value: float | None = None
    lower: float | None = None
    upper: float | None = None
    threshold: float | None = None
    n_needed: int | None = None
    method: str = ""
    reason: str
    """One sentence for a person."""


def combine(rules: tuple[Rule, ...]) -> Verdict:
    """All must pass: an intersection-union test needs no correction (Berger 1982). No rules: FAIL."""
    verdicts = {rule.verdict for rule in rules}
    if not rules or "FAIL" in verdicts:
        return "FAIL"
    return "INCONCLUSIVE" if "INCONCLUSIVE" in verdicts else "PASS"


def validity(coverage: Coverage) -> Rule:
    """Every question has exactly one good answer from every variant. Anything else fails, closed."""
    faults = {
        "missing": coverage.missing,
        "duplicated": coverage.duplicated,
        "reported as errors": coverage.errors,
        "garbled": coverage.garbled,
        "not asked for": coverage.unexpected,
        "without a likelihood": coverage.unmeasured,
        "without a generated text, of a reference": sum(
            count for variant, count in coverage.failed_generations.items() if variant != "candidate"
        ),
    }
    told = ", ".join(f"{count} {what}" for what, count in faults.items() if count)
    if coverage.is_complete:
        reason = f"All {coverage.expected} expected answers came back, one line each."
    elif not coverage.expected:
        reason = "Nothing was asked, so nothing can be judged. The hold-out or its prompts are missing."
    else:
        reason = (
            f"{coverage.answered} of {coverage.expected} expected answers can be used ({told}). "
            "Read evaluation/output/ and the transform job's log."
        )
    return Rule(
        name="validity",
        verdict="PASS" if coverage.is_complete else "FAIL",
        n=coverage.expected,
        value=coverage.answered,
        threshold=coverage.expected,
        reason=reason,
    )


def known_metrics(unknown: tuple[str, ...]) -> Rule | None:
    """The recipe names only metrics that exist; None where it does."""
    if not unknown:
        return None
    return Rule(
        name="known_metrics",
        verdict="FAIL",
        reason=f"The recipe names metrics that do not exist: {', '.join(unknown)}. "
        f"Use some of {', '.join(REGISTRY)}.",
    )


def enough_rows(metric: Metric, n: int, clusters: int, at_least: int) -> Rule:
    """The decisive metric rests on `min_examples` independent rows."""
    enough = min(n, clusters) >= at_least
    independent = "" if clusters == n else f" ({clusters} of them independent)"
    return Rule(
        name="sample_size",
        verdict="PASS" if enough else "INCONCLUSIVE",
        metric=metric.name,
        n=n,
        value=min(n, clusters),
        threshold=at_least,
        n_needed=None if enough else at_least,
        reason=f"{metric.label} was measured on {n} held-out rows{independent}, and no deciding metric on fewer; "
        f"the recipe asks for {at_least}." + ("" if enough else " Add rows to the hold-out."),
    )


def minimum(metric: Metric, found: Estimate, threshold: float, alpha: float, delta: float) -> Rule:
    """The candidate's bound reaches the threshold: the lower bound, or the upper one where lower is better."""
    if found.mean is None:
        return _unmeasured("minimum", metric, None, threshold)
    higher = metric.direction == "higher"
    sure, doubt = (found.lower, found.upper) if higher else (found.upper, found.lower)
    sign = 1.0 if higher else -1.0
    needed = sample_size(math.inf if found.deviation is None else found.deviation, delta, alpha, POWER)
    verdict = _decide(
        low=_signed(sure, sign, -math.inf),
        high=_signed(doubt, sign, math.inf),
        margin=sign * threshold,
        strict=False,
        enough=found.n >= needed,
    )
    bound = "at least" if higher else "at most"
    return Rule(
        name="minimum",
        verdict=verdict,
        metric=metric.name,
        n=found.n,
        value=found.mean,
        lower=found.lower,
        upper=found.upper,
        threshold=threshold,
        n_needed=math.ceil(needed) if math.isfinite(needed) else None,
        method=found.method,
        reason=f"{metric.label} is {found.mean:.3g}, {bound} {_number(sure)} with {1 - alpha:.0%} confidence; "
        f"the recipe asks for {bound} {threshold:g}." + _more(verdict, found.n, needed),
    )


def better_than_base(metric: Metric, found: Comparison, alpha: float) -> Rule:
    """The lower bound of the mean paired improvement is above 0."""
    return _compared("better_than_base", metric, found, 0.0, alpha)


def not_worse_than_champion(metric: Metric, found: Comparison, alpha: float, delta: float) -> Rule:
    """The lower bound of the mean paired difference is not below -delta: shown not worse, not merely unproven."""
    return _compared("not_worse_than_champion", metric, found, -delta, alpha)


def _compared(
    name: Literal["better_than_base", "not_worse_than_champion"],
    metric: Metric,
    found: Comparison,
    margin: float,
    alpha: float,
) -> Rule:
    if found.difference is None:
        return _unmeasured(name, metric, found.against, margin)
    needed = math.inf if found.n_needed is None else found.n_needed
    verdict = _decide(
        low=_signed(found.lower, 1.0, -math.inf),
        high=_signed(found.upper, 1.0, math.inf),
        margin=margin,
        strict=name == "better_than_base",
        enough=found.n >= needed,
    )
    who = "the base model" if found.against == "base" else "the champion"
    way = "better" if found.difference >= 0 else "worse"
    asked = "more than 0" if name == "better_than_base" else f"no loss beyond {-margin:g}"
    return Rule(
        name=name,
        verdict=verdict,
        metric=metric.name,
        against=found.against,
        n=found.n,
        value=found.difference,
        lower=found.lower,
        upper=found.upper,
        threshold=margin,
        n_needed=found.n_needed,
        method=found.method,
        reason=f"{metric.label} is {abs(found.difference):.3g} {way} than {who}'s on {found.n} paired rows; "
        f"with {1 - alpha:.0%} confidence the gain is at least {_number(found.lower)}, and {asked} is asked for."
        + _more(verdict, found.n, needed),
    )


def _decide(*, low: float, high: float, margin: float, strict: bool, enough: bool) -> Verdict:
    if low > margin or (not strict and low >= margin):
        return "PASS"
    if high <= margin if strict else high < margin:
        return "FAIL"
    return "FAIL" if enough else "INCONCLUSIVE"


def _unmeasured(
    name: Literal["minimum", "better_than_base", "not_worse_than_champion"],
    metric: Metric,
    against: Literal["base", "champion"] | None,
    threshold: float,
) -> Rule:
    mend = (
        " It needs generated answers: raise evaluation.generate_at_most."
        if metric.needs == "generation"
        else ""
    )
    return Rule(
        name=name,
        verdict="FAIL",
        metric=metric.name,
        against=against,
        n=0,
        threshold=threshold,
        reason=f"{metric.label} was measured on no row, so nothing is shown.{mend}",
    )


def _signed(value: float | None, sign: float, unbounded: float) -> float:
    return unbounded if value is None else sign * value


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def _more(verdict: Verdict, n: int, needed: float) -> str:
    if verdict != "INCONCLUSIVE":
        return ""
    if math.isfinite(needed) and needed > n:
        return f" About {math.ceil(needed):,} rows would decide."
    return " With a delta of 0 no number of rows is sure to decide."
