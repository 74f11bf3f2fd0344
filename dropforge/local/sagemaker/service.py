"""The SageMaker endpoint: AWS's JSON 1.1 protocol in, typed operations inside."""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import boto3
from botocore.config import Config

from dropforge.local.sagemaker.constraints import check, service_model
from dropforge.local.sagemaker.errors import ApiError
from dropforge.local.sagemaker.events import (
    Emit,
    EventPublisher,
    package_detail,
    processing_detail,
    training_detail,
    transform_detail,
)
from dropforge.local.sagemaker.fault_plan import FaultPlan
from dropforge.local.sagemaker.jobs import PROCESSING, TRAINING, TRANSFORM, Job, JobBook, Kind
from dropforge.local.sagemaker.models import ModelBook
from dropforge.local.sagemaker.packages import PackageBook
from dropforge.local.sagemaker.processing import process
from dropforge.local.sagemaker.requests import ProcessingRequest, TrainingRequest, TransformRequest
from dropforge.local.sagemaker.rules import check_processing, check_training, check_transform
from dropforge.local.sagemaker.storage import ObjectStore
from dropforge.local.sagemaker.tags import TagBook
from dropforge.local.sagemaker.training import defaults, selected, train
from dropforge.local.sagemaker.transform import transform
from dropforge.local.sagemaker.workspace import Host

_log = logging.getLogger(__name__)

_TARGET: Final = "SageMaker."
_CONTENT_TYPE: Final = "application/x-amz-json-1.1"
_DETAILS: Final = {TRAINING: training_detail, PROCESSING: processing_detail, TRANSFORM: transform_detail}

FAULT_PLAN: Final = "faults.json"
"""In the engine's private folder for jobs: what is to go wrong (`fault_plan`)."""

Operation = Callable[[dict[str, Any]], Mapping[str, Any] | None]


