"""Follow jobs, packages and executions of the stack, and close runs whose state machine could not.

Events come more than once, late and out of order; each is told once. What is not ours is ignored.
"""

from collections.abc import Mapping
from typing import Any, Final

from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.exceptions import ClientError

from announce import announce
from closing import close_accounts
from dropforge_core.aws import Bus, Ledger, Purse, client, error_code
from dropforge_core.events import RunEvent
from dropforge_core.happenings import ExecutionEnd, JobChange, PackageChange, read, run_of_job
from dropforge_core.identity import printable
from dropforge_core.ledger import REDRIVE_STEP, Status
from jobs import KINDS, Jobs
from runtime import Settings, count, instrumented, logger, now

US: Final = "report_job_state"
_TOLD: Final = {
    "Starting": "is starting",
    "Pending": "waits for an instance",
    "Downloading": "is downloading model and data",
    "Training": "is training",
    "Interrupted": "lost its spot instance and goes on from its last checkpoint",
    "Restarting": "is starting again",
    "Uploading": "is uploading the adapter",
    "Stopping": "is stopping",
    "Stopped": "was stopped",
    "MaxRuntimeExceeded": "hit its time limit",
    "MaxWaitTimeExceeded": "got no spot capacity in time",
    "Completed": "is done",
    "Failed": "failed",
}


class Env(Settings):
    run_table: str
    run_bucket: str
    event_bus: str
    max_concurrent_jobs: int = 0


@instrumented
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """An event of the default bus. Returns what was done with it; `ignored` for what is not ours."""
    happening = read(event) if isinstance(event, dict) else None
    if happening is None:
        return {"done": "ignored"}
    env = Env.load()
    ledger, bus = Ledger(env.run_table), Bus(env.event_bus)
    match happening:
        case JobChange():
            done = _job_changed(happening, ledger, bus)
            _stop_what_no_run_waits_for(happening, ledger)
            _bill_what_ended_late(happening, ledger, env)
        case PackageChange():
            done = _package_changed(happening, ledger, bus)
        case ExecutionEnd():
            done = _execution_ended(happening, ledger, bus, Jobs.connect())
            _close_accounts(happening, ledger, env)
    return {"done": done}


def _close_accounts(end: ExecutionEnd, ledger: Ledger, env: Env) -> None:
    """Slot and money of a run whose state machine could not give them back. Raised where it fails: it comes again."""
    if end.final_status is None and not Purse(env.run_table).held(end.run_id).reserved_micro:
        # As nearly always: SettleRun has done it.
        return
    run = ledger.run(end.run_id)
    if run is not None and int(run["rank"]) // REDRIVE_STEP <= end.redrive:
        _close(run, ledger, env)


def _stop_what_no_run_waits_for(change: JobChange, ledger: Ledger) -> None:
    """A job that was being created while its execution was stopped is seen here for the first time."""
    if change.status != "InProgress":
        return
    run = ledger.run(change.run_id)
    if (
        run is not None
        and Status(run["status"]).is_terminal
        and Jobs.connect().stop(change.kind, change.name)
    ):
        logger.warning("a job outlived its run and was stopped", job_name=change.name)
        count("OrphanJobsStopped")


def _bill_what_ended_late(change: JobChange, ledger: Ledger, env: Env) -> None:
    """A job that was stopped with its run tells its last seconds when the run's money is settled already."""
    if change.status not in {"Completed", "Failed", "Stopped"}:
        return
    run = ledger.run(change.run_id)
    if run is not None and Status(run["status"]).is_terminal:
        _close(run, ledger, env)


def _close(run: Mapping[str, str], ledger: Ledger, env: Env) -> None:
    cost = close_accounts(
        run["run_id"], table=env.run_table, bucket=env.run_bucket, at_most=env.max_concurrent_jobs
    )
    if run.get("ended_by") == US:
        # Its state machine can't say it any more.
        ledger.annotate(run["run_id"], {"cost_usd": f"{cost:.6f}"})


def _job_changed(change: JobChange, ledger: Ledger, bus: Bus) -> str:
    run = ledger.run(change.run_id)
    if run is None:
        return "ignored"
    if ledger.holder(change.claim):
        return "told already"
    ledger.annotate(
        change.run_id, {"job_status": f"{change.name} {change.secondary}", "job_status_at": now()}
    )
    if change.kind == "TrainingJob":
        state = _TOLD.get(change.secondary, f"is in state {printable(change.secondary, 60)}")
        told = announce(
            bus,
            "TrainingProgressed",
            RunEvent(
                run_id=change.run_id,
                model=run["model"],
                status=run["status"],
                message=f"The training job {state}.",
                data={"secondary_status": change.secondary, "job_name": change.name},
            ),
        )
        if not told:
            return "not told"
    # Claimed last: a delivery that fails half-way is tried again, and at worst tells the same twice.
    ledger.claim(change.claim, change.run_id)
    return "told"


