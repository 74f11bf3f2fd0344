"""A state machine's definition, read and checked before anything runs."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal, Self

from dropforge.local.asl.expression import expressions, syntax_error

State = Mapping[str, Any]
ResourceFault = Callable[[str], str | None]

DEFINITION_MAX: Final = 1_048_576
LABEL_MAX: Final = 40
_COMMON: Final = frozenset({"Type", "Comment", "QueryLanguage", "Assign", "Output"})
_FIELDS: Final[Mapping[str, frozenset[str]]] = {
    "Task": _COMMON
    | {"Resource", "Arguments", "Retry", "Catch", "TimeoutSeconds", "HeartbeatSeconds", "Next", "End"},
    "Pass": _COMMON | {"Next", "End"},
    "Choice": _COMMON | {"Choices", "Default"},
    "Wait": _COMMON | {"Seconds", "Timestamp", "Next", "End"},
    "Map": _COMMON
    | {"ItemProcessor", "Items", "ItemSelector", "MaxConcurrency", "Label", "Retry", "Catch", "Next", "End"}
    | {"ToleratedFailureCount", "ToleratedFailurePercentage"},
    "Succeed": frozenset({"Type", "Comment", "QueryLanguage", "Output"}),
    "Fail": frozenset({"Type", "Comment", "QueryLanguage", "Error", "Cause"}),
}
_NOT_LOCAL: Final = {
    "ItemReader": "the local Step Functions reads no items from S3; give them as Items",
    "ItemBatcher": "the local Step Functions makes no batches; $partition in Items gives arrays of items",
    "ResultWriter": "the local Step Functions writes no results to S3; keep each child's Output small",
}
"""Fields of a Map state that AWS knows and this interpreter does not."""

_DISTRIBUTED_ONLY: Final = frozenset({"Label", "ToleratedFailureCount", "ToleratedFailurePercentage"})
_MACHINE_FIELDS: Final = frozenset(
    {"Comment", "QueryLanguage", "StartAt", "States", "TimeoutSeconds", "Version"}
)
_PROCESSOR_FIELDS: Final = frozenset({"Comment", "ProcessorConfig", "StartAt", "States"})
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


class Workflow:
    """States that lead to one another. `states` is the JSON of the States field."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.start_at: str = document["StartAt"]
        self.states: Mapping[str, State] = document["States"]


class Processor(Workflow):
    """A Map state's ItemProcessor: what is done with each item."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        super().__init__(document)
        self.mode: Literal["INLINE", "DISTRIBUTED"] = document.get("ProcessorConfig", {}).get(
            "Mode", "INLINE"
        )


class Definition(Workflow):
    """A checked definition of a whole state machine."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        super().__init__(document)
        self.timeout_s: float | None = document.get("TimeoutSeconds")

    @classmethod
    def parse(cls, text: str, resource_fault: ResourceFault = lambda _: None) -> Self:
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


def _faults(document: Any, resource_fault: ResourceFault) -> Iterator[str]:
    if not _has_states(document):
        yield "States: a JSON object with at least one state is required"
        return
    if document.get("QueryLanguage") != "JSONata":
        yield 'QueryLanguage: the local Step Functions interprets JSONata only; write "QueryLanguage": "JSONata"'
        return
    for field in document.keys() - _MACHINE_FIELDS:
        yield f"{field}: not a field of a state machine"
    yield from _workflow_faults(document, resource_fault, frozenset())
    for name, times in Counter(_names(document)).items():
        if times > 1:
            yield f"{name}: {times} states have this name; names are unique in the whole machine"


def _has_states(document: Any) -> bool:
    states = document.get("States") if isinstance(document, Mapping) else None
    return (
        isinstance(states, Mapping)
        and bool(states)
        and all(isinstance(state, Mapping) for state in states.values())
    )


