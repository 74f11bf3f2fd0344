"""How an execution waits: for seconds, for an answer, and never longer than it may."""

import threading
import time
from collections.abc import Callable
from typing import Protocol

from dropforge.local.asl.failure import Aborted, MachineTimedOut


class Control(Protocol):
    """The time of one execution, and the lever that ends it."""

    def now(self) -> float:
        """Seconds since the epoch."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; `until` below is on it."""

    def notify(self) -> None:
        """Something came that may be waited for. Called from any thread."""

    def wait_for(self, come: Callable[[], bool], until: float | None) -> bool:
        """Wait until `come()`; False where `until` passed first.

        Raises:
            Aborted: the execution was stopped.
            MachineTimedOut: the machine's own time is over.
        """


class LiveControl:
    """Real time."""

    def __init__(self, timeout_s: float | None) -> None:
        self._changed = threading.Condition()
        self._aborted = False
        self._end = None if timeout_s is None else time.monotonic() + timeout_s

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def abort(self) -> None:
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    def wait_for(self, come: Callable[[], bool], until: float | None) -> bool:
        with self._changed:
            while True:
                if self._aborted:
                    raise Aborted
                if come():
                    return True
                now = time.monotonic()
                if self._end is not None and now >= self._end:
                    raise MachineTimedOut
                if until is not None and now >= until:
                    return False
                ends = [end - now for end in (until, self._end) if end is not None]
                self._changed.wait(min(ends, default=None))


class Brake:
    """The control of a Map state's children: the execution's own, and a lever that ends them alone.

    When the execution's time is over its children are aborted, not timed out: the limit was not theirs.
    """

    def __init__(self, control: Control) -> None:
        self._control = control
        self._pulled = False

    def now(self) -> float:
        return self._control.now()

    def monotonic(self) -> float:
        return self._control.monotonic()

    def notify(self) -> None:
        self._control.notify()

    def pull(self) -> None:
        """End whoever waits here, now or later."""
        self._pulled = True
        self._control.notify()

    def wait_for(self, come: Callable[[], bool], until: float | None) -> bool:
        try:
            came = self._control.wait_for(lambda: self._pulled or come(), until)
        except MachineTimedOut:
            raise Aborted from None
        if self._pulled:
            raise Aborted
        return came
