"""DiagnoseFailure: which fault it was, and the next rung of the ladder."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from aws_lambda_powertools.utilities.typing import LambdaContext
from pydantic import ValidationError

from announce import announce
from checkpoints import newest_step
from dropforge_core.aws import Bucket, Bus, Ledger, ObjectVanished, client
from dropforge_core.budget import allowed_only, type_names
from dropforge_core.contracts import DiagnoseInput, Diagnosis, Plan
from dropforge_core.events import RunEvent
from dropforge_core.ladder import Circumstances, Evidence, classify, examine, next_step
from dropforge_core.ladder.faults import FAULTS
from dropforge_core.ladder.steps import CACHE_TYPES
from dropforge_core.ladder.telling import message
from dropforge_core.layout import RunLayout
from dropforge_core.ledger import Status
from dropforge_core.planning import Catalogue
from dropforge_core.planning.memory import shortest_micro_batch
from dropforge_core.recipe import Recipe
from jobs import KINDS, Jobs, Kind, last_log_lines
from money import cost_of_run, left_for_evaluation
from pricing import catalogue
from runtime import Settings, count, instrumented
from slot_desk import SlotDesk

IN_TURN: Final = frozenset({"TRAIN", "EVALUATE"})
"""Stages whose jobs take a slot."""
RUNGS_KEPT: Final = 40
"""Steps of the ladder in the run's item; the last place is written over and over."""
KIND_OF: Final[Mapping[str, Kind]] = {
    "CACHE": "ProcessingJob",
    "TRAIN": "TrainingJob",
    "EVALUATE": "TransformJob",
}


class Env(Settings):
    run_table: str
    run_bucket: str
    event_bus: str
    cache_instance_type: str = CACHE_TYPES[0]
    allowed_instance_types: str = ""
    """Separated by commas; empty where every type is allowed."""
    max_concurrent_jobs: int = 0


@dataclass(frozen=True)
class Clinic:
    """What a diagnosis looks things up in. `now` is an aware time, `jitter` lies in [0, 1)."""

    runs: Bucket
    jobs: Jobs
    logs: Any
    catalogue: Catalogue
    now: datetime
    jitter: float
    cache_instance_type: str
    allowed_types: tuple[str, ...]
    """That the stack allows; empty for all."""
    desk: SlotDesk


