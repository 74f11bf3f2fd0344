"""Service integrations of Step Functions, done by real boto3 calls against this machine's endpoint."""

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from botocore import xform_name
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from dropforge.local.asl import wire
from dropforge.local.asl.failure import RUNTIME, TASK_FAILED, TIMEOUT, Failure
from dropforge.local.asl.history import compact
from dropforge.local.asl.task import Resource, TaskCall
from dropforge.local.callbacks import Callbacks

MANAGED_TAG: Final = {"Key": "MANAGED_BY_AWS", "Value": "STARTED_BY_STEP_FUNCTIONS"}
"""Step Functions puts it on every job of a `.sync` task."""

_JOBS: Final = {
    "createTrainingJob": "TrainingJob",
    "createTransformJob": "TransformJob",
    "createProcessingJob": "ProcessingJob",
}
_OPTIMIZED: Final[Mapping[str, frozenset[str]]] = {
    "sagemaker": frozenset({"createModel"}) | _JOBS.keys(),
    "dynamodb": frozenset({"getItem", "putItem", "updateItem", "deleteItem"}),
    "events": frozenset({"putEvents"}),
    "lambda": frozenset({"invoke"}),
}
_TITLES: Final = {
    "sagemaker": "SageMaker",
    "dynamodb": "DynamoDB",
    "events": "EventBridge",
    "lambda": "Lambda",
}
"""How optimized integrations call their service in error names."""

_POLL_S: Final = 1.0
"""A job's end is told by its event; this only covers one that was lost."""


def resource_fault(arn: str) -> str | None:
    """Why a Resource can't be run here; None where it can."""
    found = Resource.parse(arn)
    if found is None:
        return (
            f"Resource {arn}: the local Step Functions runs service integrations only; for a function "
            "write arn:aws:states:::lambda:invoke with Arguments.FunctionName"
        )
    if found.sdk:
        known = wire.operation(found.service, found.action) is not None
        return None if known and not found.pattern else f"Resource {arn}: no such SDK integration"
    if found.action not in _OPTIMIZED.get(found.service, frozenset()):
        return f"Resource {arn}: this optimized integration is not run locally; see docs/local-aws.md"
    if found.pattern == "sync" and found.action not in _JOBS:
        return f"Resource {arn}: .sync is for {', '.join(_JOBS)}"
    if found.pattern == "waitForTaskToken" and found.service != "lambda":
        return f"Resource {arn}: .waitForTaskToken is for lambda:invoke"
    return None


