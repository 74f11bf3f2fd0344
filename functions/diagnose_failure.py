"""DiagnoseFailure: which fault it was, and the next rung of the ladder."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from aws_lambda_powertools.utilities.typing import LambdaContext
from pydantic import ValidationError

from announce import announce
from dropforge_core.aws import Bucket, Bus, Ledger, ObjectVanished, client
from dropforge_core.contracts import DiagnoseInput, Diagnosis, Plan
from dropforge_core.events import RunEvent
from dropforge_core.ladder import Circumstances, Evidence, classify, examine, next_step
from dropforge_core.ladder.faults import FAULTS
from dropforge_core.ladder.telling import message
from dropforge_core.layout import RunLayout
from dropforge_core.ledger import Status
from dropforge_core.planning import Catalogue, load_catalogue
from dropforge_core.planning.memory import shortest_micro_batch
from dropforge_core.recipe import Recipe
from jobs import Jobs, Kind, last_log_lines
from runtime import Settings, count, instrumented

KIND_OF: Final[Mapping[str, Kind]] = {
    "CACHE": "ProcessingJob",
    "TRAIN": "TrainingJob",
    "EVALUATE": "TransformJob",
}


class Env(Settings):
    run_table: str
    run_bucket: str
    event_bus: str


@dataclass(frozen=True)
class Clinic:
    """What a diagnosis looks things up in. `now` is an aware time, `jitter` lies in [0, 1)."""

    runs: Bucket
    jobs: Jobs
    logs: Any
    catalogue: Catalogue
    now: datetime
    jitter: float


@instrumented
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Input `DiagnoseInput`, output `Diagnosis`. The run's status is the ledger's; it only climbs with an outcome."""
    env = Env.load()
    asked = DiagnoseInput.model_validate(event)
    clinic = Clinic(
        runs=Bucket(env.run_bucket),
        jobs=Jobs.connect(),
        logs=client("logs"),
        catalogue=load_catalogue(),
        now=datetime.now(UTC),
        jitter=random.random(),  # noqa: S311  # spreads retries, guards nothing
    )
    found = diagnose(asked, clinic)
    count(f"Fault{found.fault.title().replace('_', '')}")
    item = Ledger(env.run_table).run(asked.run_id) or {}
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
    step = next_step(evidence, fault, _circumstances(asked, evidence, clinic), clinic.catalogue)
    log = last_log_lines(clinic.logs, kind, name) if kind and name and step.action == "FAIL" else ()
    key = f"{asked.stage}:{fault}"
    return Diagnosis(
        fault=fault,
        action=step.action,
        wait_s=step.wait_s,
        message=message(evidence, fault, step, run_id=asked.run_id, log=log),
        final_status=FAULTS[fault].status,
        compute=step.compute or asked.compute,
        attempts_of_class={**asked.attempts_of_class, key: asked.attempts_of_class.get(key, 0) + 1},
    )


def _circumstances(asked: DiagnoseInput, evidence: Evidence, clinic: Clinic) -> Circumstances:
    plan, recipe = _documents(clinic.runs, RunLayout(run_id=asked.run_id))
    is_training = asked.stage == "TRAIN"
    return Circumstances(
        run_id=asked.run_id,
        model=asked.model,
        compute=asked.compute,
        failures=asked.attempts_of_class,
        age_s=_age_s(asked.started_at, clinic.now),
        jitter=clinic.jitter,
        spent_usd=_spent_usd(asked.run_id, clinic) if is_training else 0.0,
        training_usd=max(0.0, plan.spend_limit_usd - plan.evaluation_reserve_usd) if plan else 0.0,
        needed_hours={o.instance_type: o.hours.expected for o in plan.options if o.hours} if plan else {},
        max_hours=max(recipe.compute.max_hours, plan.compute.max_runtime_s / 3600)
        if recipe and plan
        else 0.0,
        shortest_micro_batch=shortest_micro_batch(recipe) if recipe else 1,
        artifact_left=is_training and _left_an_artifact(asked, evidence, clinic),
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


def _spent_usd(run_id: str, clinic: Clinic) -> float:
    """What all training jobs of the run have cost: billable seconds, which include spot's saving."""
    spent = 0.0
    for name in clinic.jobs.of_run("TrainingJob", run_id):
        told = clinic.jobs.describe("TrainingJob", name) or {}
        found = clinic.catalogue.find(str(told.get("ResourceConfig", {}).get("InstanceType", "")))
        billable = told.get("BillableTimeInSeconds", told.get("TrainingTimeInSeconds", 0)) or 0
        spent += float(billable) / 3600 * ((found.usd_hour if found else None) or 0.0)
    return spent


def _left_an_artifact(asked: DiagnoseInput, evidence: Evidence, clinic: Clinic) -> bool:
    name = evidence.job.name or asked.job_name
    key = RunLayout(run_id=asked.run_id).training_output + f"{name}/output/model.tar.gz"
    return bool(name) and clinic.runs.head(key) is not None


def _age_s(started_at: str | None, now: datetime) -> float:
    try:
        began = datetime.fromisoformat(started_at or "")
    except ValueError:
        return 0.0
    return max(0.0, (now - (began if began.tzinfo else began.replace(tzinfo=UTC))).total_seconds())
