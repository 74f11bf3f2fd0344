"""Our Step Functions in MiniStack's place: it keeps machines, records and their listing; we run executions."""

# ruff: noqa: SLF001  # private interfaces are what this file is about; hooks.py checks each of them

import contextvars
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from ministack.services import stepfunctions

from dropforge.local.asl.history import compact, iso
from dropforge.local.asl.position import Child, MapRun
from dropforge.local.states import ApiRefusal, Executions

Reply = tuple[int, dict[str, str], bytes]
Call = Callable[[dict[str, Any]], Reply]

_JSON: Final = "application/x-amz-json-1.0"
_REFUSED: Final = frozenset(
    {"StartSyncExecution", "TestState", "CreateActivity", "GetActivityTask", "UpdateMapRun"}
)


def keep_map_run(run: MapRun, child: Child | None) -> None:
    """Put a Map Run, or one of its children, where ListMapRuns, ListExecutions and the like look for it."""
    if child is not None:
        ended = child.outcome
        stepfunctions._executions[child.arn] = {
            "executionArn": child.arn,
            "stateMachineArn": run.machine_arn,
            "mapRunArn": run.arn,
            "name": child.name,
            "status": ended.status if ended else "RUNNING",
            "startDate": _moment(child.started_at),
            "stopDate": _moment(child.stopped_at),
            "input": compact(child.input),
            "inputDetails": {"included": True},
            "output": compact(ended.output) if ended and ended.status == "SUCCEEDED" else None,
            "outputDetails": {"included": True},
            "error": ended.error if ended else None,
            "cause": ended.cause if ended else None,
            "events": child.events,
        }
    counts = _counts(run)
    stepfunctions._map_runs[run.arn] = {
        "mapRunArn": run.arn,
        "executionArn": run.execution_arn,
        "status": run.status,
        "startDate": _moment(run.started_at),
        **({} if run.stopped_at is None else {"stopDate": _moment(run.stopped_at)}),
        "maxConcurrency": run.max_concurrency,
        "toleratedFailurePercentage": run.tolerated_percentage,
        "toleratedFailureCount": run.tolerated_count,
        "itemCounts": counts,
        "executionCounts": counts,
        "redriveCount": run.redrives,
        "_stateMachineArn": run.machine_arn,
    }


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else iso(seconds)


def _counts(run: MapRun) -> dict[str, int]:
    """How many children are where. A child is one item: nothing is batched here."""
    counted = Counter(
        child.outcome.status if child.outcome else "PENDING" if child.started_at is None else "RUNNING"
        for child in run.children
    )
    names = {"pending": "PENDING", "running": "RUNNING", "succeeded": "SUCCEEDED", "failed": "FAILED"}
    names |= {"timedOut": "TIMED_OUT", "aborted": "ABORTED"}
    return {"total": len(run.children), "resultsWritten": 0} | {
        name: counted[status] for name, status in names.items()
    }


class StatesDoor:
    """The calls of the Step Functions API that are ours. Make one a process, then `mount` it."""

    def __init__(self, executions: Executions) -> None:
        self._executions = executions
        self._create: Call = stepfunctions._create_state_machine
        self._update: Call = stepfunctions._update_state_machine
        self._start: Call = stepfunctions._start_execution
        self._stop: Call = stepfunctions._stop_execution
        self._describe: Call = stepfunctions._describe_execution
        self._handle = stepfunctions.handle_request

    def mount(self) -> None:
        """Take MiniStack's place."""
        check_machine, check_start = self._executions.check_machine, self._executions.check_start
        stepfunctions._create_state_machine = _checked(check_machine, self._create)
        stepfunctions._update_state_machine = _checked(check_machine, self._update)
        stepfunctions._start_execution = _checked(check_start, self.start)
        stepfunctions._stop_execution = self.stop
        stepfunctions._describe_execution = self.describe
        stepfunctions._run_execution = self.run
        stepfunctions._emit_execution_status_event = self._executions.tell
        for action, name in (
            ("SendTaskSuccess", "_send_task_success"),
            ("SendTaskFailure", "_send_task_failure"),
            ("SendTaskHeartbeat", "_send_task_heartbeat"),
        ):
            setattr(stepfunctions, name, self._answering(action))
        stepfunctions.handle_request = self.handle

    def start(self, data: dict[str, Any]) -> Reply:
        """StartExecution. The same start again is the same execution, while it runs."""
        name = data.get("name")
        if name:
            machine = str(data.get("stateMachineArn", ""))
            arn = f"{machine.replace(':stateMachine:', ':execution:')}:{name}"
            known = stepfunctions._executions.get(arn)
            if known and known["status"] == "RUNNING" and known["input"] == data.get("input", "{}"):
                return _answer({"executionArn": arn, "startDate": known["startDate"]})
        return self._start(data)

    def run(self, arn: str) -> None:
        """Walk a new execution to its end; MiniStack calls it in a thread of its own."""
        record = stepfunctions._executions.get(arn)
        self._executions.run(record, stepfunctions._state_machines[record["stateMachineArn"]])

    def stop(self, data: dict[str, Any]) -> Reply:
        """StopExecution."""
        record = stepfunctions._executions.get(data.get("executionArn"))
        if record is None:
            return self._stop(data)
        if "mapRunArn" in record:
            message = "locally a child of a Map Run is stopped by stopping its parent"
            return _refusal(ApiRefusal("UnsupportedOperationException", message))
        answer: Reply = self._executions.abort(record, lambda: self._stop(data))
        return answer

    def describe(self, data: dict[str, Any]) -> Reply:
        """DescribeExecution, with what MiniStack does not know: redrives."""
        status, headers, body = self._describe(data)
        if status != 200:
            return status, headers, body
        record = stepfunctions._executions.get(data["executionArn"])
        return _answer({**json.loads(body), **self._executions.redrive_facts(record)})

    def redrive(self, data: dict[str, Any]) -> Reply:
        """RedriveExecution."""
        record = stepfunctions._executions.get(data.get("executionArn"))
        if record is None:
            message = f"Execution {data.get('executionArn')} not found"
            return _refusal(ApiRefusal("ExecutionDoesNotExist", message))
        try:
            moment, walk = self._executions.redrive(record)
        except ApiRefusal as refused:
            return _refusal(refused)
        threading.Thread(target=contextvars.copy_context().run, args=(walk,), daemon=True).start()
        return _answer({"redriveDate": moment})

    async def handle(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, query: Any
    ) -> Reply:
        """Any call; those that would need MiniStack's own interpreter are refused."""
        action = headers.get("x-amz-target", "").rpartition(".")[2]
        if action == "RedriveExecution":
            return self.redrive(json.loads(body))
        if action in _REFUSED:
            message = f"{action} is not run locally; see docs/local-aws.md"
            return _refusal(ApiRefusal("UnsupportedOperationException", message))
        reply: Reply = await self._handle(method, path, headers, body, query)
        return reply

    def _answering(self, action: str) -> Call:
        return _checked(lambda data: self._executions.answer(action, data), lambda _: _answer({}))


def _checked(check: Callable[[Mapping[str, Any]], None], then: Call) -> Call:
    def call(data: dict[str, Any]) -> Reply:
        try:
            check(data)
        except ApiRefusal as refused:
            return _refusal(refused)
        return then(data)

    return call


def _answer(body: Mapping[str, Any]) -> Reply:
    return 200, {"Content-Type": _JSON}, json.dumps(body).encode()


def _refusal(refused: ApiRefusal) -> Reply:
    body = {"__type": refused.code, "message": refused.message}
    return 400, {"Content-Type": _JSON}, json.dumps(body).encode()
