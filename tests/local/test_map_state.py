"""Map states on the interpreter alone: items, scopes, failures, redrives, concurrency."""

import json
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.local.asl.crew import in_a_thread
from dropforge.local.asl.definition import Definition, DefinitionRefused
from dropforge.local.asl.failure import Aborted, Failure
from dropforge.local.asl.history import History
from dropforge.local.asl.interpreter import PAYLOAD_MAX, Interpreter, World
from dropforge.local.asl.position import Child, Iterations, MapRun, Outcome, Position
from dropforge.local.asl.task import TaskCall
from dropforge.local.asl.waiting import LiveControl

MACHINE = "arn:aws:states:us-east-1:1:stateMachine:m"
CONTEXT = {
    "Execution": {"Id": "arn:aws:states:us-east-1:1:execution:m:e", "Name": "e", "RedriveCount": 0},
    "StateMachine": {"Id": MACHINE, "Name": "m"},
}
DISTRIBUTED = {"Mode": "DISTRIBUTED", "ExecutionType": "STANDARD"}


def one_after_another(work: Callable[[], None]) -> Callable[[], None]:
    work()
    return lambda: None


class Tasks:
    """Does what it is given, and keeps the calls."""

    def __init__(self, work: Callable[[TaskCall], Any]) -> None:
        self._work, self.calls = work, []

    def run(self, call: TaskCall) -> Any:
        self.calls.append(call)
        return self._work(call)


class Walk:
    """One execution of a machine whose first state is `Each`, a Map over a task."""

    def __init__(
        self, states: dict[str, Any], work: Callable[[TaskCall], Any] | None = None, **world: Any
    ) -> None:
        text = json.dumps({"QueryLanguage": "JSONata", "StartAt": next(iter(states)), "States": states})
        self.definition = Definition.parse(text)
        self.tasks = Tasks(work or (lambda call: call.arguments))
        self.control = LiveControl(world.pop("timeout_s", None))
        self.events: list[dict[str, Any]] = []
        self.runs: dict[str, MapRun] = {}
        self.world = World(
            self.tasks,
            self.control,
            lambda low, _high: low,
            tell=self._tell,
            **{"beside": one_after_another, **world},
        )
        self.position = Position(self.definition.start_at, None)

    def _tell(self, run: MapRun, _child: Child | None) -> None:
        self.runs[run.arn] = run

    def go(self, given: Any = None) -> Outcome:
        if not self.events:
            self.position.input = given if given is not None else {}
        interpreter = Interpreter(
            self.definition, CONTEXT, self.world, History(self.events, self.control.now)
        )
        return interpreter.run(self.position)

    @property
    def kinds(self) -> list[str]:
        return [event["type"] for event in self.events]

    @property
    def only_run(self) -> MapRun:
        (run,) = self.runs.values()
        return run


