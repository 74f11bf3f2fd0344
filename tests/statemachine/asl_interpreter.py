"""Runs the machine on the interpreter of the local AWS, with scripted answers in place of the services.

Everything but the answers is real: JSONata, variables, choices, retries, catchers. Time is counted, not
waited for.
"""

import copy
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from asl_machine import EXECUTION_ARN, everywhere

from dropforge.local.asl.definition import Definition
from dropforge.local.asl.failure import Failure
from dropforge.local.asl.history import History
from dropforge.local.asl.interpreter import Interpreter, World
from dropforge.local.asl.position import Child, MapRun, Position
from dropforge.local.asl.task import TaskCall

MACHINE_ARN: Final = "arn:aws:states:eu-west-1:123456789012:stateMachine:dropforge-fine-tune"
_MARK: Final = "caught_by"
"""Each catcher assigns its index to this variable, so that the history tells which one it was."""


@dataclass(frozen=True)
class Fails:
    """A task that ends with an error."""

    error: str
    cause: str = "it broke"


Answer = Fails | Callable[[Mapping[str, Any]], Any] | Any
"""What a task gives: an error, a function of its arguments, or a result."""


@dataclass(frozen=True)
class Call:
    """One request that a state made."""

    state: str
    resource: str
    arguments: dict[str, Any]
    timeout_s: float | None


@dataclass
class Story:
    """What happened in one execution."""

    status: str = ""
    path: list[str] = field(default_factory=list)
    path_in_children: list[str] = field(default_factory=list)
    """States of the children of Distributed Maps, child by child."""
    calls: list[Call] = field(default_factory=list)
    caught: list[tuple[str, int]] = field(default_factory=list)
    """State and index of the catcher."""
    waited_s: float = 0.0
    output: Any = None
    error: str | None = None
    cause: str | None = None

    def request(self, state: str) -> dict[str, Any]:
        """The arguments of the last request that a state made."""
        return next(call.arguments for call in reversed(self.calls) if call.state == state)


class Clock:
    """A control whose time passes when it is waited for."""

    def __init__(self) -> None:
        self._passed_s = 0.0

    def now(self) -> float:
        return 1_795_237_200.0 + self._passed_s

    def monotonic(self) -> float:
        return self._passed_s

    def notify(self) -> None:
        """Nothing here comes from another thread."""

    def wait_for(self, come: Callable[[], bool], until: float | None) -> bool:
        if not come() and until is not None:
            self._passed_s = max(self._passed_s, until)
        return come()


@dataclass
class Script:
    """The answers of the tasks. A state's answers are given in turn; its last one stays."""

    answers: Mapping[str, list[Answer]]
    story: Story
    _used: Counter[str] = field(default_factory=Counter)

    def run(self, call: TaskCall) -> Any:
        state = call.state
        resource = f"{call.resource.kind}:{call.resource}"
        limit = None if call.until is None else call.until - call.control.monotonic()
        self.story.calls.append(Call(state, resource, copy.deepcopy(call.arguments), limit))
        script = self.answers[state]
        answer = script[min(self._used[state], len(script) - 1)]
        self._used[state] += 1
        if isinstance(answer, Fails):
            raise Failure(answer.error, answer.cause)
        return copy.deepcopy(answer(call.arguments) if callable(answer) else answer)


def run(
    machine: Mapping[str, Any],
    execution_input: Mapping[str, Any],
    answers: Mapping[str, list[Answer]],
    redrive_count: int = 0,
) -> Story:
    """Run to the end."""
    story, clock = Story(), Clock()
    events: list[dict[str, Any]] = []
    definition = Definition.parse(json.dumps(_marked(machine)))
    runs: list[MapRun] = []

    def tell(run: MapRun, child: Child | None) -> None:
        if child is None and run.status != "RUNNING":
            runs.append(run)

    world = World(
        Script(answers, story),
        clock,
        lambda _low, high: high,
        lambda: "token-of-the-task",
        _at_once,
        tell=tell,
    )
    context = {
        "Execution": {
            "Id": EXECUTION_ARN,
            "Name": EXECUTION_ARN.rsplit(":", 1)[-1],
            "Input": dict(execution_input),
            "RoleArn": "arn:aws:iam::123456789012:role/dropforge-FineTuneRole",
            "StartTime": "2026-11-21T05:00:00.000Z",
            "RedriveCount": redrive_count,
        },
        "StateMachine": {"Id": MACHINE_ARN, "Name": "dropforge-fine-tune"},
    }
    interpreter = Interpreter(definition, context, world, History(events, clock.now))
    outcome = interpreter.run(Position(definition.start_at, dict(execution_input)))
    story.status, story.output = outcome.status, outcome.output
    story.error, story.cause = outcome.error, outcome.cause
    story.path = _entered(events)
    story.waited_s = clock.monotonic()
    children = [child for run in runs for child in run.children]
    story.path_in_children = [name for child in children for name in _entered(child.events)]
    for event in [*events, *(event for child in children for event in child.events)]:
        left = event.get("stateExitedEventDetails", {})
        if _MARK in left.get("assignedVariables", {}):
            story.caught.append((left["name"], int(left["assignedVariables"][_MARK])))
    return story


def _at_once(work: Callable[[], None]) -> Callable[[], None]:
    """Children of a Map one after the other: the same story each time."""
    work()
    return lambda: None


def _entered(events: list[dict[str, Any]]) -> list[str]:
    return [
        event["stateEnteredEventDetails"]["name"] for event in events if "stateEnteredEventDetails" in event
    ]


def _marked(machine: Mapping[str, Any]) -> dict[str, Any]:
    marked: dict[str, Any] = copy.deepcopy(dict(machine))
    for state in everywhere(marked).values():
        for index, catcher in enumerate(state.get("Catch", [])):
            catcher["Assign"] = {**catcher.get("Assign", {}), _MARK: index}
    return marked
