"""The decision: everything measured, every rule, one verdict. A pure function of answers and policy."""

from collections.abc import Mapping
from dataclasses import dataclass

from dropforge_core.evaluation.join import Coverage, Joined
from dropforge_core.gate import rules as rule
from dropforge_core.gate.documents import Flips, MetricFacts, MetricsReport, Policy, Reference
from dropforge_core.gate.evidence import (
    POWER,
    Comparison,
    Estimate,
    Scores,
    clusters_of,
    compare,
    estimate,
    pair,
    score,
)
from dropforge_core.gate.rules import Rule, Verdict
from dropforge_core.gate.slices import SliceResult, Slicing, slice_results, slices_rule
from dropforge_core.metrics import REGISTRY, FieldScore, MetricChoice, choose, field_scores
from dropforge_core.recipe import Evaluation, Gate


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything measured, before any rule."""

    choice: MetricChoice
    scores: Mapping[str, Scores]
    estimates: Mapping[tuple[str, str], Estimate]
    comparisons: Mapping[tuple[str, Reference], Comparison]
    clusters: Mapping[str, str]
    references: tuple[Reference, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    rules: tuple[Rule, ...]
    flips: tuple[Flips, ...]
    slices: tuple[SliceResult, ...]
    policy: Policy

    @property
    def verdict(self) -> Verdict:
        return rule.combine(self.rules)


def gather(joined: Joined, evaluation: Evaluation, gate: Gate) -> Evidence:
    """Score every answer and compare the candidate with every reference on every metric."""
    asked = () if evaluation.metrics == "auto" else evaluation.metrics
    generated = [one.reference for one in joined.asked if one.generate]
    choice = choose(asked, (gate.primary, *gate.guarded, *gate.minimum), generated, generated=bool(generated))
    clusters = clusters_of(joined.asked)
    scores = {name: score(REGISTRY[name], joined) for name in choice.names}
    references: tuple[Reference, ...] = ("base", "champion") if "champion" in joined.variants else ("base",)
    return Evidence(
        choice=choice,
        scores=scores,
        estimates={
            (name, variant): estimate(found, variant, clusters, gate.alpha)
            for name, found in scores.items()
            for variant in joined.variants
        },
        comparisons={
            (name, against): compare(pair(found, against, clusters), against, gate.alpha, gate.delta)
            for name, found in scores.items()
            for against in references
        },
        clusters=clusters,
        references=references,
    )


def decide(
    evidence: Evidence, coverage: Coverage, gate: Gate, slicing: Slicing, unjudged: str = ""
) -> Decision:
    """Apply every rule.

    Args:
        evidence: from `gather`.
        coverage: from `join`.
        gate: the recipe's policy. Without guarded metrics the primary one is guarded.
        slicing: what to look into.
        unjudged: why an approved package could not take part; empty where none is left out.
    """
    guarded = gate.guarded or (gate.primary,)
    policy = Policy(
        primary=gate.primary,
        guarded=guarded,
        minimum=dict(gate.minimum),
        delta=gate.delta,
        alpha=gate.alpha,
        power=POWER,
        min_examples=gate.min_examples,
    )
    applied = [rule.validity(coverage)]
    if unknown := rule.known_metrics(evidence.choice.unknown):
        applied.append(unknown)
    known = evidence.scores
    decisive = dict.fromkeys([gate.primary, *gate.minimum, *(guarded if _champion(evidence) else ())])
    measured = [evidence.comparisons[name, "base"] for name in decisive if name in known]
    if measured:
        least = min(measured, key=lambda found: min(found.n, found.clusters))
        applied.append(rule.enough_rows(REGISTRY[least.metric], least.n, least.clusters, gate.min_examples))
    applied += [
        rule.minimum(REGISTRY[name], evidence.estimates[name, "candidate"], threshold, gate.alpha, gate.delta)
        for name, threshold in sorted(gate.minimum.items())
        if name in known
    ]
    if gate.primary in known:
        applied.append(
            rule.better_than_base(
                REGISTRY[gate.primary], evidence.comparisons[gate.primary, "base"], gate.alpha
            )
        )
    if _champion(evidence):
        applied += [
            rule.not_worse_than_champion(
                REGISTRY[name], evidence.comparisons[name, "champion"], gate.alpha, gate.delta
            )
            for name in guarded
            if name in known
        ]
    elif unjudged:
        applied.append(Rule(name="champion_comparable", verdict="INCONCLUSIVE", reason=unjudged))
    results: tuple[SliceResult, ...] = ()
    if slicing.fields and gate.primary in known:
        results = slice_results(
            known[gate.primary], evidence.references[-1], slicing, evidence.clusters, gate
        )
        applied.append(slices_rule(results, gate.primary))
    return Decision(rules=tuple(applied), flips=_flips(evidence, gate.primary), slices=results, policy=policy)


def metrics_report(
    evidence: Evidence, joined: Joined, run_id: str, model: str, alpha: float
) -> MetricsReport:
    """The document of the numbers."""
    fields: dict[str, tuple[FieldScore, ...]] = {}
    if "field_f1" in evidence.scores:
        for variant in joined.variants:
            answers = joined.answers[variant]
            fields[variant] = field_scores(
                [
                    (one.reference, answers[one.id].text or "")
                    for one in joined.asked
                    if one.generate and one.id in answers
                ]
            )
    return MetricsReport(
        run_id=run_id,
        model=model,
        task=evidence.choice.task,
        reason=evidence.choice.reason,
        alpha=alpha,
        variants=joined.variants,
        metrics=tuple(
            MetricFacts(
                name=name,
                label=REGISTRY[name].label,
                direction=REGISTRY[name].direction,
                kind=REGISTRY[name].kind,
                description=REGISTRY[name].description,
                estimates=tuple(evidence.estimates[name, variant] for variant in joined.variants),
            )
            for name in evidence.choice.names
        ),
        comparisons=tuple(evidence.comparisons.values()),
        fields=fields,
    )


def _champion(evidence: Evidence) -> bool:
    return "champion" in evidence.references


def flip_metric(evidence: Evidence, primary: str) -> str | None:
    """The binary metric in which an answer is right or wrong: the primary one, else the strictest measured."""
    for name in dict.fromkeys((primary, "exact_match", "normalised_match", *evidence.scores)):
        metric = REGISTRY.get(name)
        if name in evidence.scores and metric and (metric.kind, metric.direction) == ("binary", "higher"):
            return name
    return None


def example_metric(evidence: Evidence, primary: str) -> str | None:
    """The metric that tells people which answers changed: one of flips, else of generation, else any."""
    measured = [name for name, found in evidence.scores.items() if any(found.by_variant.values())]
    flips = flip_metric(evidence, primary)
    if flips in measured:
        return flips
    generated = [name for name in measured if REGISTRY[name].needs == "generation"]
    return next(iter((*generated, *measured)), None)


def _flips(evidence: Evidence, primary: str) -> tuple[Flips, ...]:
    name = flip_metric(evidence, primary)
    if name is None:
        return ()
    found = evidence.scores[name].by_variant
    mine = found.get("candidate", {})
    return tuple(
        Flips(
            metric=name,
            against=against,
            fixed=tuple(sorted(i for i in mine if found[against].get(i) == 0 and mine[i] == 1)),
            broken=tuple(sorted(i for i in mine if found[against].get(i) == 1 and mine[i] == 0)),
        )
        for against in evidence.references
    )
