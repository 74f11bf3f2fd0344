"""Runs the machine on the interpreter that the local AWS uses, with scripted answers in place of the services.

Everything but the answers is real: JSONata, variables, choices, retries, catchers, time-outs of states.
"""

import datetime as dt
import json
import types
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jsonata
import pytest
from asl_machine import EXECUTION_ARN
from ministack.services import stepfunctions as ministack
from moto.stepfunctions.parser.api import HistoryEventType, TaskFailedEventDetails
from moto.stepfunctions.parser.asl.component.common.catch import catch_decl
from moto.stepfunctions.parser.asl.component.common.error_name.custom_error_name import CustomErrorName
from moto.stepfunctions.parser.asl.component.common.error_name.error_name import ErrorName
from moto.stepfunctions.parser.asl.component.common.error_name.failure_event import (
    FailureEvent,
    FailureEventException,
)
from moto.stepfunctions.parser.asl.component.common.error_name.states_error_name import StatesErrorName
from moto.stepfunctions.parser.asl.component.common.error_name.states_error_name_type import (
    StatesErrorNameType,
)
from moto.stepfunctions.parser.asl.component.state.exec.state_task import state_task_factory
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service.resource import ResourceCondition
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service.state_task_service import (
    StateTaskService,
)
from moto.stepfunctions.parser.asl.eval.event.event_detail import EventDetails
from moto.stepfunctions.parser.asl.jsonata import jsonata as moto_jsonata
from moto.stepfunctions.parser.asl.parse.asl_parser import AmazonStateLanguageParser
from moto.stepfunctions.parser.asl.utils.encoding import to_json_str
from moto.stepfunctions.parser.backend.execution import Execution
from moto.stepfunctions.parser.backend.execution_worker import ExecutionWorker


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
    timeout_s: int


@dataclass
class Story:
    """What happened in one execution."""

    status: str = ""
    path: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    caught: list[tuple[str, int]] = field(default_factory=list)
    """State and index of the catcher."""
    output: Any = None
    error: str | None = None
    cause: str | None = None

    def request(self, state: str) -> dict[str, Any]:
        """The arguments of the last request that a state made."""
        return next(call.arguments for call in reversed(self.calls) if call.state == state)


def _whole(value: Any) -> Any:
    """Numbers as JSON prints them: 5, not 5.0."""
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def evaluate(expression: str) -> Any:
    """JSONata with Step Functions' additions."""
    return json.loads(_evaluated(expression))


@cache
def _evaluated(expression: str) -> str:
    # The interpreter writes the variables into the expression's text, so equal texts have equal values; most
    # cases share most of their path.
    try:
        compiled = jsonata.Jsonata(expression)
        ministack._register_sfn_jsonata_functions(compiled)
        return json.dumps(_whole(compiled.evaluate(None)))
    except Exception as error:
        raise moto_jsonata.JSONataException("UNKNOWN", str(error)) from error


def _error_name(name: str) -> ErrorName:
    if name.startswith("States."):
        return StatesErrorName(typ=StatesErrorNameType.from_name(name))
    return CustomErrorName(name)


class _Play:
    """The execution that is under way: its script and what it has done so far. One at a time."""

    def __init__(self, answers: Mapping[str, list[Answer]], redrive_count: int) -> None:
        self.story = Story()
        self.redrive_count = redrive_count
        self._answers = answers
        self._used: Counter[str] = Counter()

    def answer(self, call: Call) -> Answer:
        self.story.calls.append(call)
        script = self._answers[call.state]
        turn = min(self._used[call.state], len(script) - 1)
        self._used[call.state] += 1
        return script[turn]


_now_playing: list[_Play] = []


def _state_of(env: Any) -> str:
    return str(env.states.context_object.context_object_data["State"]["Name"])


