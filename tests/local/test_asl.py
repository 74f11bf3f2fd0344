"""The interpreter alone, with time that passes when it is waited for and tasks that answer from a list."""

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.local.asl.definition import Definition, DefinitionRefused
from dropforge.local.asl.expression import Evaluator
from dropforge.local.asl.failure import Aborted, Failure, MachineTimedOut, matches
from dropforge.local.asl.history import History
from dropforge.local.asl.interpreter import PAYLOAD_MAX, Interpreter, World
from dropforge.local.asl.position import Outcome, Position
from dropforge.local.asl.retry import Retries
from dropforge.local.asl.task import Resource, TaskCall

CONTEXT = {
    "Execution": {"Id": "arn:aws:states:us-east-1:1:execution:m:e", "RedriveCount": 0},
    "StateMachine": {"Id": "arn:aws:states:us-east-1:1:stateMachine:m"},
}


class Clock:
    """A control whose time passes when it is waited for."""

    def __init__(self, limit_s: float | None = None, abort_at: float | None = None) -> None:
        self.passed, self._limit, self._abort_at = 0.0, limit_s, abort_at

    def now(self) -> float:
        return 1_800_000_000.0 + self.passed

    def monotonic(self) -> float:
        return self.passed

    def notify(self) -> None:
        """Nobody waits in real time."""

    def wait_for(self, come: Callable[[], bool], until: float | None) -> bool:
        self.passed = max(self.passed, until or 0.0)
        if self._abort_at is not None and self.passed >= self._abort_at:
            raise Aborted
        if self._limit is not None and self.passed >= self._limit:
            raise MachineTimedOut
        return come()


class Answers:
    """Tasks that give, or raise, one answer after the other."""

    def __init__(self, *answers: Any) -> None:
        self._answers, self.calls = list(answers), []

    def run(self, call: TaskCall) -> Any:
        self.calls.append(call)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def walk(
    states: dict[str, Any], tasks: Answers | None = None, clock: Clock | None = None, given_input: Any = None
) -> tuple[Outcome, Position, list[dict[str, Any]], Clock]:
    text = json.dumps({"QueryLanguage": "JSONata", "StartAt": next(iter(states)), "States": states})
    definition, time, events = Definition.parse(text), clock or Clock(), list[dict[str, Any]]()
    position = Position(definition.start_at, given_input or {})
    history = History(events, time.now)
    world = World(tasks or Answers(), time, lambda _low, high: high)
    interpreter = Interpreter(definition, CONTEXT, world, history)
    return interpreter.run(position), position, events, time


def task(**fields: Any) -> dict[str, Any]:
    return {"Type": "Task", "Resource": "arn:aws:states:::lambda:invoke", "End": True, **fields}


def test_delays_grow_to_their_cap() -> None:
    """IntervalSeconds x BackoffRate^attempt, never beyond MaxDelaySeconds, for MaxAttempts attempts."""
    retry = {
        "ErrorEquals": ["E"],
        "IntervalSeconds": 2,
        "BackoffRate": 3,
        "MaxAttempts": 4,
        "MaxDelaySeconds": 20,
    }
    retries = Retries([retry], lambda _low, high: high)
    delays = [retries.delay(Failure("E")) for _ in range(5)]
    assert delays == [2, 6, 18, 20, None]
    assert retries.count == 4


@given(st.floats(0, 1), st.integers(1, 100), st.floats(1, 4), st.integers(1, 60))
def test_full_jitter_lies_below_the_delay(share: float, interval: int, backoff: float, cap: int) -> None:
    """With JitterStrategy FULL every delay is between nothing and the delay without it."""
    base = {"ErrorEquals": ["E"], "IntervalSeconds": interval, "BackoffRate": backoff, "MaxDelaySeconds": cap}
    plain = Retries([base], lambda _low, high: high)
    jittered = Retries([{**base, "JitterStrategy": "FULL"}], lambda low, high: low + share * (high - low))
    for _ in range(3):
        full, drawn = plain.delay(Failure("E")), jittered.delay(Failure("E"))
        assert full is not None
        assert drawn is not None
        assert 0 <= drawn <= full <= cap


