"""Step Functions executions: started, watched, stopped and redriven over AWS's own API."""

import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from dropforge.local.asl.definition import Definition, DefinitionRefused
from dropforge.local.asl.failure import RUNTIME
from dropforge.local.asl.history import History, compact, iso
from dropforge.local.asl.interpreter import PAYLOAD_MAX, Interpreter, World
from dropforge.local.asl.position import Child, MapRun, Outcome, Position
from dropforge.local.asl.task import Tasks
from dropforge.local.asl.waiting import LiveControl
from dropforge.local.callbacks import Callbacks, TaskDoesNotExist, TaskTimedOut
from dropforge.local.integrations import resource_fault

_log = logging.getLogger(__name__)

_NAME: Final = re.compile(r"[^\s<>{}\[\]?*\"#%\\^|~`$&,;:/\x00-\x1f\x7f-\x9f]{1,80}")
_REDRIVABLE: Final = frozenset({"FAILED", "ABORTED", "TIMED_OUT"})
_EVENT_PAYLOAD_MAX: Final = 248 * 1024
"""Bytes of input or output beyond which a status event leaves it out."""

_CHILDREN_AT_ONCE: Final = max(2, os.cpu_count() or 2)
"""Children of a Map that run at once, whatever its MaxConcurrency allows: each may be a process of its own."""

Record = MutableMapping[str, Any]
"""An execution as the host keeps it, so that its own List and Get calls find it."""