class LocalSageMaker:
    """SageMaker's jobs, models and registry for one account and region, in memory; jobs run as processes.

    Args:
        endpoint: Where S3 and CloudWatch Logs answer, for the runner and for jobs that are not isolated.
        region: Of every ARN.
        account: Of every ARN; 12 digits.
        root: Private folder for the jobs' trees and the cache of large inputs.
        emit_event: Puts one event on the default bus: detail-type, resource ARN, detail. Called from
            one thread, in order.
        entry_point: Image URI to the argv of its entry point; LookupError for an image it does not know.
        image_environment: The image's ENV.
        grace_s: Seconds from SIGTERM to SIGKILL.
        mirror_every_s: Seconds between two copies of a checkpoint folder.
        ping_timeout_s: Seconds within which a model server must answer /ping.
        slots: Jobs that run at a time; more of them wait in `Starting`.
        interruptions: Spot training job to the seconds after which each of its machines is taken away.
        clock: Seconds since the epoch.
    """

    def __init__(  # noqa: PLR0913, PLR0917  # the engine's settings, each with its own name at the only call
        self,
        endpoint: str,
        region: str,
        account: str,
        root: Path,
        emit_event: Emit,
        entry_point: Callable[[str], list[str]],
        *,
        image_environment: Mapping[str, str] | None = None,
        grace_s: float = 120.0,
        mirror_every_s: float = 2.0,
        ping_timeout_s: float = 900.0,
        slots: int = 2,
        interruptions: Callable[[str], Sequence[float]] = lambda _: (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        session = boto3.Session(aws_access_key_id=account, aws_secret_access_key="local", region_name=region)  # noqa: S106  # nobody checks it
        config = Config(
            retries={"mode": "standard", "max_attempts": 5},
            s3={"addressing_style": "path"},
            max_pool_connections=32,
        )
        self._faults = FaultPlan(root / FAULT_PLAN)
        self._host = Host(
            endpoint=endpoint,
            region=region,
            account=account,
            root=root,
            store=ObjectStore(session.client("s3", endpoint_url=endpoint, config=config), root / "cache"),
            logs=session.client("logs", endpoint_url=endpoint, config=config),
            entry_point=entry_point,
            image_environment=image_environment or {},
            grace_s=grace_s,
            mirror_every_s=mirror_every_s,
            ping_timeout_s=ping_timeout_s,
            interruptions=lambda name: (*interruptions(name), *self._faults.machines(name)),
            on_training_line=self._faults.told,
            clock=clock,
        )
        prefix = f"arn:aws:sagemaker:{region}:{account}"
        running = threading.Semaphore(slots)
        self._events = EventPublisher(emit_event)
        self._jobs = {
            kind: JobBook(kind, prefix, running, clock, self._job_changed)
            for kind in (TRAINING, PROCESSING, TRANSFORM)
        }
        self._models = ModelBook(prefix, clock)
        self._packages = PackageBook(prefix, clock, self._package_changed)
        self._tags = TagBook(self._exists)
        self._operations = self._table()
        self._closed = False

    def handle(
        self, method: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """Answer one HTTP request: status, headers, body."""
        reply_headers = {"Content-Type": _CONTENT_TYPE, "x-amzn-RequestId": str(uuid.uuid4())}
        try:
            answer = self._dispatch(method, headers, body)
        except ApiError as error:
            refusal = {"__type": error.code, "message": error.message}
            return error.status, reply_headers, json.dumps(refusal).encode()
        except Exception:  # noqa: BLE001  # a caller gets an answer, whatever fails here
            _log.exception("SageMaker request failed")
            refusal = {"__type": "InternalFailure", "message": "The local SageMaker failed; see its log."}
            return 500, reply_headers, json.dumps(refusal).encode()
        return 200, reply_headers, json.dumps(answer).encode()

    def close(self) -> None:
        """Kill every job's processes and wait for their threads. Nothing is started afterwards."""
        self._closed = True
        for book in self._jobs.values():
            book.shut_down()
        for book in self._jobs.values():
            book.join(timeout_s=10)
        self._events.close()

    def _dispatch(self, method: str, headers: Mapping[str, str], body: bytes) -> Mapping[str, Any]:
        target = next((value for name, value in headers.items() if name.lower() == "x-amz-target"), "")
        name = target.removeprefix(_TARGET)
        if method != "POST" or name == target:
            raise ApiError(
                "UnknownOperationException", f"POST with X-Amz-Target: {_TARGET}<Operation> expected"
            )
        operation = self._operations.get(name)
        if operation is None:
            if name not in service_model().operation_names:
                raise ApiError("UnknownOperationException", f"SageMaker has no operation {name!r}")
            raise ApiError.only_in_the_cloud(f"the operation {name}")
        if self._closed:
            raise ApiError("ServiceUnavailable", "The local SageMaker is shutting down.", 503)
        try:
            request = json.loads(body or b"{}")
        except ValueError as error:
            raise ApiError("SerializationException", f"The body is not JSON: {error}") from error
        return operation(check(name, request)) or {}

    def _table(self) -> dict[str, Operation]:
        operations: dict[str, Operation] = {
            "CreateTrainingJob": self._create_training_job,
            "CreateProcessingJob": self._create_processing_job,
            "CreateTransformJob": self._create_transform_job,
            "DeleteTrainingJob": lambda request: self._delete_job(TRAINING, request),
            "DeleteProcessingJob": lambda request: self._delete_job(PROCESSING, request),
            "CreateModel": self._create_model,
            "DescribeModel": lambda request: self._models.describe(request["ModelName"]),
            "DeleteModel": self._delete_model,
            "ListModels": self._models.list,
            "CreateModelPackageGroup": self._create_group,
            "DescribeModelPackageGroup": lambda request: self._packages.describe_group(
                request["ModelPackageGroupName"]
            ),
            "DeleteModelPackageGroup": lambda request: self._tags.forget(
                self._packages.delete_group(request["ModelPackageGroupName"])
            ),
            "ListModelPackageGroups": self._packages.list_groups,
            "CreateModelPackage": self._packages.create,
            "DescribeModelPackage": lambda request: self._packages.describe(request["ModelPackageName"]),
            "UpdateModelPackage": self._packages.update,
            "DeleteModelPackage": lambda request: self._tags.forget(
                self._packages.delete(request["ModelPackageName"])
            ),
            "ListModelPackages": self._packages.list,
            "AddTags": self._tags.add,
            "ListTags": self._tags.list,
            "DeleteTags": self._tags.delete,
        }
        for kind, book in self._jobs.items():
            operations |= _job_operations(kind.word, kind.member("Name"), book)
        return operations

    def _create_training_job(self, request: dict[str, Any]) -> dict[str, Any]:
        typed = TrainingRequest.model_validate(request)
        for member in ("ServerlessJobConfig", "ModelPackageConfig", "MlflowConfig", "RetryStrategy"):
            if member in request:
                raise ApiError.only_in_the_cloud(f"{member} of CreateTrainingJob")
        check_training(typed)
        facts = defaults(typed) | selected(request)
        return self._start(TRAINING, request, facts, lambda job: train(job, typed, self._host))

    def _create_processing_job(self, request: dict[str, Any]) -> dict[str, Any]:
        typed = ProcessingRequest.model_validate(request)
        check_processing(typed)
        return self._start(PROCESSING, request, {}, lambda job: process(job, typed, self._host))

    def _create_transform_job(self, request: dict[str, Any]) -> dict[str, Any]:
        typed = TransformRequest.model_validate(request)
        check_transform(typed)
        if "DataCaptureConfig" in request:
            raise ApiError.only_in_the_cloud("DataCaptureConfig of CreateTransformJob")
        model = self._models.get(typed.model_name)
        return self._start(TRANSFORM, request, {}, lambda job: transform(job, typed, model, self._host))

    def _start(
        self, kind: Kind, request: dict[str, Any], facts: Mapping[str, Any], body: Callable[[Job], None]
    ) -> dict[str, Any]:
        book = self._jobs[kind]
        self._faults.refuse(kind.word, request, book.in_progress())

        def run(job: Job) -> None:
            self._faults.at_start(kind.word, job)
            body(job)

        # Tags come first, so that the first event carries them.
        job = book.create(request, facts, lambda made: self._tags.put(made.arn, request.get("Tags", [])), run)
        return {kind.member("Arn"): job.arn}

    def _delete_job(self, kind: Kind, request: Mapping[str, Any]) -> None:
        name = request[kind.member("Name")]
        self._jobs[kind].delete(name)
        self._tags.forget(self._jobs[kind].arn_of(name))

    def _create_model(self, request: dict[str, Any]) -> dict[str, Any]:
        made = self._models.create(request)
        self._tags.put(made["ModelArn"], request.get("Tags", []))
        return made

    def _delete_model(self, request: Mapping[str, Any]) -> None:
        self._models.delete(request["ModelName"])
        self._tags.forget(self._models.arn_of(request["ModelName"]))

    def _create_group(self, request: dict[str, Any]) -> dict[str, Any]:
        made = self._packages.create_group(request)
        self._tags.put(made["ModelPackageGroupArn"], request.get("Tags", []))
        return made

    def _exists(self, arn: str) -> bool:
        kind, _, name = arn.rpartition(":")[2].partition("/")
        try:
            for book in self._jobs.values():
                if book.kind.arn_part == kind:
                    return book.get(name).arn == arn
            if kind == "model":
                return bool(self._models.describe(name)["ModelArn"] == arn)
        except ApiError:
            return False
        return self._packages.exists(arn)

    def _job_changed(self, job: Job) -> None:
        detail = _DETAILS[job.kind](job.describe(), self._tags.of(job.arn))
        self._events.publish(f"SageMaker {job.kind.word} Job State Change", job.arn, detail)

    def _package_changed(self, package: Mapping[str, Any], changed: tuple[str, ...]) -> None:
        self._events.publish(
            "SageMaker Model Package State Change",
            package["ModelPackageArn"],
            package_detail(package, changed),
        )


def _job_operations(word: str, name: str, book: JobBook) -> dict[str, Operation]:
    """Describe, stop and list, which are alike for all kinds of job."""
    return {
        f"Describe{word}Job": lambda request: book.get(request[name]).describe(),
        f"Stop{word}Job": lambda request: book.stop(request[name]),
        f"List{word}Jobs": book.list,
    }
