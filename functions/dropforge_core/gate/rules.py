"""The rules of the gate. Each answers PASS, FAIL or INCONCLUSIVE, with the number, its bounds and the threshold.

A rule passes when a bound shows what it asks for. It fails when the other bound shows the contrary, or
when the sample was large enough to show an effect of delta, did not, and the estimate itself does not
reach the margin. In between it is inconclusive, and says how many rows would decide.

A candidate that is better on every row than one that passed therefore never fails these rules: its
estimate is beyond the margin, however its rows vary.
"""

import math
from typing import Literal

from dropforge_core.evaluation.join import Coverage
from dropforge_core.gate.evidence import Comparison, Estimate
from dropforge_core.gate.sampling import POWER
from dropforge_core.gate.statistics import Bounds, confidence, sample_size
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
        "canaries",
        "not_forgotten",
        "holdout_reuse",
    ]
    """A stable name; docs/gate.md tells what each asks."""
    verdict: Verdict
    """Of this rule."""
    metric: str | None = None
    """What it rests on; null where it is no metric."""
    against: Literal["base", "champion"] | None = None
    """Whom the candidate was compared with; null where with nobody."""
    n: int | None = None
    """Rows, answers or questions that it rests on."""
    value: float | None = None
    """What was found: an estimate, a gain or a count."""
    lower: float | None = None
    """One-sided bound of `value` at alpha."""
    upper: float | None = None
    """As `lower`, from above."""
    threshold: float | None = None
    """What `value` or its bound had to reach."""
    n_needed: int | None = None
    """Where it is open the rows that would decide, else those at which delta is shown with 80 % power; null where no number is."""
    method: str = ""
    """How the bounds were made; empty where there are none."""
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


def holdout_reuse(use: int, at_most: int, alpha: float) -> Rule:
    """The hold-out has not decided more often than the recipe allows.

    A candidate that is no better passes with a chance of up to alpha, and whoever sees the verdicts chooses the next
    candidate by them: of many one passes for no merit (Dwork et al., Science 349 (2015) 636-638).
    """
    chance = 1 - (1 - alpha) ** use
    worn = use > at_most
    told = (
        "This hold-out decides for the first time."
        if use == 1
        else f"This is decision {use} of this model on the same hold-out. Of {use} candidates that are no better at "
        f"least one passes with a chance of up to {chance:.0%}."
    )
    return Rule(
        name="holdout_reuse",
        verdict="INCONCLUSIVE" if worn else "PASS",
        value=use,
        threshold=at_most,
        reason=told
        + (
            f" The recipe allows {at_most}: hold out new rows, then a candidate can pass again."
            if worn
            else ""
        ),
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
        Bounds(sign * found.mean, _signed(sure, sign, -math.inf), _signed(doubt, sign, math.inf)),
        sign * threshold,
        strict=False,
        enough=found.n >= needed,
    )
    planned = math.ceil(needed) if math.isfinite(needed) else None
    deciding = _deciding(found.n, needed, found.deviation, found.mean - threshold, alpha)
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
        n_needed=deciding if verdict == "INCONCLUSIVE" else planned,
        method=found.method,
        reason=f"{metric.label} is {found.mean:.3g}, {bound} {_number(sure)} with {confidence(alpha)} confidence; "
        f"the recipe asks for {bound} {threshold:g}." + _more(verdict, deciding),
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
        Bounds(found.difference, _signed(found.lower, 1.0, -math.inf), _signed(found.upper, 1.0, math.inf)),
        margin,
        strict=name == "better_than_base",
        enough=found.n >= needed,
    )
    deciding = _deciding(found.n, needed, found.deviation, found.difference - margin, alpha)
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
        n_needed=deciding if verdict == "INCONCLUSIVE" else found.n_needed,
        method=found.method,
        reason=f"{metric.label} is {abs(found.difference):.3g} {way} than {who}'s on {found.n} paired rows; "
        f"with {confidence(alpha)} confidence the gain is at least {_number(found.lower)}, and {asked} is asked for."
        + _more(verdict, deciding),
    )


def _decide(found: Bounds, margin: float, *, strict: bool, enough: bool) -> Verdict:
    if found.lower > margin or (not strict and found.lower >= margin):
        return "PASS"
    if found.upper <= margin if strict else found.upper < margin:
        return "FAIL"
    short = found.estimate <= margin if strict else found.estimate < margin
    return "FAIL" if enough and short else "INCONCLUSIVE"


def _deciding(n: int, planned: float, deviation: float | None, distance: float, alpha: float) -> int | None:
    """Rows that would decide: as many as were planned for, or, where those are there, for the distance that was seen."""
    needed = planned
    if n >= planned or not math.isfinite(planned):
        needed = sample_size(math.inf if deviation is None else deviation, abs(distance), alpha, POWER)
    return max(n + 1, math.ceil(needed)) if math.isfinite(needed) else None


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


def _more(verdict: Verdict, deciding: int | None) -> str:
    if verdict != "INCONCLUSIVE":
        return ""
    if deciding is None:
        return " So far no number of rows is sure to decide: the estimate lies on the margin."
    return f" About {deciding:,} rows would decide."