class ApiRefusal(Exception):
    """An API error: HTTP 400 with this code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


@dataclass
class _Run:
    """What the engine knows of an execution beyond its record."""

    definition: Definition
    position: Position
    machine_name: str
    role_arn: str
    control: LiveControl
    redrives: int = 0
    redrive_date: float | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Executions:
    """Every execution of this engine.

    Args:
        tasks: does the work of Task states.
        callbacks: where answers to task tokens arrive.
        publish: puts one event on the default bus: source, detail-type, resource ARN, detail.
        keep: keeps what is told of a Map Run, or of one of its children, where the host's calls find it.
    """

    def __init__(
        self,
        tasks: Tasks,
        callbacks: Callbacks,
        publish: Callable[[str, str, str, Mapping[str, Any]], None],
        keep: Callable[[MapRun, Child | None], None],
    ) -> None:
        self._tasks, self._callbacks, self._publish, self._keep = tasks, callbacks, publish, keep
        self._runs: dict[str, _Run] = {}

    # --- checks at the door -------------------------------------------------------------------------

    @staticmethod
    def check_machine(request: Mapping[str, Any]) -> None:
        """CreateStateMachine and UpdateStateMachine.

        Raises:
            ApiRefusal: InvalidDefinition, with every fault; StateMachineTypeNotSupported.
        """
        if request.get("type", "STANDARD") != "STANDARD":
            raise ApiRefusal(
                "StateMachineTypeNotSupported", "the local Step Functions runs STANDARD machines only"
            )
        if request.get("definition"):
            try:
                Definition.parse(request["definition"], resource_fault)
            except DefinitionRefused as refused:
                raise ApiRefusal(
                    "InvalidDefinition", f"Invalid State Machine Definition: {refused}"
                ) from refused

    @staticmethod
    def check_start(request: Mapping[str, Any]) -> None:
        """StartExecution.

        Raises:
            ApiRefusal: InvalidName, InvalidExecutionInput.
        """
        name = request.get("name")
        if name is not None and not _NAME.fullmatch(name):
            raise ApiRefusal("InvalidName", f"Invalid Name: '{name}'")
        given = request.get("input", "{}")
        try:
            json.loads(given)
        except json.JSONDecodeError as error:
            raise ApiRefusal(
                "InvalidExecutionInput", f"Invalid State Machine Execution Input: '{error}'"
            ) from error
        if len(given.encode()) > PAYLOAD_MAX:
            raise ApiRefusal("InvalidExecutionInput", f"the input has more than {PAYLOAD_MAX} bytes")

    # --- the life of an execution -------------------------------------------------------------------

    def run(self, record: Record, machine: Mapping[str, Any]) -> None:
        """Walk a new execution to its end, in the calling thread."""
        definition = Definition.parse(machine["definition"])
        run = _Run(
            definition,
            Position(definition.start_at, json.loads(record["input"])),
            machine["name"],
            machine["roleArn"],
            LiveControl(definition.timeout_s),
        )
        self._runs[record["executionArn"]] = run
        self._walk(record, run)

    def _walk(self, record: Record, run: _Run) -> None:
        arn = record["executionArn"]
        context = {
            "Execution": {
                "Id": arn,
                "Input": json.loads(record["input"]),
                "Name": record["name"],
                "RoleArn": run.role_arn,
                "StartTime": record["startDate"],
                "RedriveCount": run.redrives,
                **({"RedriveTime": iso(run.redrive_date)} if run.redrive_date is not None else {}),
            },
            "StateMachine": {"Id": record["stateMachineArn"], "Name": run.machine_name},
        }
        history = History(record["events"], time.time)
        world = World(self._tasks, run.control, random.uniform, at_once=_CHILDREN_AT_ONCE, tell=self._keep)
        interpreter = Interpreter(run.definition, context, world, history)
        try:
            outcome = interpreter.run(run.position)
        except Exception as error:  # noqa: BLE001  # an execution ends by name, whatever fails here
            _log.exception("the interpreter failed in %s of %s", run.position.state, arn)
            cause = f"the local Step Functions failed in {run.position.state}: {error!r}"
            history.add("ExecutionFailed", {"error": RUNTIME, "cause": cause})
            outcome = Outcome("FAILED", error=RUNTIME, cause=cause)
        self._settle(record, run, outcome)

    def _settle(self, record: Record, run: _Run, outcome: Outcome) -> None:
        with run.lock:
            if record["status"] != "RUNNING":
                # Stopped in the very moment of its end; the stop came first and was told.
                return
            record["stopDate"] = iso(time.time())
            record["error"], record["cause"] = outcome.error, outcome.cause
            record["output"] = compact(outcome.output) if outcome.status == "SUCCEEDED" else None
            record["status"] = outcome.status
        self.tell(record)

    def abort(self, record: Record, stop: Callable[[], Any]) -> Any:
        """StopExecution: `stop` changes the record; jobs and callbacks of the execution end."""
        run = self._runs.get(record["executionArn"])
        if run is None:
            return stop()
        with run.lock:
            answer = stop()
        run.control.abort()
        return answer

    def redrive(self, record: Record) -> tuple[float, Callable[[], None]]:
        """RedriveExecution: the moment of it, and the walk that goes on from where the execution ended.

        Raises:
            ApiRefusal: ExecutionNotRedrivable.
        """
        run = self._runs.get(record["executionArn"])
        if run is None or record["status"] not in _REDRIVABLE:
            raise ApiRefusal(
                "ExecutionNotRedrivable", f"Execution is {record['status']} and cannot be redriven"
            )
        with run.lock:
            run.redrives += 1
            run.redrive_date = time.time()
            run.control = LiveControl(run.definition.timeout_s)
            record.update(status="RUNNING", stopDate=None, output=None, error=None, cause=None)
        History(record["events"], time.time).add("ExecutionRedriven", {"redriveCount": run.redrives})
        self.tell(record)
        return run.redrive_date, lambda: self._walk(record, run)

    def redrive_facts(self, record: Record) -> dict[str, Any]:
        """What DescribeExecution says of redrives."""
        run = self._runs.get(record["executionArn"])
        status = record["status"]
        can = run is not None and status in _REDRIVABLE
        facts: dict[str, Any] = {
            "redriveCount": run.redrives if run else 0,
            "redriveStatus": "REDRIVABLE" if can else "NOT_REDRIVABLE",
        }
        if not can:
            facts["redriveStatusReason"] = f"Execution is {status} and cannot be redriven"
        if run is not None and run.redrive_date is not None:
            facts["redriveDate"] = run.redrive_date
        return facts

    def tell(self, record: Record) -> None:
        """Step Functions Execution Status Change, on the default bus."""
        told = dict(record)
        for name in ("input", "output"):
            text = told.get(name)
            included = text is None or len(text.encode()) <= _EVENT_PAYLOAD_MAX
            told[name] = text if included else None
            told[f"{name}Details"] = None if text is None else {"included": included}
        facts = self.redrive_facts(record)
        detail = {
            **{name: told.get(name) for name in ("executionArn", "stateMachineArn", "name", "status")},
            **{name: told.get(name) for name in ("input", "inputDetails", "output", "outputDetails")},
            **{name: told.get(name) for name in ("error", "cause")},
            "startDate": _epoch_ms(record["startDate"]),
            "stopDate": _epoch_ms(record["stopDate"]),
            "stateMachineVersionArn": None,
            "stateMachineAliasArn": None,
            **facts,
            "redriveStatusReason": facts.get("redriveStatusReason"),
            "redriveDate": int(facts["redriveDate"] * 1000) if "redriveDate" in facts else None,
        }
        try:
            self._publish(
                "aws.states", "Step Functions Execution Status Change", record["executionArn"], detail
            )
        except Exception:  # noqa: BLE001  # logged
            # Delivery is best effort on AWS too; it must not change the execution.
            _log.exception("no status event for %s", record["executionArn"])

    # --- answers to task tokens ---------------------------------------------------------------------

    def answer(self, action: str, request: Mapping[str, Any]) -> None:
        """SendTaskSuccess, SendTaskFailure, SendTaskHeartbeat.

        Raises:
            ApiRefusal: TaskDoesNotExist, TaskTimedOut, InvalidOutput.
        """
        token = str(request.get("taskToken", ""))
        try:
            if action == "SendTaskSuccess":
                self._callbacks.succeed(token, request.get("output", "{}"))
            elif action == "SendTaskFailure":
                self._callbacks.fail(token, request.get("error") or "", request.get("cause") or "")
            else:
                self._callbacks.beat(token)
        except TaskDoesNotExist as refused:
            raise ApiRefusal("TaskDoesNotExist", "Task does not exist") from refused
        except TaskTimedOut as refused:
            raise ApiRefusal(
                "TaskTimedOut", "Task Timed Out: 'Provided task does not exist anymore'"
            ) from refused
        except json.JSONDecodeError as refused:
            raise ApiRefusal("InvalidOutput", f"Invalid output: '{refused}'") from refused


def _epoch_ms(stamp: str | None) -> int | None:
    return None if stamp is None else round(datetime.fromisoformat(stamp).timestamp() * 1000)
