"""Answers that come from elsewhere: to task tokens, and news of jobs that `.sync` waits for."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dropforge.local.asl.failure import HEARTBEAT_TIMEOUT, TIMEOUT, Failure
from dropforge.local.asl.waiting import Control


class TaskDoesNotExist(Exception):
    """Nobody waits for this token, or it was never given out."""


class TaskTimedOut(Exception):
    """The task of this token is over: it timed out, was answered before, or its execution ended."""


class Answer:
    """What a task with a token waits for."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._result: Any = None
        self._failure: Failure | None = None
        self._settled = False
        self._beat = control.monotonic()

    def settle(self, result: Any, failure: Failure | None) -> None:
        """The first answer counts."""
        if self._settled:
            raise TaskTimedOut
        self._result, self._failure, self._settled = result, failure, True
        self._control.notify()

    def beat(self) -> None:
        """The worker lives."""
        self._beat = self._control.monotonic()
        self._control.notify()

    def wait(self, until: float | None, heartbeat_s: float | None) -> Any:
        """The result.

        Raises:
            Failure: as the worker said; States.Timeout; States.HeartbeatTimeout.
        """
        self._beat = self._control.monotonic()
        while not self._settled:
            pulse = None if heartbeat_s is None else self._beat + heartbeat_s
            ends = [end for end in (until, pulse) if end is not None]
            beat = self._beat
            come = self._control.wait_for(
                lambda beat=beat: self._settled or self._beat != beat,  # type: ignore[misc]
                min(ends, default=None),
            )
            if come:
                continue
            self._settled = True
            raise Failure(
                TIMEOUT if until is not None and self._control.monotonic() >= until else HEARTBEAT_TIMEOUT
            )
        if self._failure is not None:
            raise self._failure
        return self._result

    def close(self) -> None:
        self._settled = True


@dataclass
class Change:
    """Counts the news of one job."""

    control: Control
    count: int = field(default=0)


class Callbacks:
    """Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: dict[str, Answer] = {}
        self._watched: dict[str, list[Change]] = {}
        self._over: set[str] = set()

    @contextmanager
    def expect(self, token: str, control: Control) -> Iterator[Answer]:
        """Take answers to `token` while the block lasts."""
        answer = Answer(control)
        with self._lock:
            self._answers[token] = answer
        try:
            yield answer
        finally:
            answer.close()
            with self._lock:
                del self._answers[token]
                self._over.add(token)

    def succeed(self, token: str, output: str) -> None:
        """SendTaskSuccess.

        Raises:
            TaskDoesNotExist, TaskTimedOut.
            json.JSONDecodeError: `output` is not JSON.
        """
        self._find(token).settle(json.loads(output), None)

    def fail(self, token: str, error: str, cause: str) -> None:
        """SendTaskFailure."""
        self._find(token).settle(None, Failure(error, cause))

    def beat(self, token: str) -> None:
        """SendTaskHeartbeat."""
        self._find(token).beat()

    @contextmanager
    def watch(self, arn: str, control: Control) -> Iterator[Change]:
        """Count the news of a job while the block lasts."""
        change = Change(control)
        with self._lock:
            self._watched.setdefault(arn, []).append(change)
        try:
            yield change
        finally:
            with self._lock:
                self._watched[arn].remove(change)
                if not self._watched[arn]:
                    del self._watched[arn]

    def changed(self, arn: str) -> None:
        """A job moved on."""
        with self._lock:
            changes = list(self._watched.get(arn, []))
        for change in changes:
            change.count += 1
            change.control.notify()

    def _find(self, token: str) -> Answer:
        with self._lock:
            found = self._answers.get(token)
            if found is None:
                raise TaskTimedOut if token in self._over else TaskDoesNotExist
            return found
