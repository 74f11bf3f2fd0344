"""The machine as a text: its graph, its language, its names. What no linter finds (docs/adr/0001)."""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import jsonata
import pytest
from asl_machine import (
    SOURCE,
    SUBSTITUTION,
    VALUES,
    deployed,
    expressions,
    source,
    states,
    successors,
    workflows,
)

JSONPATH_ONLY: Final = frozenset(
    {
        "InputPath",
        "OutputPath",
        "Parameters",
        "ResultPath",
        "ResultSelector",
        "Result",
        "ItemsPath",
        "Variable",
        "SecondsPath",
        "TimestampPath",
        "TimeoutSecondsPath",
        "HeartbeatSecondsPath",
        "ErrorPath",
        "CausePath",
    }
)
FIELDS: Final = {
    "Task": {
        "Resource",
        "Arguments",
        "TimeoutSeconds",
        "HeartbeatSeconds",
        "Assign",
        "Output",
        "Retry",
        "Catch",
        "Next",
        "End",
    },
    "Map": {
        "Label",
        "Items",
        "ItemSelector",
        "MaxConcurrency",
        "ItemProcessor",
        "Assign",
        "Output",
        "Catch",
        "Next",
    },
    "Pass": {"Assign", "Output", "Next"},
    "Choice": {"Choices", "Default", "Assign", "Output"},
    "Wait": {"Seconds", "Next"},
    "Succeed": {"Output"},
    "Fail": {"Error", "Cause"},
}
ERRORS: Final = frozenset(
    {
        # of the language
        "States.ALL",
        "States.Timeout",
        "States.TaskFailed",
        "States.DataLimitExceeded",
        "States.QueryEvaluationError",
        # of Lambda, as its integration names them
        "Lambda.ServiceException",
        "Lambda.AWSLambdaException",
        "Lambda.SdkClientException",
        "Lambda.TooManyRequestsException",
        "Lambda.Unknown",
        # of DynamoDB
        "DynamoDB.ConditionalCheckFailedException",
        "DynamoDB.ProvisionedThroughputExceededException",
        "DynamoDB.ThrottlingException",
        "DynamoDB.RequestLimitExceeded",
        "DynamoDB.InternalServerError",
        "DynamoDB.InternalServerErrorException",
        "DynamoDB.TransactionConflictException",
        "DynamoDB.SdkClientException",
        # of SageMaker; the generic name of SDK calls is SageMaker.SageMakerException
        "ThrottlingException",
        "SageMaker.ThrottlingException",
        "SageMaker.ServiceUnavailableException",
        "SageMaker.InternalFailureException",
        "SageMaker.ResourceInUseException",
        "SageMaker.ConflictException",
        "SageMaker.SageMakerException",
        "SageMaker.SdkClientException",
        # of Step Functions
        "Sfn.ThrottlingException",
        "Sfn.SdkClientException",
    }
)
SERVICE_OF: Final = {
    "lambda": "Lambda",
    "dynamodb": "DynamoDB",
    "sagemaker": "SageMaker",
    "events": "EventBridge",
    "sfn": "Sfn",
}
ENDS: Final = frozenset({"Succeed", "Fail"})
MAX_NAME: Final = 80
MAX_DEFINITION: Final = 1_048_576