def _workflow_faults(
    document: Mapping[str, Any], resource_fault: ResourceFault, outer: frozenset[str]
) -> Iterator[str]:
    """`outer`: the variables of the workflow around this one, which it may read and not assign."""
    states = document["States"]
    if document.get("StartAt") not in states:
        yield f"StartAt: there is no state '{document.get('StartAt')}'"
    reached = {document.get("StartAt")}
    own = frozenset(_assigned(states))
    for name, state in states.items():
        for fault in _state_faults(state, resource_fault):
            yield f"{name}: {fault}"
        for target in _targets(state):
            reached.add(target)
            if target not in states:
                yield f"{name}: MISSING_TRANSITION_TARGET: there is no state '{target}'"
        yield from _processor_faults(name, state, resource_fault, own | outer)
    for name in states.keys() - reached:
        yield f"{name}: MISSING_TRANSITION_TARGET: no state leads here"
    for variable in sorted(own & outer):
        yield f"Assign: ${variable} is a variable of the workflow around this Map, which it can only read"


def _processor_faults(
    name: str, state: State, resource_fault: ResourceFault, variables: frozenset[str]
) -> Iterator[str]:
    processor = state.get("ItemProcessor") if state.get("Type") == "Map" else None
    if processor is None:
        return
    if not _has_states(processor):
        yield f"{name}: ItemProcessor: a JSON object with StartAt and States is required"
        return
    for field in sorted(processor.keys() - _PROCESSOR_FIELDS):
        yield f"{name}: ItemProcessor.{field}: not a field here"
    config = processor.get("ProcessorConfig", {})
    mode = config.get("Mode", "INLINE")
    if mode not in {"INLINE", "DISTRIBUTED"}:
        yield f"{name}: ProcessorConfig.Mode: INLINE or DISTRIBUTED, found {mode}"
    if mode == "DISTRIBUTED" and config.get("ExecutionType") != "STANDARD":
        yield f"{name}: ProcessorConfig.ExecutionType: the local Step Functions runs STANDARD children only"
    if mode == "INLINE":
        for field in sorted(state.keys() & _DISTRIBUTED_ONLY):
            yield f"{name}: {field}: only a Map in mode DISTRIBUTED has it"
    # A child execution begins without variables, so it may use the same names.
    outer = variables if mode == "INLINE" else frozenset()
    for fault in _workflow_faults(processor, resource_fault, outer):
        yield f"{name}: ItemProcessor: {fault}"


def _names(document: Mapping[str, Any]) -> Iterator[str]:
    for name, state in document["States"].items():
        yield name
        if state.get("Type") == "Map" and _has_states(state.get("ItemProcessor")):
            yield from _names(state["ItemProcessor"])


def _assigned(states: Mapping[str, State]) -> Iterator[str]:
    for state in states.values():
        for owner in (state, *state.get("Choices", []), *state.get("Catch", [])):
            yield from owner.get("Assign", {})


def _state_faults(state: State, resource_fault: ResourceFault) -> Iterator[str]:
    kind = state.get("Type")
    allowed = _FIELDS.get(str(kind))
    if allowed is None:
        yield f"Type {kind}: the local Step Functions runs {', '.join(_FIELDS)}"
        return
    for field in sorted(state.keys() - allowed):
        reason = _NOT_LOCAL.get(field) if kind == "Map" else None
        yield f"{field}: {reason or f'not a field of a {kind} state in JSONata'}"
    if state.get("QueryLanguage", "JSONata") != "JSONata":
        yield "QueryLanguage: a JSONata machine has JSONata states only"
    if kind in {"Task", "Pass", "Wait", "Map"} and ("Next" in state) == (state.get("End") is True):
        yield 'either "Next" or "End": true is required'
    yield from _kind_faults(state, resource_fault)
    yield from _handler_faults(state)
    for expression in expressions({key: item for key, item in state.items() if key != "ItemProcessor"}):
        error = syntax_error(expression)
        if error:
            yield f"'{expression}' is not JSONata: {error}"


def _kind_faults(state: State, resource_fault: ResourceFault) -> Iterator[str]:
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
    if kind == "Map":
        yield from _map_faults(state)


def _map_faults(state: State) -> Iterator[str]:
    if "ItemProcessor" not in state:
        yield "ItemProcessor: required"
    if not isinstance(state.get("Items", ""), str | list):
        yield "Items: the local Step Functions takes an array, or an expression that gives one"
    if len(state.get("Label", "")) > LABEL_MAX:
        yield f"Label: at most {LABEL_MAX} characters"


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