class Integrations:
    """Does the work of Task states.

    Args:
        client: boto3 client by service name; one a service.
        callbacks: where answers to task tokens arrive.
        stopped_job: what `.sync` makes of a job that ended Stopped. AWS does not document it, so
            a state machine must be right under both.
    """

    def __init__(
        self,
        client: Callable[[str], Any],
        callbacks: Callbacks,
        stopped_job: Literal["fails", "succeeds"] = "fails",
    ) -> None:
        self._client, self._callbacks = client, callbacks
        self._good = {"Completed"} if stopped_job == "fails" else {"Completed", "Stopped"}

    def run(self, call: TaskCall) -> Any:
        """See `asl.task.Tasks`."""
        resource = call.resource
        if not isinstance(call.arguments, Mapping):
            raise Failure(
                RUNTIME, f"Arguments of {resource} must be an object, found {compact(call.arguments)[:200]}"
            )
        if resource.sdk:
            return wire.to_json(self._api(call, call.arguments), wire.iso_time, pascal=True)
        if resource.service == "lambda":
            return self._invoke(call)
        if resource.service == "events":
            return self._put_events(call)
        if resource.pattern == "sync":
            return self._job(call)
        return wire.to_json(self._api(call, call.arguments), wire.epoch_ms)

    # --- one call -----------------------------------------------------------------------------------

    def _api(self, call: TaskCall, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        resource = call.resource
        model = wire.operation(resource.service, resource.action)
        if model is None:
            raise Failure(RUNTIME, f"There is no API action {resource.service}:{resource.action}")
        client = self._client(wire.boto_name(resource.service))
        method = getattr(client, xform_name(model.name))
        request = wire.to_api(arguments, model.input_shape)
        try:
            answer: Mapping[str, Any] = self._bounded(call, lambda: method(**request))
        except ParamValidationError as error:
            raise Failure(
                RUNTIME,
                f"The Parameters '{compact(arguments)[:2000]}' could not be used to start the Task: [{error}]",
            ) from error
        except ClientError as error:
            raise self._refused(resource, error, model.service_model.service_id) from error
        except BotoCoreError as error:
            title = self._title(resource, model.service_model.service_id)
            raise Failure(f"{title}.SdkClientException", str(error)) from error
        return answer

    @staticmethod
    def _bounded(call: TaskCall, work: Callable[[], Any]) -> Any:
        """Run a blocking call so that an abort or a time-out need not wait for it. AWS abandons it as well."""
        answer: list[Any] = []
        fault: list[BaseException] = []
        done = threading.Event()

        def target() -> None:
            try:
                answer.append(work())
            except BaseException as error:  # noqa: BLE001  # carried to the thread that waits
                fault.append(error)
            done.set()
            call.control.notify()

        threading.Thread(target=target, name=f"task-{call.resource}", daemon=True).start()
        if not call.control.wait_for(done.is_set, call.until):
            raise Failure(TIMEOUT)
        if fault:
            raise fault[0]
        return answer[0]

    @staticmethod
    def _title(resource: Resource, service_id: str) -> str:
        return wire.java_name(service_id) if resource.sdk else _TITLES[resource.service]

    def _refused(self, resource: Resource, error: ClientError, service_id: str) -> Failure:
        """The error name AWS gives. SageMaker's generic names cover whatever its API does not model."""
        code = str(error.response["Error"].get("Code", "Unknown"))
        meta = error.response.get("ResponseMetadata", {})
        name = code if code.endswith("Exception") else f"{code}Exception"
        model = wire.operation(resource.service, resource.action)
        modelled = {shape.name for shape in model.error_shapes} if model else set()
        # The code on the wire of some services differs from the shape's name.
        modelled |= (
            {str(shape.metadata.get("error", {}).get("code")) for shape in model.error_shapes}
            if model
            else set()
        )
        if resource.service == "sagemaker" and code not in modelled and code != "ThrottlingException":
            name = "SageMakerException" if resource.sdk else "AmazonSageMakerException"
        title = self._title(resource, service_id)
        product = f"Amazon{title}" if not resource.sdk and resource.service == "sagemaker" else title
        return Failure(
            f"{title}.{name}",
            f"{error.response['Error'].get('Message', '')} (Service: {product}; "
            f"Status Code: {meta.get('HTTPStatusCode')}; Error Code: {code}; "
            f"Request ID: {meta.get('RequestId')}; Proxy: null)",
        )

    # --- lambda -------------------------------------------------------------------------------------

    def _invoke(self, call: TaskCall) -> Any:
        arguments = dict(call.arguments)
        arguments["Payload"] = compact(arguments.get("Payload", {})).encode()
        token = call.token
        if token is None:
            return self._invoked(call, arguments)
        with self._callbacks.expect(token, call.control) as answer:
            self._invoked(call, arguments)
            call.history.add(
                "TaskSubmitted",
                {"resourceType": call.resource.kind, "resource": str(call.resource), "output": "{}"},
            )
            return answer.wait(call.until, call.heartbeat_s)

    def _invoked(self, call: TaskCall, arguments: Mapping[str, Any]) -> dict[str, Any]:
        answer = dict(self._api(call, arguments))
        payload = answer.pop("Payload").read()
        result = json.loads(payload or b"null")
        if "FunctionError" in answer:
            error = result.get("errorType") if isinstance(result, dict) else None
            raise Failure(error or "Lambda.Unknown", payload.decode("utf-8", "replace"))
        return {
            "ExecutedVersion": answer.get("ExecutedVersion", "$LATEST"),
            "Payload": result,
            "StatusCode": answer["StatusCode"],
        }

    # --- events -------------------------------------------------------------------------------------

    def _put_events(self, call: TaskCall) -> Any:
        entries = []
        for entry in call.arguments.get("Entries", []):
            detail = entry.get("Detail", {})
            entries.append(
                {
                    **entry,
                    "Detail": detail if isinstance(detail, str) else compact(detail),
                    # The service appends them by itself.
                    "Resources": [*entry.get("Resources", []), call.execution_arn, call.machine_arn],
                }
            )
        answer = wire.to_json(self._api(call, {**call.arguments, "Entries": entries}), wire.epoch_ms)
        if answer.get("FailedEntryCount"):
            raise Failure("EventBridge.FailedEntry", compact(answer))
        return answer

    # --- jobs ---------------------------------------------------------------------------------------

    def _job(self, call: TaskCall) -> Any:
        noun = _JOBS[call.resource.action]
        request = {**call.arguments, "Tags": [*call.arguments.get("Tags", []), MANAGED_TAG]}
        created = wire.to_json(self._api(call, request), wire.epoch_ms)
        told = {"resourceType": call.resource.kind, "resource": str(call.resource)}
        call.history.add("TaskSubmitted", {**told, "output": compact(created)})
        name = {f"{noun}Name": call.arguments[f"{noun}Name"]}
        client = self._client("sagemaker")
        try:
            job = self._ended(call, noun, name, created[f"{noun}Arn"])
        except BaseException:
            # Aborted, timed out: AWS stops the job, so that it does not outlive its run.
            self._stop(client, noun, name)
            raise
        if job[f"{noun}Status"] not in self._good:
            raise Failure(TASK_FAILED, compact(job))
        return job

    def _ended(self, call: TaskCall, noun: str, name: Mapping[str, str], arn: str) -> dict[str, Any]:
        """The job's description once it has ended."""
        describe = getattr(self._client("sagemaker"), f"describe_{_snake(noun)}")
        with self._callbacks.watch(arn, call.control) as change:
            while True:
                seen = change.count
                job: dict[str, Any] = wire.to_json(describe(**name), wire.epoch_ms)
                if job[f"{noun}Status"] not in {"InProgress", "Stopping"}:
                    return job
                now = call.control.monotonic()
                if call.until is not None and now >= call.until:
                    raise Failure(TIMEOUT)
                ends = now + _POLL_S if call.until is None else min(now + _POLL_S, call.until)
                call.control.wait_for(lambda seen=seen: change.count != seen, ends)  # type: ignore[misc]

    @staticmethod
    def _stop(client: Any, noun: str, name: Mapping[str, str]) -> None:
        """Best effort, as AWS says of its own: the job may have ended by itself."""
        try:
            getattr(client, f"stop_{_snake(noun)}")(**name)
        except (ClientError, BotoCoreError):
            return


def _snake(noun: str) -> str:
    return noun.replace("Job", "_job").lower()