@pytest.mark.parametrize(
    ("equals", "error", "taken"),
    [
        (["States.ALL"], "Anything", True),
        (["States.ALL"], "States.Timeout", True),
        (["States.ALL"], "States.DataLimitExceeded", False),
        (["States.ALL"], "States.Runtime", False),
        (["States.DataLimitExceeded"], "States.DataLimitExceeded", True),
        (["States.TaskFailed"], "SageMaker.ResourceInUseException", True),
        (["States.TaskFailed"], "States.Timeout", False),
        (["States.Timeout"], "States.HeartbeatTimeout", True),
        (["DatasetInvalid"], "DatasetInvalid2", False),
    ],
)
def test_error_names_match_as_documented(equals: list[str], error: str, taken: bool) -> None:
    """States.ALL and States.TaskFailed leave out what Step Functions leaves out."""
    assert matches(equals, error) is taken


def test_the_first_retrier_that_matches_decides() -> None:
    """A spent retrier is not followed by a later, wider one; Catch comes next."""
    state = task(
        Retry=[{"ErrorEquals": ["E"], "MaxAttempts": 1}, {"ErrorEquals": ["States.ALL"], "MaxAttempts": 5}],
        Catch=[
            {
                "ErrorEquals": ["States.ALL"],
                "Assign": {"why": "{% $states.errorOutput.Cause %}"},
                "Next": "Told",
            }
        ],
    )
    told = {"Type": "Succeed", "Output": "{% $why %}"}
    tasks = Answers(Failure("E", "first"), Failure("E", "second"))
    outcome, _, _, clock = walk({"Ask": state, "Told": told}, tasks)
    assert (outcome.output, len(tasks.calls), clock.passed) == ("second", 2, 1.0)


def test_an_error_in_output_is_caught_like_one_of_the_task() -> None:
    """A result that lacks what Output reads is States.QueryEvaluationError, and Catch takes it."""
    caught = {"ErrorEquals": ["States.QueryEvaluationError"], "Next": "Told"}
    outcome, *_ = walk(
        {"Ask": task(Output="{% $states.result.absent %}", Catch=[caught]), "Told": {"Type": "Succeed"}},
        Answers({"present": 1}),
    )
    assert outcome.status == "SUCCEEDED"
    assert outcome.output["Error"] == "States.QueryEvaluationError"


def test_a_result_too_large_is_not_caught_by_states_all() -> None:
    """More than 256 KiB is States.DataLimitExceeded, which only its own name catches."""
    big = {"text": "x" * PAYLOAD_MAX}
    everything = [{"ErrorEquals": ["States.ALL"], "Next": "Told"}]
    outcome, *_ = walk({"Ask": task(Catch=everything), "Told": {"Type": "Succeed"}}, Answers(big))
    assert outcome.error == "States.DataLimitExceeded"
    named = [{"ErrorEquals": ["States.DataLimitExceeded"], "Next": "Told"}]
    outcome, *_ = walk({"Ask": task(Catch=named), "Told": {"Type": "Succeed"}}, Answers(big))
    assert outcome.status == "SUCCEEDED"


def test_waits_wait_for_seconds_and_moments() -> None:
    """Wait takes whole seconds or a moment, each also as an expression."""
    states = {
        "A": {"Type": "Wait", "Seconds": "{% $states.input.s %}", "Next": "B"},
        "B": {"Type": "Wait", "Timestamp": "2027-01-15T08:02:00Z", "End": True},
    }
    _, _, _, clock = walk(states, given_input={"s": 30})
    assert clock.now() == 1_800_000_120.0
    outcome, *_ = walk({"A": {"Type": "Wait", "Seconds": "{% 1.5 %}", "End": True}})
    assert outcome.error == "States.QueryEvaluationError"


def test_no_choice_and_no_default_has_its_own_name() -> None:
    """States.NoChoiceMatched; a condition that is no boolean is States.QueryEvaluationError."""
    states = {
        "C": {"Type": "Choice", "Choices": [{"Condition": "{% false %}", "Next": "D"}]},
        "D": {"Type": "Succeed"},
    }
    assert walk(states)[0].error == "States.NoChoiceMatched"
    states["C"]["Choices"] = [{"Condition": "{% 'yes' %}", "Next": "D"}]
    assert walk(states)[0].error == "States.QueryEvaluationError"


