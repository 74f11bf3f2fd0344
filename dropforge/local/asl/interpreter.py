"""Walks a state machine from state to state."""

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Literal, NoReturn

from dropforge.local.asl.crew import Beside, Crew, in_a_thread
from dropforge.local.asl.definition import Processor, State, Workflow
from dropforge.local.asl.expression import Evaluator
from dropforge.local.asl.failure import (
    DATA_LIMIT_EXCEEDED,
    NO_CHOICE_MATCHED,
    QUERY_EVALUATION_ERROR,
    RUNTIME,
    TIMEOUT,
    TOO_MANY_FAILED,
    Aborted,
    Failure,
    MachineTimedOut,
    matches,
)
from dropforge.local.asl.history import History, compact, iso
from dropforge.local.asl.position import Child, Iterations, MapRun, Outcome, Position
from dropforge.local.asl.retry import Retries
from dropforge.local.asl.task import Resource, TaskCall, Tasks
from dropforge.local.asl.waiting import Control

PAYLOAD_MAX: Final = 262_144
"""Bytes of UTF-8 that a state may take or give (Step Functions quotas)."""

INLINE_AT_ONCE: Final = 40
"""Iterations of an Inline Map that run at once, at most (Step Functions guide, "Inline mode")."""

_TOO_MANY_FAILED_CAUSE: Final = "The specified tolerated failure threshold was exceeded"


@dataclass(frozen=True)
class World:
    """What an execution has of the outside."""

    tasks: Tasks
    """Does the work of Task states."""
    control: Control
    """Time, and the lever that ends the execution. It may be pulled from any thread."""
    uniform: Callable[[float, float], float]
    """Draws a retry's jitter, `random.uniform`."""
    unique: Callable[[], str] = lambda: str(uuid.uuid4())
    """Makes task tokens, and names of child executions."""
    beside: Beside = in_a_thread
    """Starts an iteration of a Map state."""
    at_once: int = INLINE_AT_ONCE
    """Children of a Map that run at once, at most, whatever its MaxConcurrency allows."""
    tell: Callable[[MapRun, Child | None], None] = lambda _run, _child: None
    """Told when a Map Run or one of its children changed. Called from any thread."""


@dataclass(frozen=True)
class _Step:
    """What a state gave: its output, its assignments, and where to go (None: nowhere)."""

    output: Any
    assigned: Mapping[str, Any]
    next_state: str | None


