"""SIGTERM as a request. SageMaker sends it 120 s before it kills: on stop, time limit and spot loss."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Final, Self

EXIT_TERMINATED: Final = 143
"""128 + SIGTERM."""


class Stopped(Exception):
    """Somebody asked the process to end."""


class StopRequest:
    """Remembers SIGTERM while it is installed, so that work can end at a point of its choosing."""

    def __init__(self) -> None:
        self.asked = False
        self._at_once = False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _remember(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
        if self._at_once:
            # Not an exception: libraries that load in threads wait for all of them before it gets through.
            os._exit(EXIT_TERMINATED)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """While inside, SIGTERM ends the process where it stands: minutes of loading leave nothing to save.

        Raises:
            Stopped: on entry and on leaving, when a stop was asked for already.
        """
        self.check()
        self._at_once = True
        try:
            self.check()
            yield
        finally:
            self._at_once = False
        self.check()

    def check(self) -> None:
        """Raise where a stop was asked for.

        Raises:
            Stopped: when it was.
        """
        if self.asked:
            raise Stopped