def test_the_position_tells_where_it_ended() -> None:
    """After a failure the position has the failed state, its input and the variables: a redrive's start."""
    states = {
        "A": {"Type": "Pass", "Assign": {"n": 7}, "Output": {"a": 1}, "Next": "B"},
        "B": task(),
    }
    _, position, _, _ = walk(states, Answers(Failure("E")))
    assert position == Position("B", {"a": 1}, {"n": 7})


def test_an_endless_machine_ends_by_its_time_or_an_abort() -> None:
    """A loop of states that never wait still ends when it is aborted or times out."""
    loop = {"A": {"Type": "Wait", "Seconds": 1, "Next": "B"}, "B": {"Type": "Pass", "Next": "A"}}
    assert walk(loop, clock=Clock(limit_s=50))[0].status == "TIMED_OUT"
    assert walk(loop, clock=Clock(abort_at=50))[0].status == "ABORTED"


def test_events_are_numbered_without_gaps() -> None:
    """History ids count from one, each naming its predecessor."""
    _, _, events, _ = walk({"A": {"Type": "Pass", "Next": "B"}, "B": {"Type": "Succeed"}})
    assert [event["id"] for event in events] == list(range(1, len(events) + 1))
    assert all(event["previousEventId"] == event["id"] - 1 for event in events)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(JSON)
def test_a_variable_comes_back_as_it_was(value: Any) -> None:
    """Any JSON value passes through a variable unchanged, null included."""
    assert Evaluator().fill({"x": "{% $v %}"}, {}, {"v": value}) == {"x": value}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("10 / 4", 2.5),
        ("10 / 5", 2),
        ("$parse('{\"a\": [1]}')", {"a": [1]}),
        ("$hash('abc', 'SHA-256')", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        ("$range(0, 4, 2)", [0, 2, 4]),
        ("$partition([1,2,3], 2)", [[1, 2], [3]]),
        ("[[1,2,3][$ > 2]]", [3]),
        ("[1,2,3][$ > 2]", 3),
        ("{'kept': 1, 'gone': $absent}", {"kept": 1}),
    ],
)
def test_jsonata_gives_what_step_functions_gives(expression: str, value: Any) -> None:
    """Step Functions' own functions, and JSONata where people stumble."""
    assert Evaluator().fill(f"{{% {expression} %}}", {}, {}) == value


@pytest.mark.parametrize(
    "expression", ["$absent", "$eval('1')", "1 + 'a'", "function($x){$x}", "$parse('{')"]
)
def test_what_has_no_value_is_an_error(expression: str) -> None:
    """Undefined, forbidden and mistyped are all States.QueryEvaluationError."""
    with pytest.raises(Failure, match=r"States\.QueryEvaluationError"):
        Evaluator().fill(f"{{% {expression} %}}", {}, {})


@given(
    st.recursive(
        st.none() | st.text(max_size=5) | st.integers(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["StartAt", "States", "Type", "Next", "QueryLanguage", "A"]), inner
            )
        ),
        max_leaves=6,
    )
)
def test_whatever_is_given_is_read_or_refused(document: Any) -> None:
    """Reading a definition ends in a definition or in DefinitionRefused, never in another error."""
    with contextlib.suppress(DefinitionRefused):
        Definition.parse(json.dumps(document))


@pytest.mark.parametrize(
    ("arn", "resource"),
    [
        ("arn:aws:states:::lambda:invoke.waitForTaskToken", Resource("lambda", "invoke", "waitForTaskToken")),
        (
            "arn:aws:states:::aws-sdk:sagemaker:createModelPackage",
            Resource("sagemaker", "createModelPackage", sdk=True),
        ),
        (
            "arn:aws-cn:states:::sagemaker:createTrainingJob.sync",
            Resource("sagemaker", "createTrainingJob", "sync"),
        ),
        ("arn:aws:lambda:us-east-1:1:function:f", None),
    ],
)
def test_resources_are_taken_apart(arn: str, resource: Resource | None) -> None:
    """Service, action, pattern and kind of integration come out of the ARN."""
    assert Resource.parse(arn) == resource