@instrumented
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Input `DiagnoseInput`, output `Diagnosis`. The run's status is the ledger's; it only climbs with an outcome."""
    env = Env.load()
    asked = DiagnoseInput.model_validate(event)
    ledger, now = Ledger(env.run_table), datetime.now(UTC)
    runs = Bucket(env.run_bucket)
    clinic = Clinic(
        runs=runs,
        jobs=Jobs.connect(),
        logs=client("logs"),
        catalogue=catalogue(runs),
        now=now,
        jitter=random.random(),  # noqa: S311  # spreads retries, guards nothing
        cache_instance_type=env.cache_instance_type,
        allowed_types=type_names(env.allowed_instance_types),
        desk=SlotDesk(ledger, client("stepfunctions"), env.max_concurrent_jobs, now.timestamp()),
    )
    found = diagnose(asked, clinic)
    count(f"Fault{found.fault.title().replace('_', '')}")
    item = ledger.run(asked.run_id) or {}
    if item:
        number = min(RUNGS_KEPT, 1 + sum(name.startswith("rung_") for name in item))
        rung = f"{now.isoformat(timespec='seconds')} {found.message.splitlines()[0]}"
        ledger.annotate(asked.run_id, {f"rung_{number:02}": rung})
    told = RunEvent(
        run_id=asked.run_id,
        model=asked.model,
        status=item.get("status", Status.TRAINING),
        message=found.message,
        data={"fault": found.fault, "action": found.action, "wait_s": found.wait_s},
    )
    announce(Bus(env.event_bus), "RunDiagnosed", told)
    return found.model_dump(mode="json")


def diagnose(asked: DiagnoseInput, clinic: Clinic) -> Diagnosis:
    """The diagnosis of one failure."""
    kind = KIND_OF.get(asked.stage)
    name = asked.job_name

    def describe() -> Mapping[str, Any] | None:
        return clinic.jobs.describe(kind, name) if kind and name else None

    evidence = examine(
        stage=asked.stage, state=asked.state, error=asked.error, cause=asked.cause, describe=describe
    )
    fault = classify(evidence)
    circumstances = _circumstances(asked, evidence, clinic)
    if kind and evidence.job.status == "InProgress":
        # Step Functions lost sight of it. The next attempt would run beside it, and nobody would stop it.
        clinic.jobs.stop(kind, evidence.job.name)
        circumstances = circumstances.model_copy(update={"is_still_running": True})
    if asked.stage in IN_TURN and fault in {"QUOTA", "CAPACITY"}:
        # Whoever waits for AWS holds no slot meanwhile.
        hopeless = clinic.desk.refused(asked.run_id, by_quota=fault == "QUOTA")
        circumstances = circumstances.model_copy(update={"is_in_turn": True, "is_quota_hopeless": hopeless})
    step = next_step(evidence, fault, circumstances, clinic.catalogue)
    log = last_log_lines(clinic.logs, kind, name) if kind and name and step.action == "FAIL" else ()
    key = f"{asked.stage}:{fault}"
    return Diagnosis(
        fault=fault,
        action=step.action,
        wait_s=step.wait_s,
        message=message(
            evidence,
            fault,
            step,
            run_id=asked.run_id,
            log=log,
            failed=asked.attempts_of_class.get(key, 0),
        ),
        final_status=FAULTS[fault].status,
        compute=step.compute or asked.compute,
        instance_type=step.instance_type or asked.instance_type,
        evaluation_limit_s=step.limit_s,
        attempts_of_class={**asked.attempts_of_class, key: asked.attempts_of_class.get(key, 0) + 1},
    )


def _circumstances(asked: DiagnoseInput, evidence: Evidence, clinic: Clinic) -> Circumstances:
    layout = RunLayout(run_id=asked.run_id)
    plan, recipe = _documents(clinic.runs, layout)
    is_training = asked.stage == "TRAIN"
    allowed: tuple[str, ...] = ()
    if asked.stage == "CACHE":
        allowed = tuple(dict.fromkeys((clinic.cache_instance_type, *CACHE_TYPES)))
    elif recipe:
        allowed = allowed_only(recipe, clinic.allowed_types)[0].compute.evaluation_instance_types
    evaluation_usd = 0.0
    if plan and recipe and asked.stage == "EVALUATE":
        evaluation_usd = left_for_evaluation(clinic.jobs, plan, recipe, clinic.catalogue, clinic.now)
    return Circumstances(
        run_id=asked.run_id,
        model=asked.model,
        compute=asked.compute,
        failures=asked.attempts_of_class,
        jitter=clinic.jitter,
        spent_usd=_spent_usd(plan, clinic) if plan and is_training else 0.0,
        training_usd=max(0.0, plan.spend_limit_usd - plan.evaluation_reserve_usd) if plan else 0.0,
        needed_hours={o.instance_type: o.hours.expected for o in plan.options if o.hours} if plan else {},
        max_hours=max(recipe.compute.max_hours, plan.compute.max_runtime_s / 3600)
        if recipe and plan
        else 0.0,
        shortest_micro_batch=shortest_micro_batch(recipe) if recipe else 1,
        artifact_left=is_training and _left_an_artifact(asked, evidence, clinic),
        instance_type=asked.instance_type,
        allowed_types=allowed,
        evaluation_usd=evaluation_usd,
        evaluation_hours=plan.forecast.phase_s["evaluation"].high / 3600 if plan and plan.forecast else 0.0,
        checkpoint_step=newest_step(clinic.runs, layout.checkpoints) if is_training else 0,
        steps=plan.steps if plan else 0,
    )


def _documents(runs: Bucket, layout: RunLayout) -> tuple[Plan | None, Recipe | None]:
    """Plan and recipe, as far as the run got. Without them no attempt is paid for, so the ladder ends."""
    try:
        return (
            Plan.model_validate_json(runs.read(layout.plan)),
            Recipe.model_validate_json(runs.read(layout.recipe)),
        )
    except (ObjectVanished, ValidationError):
        return None, None


def _spent_usd(plan: Plan, clinic: Clinic) -> float:
    """What the run has cost. Fetching the base model is left out where the plan has put money aside for it."""
    kinds = [kind for kind in KINDS if kind != "ProcessingJob" or plan.base_model.cached]
    return cost_of_run(clinic.jobs, plan.run_id, clinic.catalogue, kinds=kinds, until=clinic.now)


def _left_an_artifact(asked: DiagnoseInput, evidence: Evidence, clinic: Clinic) -> bool:
    name = evidence.job.name or asked.job_name
    key = RunLayout(run_id=asked.run_id).training_output + f"{name}/output/model.tar.gz"
    return bool(name) and clinic.runs.head(key) is not None
