"""Runs the children of a Map state beside one another, and ends those that are left when it is lost."""

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from dropforge.local.asl.position import Child, Outcome
from dropforge.local.asl.waiting import Brake, Control

Beside = Callable[[Callable[[], None]], Callable[[], None]]
"""Starts work beside the caller's; what it answers waits for the work's end."""


def in_a_thread(work: Callable[[], None]) -> Callable[[], None]:
    """A thread with the caller's context."""
    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True)
    thread.start()
    return thread.join


@dataclass(frozen=True)
class Crew:
    """Works through the children of one Map state."""

    control: Control
    """Of the execution that the Map state belongs to."""
    beside: Beside
    """Starts a child."""
    most: int
    """Children that run at once, at least 1."""

    def work_through(
        self, children: Iterable[Child], body: Callable[[Child, Control], Outcome], lost: Callable[[], bool]
    ) -> None:
        """Run every child, in order.

        Returns when all have ended, or when `lost()`: then those that run are told to end, and the rest never
        begin. Whichever way it ends, no child runs any more.

        Args:
            children: their `outcome` is set as they end.
            body: runs one child on the control that it is given.
            lost: asked after each end.

        Raises:
            Aborted, MachineTimedOut: from the control.
            Exception: what `body` raised.
        """
        control, brake = self.control, Brake(self.control)
        waiting, ended = deque(children), deque[Child]()
        running: dict[int, Callable[[], None]] = {}
        faults: list[BaseException] = []

        def one(child: Child) -> None:
            try:
                child.outcome = body(child, brake)
            except BaseException as fault:  # noqa: BLE001  # carried to the thread that waits
                faults.append(fault)
            ended.append(child)
            control.notify()

        try:
            while (waiting or running) and not faults and not lost():
                while waiting and len(running) < self.most and not ended:
                    child = waiting.popleft()
                    running[child.index] = self.beside(partial(one, child))
                control.wait_for(lambda: bool(ended), None)
                while ended:
                    running.pop(ended.popleft().index)()
                # An execution whose time is over must not take its aborted children for finished ones.
                control.wait_for(lambda: False, control.monotonic())
        finally:
            brake.pull()
            for joined in running.values():
                joined()
        if faults:
            raise faults[0]