def _package_changed(change: PackageChange, ledger: Ledger, bus: Bus) -> str:
    if change.status not in {"", "Completed"}:
        return "ignored"
    run_id = change.run_id or _run_of_package(change.arn)
    run = ledger.run(run_id) if run_id else None
    if run is None:
        return "ignored"
    if ledger.holder(change.claim):
        return "told already"
    ledger.annotate(run_id, {"package_arn": change.arn, "approval_status": change.approval})
    verdict = {
        "Approved": "is approved",
        "Rejected": "is rejected",
        "PendingManualApproval": "waits for approval",
    }.get(change.approval, f"is {printable(change.approval, 60)}")
    told = announce(
        bus,
        "ModelRegistered",
        RunEvent(
            run_id=run_id,
            model=run["model"],
            status=run["status"],
            message=f"{change.group} version {change.version} is in the registry and {verdict}.",
            data={"package_arn": change.arn, "approval_status": change.approval},
        ),
    )
    if told:
        ledger.claim(change.claim, run_id)
    return "told" if told else "not told"


def _run_of_package(arn: str) -> str:
    """The run that the package's metadata names: events leave metadata out."""
    try:
        found = client("sagemaker").describe_model_package(ModelPackageName=arn)
    except ClientError as error:
        logger.info("the package can't be read", reason=error_code(error))
        return ""
    return str(found.get("CustomerMetadataProperties", {}).get("run_id", ""))


def _execution_ended(end: ExecutionEnd, ledger: Ledger, bus: Bus, jobs: Jobs) -> str:
    run = ledger.run(end.run_id)
    if run is None:
        return "ignored"
    stopped = _stop_jobs(end, jobs)
    status = end.final_status
    if status is None:
        return "ended already"
    message = (
        "The run was cancelled."
        if status == Status.CANCELLED
        else f"The run's state machine ended as {end.status} before it could say why. {printable(end.cause, 600)}".strip()
    )
    if stopped:
        message += f" Its running jobs were stopped: {', '.join(stopped)}."
    # The page of an earlier end, before a redrive, says nothing of this one.
    fields = {"message": message, "ended_by": US, "ended_at": now(), "told_end": "", "report_uri": ""}
    if ledger.move(end.run_id, status, fields, redrive=end.redrive):
        run = {**run, **fields, "status": status}
    if run.get("told_end") or not (run.get("ended_by") == US or _may_be_untold(end, run)):
        return "ended already"
    event = RunEvent(
        run_id=end.run_id,
        model=run["model"],
        status=run["status"],
        message=run["message"],
        data={
            "report_uri": run.get("report_uri", ""),
            "package_arn": run.get("package_arn", ""),
            "duplicate_of": run.get("duplicate_of", ""),
            "cost_usd": run.get("cost_usd", ""),
        },
    )
    # Unlike elsewhere this is raised: nobody else will tell, so the event has to come again.
    bus.publish("RunEnded", event)
    ledger.annotate(end.run_id, {"told_end": now()})
    count("RunClosedByEvent")
    return "closed"


def _may_be_untold(end: ExecutionEnd, run: Mapping[str, str]) -> bool:
    """Whether the execution was cut off after it had recorded its outcome, perhaps before it told it.

    Whoever listens may hear such an end twice; people are told once, because `notify` remembers.
    """
    return (
        end.was_cut_off
        and Status(run["status"]).is_terminal
        and int(run["rank"]) // REDRIVE_STEP == end.redrive
    )


def _stop_jobs(end: ExecutionEnd, jobs: Jobs) -> list[str]:
    """Stop what still runs. A later redrive's jobs are left alone: this event may be late."""
    stopped = []
    for kind in KINDS:
        try:
            for name in jobs.of_run(kind, end.run_id, "InProgress"):
                ours = run_of_job(name)
                if ours and ours[0] == end.run_id and ours[1] <= end.redrive and jobs.stop(kind, name):
                    stopped.append(name)
        except ClientError as error:
            # One kind that can't be listed must not leave the others running.
            logger.exception("jobs could not be stopped", kind=kind, reason=error_code(error))
            count("JobsNotStopped")
    return stopped