def each(mode: str = "INLINE", states: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A Map over `$states.input`; each item is handed to a task, whose result is the iteration's."""
    inner = states or {"Do": task(Arguments="{% $states.input %}")}
    config = DISTRIBUTED if mode == "DISTRIBUTED" else {"Mode": "INLINE"}
    return {
        "Type": "Map",
        "ItemProcessor": {"ProcessorConfig": config, "StartAt": next(iter(inner)), "States": inner},
        **({} if "Next" in fields else {"End": True}),
        **fields,
    }


def task(**fields: Any) -> dict[str, Any]:
    ends = {} if "Next" in fields else {"End": True}
    return {"Type": "Task", "Resource": "arn:aws:states:::lambda:invoke", **ends, **fields}


def fails_on(*items: Any) -> Callable[[TaskCall], Any]:
    def work(call: TaskCall) -> Any:
        if call.arguments in items:
            raise Failure("Broken", f"item {call.arguments}")
        return call.arguments

    return work


@pytest.mark.parametrize("mode", ["INLINE", "DISTRIBUTED"])
def test_results_stand_in_the_order_of_the_items(mode: str) -> None:
    """Each item goes through the processor, and the array of outputs is the Map's result."""
    machine = {"Each": each(mode, Items="{% [1..4] %}", Output="{% $states.result %}")}
    assert Walk(machine, lambda call: call.arguments * 10).go() == Outcome("SUCCEEDED", [10, 20, 30, 40])


@pytest.mark.parametrize("mode", ["INLINE", "DISTRIBUTED"])
def test_without_items_the_input_is_the_array(mode: str) -> None:
    """Items is optional; no items at all give an empty result, and anything but an array is an error."""
    machine = {"Each": each(mode)}
    assert Walk(machine).go(["a", "b"]).output == ["a", "b"]
    assert Walk(machine).go([]).output == []
    assert Walk(machine).go({"a": 1}).error == "States.QueryEvaluationError"


def test_item_selector_sees_item_index_input_and_variables() -> None:
    """ItemSelector is evaluated in the Map's own scope, once an item, in either mode."""
    selector = {
        "n": "{% $states.context.Map.Item.Index %}",
        "v": "{% $states.context.Map.Item.Value %}",
        "run": "{% $run %}",
        "of": "{% $count($states.input) %}",
    }
    for mode in ("INLINE", "DISTRIBUTED"):
        machine = {
            "Name": {"Type": "Pass", "Assign": {"run": "r1"}, "Next": "Each"},
            "Each": each(mode, ItemSelector=selector),
        }
        assert Walk(machine).go(["x", None]).output == [
            {"n": 0, "v": "x", "run": "r1", "of": 2},
            {"n": 1, "v": None, "run": "r1", "of": 2},
        ]


def test_only_inline_iterations_read_the_variables_around_them() -> None:
    """An Inline Map's states see outer variables; a distributed child has none but its own, and no item in its context."""
    read = {"Read": {"Type": "Pass", "Output": "{% $run %}", "End": True}}
    for mode, expected in (("INLINE", "SUCCEEDED"), ("DISTRIBUTED", "FAILED")):
        named = {"Type": "Pass", "Assign": {"run": "r1"}, "Next": "Each"}
        assert Walk({"Name": named, "Each": each(mode, read)}).go([1]).status == expected
        item = {"Read": {"Type": "Pass", "Output": "{% $states.context.Map.Item.Index %}", "End": True}}
        assert Walk({"Each": each(mode, item)}).go([1]).status == "FAILED"


def test_what_an_iteration_assigns_stays_in_it() -> None:
    """Variables of iterations are theirs: neither the Map's successors nor other iterations see them."""
    inner = {
        "Keep": {"Type": "Pass", "Assign": {"mine": "{% $states.input %}"}, "Next": "Give"},
        "Give": {"Type": "Pass", "Output": "{% $mine %}", "End": True},
    }
    after = {"Type": "Pass", "Output": "{% $exists($mine) %}", "End": True}
    for mode in ("INLINE", "DISTRIBUTED"):
        walk = Walk(
            {"Each": each(mode, inner, Next="After", Assign={"all": "{% $states.result %}"}), "After": after}
        )
        assert walk.go([1, 2]).output is False
        assert walk.position.variables == {"all": [1, 2]}


def test_a_child_is_an_execution_of_its_own() -> None:
    """Its context, history and ARN are its own; the parent's history tells of the Map Run alone."""
    tell = {"Tell": {"Type": "Pass", "Output": "{% $states.context %}", "End": True}}
    walk = Walk({"Each": each("DISTRIBUTED", tell, Label="parts")})
    (context,) = walk.go(["x"]).output
    (child,) = walk.only_run.children
    assert child.arn == f"arn:aws:states:us-east-1:1:execution:m/parts:{child.name}"
    assert context["Execution"]["Id"] == child.arn
    assert context["Execution"]["Input"] == "x"
    assert context["StateMachine"]["Id"] == f"{MACHINE}/parts"
    assert [event["type"] for event in child.events] == [
        "ExecutionStarted",
        "PassStateEntered",
        "PassStateExited",
        "ExecutionSucceeded",
    ]
    assert walk.kinds == [
        "MapStateEntered",
        "MapStateStarted",
        "MapRunStarted",
        "MapRunSucceeded",
        "MapStateSucceeded",
        "MapStateExited",
        "ExecutionSucceeded",
    ]
    assert walk.events[1]["mapStateStartedEventDetails"] == {"length": 1}
    assert walk.events[2]["mapRunStartedEventDetails"] == {"mapRunArn": walk.only_run.arn}


def test_an_inline_maps_iterations_are_in_the_history() -> None:
    """Iterations are told by index, each with the events of its states."""
    walk = Walk({"Each": each(states={"Do": {"Type": "Pass", "End": True}})})
    walk.go(["x"])
    assert walk.kinds == [
        "MapStateEntered",
        "MapStateStarted",
        "MapIterationStarted",
        "PassStateEntered",
        "PassStateExited",
        "MapIterationSucceeded",
        "MapStateSucceeded",
        "MapStateExited",
        "ExecutionSucceeded",
    ]
    assert walk.events[2]["mapIterationStartedEventDetails"] == {"name": "Each", "index": 0}


def test_an_inline_map_fails_as_its_iteration_did() -> None:
    """The iteration's own error reaches the Map's Catch; iterations behind it never begin."""
    caught = {"ErrorEquals": ["Broken"], "Output": "{% $states.errorOutput.Cause %}", "Next": "Told"}
    walk = Walk({"Each": each(Catch=[caught], MaxConcurrency=1), "Told": {"Type": "Succeed"}}, fails_on(2))
    assert walk.go([1, 2, 3]).output == "item 2"
    assert [call.arguments for call in walk.tasks.calls] == [1, 2]
    assert walk.kinds.count("MapIterationFailed") == walk.kinds.count("MapStateFailed") == 1


def test_a_distributed_map_fails_by_its_threshold() -> None:
    """One child too many is States.ExceedToleratedFailureThreshold; what is tolerated stands in the result."""
    machine = {"Each": each("DISTRIBUTED")}
    outcome = Walk(machine, fails_on(2)).go([1, 2, 3])
    assert outcome.error == "States.ExceedToleratedFailureThreshold"
    assert outcome.cause == "The specified tolerated failure threshold was exceeded"
    tolerant = Walk({"Each": each("DISTRIBUTED", ToleratedFailureCount=1)}, fails_on(2)).go([1, 2, 3])
    assert tolerant.output == [1, {"Status": "FAILED", "Error": "Broken", "Cause": "item 2"}, 3]
    by_share = {"Each": each("DISTRIBUTED", ToleratedFailurePercentage="{% 50 %}")}
    assert Walk(by_share, fails_on(1, 2)).go([1, 2, 3, 4]).status == "SUCCEEDED"
    assert Walk(by_share, fails_on(1, 2, 3)).go([1, 2, 3, 4]).status == "FAILED"


@given(
    ended=st.lists(st.sampled_from(["SUCCEEDED", "FAILED", "TIMED_OUT", "ABORTED", None]), min_size=1),
    count=st.integers(0, 5),
    percentage=st.integers(0, 100),
)
def test_a_map_is_lost_when_either_tolerance_is_passed(ended: list[Any], count: int, percentage: int) -> None:
    """Failures and time-outs count, aborts do not; without a tolerance the first one is too many."""
    children = [
        Child(index, None, Position("S", None), Outcome(status) if status else None)
        for index, status in enumerate(ended)
    ]
    failed = Counter(ended)["FAILED"] + Counter(ended)["TIMED_OUT"]
    within_count = failed <= count if count else True
    within_share = failed * 100 <= percentage * len(ended) if percentage else True
    tolerated = within_count and within_share if count or percentage else failed == 0
    assert Iterations(children, 0, count, percentage).lost is not tolerated


@pytest.mark.parametrize("mode", ["INLINE", "DISTRIBUTED"])
def test_a_retried_map_begins_anew(mode: str) -> None:
    """Retry on the Map runs all items again; RetryCount counts the Map's own attempts."""
    first: list[int] = []

    def work(call: TaskCall) -> Any:
        if call.arguments == 2 and not first:
            first.append(1)
            raise Failure("Broken", "once")
        return call.arguments

    retry = {"ErrorEquals": ["States.ALL"], "IntervalSeconds": 1, "JitterStrategy": "FULL"}
    out = {"result": "{% $states.result %}", "tries": "{% $states.context.State.RetryCount %}"}
    walk = Walk({"Each": each(mode, Retry=[retry], Output=out, MaxConcurrency=1)}, work)
    assert walk.go([1, 2]).output == {"result": [1, 2], "tries": 1}
    assert [call.arguments for call in walk.tasks.calls] == [1, 2, 1, 2]
    assert len(walk.runs) == (2 if mode == "DISTRIBUTED" else 0)


@pytest.mark.parametrize("mode", ["INLINE", "DISTRIBUTED"])
def test_a_redrive_runs_only_what_did_not_succeed(mode: str) -> None:
    """Children that succeeded keep their outputs; the others go on from the state that failed."""
    broken = {2}
    inner = {
        "Before": task(Arguments="{% $states.input %}", Next="Do"),
        "Do": task(Arguments="{% $states.input %}"),
    }

    def work(call: TaskCall) -> Any:
        if call.state == "Do" and call.arguments in broken:
            raise Failure("Broken", "for now")
        return call.arguments

    walk = Walk({"Each": each(mode, inner, MaxConcurrency=1)}, work)
    assert walk.go([1, 2, 3]).status == "FAILED"
    broken.clear()
    before = len(walk.tasks.calls)
    assert walk.go().output == [1, 2, 3]
    again = [(call.state, call.arguments) for call in walk.tasks.calls[before:]]
    assert again == [("Do", 2), ("Before", 3), ("Do", 3)]
    if mode == "DISTRIBUTED":
        assert walk.only_run.redrives == 1
        assert [child.redrives for child in walk.only_run.children] == [0, 1, 0]
        assert "MapRunRedriven" in walk.kinds


def test_children_really_run_beside_one_another() -> None:
    """With threads, as many run at once as MaxConcurrency says, and never more."""
    lock, meeting = threading.Lock(), threading.Barrier(3)
    running, most = [0], [0]

    def work(call: TaskCall) -> Any:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        meeting.wait(20)
        with lock:
            running[0] -= 1
        return call.arguments

    walk = Walk({"Each": each("DISTRIBUTED", MaxConcurrency=3)}, work, beside=in_a_thread)
    assert walk.go([1, 2, 3, 4, 5, 6]).output == [1, 2, 3, 4, 5, 6]
    assert most[0] == 3


@pytest.mark.parametrize("mode", ["INLINE", "DISTRIBUTED"])
@pytest.mark.parametrize("how", ["aborted", "timed out", "sibling failed"])
def test_an_end_reaches_every_child(mode: str, how: str) -> None:
    """When the execution is stopped, runs out of time, or one child fails, no other child runs on."""
    begun, left = threading.Semaphore(0), []

    def work(call: TaskCall) -> Any:
        if how == "sibling failed" and call.arguments == 3:
            for _ in range(2):
                begun.acquire(timeout=20)
            raise Failure("Broken", "a sibling")
        begun.release()
        try:
            call.control.wait_for(lambda: False, None)
        except Aborted:
            left.append(call.arguments)
            raise

    walk = Walk({"Each": each(mode)}, work, beside=in_a_thread, timeout_s=0.5 if how == "timed out" else None)
    items = [1, 2, 3]
    if how == "aborted":

        def stop() -> None:
            for _ in items:
                begun.acquire(timeout=20)
            walk.control.abort()

        threading.Thread(target=stop, daemon=True).start()
    outcome = walk.go(items)
    expected = {"aborted": "ABORTED", "timed out": "TIMED_OUT", "sibling failed": "FAILED"}[how]
    waiting = [1, 2] if how == "sibling failed" else items
    assert sorted(left) == waiting
    assert outcome.status == expected
    if mode == "DISTRIBUTED":
        assert [child.outcome.status for child in walk.only_run.children[:2]] == ["ABORTED", "ABORTED"]
        assert walk.only_run.status == ("FAILED" if how == "sibling failed" else "ABORTED")


def test_maps_may_stand_in_maps() -> None:
    """A processor may itself have a Map, of either mode, and each keeps its own scope."""
    inner = each("INLINE", Items="{% [1..$states.input] %}")
    outer = each("DISTRIBUTED", {"Inner": inner})
    assert Walk({"Outer": outer}).go([1, 2]).output == [[1], [1, 2]]


def test_results_together_stay_within_the_payload() -> None:
    """Small outputs of many children may be too much together: States.DataLimitExceeded."""
    walk = Walk({"Each": each("DISTRIBUTED")}, lambda _call: "x" * (PAYLOAD_MAX // 4))
    assert walk.go([1, 2, 3, 4]).error == "States.DataLimitExceeded"


def test_a_fault_of_our_own_is_not_swallowed() -> None:
    """An exception that is no Failure comes out of the walk, from whichever child it came."""

    def work(_call: TaskCall) -> Any:
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        Walk({"Each": each("DISTRIBUTED")}, work).go([1])


@pytest.mark.parametrize(
    ("state", "fault"),
    [
        (each(ItemReader={}), "ItemReader: the local Step Functions reads no items from S3"),
        (each(ItemBatcher={}), "ItemBatcher: the local Step Functions makes no batches"),
        (each(ResultWriter={}), "ResultWriter: the local Step Functions writes no results to S3"),
        (each(ItemsPath="$"), "ItemsPath: not a field of a Map state in JSONata"),
        (each(Items={"a": 1}), "Items: the local Step Functions takes an array"),
        (each(Label="x"), "Label: only a Map in mode DISTRIBUTED has it"),
        (each(ToleratedFailureCount=1), "ToleratedFailureCount: only a Map in mode DISTRIBUTED"),
        (each("DISTRIBUTED", Label="x" * 41), "Label: at most 40 characters"),
        ({"Type": "Map", "End": True}, "ItemProcessor: required"),
        ({**each(), "ItemProcessor": {}}, "ItemProcessor: a JSON object with StartAt and States"),
        (
            {**each(), "ItemProcessor": {**each()["ItemProcessor"], "ProcessorConfig": {"Mode": "BOTH"}}},
            "ProcessorConfig.Mode: INLINE or DISTRIBUTED, found BOTH",
        ),
        (
            {
                **each(),
                "ItemProcessor": {**each()["ItemProcessor"], "ProcessorConfig": {"Mode": "DISTRIBUTED"}},
            },
            "ProcessorConfig.ExecutionType: the local Step Functions runs STANDARD children only",
        ),
        (
            {**each(), "ItemProcessor": {**each()["ItemProcessor"], "TimeoutSeconds": 1}},
            "ItemProcessor.TimeoutSeconds: not a field here",
        ),
        (each(states={"Do": task(Next="After")}), "Do: MISSING_TRANSITION_TARGET: there is no state 'After'"),
        (each(states={"Do": task(), "Lost": task()}), "Lost: MISSING_TRANSITION_TARGET: no state leads here"),
        (each(states={"Each": task()}), "Each: 2 states have this name"),
        (
            each(states={"Do": {"Type": "Pass", "Assign": {"seen": 1}, "End": True}}, Assign={"seen": 2}),
            "Assign: $seen is a variable of the workflow around this Map",
        ),
        (
            each(states={"Do": {"Type": "Pass", "Output": "{% 1 + %}", "End": True}}),
            "Do: '1 +' is not JSONata",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_with_its_reason(state: dict[str, Any], fault: str) -> None:
    """A Map that AWS would refuse, or that needs what is not here, is told by name at creation."""
    document = {"QueryLanguage": "JSONata", "StartAt": "Each", "States": {"Each": state}}
    with pytest.raises(DefinitionRefused) as refused:
        Definition.parse(json.dumps(document))
    assert fault in str(refused.value)


def test_a_child_execution_may_use_the_names_around_it() -> None:
    """A distributed child begins without variables, so that its names can't clash."""
    inner = {"Do": {"Type": "Pass", "Assign": {"seen": 1}, "End": True}}
    assert Walk({"Each": each("DISTRIBUTED", inner, Assign={"seen": 2})}).go([1]).status == "SUCCEEDED"
