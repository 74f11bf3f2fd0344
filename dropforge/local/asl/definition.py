"""A state machine's definition, read and checked before anything runs."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Self

from dropforge.local.asl.expression import expressions, syntax_error

State = Mapping[str, Any]

DEFINITION_MAX: Final = 1_048_576
_COMMON: Final = frozenset({"Type", "Comment", "QueryLanguage", "Assign", "Output"})
_FIELDS: Final[Mapping[str, frozenset[str]]] = {
    "Task": _COMMON
    | {"Resource", "Arguments", "Retry", "Catch", "TimeoutSeconds", "HeartbeatSeconds", "Next", "End"},
    "Pass": _COMMON | {"Next", "End"},
    "Choice": _COMMON | {"Choices", "Default"},
    "Wait": _COMMON | {"Seconds", "Timestamp", "Next", "End"},
    "Succeed": frozenset({"Type", "Comment", "QueryLanguage", "Output"}),
    "Fail": frozenset({"Type", "Comment", "QueryLanguage", "Error", "Cause"}),
}
_MACHINE_FIELDS: Final = frozenset(
    {"Comment", "QueryLanguage", "StartAt", "States", "TimeoutSeconds", "Version"}
)
_RETRIER_FIELDS: Final = frozenset(
    {
        "Comment",
        "ErrorEquals",
        "IntervalSeconds",
        "MaxAttempts",
        "BackoffRate",
        "MaxDelaySeconds",
        "JitterStrategy",
    }
)
_CATCHER_FIELDS: Final = frozenset({"Comment", "ErrorEquals", "Next", "Assign", "Output"})


class DefinitionRefused(ValueError):
    """The definition can't be run. The message lists every fault, one a line, each with the state's name."""


class Definition:
    """A checked definition. `states` is the JSON of the States field."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.start_at: str = document["StartAt"]
        self.states: Mapping[str, State] = document["States"]
        self.timeout_s: float | None = document.get("TimeoutSeconds")

    @classmethod
    def parse(cls, text: str, resource_fault: Callable[[str], str | None] = lambda _: None) -> Self:
        """Read and check a definition.

        Args:
            text: JSON.
            resource_fault: says why a task's Resource can't be run; None where it can.

        Raises:
            DefinitionRefused: with every fault.
        """
        if len(text) > DEFINITION_MAX:
            raise DefinitionRefused(
                f"the definition has {len(text)} characters; the most is {DEFINITION_MAX}"
            )
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise DefinitionRefused(f"not JSON: {error}") from error
        faults = list(_faults(document, resource_fault))
        if faults:
            raise DefinitionRefused("\n".join(faults))
        return cls(document)


def _faults(document: Any, resource_fault: Callable[[str], str | None]) -> Iterator[str]:
    states = document.get("States") if isinstance(document, Mapping) else None
    if not isinstance(states, Mapping) or not states:
        yield "States: a JSON object with at least one state is required"
        return
    if document.get("QueryLanguage") != "JSONata":
        yield 'QueryLanguage: the local Step Functions interprets JSONata only; write "QueryLanguage": "JSONata"'
        return
    for field in document.keys() - _MACHINE_FIELDS:
        yield f"{field}: not a field of a state machine"
    if document.get("StartAt") not in states:
        yield f"StartAt: there is no state '{document.get('StartAt')}'"
    reached = {document.get("StartAt")}
    for name, state in states.items():
        for fault in _state_faults(state, resource_fault):
            yield f"{name}: {fault}"
        for target in _targets(state):
            reached.add(target)
            if target not in states:
                yield f"{name}: MISSING_TRANSITION_TARGET: there is no state '{target}'"
    for name in states.keys() - reached:
        yield f"{name}: MISSING_TRANSITION_TARGET: no state leads here"


def _state_faults(state: State, resource_fault: Callable[[str], str | None]) -> Iterator[str]:
    kind = state.get("Type")
    allowed = _FIELDS.get(str(kind))
    if allowed is None:
        yield f"Type {kind}: the local Step Functions runs {', '.join(_FIELDS)}"
        return
    for field in sorted(state.keys() - allowed):
        yield f"{field}: not a field of a {kind} state in JSONata"
    if state.get("QueryLanguage", "JSONata") != "JSONata":
        yield "QueryLanguage: a JSONata machine has JSONata states only"
    if kind in {"Task", "Pass", "Wait"} and ("Next" in state) == (state.get("End") is True):
        yield 'either "Next" or "End": true is required'
    yield from _kind_faults(state, resource_fault)
    yield from _handler_faults(state)
    for expression in expressions(state):
        error = syntax_error(expression)
        if error:
            yield f"'{expression}' is not JSONata: {error}"


def _kind_faults(state: State, resource_fault: Callable[[str], str | None]) -> Iterator[str]:
    kind = state["Type"]
    if kind == "Task":
        resource = state.get("Resource")
        fault = resource_fault(resource) if isinstance(resource, str) else "Resource: required"
        if fault:
            yield fault
    if kind == "Choice" and not state.get("Choices"):
        yield "Choices: at least one rule is required"
    for rule in state.get("Choices", []):
        if not {"Condition", "Next"} <= rule.keys():
            yield "Choices: each rule needs Condition and Next"
    if kind == "Wait" and ("Seconds" in state) == ("Timestamp" in state):
        yield "either Seconds or Timestamp is required"


def _handler_faults(state: State) -> Iterator[str]:
    for field, allowed in (("Retry", _RETRIER_FIELDS), ("Catch", _CATCHER_FIELDS)):
        handlers = state.get(field, [])
        for index, handler in enumerate(handlers):
            equals = handler.get("ErrorEquals")
            if not equals or not isinstance(equals, list):
                yield f"{field}[{index}]: ErrorEquals: a list of error names is required"
            elif "States.ALL" in equals and (len(equals) > 1 or index + 1 < len(handlers)):
                yield f"{field}[{index}]: States.ALL must stand alone, in the last entry"
            for name in sorted(handler.keys() - allowed):
                yield f"{field}[{index}]: {name}: not a field here"


def _targets(state: State) -> Iterator[str]:
    for owner in (state, *state.get("Choices", []), *state.get("Catch", [])):
        if "Next" in owner:
            yield owner["Next"]
    if "Default" in state:
        yield state["Default"]
