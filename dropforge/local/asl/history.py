"""The events of an execution, shaped as GetExecutionHistory gives them."""

import json
import threading
from collections.abc import Callable, Mapping, MutableSequence
from datetime import UTC, datetime
from typing import Any


def iso(seconds: float) -> str:
    """`2026-11-21T05:33:00.123Z`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def compact(value: Any) -> str:
    """JSON as the service writes it into events."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


class History:
    """Appends to a list that others may read meanwhile. Safe to use from any thread."""

    def __init__(self, events: MutableSequence[dict[str, Any]], now: Callable[[], float]) -> None:
        self._events = events
        self._now = now
        self._lock = threading.Lock()

    def add(self, kind: str, details: Mapping[str, Any] | None = None, member: str | None = None) -> None:
        """Add one event. The history of an execution that was stopped ends there, until it is redriven.

        Args:
            kind: such as `TaskSucceeded`.
            details: None where the event has none.
            member: name of the details; by default the kind's, `taskSucceededEventDetails`.
        """
        if self._events and self._events[-1]["type"] == "ExecutionAborted" and kind != "ExecutionRedriven":
            # Whoever still runs when the execution is stopped learns of it a moment later.
            return
        told = {} if details is None else {key: value for key, value in details.items() if value is not None}
        with self._lock:
            number = len(self._events) + 1
            event: dict[str, Any] = {
                "id": number,
                "previousEventId": number - 1,
                "timestamp": iso(self._now()),
                "type": kind,
            }
            if details is not None:
                event[member or f"{kind[0].lower()}{kind[1:]}EventDetails"] = told
            self._events.append(event)
