"""From answers to the three documents of an evaluation and the outcome that the state machine acts on."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from dropforge_core.contracts import EvaluationSetup, GateOutcome
from dropforge_core.evaluation.join import Joined
from dropforge_core.gate.checks import Canaries, canaries_of, canaries_rule
from dropforge_core.gate.decision import (
    Beside,
    Decision,
    Evidence,
    decide,
    example_metric,
    gather,
    metrics_report,
)
from dropforge_core.gate.documents import GateReport, HoldoutUse, MetricsReport, Provenance
from dropforge_core.gate.evidence import rounded
from dropforge_core.gate.examples import ExampleAnswers, pick
from dropforge_core.gate.general import Forgetting, forgetting_of, forgetting_rule
from dropforge_core.gate.registration import registration_metadata
from dropforge_core.gate.rules import Rule, holdout_reuse
from dropforge_core.gate.slices import Slicing
from dropforge_core.gate.statistics import confidence
from dropforge_core.identity import client_token
from dropforge_core.layout import RunLayout, s3_uri
from dropforge_core.metrics.given import Given
from dropforge_core.metrics.registry import JUDGE_PREFERENCE
from dropforge_core.recipe import Gate, Recipe


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose candidate this is, and of what it is made."""

    run_id: str
    model: str
    dataset_digest: str
    base_model: str
    setup: EvaluationSetup
    use: int = 1
    """Place of this decision among those of the model on the same hold-out."""


@dataclass(frozen=True, slots=True)
class Judgement:
    metrics: MetricsReport
    gate: GateReport
    examples: ExampleAnswers | None
    """None where nothing was measured."""

    @property
    def gate_json(self) -> bytes:
        """`gate.json`, canonical: its digest names the decision."""
        return self.gate.model_dump_json(indent=2).encode()


def judge(
    joined: Joined, recipe: Recipe, subject: Subject, slicing: Slicing, given: Sequence[Given] = ()
) -> Judgement:
    """Measure, decide, and write down. Nothing is read, written or drawn.

    Args:
        joined: the answers.
        recipe: what to measure, and the policy.
        subject: whose candidate it is.
        slicing: what to look into.
        given: scores that were measured elsewhere.
    """
    gate_policy, measured = recipe.gate, joined.measured
    evidence = gather(measured, recipe.evaluation, gate_policy, given)
    setup = subject.setup
    unjudged = "" if setup.champion_comparable else setup.champion_note
    canaries = canaries_of(joined, evidence.references[-1], gate_policy.alpha)
    forgetting = forgetting_of(joined, gate_policy)
    beside = Beside(unjudged, tuple(_beside(canaries, forgetting, subject.use, gate_policy)))
    decision = decide(evidence, joined.coverage, gate_policy, slicing, beside)
    metrics = metrics_report(evidence, measured, subject.run_id, subject.model, recipe.gate.alpha)
    notes = [evidence.choice.reason, *evidence.notes]
    if setup.champion_note:
        notes.append(setup.champion_note)
    notes.extend(setup.cache_notes)
    if setup.partial_training:
        notes.append("Training stopped at its cap; the best checkpoint up to then was judged.")
    gate = GateReport(
        run_id=subject.run_id,
        model=subject.model,
        verdict=decision.verdict,
        summary=_summary(decision, evidence, recipe.gate, partial=setup.partial_training),
        policy=decision.policy,
        rules=decision.rules,
        coverage=joined.coverage,
        flips=decision.flips,
        slices=decision.slices,
        canaries=canaries,
        forgetting=forgetting,
        judge=next((one.judge for one in given if one.judge), None),
        holdout=HoldoutUse(
            digest=joined.holdout_digest,
            use=subject.use,
            at_most=gate_policy.max_holdout_uses,
            chance_of_false_pass=rounded(1 - (1 - gate_policy.alpha) ** subject.use) or 0.0,
        ),
        notes=tuple(notes),
        partial_training=setup.partial_training,
        provenance=Provenance(
            dataset_digest=subject.dataset_digest,
            recipe_digest=recipe.digest,
            base_model=subject.base_model,
            base_model_prefix=setup.base_model_prefix,
            quantization=recipe.quantization,
            training_job_name=setup.training_job_name,
            model_data=setup.model_data,
            champion_package_arn=setup.champion_package_arn,
            prompts_digest=joined.prompts_digest,
            predictions_digest=joined.predictions_digest,
        ),
        metrics_digest="sha256:" + hashlib.sha256(metrics_json(metrics)).hexdigest(),
    )
    name = example_metric(evidence, recipe.gate.primary)
    return Judgement(metrics, gate, pick(measured, evidence.scores[name]) if name else None)


