"""Lines of a container to a CloudWatch Logs stream, in batches, while it runs."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_logs import CloudWatchLogsClient
    from mypy_boto3_logs.type_defs import InputLogEventTypeDef

_log = logging.getLogger(__name__)

MAX_EVENTS: Final = 10_000
"""PutLogEvents: events in one call."""
MAX_BYTES: Final = 1_048_576
"""PutLogEvents: bytes in one call, each event counting 26 more than its UTF-8."""
EVENT_OVERHEAD: Final = 26
_ATTEMPTS: Final = 3


class LogStream:
    """One stream, written by a thread of its own. A line is never waited for, and a lost one fails no job."""

    def __init__(
        self,
        logs: "CloudWatchLogsClient",
        group: str,
        stream: str,
        every_s: float = 0.5,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._logs, self._group, self._stream = logs, group, stream
        self._every_s, self._clock = every_s, clock
        self._lines: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._write, name=f"logs-{stream}", daemon=True)
        self._thread.start()

    def line(self, text: str) -> None:
        """Add a line; blank ones are dropped, CloudWatch takes no empty event."""
        if text.strip():
            self._lines.put((int(self._clock() * 1000), text))

    def close(self) -> None:
        """Write what is left."""
        self._closed.set()
        self._thread.join(timeout=30)

    def _write(self) -> None:
        self._create()
        while True:
            last = self._closed.wait(self._every_s)
            while batch := self._batch():
                self._put(batch)
            if last:
                return

    def _create(self) -> None:
        calls: list[tuple[Callable[..., Any], dict[str, str]]] = [
            (self._logs.create_log_group, {"logGroupName": self._group}),
            (self._logs.create_log_stream, {"logGroupName": self._group, "logStreamName": self._stream}),
        ]
        for call, arguments in calls:
            try:
                call(**arguments)
            except (BotoCoreError, ClientError) as error:
                if "ResourceAlreadyExists" not in str(error):
                    _log.warning("log stream %s/%s: %s", self._group, self._stream, error)

    def _batch(self) -> "list[InputLogEventTypeDef]":
        events: list[InputLogEventTypeDef] = []
        size = 0
        # A line longer than the room left goes alone into the next batch; process.py bounds each line.
        while len(events) < MAX_EVENTS and size < MAX_BYTES // 2:
            try:
                at, text = self._lines.get_nowait()
            except queue.Empty:
                break
            events.append({"timestamp": at, "message": text})
            size += len(text.encode()) + EVENT_OVERHEAD
        return events

    def _put(self, events: "list[InputLogEventTypeDef]") -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._logs.put_log_events(
                    logGroupName=self._group, logStreamName=self._stream, logEvents=events
                )
            except (BotoCoreError, ClientError) as error:
                if attempt == _ATTEMPTS:
                    _log.warning("%d log lines of %s are lost: %s", len(events), self._stream, error)
                elif self._closed.wait(self._every_s):
                    time.sleep(self._every_s)
            else:
                return
