"""Walks a state machine from state to state."""

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, NoReturn

from dropforge.local.asl.definition import Definition, State
from dropforge.local.asl.expression import Evaluator
from dropforge.local.asl.failure import (
    DATA_LIMIT_EXCEEDED,
    NO_CHOICE_MATCHED,
    QUERY_EVALUATION_ERROR,
    RUNTIME,
    TIMEOUT,
    Aborted,
    Failure,
    MachineTimedOut,
    matches,
)
from dropforge.local.asl.history import History, compact, iso
from dropforge.local.asl.retry import Retries
from dropforge.local.asl.task import Resource, TaskCall, Tasks
from dropforge.local.asl.waiting import Control

PAYLOAD_MAX: Final = 262_144
"""Bytes of UTF-8 that a state may take or give (Step Functions quotas)."""

Status = Literal["SUCCEEDED", "FAILED", "TIMED_OUT", "ABORTED"]


@dataclass
class Position:
    """Where an execution stands: all that a redrive needs to go on from there."""

    state: str
    input: Any
    variables: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How it ended."""

    status: Status
    output: Any = None
    error: str | None = None
    cause: str | None = None


@dataclass(frozen=True)
class _Step:
    """What a state gave: its output, its assignments, and where to go (None: nowhere)."""

    output: Any
    assigned: Mapping[str, Any]
    next_state: str | None


class Interpreter:
    """One execution. Runs in one thread; `control` may be told to end it from any other.

    Args:
        definition: checked.
        context: `$states.context` but for State and Task, which the interpreter fills in.
        tasks: does the work of Task states.
        control: time.
        history: where events go.
        uniform: draws a retry's jitter, `random.uniform`.
        token: makes task tokens.
    """

    def __init__(  # noqa: PLR0913, PLR0917  # the outside world of an interpreter, injected
        self,
        definition: Definition,
        context: Mapping[str, Any],
        tasks: Tasks,
        control: Control,
        history: History,
        uniform: Callable[[float, float], float],
        token: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self._definition, self._tasks = definition, tasks
        self._control, self._history = control, history
        self._uniform, self._token = uniform, token
        self._context: dict[str, Any] = dict(context)
        self._evaluator = Evaluator()
        self._variables: dict[str, Any] = {}

    def run(self, position: Position) -> Outcome:
        """Walk from `position` to an end. `position` is kept up to date, so that it tells where that was."""
        self._variables = position.variables
        try:
            while True:
                # States that only compute never wait; here they see an abort or the machine's time-out.
                self._control.wait_for(lambda: False, self._control.monotonic())
                step = self._visit(position.state, position.input)
                if step.next_state is None:
                    self._history.add("ExecutionSucceeded", {"output": compact(step.output)})
                    return Outcome("SUCCEEDED", step.output)
                self._variables.update(step.assigned)
                position.state, position.input = step.next_state, step.output
        except Failure as failure:
            details = {"error": failure.error, "cause": failure.cause}
            self._history.add("ExecutionFailed", details)
            return Outcome("FAILED", error=failure.error, cause=failure.cause)
        except MachineTimedOut:
            self._history.add("ExecutionTimedOut", {"error": TIMEOUT})
            return Outcome("TIMED_OUT", error=TIMEOUT)
        except Aborted:
            return Outcome("ABORTED")

    # --- states -------------------------------------------------------------------------------------

    def _visit(self, name: str, given: Any) -> _Step:
        state = self._definition.states[name]
        kind: str = state["Type"]
        self._context["State"] = {"Name": name, "EnteredTime": iso(self._control.now()), "RetryCount": 0}
        self._context.pop("Task", None)
        self._history.add(
            f"{kind}StateEntered", {"name": name, "input": compact(given)}, "stateEnteredEventDetails"
        )
        step = self._ways[kind](self, state, given)
        self._history.add(
            f"{kind}StateExited",
            {
                "name": name,
                "output": compact(step.output),
                "assignedVariables": {key: compact(value) for key, value in step.assigned.items()} or None,
            },
            "stateExitedEventDetails",
        )
        return step

    def _pass(self, state: State, given: Any) -> _Step:
        return self._leave(state, given, given, {}, state.get("Next"))

    def _succeed(self, state: State, given: Any) -> _Step:
        return self._leave(state, given, given, {}, None)

    def _fail(self, state: State, given: Any) -> NoReturn:
        texts = [self._fill(state.get(name, ""), given) for name in ("Error", "Cause")]
        for text in texts:
            if not isinstance(text, str):
                raise Failure(
                    QUERY_EVALUATION_ERROR, f"Error and Cause must be strings, found {compact(text)}"
                )
        raise Failure(*texts)

    def _choice(self, state: State, given: Any) -> _Step:
        for rule in state["Choices"]:
            verdict = self._fill(rule["Condition"], given)
            if not isinstance(verdict, bool):
                raise Failure(
                    QUERY_EVALUATION_ERROR,
                    f"Condition {rule['Condition']} gave {compact(verdict)}, not a boolean",
                )
            if verdict:
                return self._leave(rule, given, given, {}, rule["Next"])
        if "Default" not in state:
            raise Failure(NO_CHOICE_MATCHED, "No choice rule matched and there is no Default")
        return self._leave(state, given, given, {}, state["Default"])

    def _wait(self, state: State, given: Any) -> _Step:
        if "Seconds" in state:
            seconds = self._seconds("Seconds", state["Seconds"], given)
        else:
            stamp = self._fill(state["Timestamp"], given)
            try:
                moment = datetime.fromisoformat(stamp)
            except (TypeError, ValueError) as error:
                raise Failure(
                    QUERY_EVALUATION_ERROR, f"Timestamp {compact(stamp)} is not ISO 8601"
                ) from error
            seconds = max(0.0, moment.timestamp() - self._control.now())
        self._control.wait_for(lambda: False, self._control.monotonic() + seconds)
        return self._leave(state, given, given, {}, state.get("Next"))

    def _task(self, state: State, given: Any) -> _Step:
        retries = Retries(state.get("Retry", []), self._uniform)
        while True:
            self._context["State"]["RetryCount"] = retries.count
            try:
                result = self._attempt(state, given)
                return self._leave(state, given, result, {"result": result}, state.get("Next"))
            except Failure as failure:
                delay = retries.delay(failure)
                if delay is None:
                    return self._caught(state, given, failure)
                self._control.wait_for(lambda: False, self._control.monotonic() + delay)

    _ways: Final[Mapping[str, Callable[["Interpreter", State, Any], _Step]]] = {
        "Pass": _pass,
        "Succeed": _succeed,
        "Fail": _fail,
        "Choice": _choice,
        "Wait": _wait,
        "Task": _task,
    }

    # --- tasks --------------------------------------------------------------------------------------

    def _attempt(self, state: State, given: Any) -> Any:
        resource = Resource.parse(state["Resource"])
        if resource is None:
            raise Failure(RUNTIME, f"The resource {state['Resource']} can't be run")
        token = self._token() if resource.pattern == "waitForTaskToken" else None
        if token is not None:
            self._context["Task"] = {"Token": token}
        arguments = self._bounded(self._fill(state.get("Arguments", {}), given), "The arguments of the task")
        limit = self._limit("TimeoutSeconds", state, given)
        heartbeat = self._limit("HeartbeatSeconds", state, given)
        told = {"resourceType": resource.kind, "resource": str(resource)}
        self._history.add(
            "TaskScheduled",
            {
                **told,
                "region": str(self._context["StateMachine"]["Id"]).split(":")[3],
                "parameters": compact(arguments),
                "timeoutInSeconds": limit,
                "heartbeatInSeconds": heartbeat,
            },
        )
        self._history.add("TaskStarted", told)
        call = TaskCall(
            resource=resource,
            arguments=arguments,
            token=token,
            execution_arn=self._context["Execution"]["Id"],
            machine_arn=self._context["StateMachine"]["Id"],
            until=None if limit is None else self._control.monotonic() + limit,
            heartbeat_s=heartbeat,
            control=self._control,
            history=self._history,
        )
        try:
            result = self._bounded(self._tasks.run(call), "The result of the task")
        except Failure as failure:
            timed_out = failure.error.startswith(TIMEOUT)
            details = {**told, "error": failure.error, "cause": failure.cause}
            self._history.add("TaskTimedOut" if timed_out else "TaskFailed", details)
            raise
        self._history.add("TaskSucceeded", {**told, "output": compact(result)})
        return result

    def _limit(self, name: str, state: State, given: Any) -> float | None:
        return self._seconds(name, state[name], given) if name in state else None

    def _caught(self, state: State, given: Any, failure: Failure) -> _Step:
        for catcher in state.get("Catch", []):
            if matches(catcher["ErrorEquals"], failure.error):
                output = {"Error": failure.error, "Cause": failure.cause}
                return self._leave(catcher, given, output, {"errorOutput": output}, catcher["Next"])
        raise failure

    # --- values -------------------------------------------------------------------------------------

    def _leave(
        self,
        owner: Mapping[str, Any],
        given: Any,
        default: Any,
        extra: Mapping[str, Any],
        next_state: str | None,
    ) -> _Step:
        """Output and Assign see the values of before; what is assigned shows from the next state on."""
        output = self._fill(owner["Output"], given, extra) if "Output" in owner else default
        assigned = self._fill(owner.get("Assign", {}), given, extra)
        self._bounded(assigned, "The assigned variables")
        return _Step(self._bounded(output, "The output of the state"), assigned, next_state)

    def _fill(self, template: Any, given: Any, extra: Mapping[str, Any] | None = None) -> Any:
        states = {"input": given, "context": self._context, **(extra or {})}
        return self._evaluator.fill(template, states, self._variables)

    def _seconds(self, name: str, template: Any, given: Any) -> float:
        seconds = self._fill(template, given)
        if isinstance(seconds, bool) or not isinstance(seconds, int) or seconds < 0:
            raise Failure(
                QUERY_EVALUATION_ERROR, f"{name} must be a whole number of seconds, found {seconds!r}"
            )
        return seconds

    @staticmethod
    def _bounded(value: Any, what: str) -> Any:
        size = len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
        if size > PAYLOAD_MAX:
            raise Failure(DATA_LIMIT_EXCEEDED, f"{what} has {size} bytes of JSON; the most is {PAYLOAD_MAX}")
        return value
