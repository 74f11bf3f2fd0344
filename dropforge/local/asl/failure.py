"""Errors of the States Language: their names, their matching by Retry and Catch, and how executions end early."""

from collections.abc import Sequence
from typing import Final

ERROR_MAX: Final = 256
CAUSE_MAX: Final = 32_768
"""Characters (TaskFailed and ExecutionFailed events; botocore SensitiveError, SensitiveCause)."""

TIMEOUT: Final = "States.Timeout"
HEARTBEAT_TIMEOUT: Final = "States.HeartbeatTimeout"
TASK_FAILED: Final = "States.TaskFailed"
QUERY_EVALUATION_ERROR: Final = "States.QueryEvaluationError"
DATA_LIMIT_EXCEEDED: Final = "States.DataLimitExceeded"
RUNTIME: Final = "States.Runtime"
NO_CHOICE_MATCHED: Final = "States.NoChoiceMatched"
TOO_MANY_FAILED: Final = "States.ExceedToleratedFailureThreshold"

_NOT_IN_ALL: Final = frozenset({DATA_LIMIT_EXCEEDED, RUNTIME})
_NOT_IN_TASK_FAILED: Final = frozenset({TIMEOUT, HEARTBEAT_TIMEOUT, *_NOT_IN_ALL})


class Failure(Exception):
    """A state failed. `error` is what Retry and Catch match; both texts are cut to Step Functions' limits."""

    def __init__(self, error: str, cause: str = "") -> None:
        self.error, self.cause = error[:ERROR_MAX], cause[:CAUSE_MAX]
        super().__init__(f"{self.error}: {self.cause}")


class Aborted(Exception):
    """StopExecution was called. No Catch sees it."""


class MachineTimedOut(Exception):
    """The machine's own TimeoutSeconds passed. No Catch sees it."""


def matches(error_equals: Sequence[str], error: str) -> bool:
    """Whether a retrier or catcher with `error_equals` takes `error`.

    States.ALL takes everything but States.DataLimitExceeded and States.Runtime; States.TaskFailed
    takes what a task reports, time-outs excepted (Step Functions guide, "Error names"). Either of
    the two that States.ALL leaves out is taken where it is named.
    """
    if error in error_equals:
        return True
    if "States.ALL" in error_equals:
        return error not in _NOT_IN_ALL
    if TIMEOUT in error_equals and error == HEARTBEAT_TIMEOUT:
        # A heartbeat that is missed is a time-out too.
        return True
    return TASK_FAILED in error_equals and error not in _NOT_IN_TASK_FAILED