class _ScriptedTask(StateTaskService):
    """Any service's task: evaluates its arguments and time-out, then takes its answer from the script."""

    def _get_supported_parameters(self) -> set[str]:
        return set()

    def _eval_service_task(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("answers come from the script")

    def _eval_execution(self, env: Any) -> None:
        play = _now_playing[-1]
        if self.resource.condition == ResourceCondition.WaitForTaskToken:
            env.states.context_object.update_task_token()
        arguments = self._eval_parameters(env=env)
        self.timeout.eval(env=env)
        answer = play.answer(Call(_state_of(env), self.resource.resource_arn, arguments, env.stack.pop()))
        if isinstance(answer, Fails):
            raise FailureEventException(self._failure(env, answer))
        env.stack.append(json.loads(to_json_str(answer(arguments) if callable(answer) else answer)))
        self._verify_size_quota(env=env, value=env.stack[-1])

    def _failure(self, env: Any, answer: Fails) -> FailureEvent:
        details = TaskFailedEventDetails(
            resource=self._get_sfn_resource(),
            resourceType=self._get_sfn_resource_type(),
            error=answer.error,
            cause=answer.cause,
        )
        return FailureEvent(
            env=env,
            error_name=_error_name(answer.error),
            event_type=HistoryEventType.TaskFailed,
            event_details=EventDetails(taskFailedEventDetails=details),
        )


class _Worker(ExecutionWorker):
    """Parses each definition once, and counts redrives in the context object as Step Functions does."""

    def start(self) -> None:
        self._execution_logic()

    def _get_evaluation_entrypoint(self) -> Any:
        return _parsed(self._evaluation_details.state_machine_details.definition)

    def _get_evaluation_environment(self) -> Any:
        env = super()._get_evaluation_environment()
        env.states.context_object.context_object_data["Execution"]["RedriveCount"] = _now_playing[
            -1
        ].redrive_count
        return env


@cache
def _parsed(definition: str) -> Any:
    # A program keeps nothing of a run: attempts and variables live in the run's environment.
    return AmazonStateLanguageParser.parse(definition)[0]


class _Execution(Execution):
    def _get_start_execution_worker(self) -> _Worker:
        made = super()._get_start_execution_worker()
        made.__class__ = _Worker
        return made


def _catch(decl: Any, env: Any) -> None:
    """Moto's CatchDecl, which also notes which catcher it was."""
    for index, catcher in enumerate(decl.catchers):
        catcher.eval(env)
        if isinstance(env.stack.pop(), catch_decl.CatcherOutcomeCaught):
            _now_playing[-1].story.caught.append((_state_of(env), index))
            env.stack.append(catch_decl.CatchOutcome.Caught)
            return
    env.stack.append(catch_decl.CatchOutcome.NotCaught)


def run(
    monkeypatch: pytest.MonkeyPatch,
    machine: Mapping[str, Any],
    execution_input: Mapping[str, Any],
    answers: Mapping[str, list[Answer]],
    redrive_count: int = 0,
) -> Story:
    """Run to the end. A state's answers are given in turn; its last one stays."""
    monkeypatch.setattr(state_task_factory, "state_task_service_for", lambda service_name: _ScriptedTask())  # noqa: ARG005  # moto gives it by name
    monkeypatch.setattr(moto_jsonata, "_eval_jsonata", evaluate)
    monkeypatch.setattr(catch_decl.CatchDecl, "_eval_body", _catch)
    play = _Play(answers, redrive_count)
    _now_playing[:] = [play]
    execution = _Execution(
        name=EXECUTION_ARN.rsplit(":", 1)[-1],
        sm_type="STANDARD",
        role_arn="arn:aws:iam::123456789012:role/dropforge-FineTuneRole",
        exec_arn=EXECUTION_ARN,
        account_id="123456789012",
        region_name="eu-west-1",
        state_machine=types.SimpleNamespace(
            arn="arn:aws:states:eu-west-1:123456789012:stateMachine:dropforge-fine-tune",
            name="dropforge-fine-tune",
            definition=json.dumps(machine),
            sm_type="STANDARD",
        ),
        start_date=dt.datetime(2026, 11, 21, tzinfo=dt.UTC),
        cloud_watch_logging_session=None,
        activity_store={},
        input_data=json.dumps(execution_input),
    )
    execution.start()
    story = play.story
    story.status = str(execution.exec_status.value)
    story.path = [
        event["stateEnteredEventDetails"]["name"]
        for event in execution.to_history_output()["events"]
        if "stateEnteredEventDetails" in event
    ]
    story.output, story.error, story.cause = execution.output, execution.error, execution.cause
    return story
