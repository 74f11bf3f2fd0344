"""The decision: everything measured, every rule, one verdict. A pure function of answers and policy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dropforge_core.evaluation.join import Coverage, Joined
from dropforge_core.gate import rules as rule
from dropforge_core.gate.documents import Flips, MetricFacts, MetricsReport, Policy, Reference
from dropforge_core.gate.evidence import (
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
from dropforge_core.gate.sampling import POWER
from dropforge_core.gate.slices import SliceResult, Slicing, harm_allowed, slice_results, slices_rule
from dropforge_core.metrics import Metric
from dropforge_core.metrics.catalogue import NotMeasurable, catalogue, corpus_scores
from dropforge_core.metrics.choice import MetricChoice, choose
from dropforge_core.metrics.given import Given
from dropforge_core.metrics.structured import FieldScore, field_scores
from dropforge_core.metrics.summaries import classification_report, lengths, likelihood
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
    metrics: Mapping[str, Metric]
    """Every metric that can be asked for."""
    notes: tuple[str, ...] = ()
    """How metrics were measured, and why one was not."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What decides beside the averages."""

    unjudged: str = ""
    """Why an approved package could not take part; empty where none is left out."""
    rules: tuple[Rule, ...] = ()
    """On canaries, general questions and the use of the hold-out."""


@dataclass(frozen=True, slots=True)
class Decision:
    rules: tuple[Rule, ...]
    flips: tuple[Flips, ...]
    slices: tuple[SliceResult, ...]
    policy: Policy

    @property
    def verdict(self) -> Verdict:
        return rule.combine(self.rules)


def gather(joined: Joined, evaluation: Evaluation, gate: Gate, given: Sequence[Given] = ()) -> Evidence:
    """Score every answer and compare the candidate with every reference on every metric.

    Args:
        joined: the answers.
        evaluation: which metrics, and their options.
        gate: what must be measured in any case.
        given: scores that were measured elsewhere; they enter as their metric was declared.
    """
    asked = () if evaluation.metrics == "auto" else evaluation.metrics
    generated = [one.reference for one in joined.asked if one.generate]
    found = catalogue(evaluation.metric_options, generated, [one.metric for one in given])
    choice = choose(
        asked,
        (gate.primary, *gate.guarded, *gate.minimum, *(one.metric.name for one in given)),
        generated,
        found.metrics,
        preferences=bool(joined.rejected),
    )
    notes = [one.note for one in given if one.note]
    notes += [
        f"{found.metrics[name].label}: {found.notes[name]}" for name in choice.names if name in found.notes
    ]
    clusters = clusters_of(joined.asked)
    elsewhere = {one.metric.name: one.by_variant for one in given}
    scores: dict[str, Scores] = {}
    for name in choice.names:
        metric = found.metrics[name]
        try:
            scores[name] = (
                Scores(metric, elsewhere.get(name, {}))
                if metric.needs == "given"
                else score(metric, joined, found.compare.get(name))
            )
        except NotMeasurable as error:
            scores[name] = Scores(metric, {})
            notes.append(f"{metric.label} was not measured. {error}")
    references: tuple[Reference, ...] = ("base", "champion") if "champion" in joined.variants else ("base",)
    return Evidence(
        choice=choice,
        scores=scores,
        estimates={
            (name, variant): estimate(one, variant, clusters, gate.alpha)
            for name, one in scores.items()
            for variant in joined.variants
        },
        comparisons={
            (name, against): compare(pair(one, against, clusters), against, gate.alpha, gate.delta)
            for name, one in scores.items()
            for against in references
        },
        clusters=clusters,
        references=references,
        metrics=found.metrics,
        notes=tuple(notes),
    )