def _beside(
    canaries: Canaries | None, forgetting: Forgetting | None, use: int, policy: Gate
) -> Iterator[Rule]:
    if canaries:
        yield canaries_rule(canaries, policy.alpha)
    if forgetting and (told := forgetting_rule(forgetting, policy.alpha)):
        yield told
    elif not forgetting and isinstance(policy.forgetting, float):
        yield Rule(
            name="not_forgotten",
            verdict="FAIL",
            n=0,
            threshold=-policy.forgetting,
            reason="The recipe bounds what may be forgotten, and no general question was asked.",
        )
    yield holdout_reuse(use, policy.max_holdout_uses, policy.alpha)


def metrics_json(metrics: MetricsReport) -> bytes:
    """`evaluation/metrics.json`, canonical."""
    return metrics.model_dump_json(indent=2).encode()


def outcome(judgement: Judgement, policy: Gate, bucket: str) -> GateOutcome:
    """What the state machine does next, and what the registry is told."""
    gate = judgement.gate
    digest = hashlib.sha256(judgement.gate_json).hexdigest()
    approval: dict[str, Literal["Approved", "PendingManualApproval", "nothing"]] = {
        "PASS": policy.on_pass,
        "INCONCLUSIVE": policy.on_inconclusive,
        "FAIL": "nothing",
    }
    return GateOutcome(
        verdict=gate.verdict,
        approval_status=approval[gate.verdict],
        summary=gate.summary,
        gate_digest=digest,
        metrics_uri=s3_uri(bucket, RunLayout(run_id=gate.run_id).metrics),
        client_token=client_token(gate.run_id),
        model_data=gate.provenance.model_data,
        metadata=registration_metadata(gate, judgement.metrics, digest),
    )


def _summary(decision: Decision, evidence: Evidence, policy: Gate, *, partial: bool) -> str:
    """A few sentences that a person understands without the report."""
    lead = {"PASS": "Passed.", "FAIL": "Did not pass.", "INCONCLUSIVE": "Not decided."}[decision.verdict]
    deciding = next((rule for rule in decision.rules if rule.verdict == decision.verdict), None)
    told = deciding.reason if deciding and decision.verdict != "PASS" else ""
    if decision.verdict == "PASS":
        metric = evidence.metrics[policy.primary]
        before = evidence.estimates[policy.primary, "base"].mean
        after = evidence.estimates[policy.primary, "candidate"]
        gain = evidence.comparisons[policy.primary, "base"].lower
        level = (
            f"{metric.label} was measured"
            if metric.name == JUDGE_PREFERENCE
            else f"{metric.label} went from {before:.3g} to {after.mean:.3g}"
        )
        told = (
            f"{level} on {after.n} held-out rows, "
            f"better by at least {gain:.3g} with {confidence(policy.alpha)} confidence."
        )
        guarded = [rule.metric for rule in decision.rules if rule.name == "not_worse_than_champion"]
        if labels := ", ".join(evidence.metrics[name].label for name in guarded if name):
            told += f" It loses no more than {policy.delta:g} to the champion in: {labels}."
    cap = " Training stopped at its cap, and the best checkpoint was judged." if partial else ""
    return f"{lead} {told}{cap}"
