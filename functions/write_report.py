"""WriteReport: one page for people, from everything that the run left in its bucket."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.exceptions import ClientError

from dropforge_core.aws import Bucket, Ledger, ObjectVanished
from dropforge_core.contracts import ReportInput, ReportWritten
from dropforge_core.layout import RunLayout, s3_uri
from dropforge_core.planning.catalogue import load_catalogue
from dropforge_core.report import RunDocuments, collect, render
from dropforge_core.report.documents import JobFacts
from dropforge_core.report.spending import actual_cost
from jobs import Jobs, Kind
from runtime import Settings, instrumented, logger


class Env(Settings):
    run_table: str
    run_bucket: str


@instrumented
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """ReportInput to ReportWritten."""
    env, order = Env.load(), ReportInput.model_validate(event)
    ledger = Ledger(env.run_table).run(order.run_id) or {}
    documents = gather(Bucket(env.run_bucket), order, ledger.get("message", ""))
    documents = replace(documents, jobs=tuple(measured_jobs(Jobs.connect(), order.run_id)))
    return write(Bucket(env.run_bucket), documents).model_dump(mode="json")


def gather(bucket: Bucket, order: ReportInput, ledger_message: str) -> RunDocuments:
    """Read what the run left; whatever is not there stays None."""
    at = RunLayout(run_id=order.run_id)
    gate = _read(bucket, at.gate)
    about = {
        "run_id": order.run_id,
        "model": order.model,
        "status": order.status,
        "message": order.message or ledger_message,
        "package_arn": order.package_arn,
        "bucket": bucket.name,
        "gate_sha256": hashlib.sha256(gate).hexdigest() if gate else "",
    }
    listed = (str(entry["Key"]) for entry in bucket.list(at.training_output))
    return collect(about, lambda key: _read(bucket, key), lambda key: _stream(bucket, key), listed)


def write(bucket: Bucket, documents: RunDocuments) -> ReportWritten:
    """Render the page and put it into the run's folder."""
    key = RunLayout(run_id=documents.run_id).report
    bucket.write(key, render(documents).encode("utf-8", "backslashreplace"), "text/html; charset=utf-8")
    return ReportWritten(report_uri=s3_uri(bucket.name, key), cost_usd=actual_cost(documents))


def measured_jobs(jobs: Jobs, run_id: str) -> Iterator[JobFacts]:
    """Every training and evaluation job of the run that ran, failed attempts too: those were billed as well.

    A page is worth more than its cost line: where the service does not answer, the jobs are left out.
    """
    kinds: tuple[tuple[Kind, str], ...] = (("TrainingJob", "training"), ("TransformJob", "evaluation"))
    for kind, told in kinds:
        try:
            described = [(name, jobs.describe(kind, name)) for name in jobs.of_run(kind, run_id)]
        except ClientError:
            logger.warning("jobs can't be described; the page goes without them", kind=kind, exc_info=True)
            continue
        for name, job in reversed(described):
            if fact := _job_fact(told, name, job or {}):
                yield fact


def _job_fact(kind: str, name: str, job: Mapping[str, Any]) -> JobFacts | None:
    resources = job.get("ResourceConfig") or job.get("TransformResources") or {}
    instance = str(resources.get("InstanceType", ""))
    seconds = job.get("BillableTimeInSeconds")
    if seconds is None:
        began = job.get("TransformStartTime") or job.get("TrainingStartTime")
        ended = job.get("TransformEndTime") or job.get("TrainingEndTime")
        seconds = (ended - began).total_seconds() if began and ended else None
    if not instance or seconds is None:
        return None
    known = load_catalogue().find(instance)
    count = int(resources.get("InstanceCount", 1))
    return JobFacts(
        name=name,
        kind=kind,
        instance_type=instance,
        billable_s=round(seconds) * count,
        usd_hour=known.usd_hour if known else None,
    )


def _read(bucket: Bucket, key: str) -> bytes | None:
    try:
        return bucket.read(key)
    except ObjectVanished:
        return None


def _stream(bucket: Bucket, key: str) -> Iterable[bytes] | None:
    """The object's chunks, or None where there is none; nothing is read before the first chunk is taken."""
    chunks = bucket.stream(key)
    try:
        first = next(chunks, b"")
    except ObjectVanished:
        return None
    return chain((first,), chunks)