def _everywhere(value: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """Every field of the machine that is the language's and not a request's or a value's."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield path, key, item
            if key not in {"Arguments", "Assign", "Output"}:
                yield from _everywhere(item, f"{path}/{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _everywhere(item, f"{path}/{index}")


def _tasks() -> list[tuple[str, dict[str, Any]]]:
    return [(name, state) for name, state in states().items() if state["Type"] == "Task"]


def test_it_is_json_before_and_after_substitution() -> None:
    """The file is read by tools as it stands, and by Step Functions with its values."""
    assert source()["QueryLanguage"] == "JSONata"
    assert len(json.dumps(deployed())) < MAX_DEFINITION
    assert not SUBSTITUTION.search(json.dumps(deployed()))


def test_no_key_is_written_twice() -> None:
    """A second state of the same name would silently replace the first."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        assert len(keys) == len(set(keys)), f"written twice: {sorted(k for k in keys if keys.count(k) > 1)}"
        return dict(pairs)

    json.loads(SOURCE.read_text(), object_pairs_hook=unique)


def test_every_way_leads_to_a_state_and_every_state_is_reached() -> None:
    """No Next, Default or Catch points at nothing, and no state is left over."""
    for workflow in workflows(source()):
        found = workflow["States"]
        reached, frontier = set(), [workflow["StartAt"]]
        while frontier:
            name = frontier.pop()
            assert name in found, f"{name} is named but not defined"
            if name not in reached:
                reached.add(name)
                frontier.extend(successors(found[name]))
        assert reached == set(found)


def test_every_state_can_reach_an_end() -> None:
    """There is no loop without a way out."""
    found = states()
    ending = {name for name, state in found.items() if state["Type"] in ENDS or state.get("End")}
    while True:
        more = {
            name for name, state in found.items() if name not in ending and ending & set(successors(state))
        }
        if not more:
            break
        ending |= more
    assert ending == set(found)


def test_states_stand_in_the_order_of_the_flow() -> None:
    """Reading down is reading on: along the way of a run that goes well, no state stands above the one before it."""
    order = list(states())
    flow = ["BeginRun"]
    while states()[flow[-1]]["Type"] not in ENDS:
        state = states()[flow[-1]]
        flow.append(state["Choices"][0]["Next"] if "Choices" in state else state["Next"])
    positions = [order.index(name) for name in flow]
    assert positions == sorted(positions)
    assert flow[-1] == "RunSucceeded"


def test_each_state_says_why_it_is_there() -> None:
    """Whoever edits the machine finds the reason in the state itself."""
    for name, state in states().items():
        assert state.get("Comment", "").endswith("."), name
        assert len(name) <= MAX_NAME
        assert re.fullmatch(r"[A-Za-z0-9_-]+", name)


def test_states_have_only_the_fields_of_their_type() -> None:
    """A misspelt field is an error here, not something that Step Functions refuses at deployment."""
    for name, state in states().items():
        extra = set(state) - FIELDS[state["Type"]] - {"Type", "Comment"}
        assert not extra, f"{name} has {extra}"
        for choice in state.get("Choices", []):
            assert set(choice) <= {"Condition", "Next", "Assign", "Output"}, name
        for catcher in state.get("Catch", []):
            assert set(catcher) <= {"ErrorEquals", "Next", "Assign", "Output"}, name


def test_no_field_is_of_the_other_query_language() -> None:
    """A JSONata machine has no JSONPath field, and no path where a value belongs."""
    for path, key, item in _everywhere(source()["States"]):
        assert key not in JSONPATH_ONLY, f"{path} has {key}"
        assert not key.endswith(".$"), f"{path} has {key}"
        assert not (isinstance(item, str) and item.startswith("$")), f"{path}/{key} is a JSONPath"


def test_every_expression_parses() -> None:
    """Every `{% %}` is JSONata, and none uses what Step Functions leaves out."""
    found = list(expressions(source()))
    assert len(found) > 100
    for expression in found:
        jsonata.Jsonata(SUBSTITUTION.sub("x", expression))
        assert "$eval(" not in expression


def test_marks_of_expressions_are_whole() -> None:
    """A string with half a mark would be taken as text."""
    for line in SOURCE.read_text().splitlines():
        assert line.count("{%") == line.count("%}")
        for text in re.findall(r'"((?:[^"\\]|\\.)*)"', line):
            if "{%" in text or "%}" in text:
                assert text.startswith("{% ")
                assert text.endswith(" %}")


def test_substitutions_are_those_that_tests_and_template_know() -> None:
    """No substitution is without a value, and no value without a use."""
    assert set(SUBSTITUTION.findall(SOURCE.read_text())) == set(VALUES)


def test_every_variable_has_a_value_from_the_start() -> None:
    """Whichever way leads to a state, what it reads was assigned: BeginRun assigns all, and nothing unused."""
    given = set(states()["BeginRun"]["Assign"])
    read: set[str] = set()
    for name, state in states().items():
        for assigned in (state, *state.get("Choices", []), *state.get("Catch", [])):
            assert set(assigned.get("Assign", {})) <= given, name
        for expression in expressions(state):
            bound = re.findall(r"\$(\w+)\s*:=", expression) + re.findall(
                r"\$(\w+)", " ".join(re.findall(r"function\(([^)]*)\)", expression))
            )
            used = set(re.findall(r"\$(\w+)(?![\w(])", expression)) - {"states", *bound}
            assert used <= given, f"{name} reads {sorted(used - given)}"
            read |= used
    assert read == given


def test_error_names_are_known_and_of_the_service_called() -> None:
    """A misspelt error name would never match; another service's never come."""
    for name, state in _tasks():
        service = SERVICE_OF[re.sub(r"^arn:aws:states:::(aws-sdk:)?(\w+):.*$", r"\2", state["Resource"])]
        for policy in (*state.get("Retry", []), *state.get("Catch", [])):
            for error in policy["ErrorEquals"]:
                assert error in ERRORS, f"{name}: {error}"
                assert error.split(".")[0] in {"States", service, "ThrottlingException"}, f"{name}: {error}"
            if "States.ALL" in policy["ErrorEquals"]:
                assert policy["ErrorEquals"] == ["States.ALL"]
                assert policy in (state["Catch"][-1], state.get("Retry", [{}])[-1])


@pytest.mark.parametrize(("name", "state"), _tasks())
def test_every_task_is_bounded_and_retried_with_jitter(name: str, state: dict[str, Any]) -> None:
    """No task may hang, and no retry storms: each has a time-out, and spread, growing, bounded waits."""
    assert "TimeoutSeconds" in state
    assert state["Retry"]
    for retrier in state["Retry"]:
        assert retrier["JitterStrategy"] == "FULL"
        assert retrier["BackoffRate"] > 1
        assert 0 < retrier["MaxDelaySeconds"] <= 120
        assert 0 < retrier["MaxAttempts"] <= 6
        assert "States.Timeout" not in retrier["ErrorEquals"]


def test_every_task_but_the_last_word_catches_everything() -> None:
    """Only RecordOutcome may fail the execution: an outcome that isn't recorded is none, and is redriven from there."""
    assert [
        name
        for name, state in source()["States"].items()
        if state["Type"] in {"Task", "Map"}
        and not any(catcher["ErrorEquals"] == ["States.ALL"] for catcher in state["Catch"])
    ] == ["RecordOutcome"]


def test_children_of_a_map_are_bounded_small_and_told_everything() -> None:
    """They see none of the machine's variables, answer next to nothing, and one that fails is enough for the Map."""
    maps = {name: state for name, state in states().items() if state["Type"] == "Map"}
    assert set(maps) == {"SurveyParts", "WriteParts"}
    for name, state in maps.items():
        assert state["Label"] == name
        assert 0 < state["MaxConcurrency"] <= 100
        assert state["ItemProcessor"]["ProcessorConfig"] == {
            "Mode": "DISTRIBUTED",
            "ExecutionType": "STANDARD",
        }
        for child in state["ItemProcessor"]["States"].values():
            assert child["Output"] == {}
            assert "Catch" not in child
            used = {
                variable
                for expression in expressions(child)
                for variable in re.findall(r"\$(\w+)", expression)
            }
            assert used <= {"states"}


def test_jobs_catch_what_the_wildcard_does_not() -> None:
    """`States.ALL` leaves out DataLimitExceeded, and a .sync task answers with the whole description of its job."""
    jobs = [(name, state) for name, state in _tasks() if state["Resource"].endswith(".sync")]
    assert [name for name, _ in jobs] == ["CacheBaseModel", "TrainAdapter", "EvaluateCandidate"]
    for name, state in jobs:
        caught = [error for catcher in state["Catch"] for error in catcher["ErrorEquals"]]
        assert {"States.DataLimitExceeded", "States.Timeout", "SageMaker.ResourceInUseException"} <= set(
            caught
        ), name
        first = state["Catch"][0]
        assert states()[first["Next"]]["Resource"].startswith("arn:aws:states:::aws-sdk:sagemaker:stop")