class Interpreter:
    """One execution, or one iteration of an Inline Map. Runs in one thread.

    Args:
        workflow: checked.
        context: `$states.context` but for State and Task, which the interpreter fills in.
        world: see `World`.
        history: where events go.
        outer: variables of the workflow around an Inline Map, which may be read.
    """

    def __init__(
        self,
        workflow: Workflow,
        context: Mapping[str, Any],
        world: World,
        history: History,
        outer: Mapping[str, Any] | None = None,
    ) -> None:
        self._workflow, self._world, self._history = workflow, world, history
        self._control = world.control
        self._context: dict[str, Any] = dict(context)
        self._outer = outer or {}
        self._evaluator = Evaluator()
        self._position = Position("", None)

    def run(self, position: Position) -> Outcome:
        """Walk from `position` to an end. `position` is kept up to date, so that it tells where that was."""
        try:
            output = self.walk(position)
        except Failure as failure:
            details = {"error": failure.error, "cause": failure.cause}
            self._history.add("ExecutionFailed", details)
            return Outcome("FAILED", error=failure.error, cause=failure.cause)
        except MachineTimedOut:
            self._history.add("ExecutionTimedOut", {"error": TIMEOUT})
            return Outcome("TIMED_OUT", error=TIMEOUT)
        except Aborted:
            return Outcome("ABORTED")
        self._history.add("ExecutionSucceeded", {"output": compact(output)})
        return Outcome("SUCCEEDED", output)

    def walk(self, position: Position) -> Any:
        """The output at the end; `position` as for `run`.

        Raises:
            Failure: a state failed, and nothing caught it.
            Aborted, MachineTimedOut: from the control.
        """
        self._position = position
        while True:
            # States that only compute never wait; here they see an abort or the machine's time-out.
            self._control.wait_for(lambda: False, self._control.monotonic())
            step = self._visit(position.state, position.input)
            position.iterations = None
            if step.next_state is None:
                return step.output
            position.variables.update(step.assigned)
            position.state, position.input = step.next_state, step.output

    # --- states -------------------------------------------------------------------------------------

    def _visit(self, name: str, given: Any) -> _Step:
        state = self._workflow.states[name]
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
        return self._tried(state, given, self._attempt)

    def _map(self, state: State, given: Any) -> _Step:
        return self._tried(state, given, self._iterate)

    def _tried(self, state: State, given: Any, attempt: Callable[[State, Any], Any]) -> _Step:
        """Attempts until one succeeds, no retrier takes the failure any more, or a catcher does."""
        retries = Retries(state.get("Retry", []), self._world.uniform)
        while True:
            self._context["State"]["RetryCount"] = retries.count
            try:
                result = attempt(state, given)
                return self._leave(state, given, result, {"result": result}, state.get("Next"))
            except Failure as failure:
                delay = retries.delay(failure)
                if delay is None:
                    return self._caught(state, given, failure)
                # A Map that is tried again begins with all of its items.
                self._position.iterations = None
                self._control.wait_for(lambda: False, self._control.monotonic() + delay)

    _ways: Final[Mapping[str, Callable[["Interpreter", State, Any], _Step]]] = {
        "Pass": _pass,
        "Succeed": _succeed,
        "Fail": _fail,
        "Choice": _choice,
        "Wait": _wait,
        "Task": _task,
        "Map": _map,
    }

    # --- tasks --------------------------------------------------------------------------------------

    def _attempt(self, state: State, given: Any) -> Any:
        resource = Resource.parse(state["Resource"])
        if resource is None:
            raise Failure(RUNTIME, f"The resource {state['Resource']} can't be run")
        token = self._world.unique() if resource.pattern == "waitForTaskToken" else None
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
            state=self._context["State"]["Name"],
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
            result = self._bounded(self._world.tasks.run(call), "The result of the task")
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

    # --- maps ---------------------------------------------------------------------------------------

    def _iterate(self, state: State, given: Any) -> list[Any]:
        processor = Processor(state["ItemProcessor"])
        begun = self._position.iterations
        if begun is None:
            begun = self._position.iterations = self._begin(processor, state, given)
        elif begun.run is not None:
            begun.run.redrives += 1
            begun.run.status, begun.run.stopped_at = "RUNNING", None
            told = {"mapRunArn": begun.run.arn, "redriveCount": begun.run.redrives}
            self._history.add("MapRunRedriven", told)
            self._world.tell(begun.run, None)
        left = [child for child in begun.children if not child.succeeded]
        for child in left:
            child.outcome = None
        body = self._inline_child if begun.run is None else self._distributed_child
        at_once = self._world.at_once
        crew = Crew(self._control, self._world.beside, min(begun.max_concurrency or at_once, at_once))
        try:
            crew.work_through(
                left, lambda child, control: body(processor, child, control), lambda: begun.lost
            )
        except (Aborted, MachineTimedOut):
            self._close(begun, "ABORTED")
            raise
        if begun.lost:
            self._close(begun, "FAILED")
            failed = begun.failures[0].outcome
            if begun.run is not None or failed is None:
                raise Failure(TOO_MANY_FAILED, _TOO_MANY_FAILED_CAUSE)
            raise Failure(failed.error or RUNTIME, failed.cause or "")
        self._close(begun, "SUCCEEDED")
        results = [self._result_of(child) for child in begun.children]
        return list(self._bounded(results, "The result of the Map"))

    def _begin(self, processor: Processor, state: State, given: Any) -> Iterations:
        """The items, each as its iteration gets it."""
        items = self._fill(state["Items"], given) if "Items" in state else given
        if not isinstance(items, list):
            raise Failure(QUERY_EVALUATION_ERROR, f"Items must be an array, found {compact(items)[:200]}")
        most = self._number("MaxConcurrency", state, given)
        count = self._number("ToleratedFailureCount", state, given)
        percentage = self._number("ToleratedFailurePercentage", state, given)
        children = []
        for index, item in enumerate(items):
            chosen = self._chosen(state, given, index, item) if "ItemSelector" in state else item
            children.append(Child(index, chosen, Position(processor.start_at, chosen)))
        self._history.add("MapStateStarted", {"length": len(children)})
        begun = Iterations(children, int(most), int(count), percentage)
        if processor.mode == "DISTRIBUTED":
            begun.run = self._open_run(state, begun)
        return begun

    def _chosen(self, state: State, given: Any, index: int, item: Any) -> Any:
        """What ItemSelector makes of an item. Nowhere else is the item in the context."""
        context = {**self._context, "Map": {"Item": {"Index": index, "Value": item}}}
        return self._fill(state["ItemSelector"], given, {"context": context})

    def _open_run(self, state: State, begun: Iterations) -> MapRun:
        """The Map Run, and the names of its children.

        `...:mapRun:<machine>/<label>:<id>`, `...:execution:<machine>/<label>:<name>`, and the machine of the
        children is `...:stateMachine:<machine>/<label>` (Step Functions API, StartExecution).
        """
        *before, _kind, machine = str(self._context["StateMachine"]["Id"]).split(":", 6)
        prefix, label = ":".join(before), state.get("Label", self._context["State"]["Name"])
        for child in begun.children:
            child.name = self._world.unique()
            child.arn = f"{prefix}:execution:{machine}/{label}:{child.name}"
        run = MapRun(
            arn=f"{prefix}:mapRun:{machine}/{label}:{self._world.unique()}",
            execution_arn=self._context["Execution"]["Id"],
            machine_arn=f"{prefix}:stateMachine:{machine}/{label}",
            children=begun.children,
            max_concurrency=begun.max_concurrency,
            tolerated_count=begun.tolerated_count,
            tolerated_percentage=begun.tolerated_percentage,
            started_at=self._control.now(),
        )
        self._history.add("MapRunStarted", {"mapRunArn": run.arn})
        self._world.tell(run, None)
        return run

    def _close(self, begun: Iterations, status: Literal["SUCCEEDED", "FAILED", "ABORTED"]) -> None:
        if begun.run is not None:
            begun.run.status, begun.run.stopped_at = status, self._control.now()
            self._world.tell(begun.run, None)
            if status == "FAILED":
                self._history.add("MapRunFailed", {"error": TOO_MANY_FAILED, "cause": _TOO_MANY_FAILED_CAUSE})
            else:
                self._history.add(f"MapRun{status.capitalize()}")
        self._history.add(f"MapState{status.capitalize()}")

    @staticmethod
    def _result_of(child: Child) -> Any:
        """A child's output. A failure that is tolerated stands in its place."""
        ended = child.outcome or Outcome("ABORTED")
        if ended.status == "SUCCEEDED":
            return ended.output
        return {"Status": ended.status, "Error": ended.error, "Cause": ended.cause}

    def _inline_child(self, processor: Processor, child: Child, control: Control) -> Outcome:
        told = {"name": self._context["State"]["Name"], "index": child.index}
        self._history.add("MapIterationStarted", told)
        variables = {**self._outer, **self._position.variables}
        world = replace(self._world, control=control)
        inner = Interpreter(processor, self._context, world, self._history, variables)
        try:
            output = inner.walk(child.position)
        except Failure as failure:
            self._history.add("MapIterationFailed", told)
            return Outcome("FAILED", error=failure.error, cause=failure.cause)
        except (Aborted, MachineTimedOut):
            self._history.add("MapIterationAborted", told)
            return Outcome("ABORTED")
        self._history.add("MapIterationSucceeded", told)
        return Outcome("SUCCEEDED", output)

    def _distributed_child(self, processor: Processor, child: Child, control: Control) -> Outcome:
        """An execution of its own: neither variables nor events of this one are in it."""
        begun = self._position.iterations
        if begun is None or begun.run is None:
            raise Failure(RUNTIME, "The Map state has no Map Run")
        run, history, execution = begun.run, History(child.events, control.now), self._context["Execution"]
        if child.started_at is None:
            child.started_at = control.now()
            role = execution.get("RoleArn")
            history.add("ExecutionStarted", {"input": compact(child.input), "roleArn": role})
        else:
            child.redrives += 1
            child.stopped_at = None
            history.add("ExecutionRedriven", {"redriveCount": child.redrives})
        self._world.tell(run, child)
        context = {
            "Execution": {
                **execution,
                "Id": child.arn,
                "Input": child.input,
                "Name": child.name,
                "StartTime": iso(child.started_at),
                "RedriveCount": child.redrives,
            },
            "StateMachine": {"Id": run.machine_arn, "Name": run.machine_arn.rpartition(":")[2]},
        }
        world = replace(self._world, control=control)
        outcome = Interpreter(processor, context, world, history).run(child.position)
        if outcome.status == "ABORTED":
            history.add("ExecutionAborted", {})
        child.outcome, child.stopped_at = outcome, control.now()
        self._world.tell(run, child)
        return outcome

    def _number(self, name: str, state: State, given: Any) -> float:
        value = self._fill(state.get(name, 0), given)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise Failure(QUERY_EVALUATION_ERROR, f"{name} must be a number of at least 0, found {value!r}")
        return value

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
        return self._evaluator.fill(template, states, {**self._outer, **self._position.variables})

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
