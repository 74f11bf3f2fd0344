"""WriteReport: one page for people, from everything that the run left in its bucket."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.exceptions import ClientError
from pydantic import ValidationError

from dropforge_core.aws import Bucket, Ledger
from dropforge_core.contracts import ReportInput, ReportWritten
from dropforge_core.ladder.cause import instance_of
from dropforge_core.layout import RunLayout, s3_uri
from dropforge_core.planning.calibration import SPEEDS_NOTE, Measurement, read_speeds, write_speeds
from dropforge_core.planning.catalogue import Catalogue
from dropforge_core.report import RunDocuments, render
from dropforge_core.report.documents import JobFacts
from dropforge_core.report.measured import measurement
from dropforge_core.report.spending import actual_cost
from jobs import Jobs, Kind
from money import warm_seconds
from pricing import catalogue
from run_documents import gather
from runtime import Settings, instrumented, logger, now

NOTE_TRIES: Final = 5
"""Runs that end in the same moment write one note."""
_TIMED: Final = ("Transform", "Training", "Processing")


class Env(Settings):
    run_table: str
    run_bucket: str


@instrumented
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """ReportInput to ReportWritten."""
    env, order = Env.load(), ReportInput.model_validate(event)
    runs, ledger = Bucket(env.run_bucket), Ledger(env.run_table)
    known = catalogue(runs)
    documents = gather(runs, order, (ledger.run(order.run_id) or {}).get("message", ""))
    documents = replace(documents, jobs=tuple(measured_jobs(Jobs.connect(), order.run_id, known)))
    if found := measurement(documents, known, now()):
        remember(ledger, found)
    return write(runs, documents).model_dump(mode="json")


def write(bucket: Bucket, documents: RunDocuments) -> ReportWritten:
    """Render the page and put it into the run's folder."""
    key = RunLayout(run_id=documents.run_id).report
    bucket.write(key, render(documents).encode("utf-8", "backslashreplace"), "text/html; charset=utf-8")
    return ReportWritten(report_uri=s3_uri(bucket.name, key), cost_usd=actual_cost(documents))


def remember(ledger: Ledger, found: Measurement) -> None:
    """Write forecast and measurement to the run's item, and the speed to the notes that the planner learns from.

    A page is worth more than the next plan's accuracy: where the table can't be written, the page goes on.
    """
    try:
        ledger.annotate(found.run_id, {"measured": found.model_dump_json()})
        for _ in range(NOTE_TRIES):
            seen = ledger.note(SPEEDS_NOTE)
            speeds = (*read_speeds(seen.get("speeds", "")), found)
            if ledger.write_note(SPEEDS_NOTE, {"speeds": write_speeds(speeds)}, seen):
                return
        logger.warning("the speed was not noted: others wrote at every try", run_id=found.run_id)
    except (ClientError, ValidationError):
        logger.warning("the measurement can't be written; the page goes without it", exc_info=True)


def measured_jobs(jobs: Jobs, run_id: str, known: Catalogue) -> Iterator[JobFacts]:
    """Every job of the run that ran, failed attempts too: those were billed as well.

    A page is worth more than its cost line: where the service does not answer, the jobs are left out.
    """
    kinds: tuple[tuple[Kind, str], ...] = (
        ("ProcessingJob", "caching"),
        ("TrainingJob", "training"),
        ("TransformJob", "evaluation"),
    )
    for kind, told in kinds:
        try:
            described = [(name, jobs.describe(kind, name)) for name in jobs.of_run(kind, run_id)]
        except ClientError:
            logger.warning("jobs can't be described; the page goes without them", kind=kind, exc_info=True)
            continue
        for name, job in reversed(described):
            if fact := _job_fact(told, name, job or {}, known):
                yield fact


def _job_fact(kind: str, name: str, job: Mapping[str, Any], known: Catalogue) -> JobFacts | None:
    processing = job.get("ProcessingResources", {}).get("ClusterConfig")
    resources = job.get("ResourceConfig") or job.get("TransformResources") or processing or {}
    instance, count = instance_of(resources)
    seconds = job.get("BillableTimeInSeconds")
    if seconds is None:
        began, ended = (
            next((job[f"{what}{when}Time"] for what in _TIMED if job.get(f"{what}{when}Time")), None)
            for when in ("Start", "End")
        )
        seconds = (ended - began).total_seconds() if began and ended else None
    if not instance or seconds is None:
        return None
    return JobFacts(
        name=name,
        kind=kind,
        instance_type=instance,
        instances=count,
        billable_s=round(seconds),
        warm_s=round(warm_seconds(job, resources)),
        usd_hour=known.price(instance, kind),
    )