def decide(
    evidence: Evidence,
    coverage: Coverage,
    gate: Gate,
    slicing: Slicing,
    beside: Beside,
) -> Decision:
    """Apply every rule.

    Args:
        evidence: from `gather`.
        coverage: from `join`.
        gate: the recipe's policy. Without guarded metrics the primary one is guarded.
        slicing: what to look into.
        beside: rules that rest on no average.
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
        slice_delta=harm_allowed(gate),
        canary=gate.canary,
        forgetting=gate.forgetting,
    )
    applied = [rule.validity(coverage)]
    if unknown := rule.known_metrics(evidence.choice.unknown):
        applied.append(unknown)
    known = evidence.scores
    decisive = dict.fromkeys([gate.primary, *gate.minimum, *(guarded if _champion(evidence) else ())])
    measured = [evidence.comparisons[name, "base"] for name in decisive if name in known]
    if measured:
        least = min(measured, key=lambda found: min(found.n, found.clusters))
        applied.append(
            rule.enough_rows(evidence.metrics[least.metric], least.n, least.clusters, gate.min_examples)
        )
    applied += [
        rule.minimum(
            evidence.metrics[name], evidence.estimates[name, "candidate"], threshold, gate.alpha, gate.delta
        )
        for name, threshold in sorted(gate.minimum.items())
        if name in known
    ]
    if gate.primary in known:
        applied.append(
            rule.better_than_base(
                evidence.metrics[gate.primary], evidence.comparisons[gate.primary, "base"], gate.alpha
            )
        )
    if _champion(evidence):
        applied += [
            rule.not_worse_than_champion(
                evidence.metrics[name], evidence.comparisons[name, "champion"], gate.alpha, gate.delta
            )
            for name in guarded
            if name in known
        ]
    elif beside.unjudged:
        applied.append(Rule(name="champion_comparable", verdict="INCONCLUSIVE", reason=beside.unjudged))
    results: tuple[SliceResult, ...] = ()
    if slicing.fields and gate.primary in known:
        results = slice_results(
            known[gate.primary], evidence.references[-1], slicing, evidence.clusters, gate
        )
        applied.append(slices_rule(results, slicing, gate.primary))
    applied += beside.rules
    return Decision(rules=tuple(applied), flips=_flips(evidence, gate.primary), slices=results, policy=policy)


def metrics_report(
    evidence: Evidence, joined: Joined, run_id: str, model: str, alpha: float
) -> MetricsReport:
    """The document of the numbers."""
    fields: dict[str, tuple[FieldScore, ...]] = {}
    facts = dict[str, dict[str, Any]](likelihood={}, lengths={}, classification={}, corpus={})
    for variant in joined.variants:
        answers = joined.answers[variant]
        told = [(one, answers[one.id]) for one in joined.asked if one.generate and one.id in answers]
        pairs = [(one.reference, answer.text or "") for one, answer in told]
        facts["likelihood"][variant] = likelihood(
            [(one.reference, float(answers[one.id].nll or 0)) for one in joined.asked if one.id in answers]
        )
        facts["lengths"][variant] = lengths(
            [(one.reference, answer.text or "", answer.finish_reason == "length") for one, answer in told]
        )
        if "field_f1" in evidence.scores:
            fields[variant] = field_scores(pairs)
        if evidence.choice.task in {"label", "choice"} and pairs:
            facts["classification"][variant] = classification_report(
                pairs, choices=evidence.choice.task == "choice"
            )
        if evidence.scores.keys() & {"bleu", "chrf"}:
            facts["corpus"][variant] = corpus_scores(pairs)
    measured = {
        name: {variant: one for variant, one in found.items() if one is not None}
        for name, found in facts.items()
    }
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
                label=evidence.metrics[name].label,
                direction=evidence.metrics[name].direction,
                kind=evidence.metrics[name].kind,
                description=evidence.metrics[name].description,
                estimates=tuple(evidence.estimates[name, variant] for variant in joined.variants),
            )
            for name in evidence.choice.names
        ),
        comparisons=tuple(evidence.comparisons.values()),
        fields=fields,
        **measured,
    )


def _champion(evidence: Evidence) -> bool:
    return "champion" in evidence.references


def flip_metric(evidence: Evidence, primary: str) -> str | None:
    """The binary metric in which an answer is right or wrong: the primary one, else the strictest measured."""
    for name in dict.fromkeys((primary, "exact_match", "normalised_match", *evidence.scores)):
        metric = evidence.metrics.get(name)
        if name in evidence.scores and metric and (metric.kind, metric.direction) == ("binary", "higher"):
            return name
    return None


def example_metric(evidence: Evidence, primary: str) -> str | None:
    """The metric that tells people which answers changed: one of flips, else of generation, else any."""
    measured = [name for name, found in evidence.scores.items() if any(found.by_variant.values())]
    flips = flip_metric(evidence, primary)
    if flips in measured:
        return flips
    generated = [name for name in measured if evidence.metrics[name].needs == "generation"]
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
