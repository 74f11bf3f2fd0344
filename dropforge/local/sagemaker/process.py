"""A job's container, stood in for by a process: started, listened to, stopped as SageMaker stops a container."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Final, Self

_LAUNCHER: Final = Path(__file__).with_name("launch.py")
_POLL_S: Final = 0.05
_LINE_BYTES: Final = 256 * 1024
"""CloudWatch Logs takes events of at most 256 KiB; a longer line, or output without lines, is cut there."""


class Halt(StrEnum):
    """Why a job ends before its container does. The values are SageMaker's secondary statuses where it has one."""

    STOPPED = "Stopped"
    MAX_RUNTIME = "MaxRuntimeExceeded"
    MAX_WAIT = "MaxWaitTimeExceeded"
    INTERRUPTED = "Interrupted"
    SHUTDOWN = "Shutdown"


class Control:
    """What may end a job early: a Stop call, a deadline, the end of the engine. Safe to use from any thread."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._event = threading.Event()
        self._asked: Halt | None = None
        self._deadlines: dict[Halt, float] = {}

    def ask(self, reason: Halt) -> None:
        """Ask for the end; SHUTDOWN overrides a STOPPED that still waits for its grace."""
        if self._asked is not Halt.SHUTDOWN:
            self._asked = reason
        self._event.set()

    def limit(self, reason: Halt, seconds: float | None) -> None:
        """Let `reason` come true `seconds` from now; None takes the limit away."""
        if seconds is None:
            self._deadlines.pop(reason, None)
        else:
            self._deadlines[reason] = self._monotonic() + seconds

    @property
    def shutting_down(self) -> bool:
        return self._asked is Halt.SHUTDOWN

    def reason(self) -> Halt | None:
        """Why the job must end now; None while it may go on."""
        if self._asked is not None:
            return self._asked
        now = self._monotonic()
        passed = [(at, reason) for reason, at in self._deadlines.items() if at <= now]
        return min(passed)[1] if passed else None

    def wait(self, seconds: float) -> Halt | None:
        """Wait, at most until somebody asks for the end."""
        self._event.wait(seconds)
        return self.reason()


class Container:
    """A running process in a session of its own, whose output lines go to `on_line`.

    `isolated` leaves it a loopback and no other network, where the kernel allows that.

    The thread that makes it must outlive it: Linux ties the process's life to that thread.
    """

    def __init__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        cwd: Path,
        on_line: Callable[[str], None],
        *,
        isolated: bool = False,
    ) -> None:
        network = "isolated" if isolated else "open"
        self._process = subprocess.Popen(  # noqa: S603  # the argv is the image's entry point; no shell
            [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), network, *argv],
            env=dict(environment),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._on_line = on_line
        self._reader = threading.Thread(target=self._read, name=f"output-{self._process.pid}", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def exit_code(self) -> int | None:
        """As a shell tells it (128 + signal), or None while it runs."""
        code = self._process.poll()
        return None if code is None else code if code >= 0 else 128 - code

    def wait(self, control: Control) -> Halt | None:
        """Wait until the container ends by itself (None), or must be ended (why)."""
        while self._process.poll() is None:
            reason = control.wait(_POLL_S)
            if reason is not None:
                return reason
        return None

    def stop(self, grace_s: float, control: Control) -> None:
        """SIGTERM to the main process alone, as Docker does; SIGKILL to all of them after the grace."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            end = time.monotonic() + grace_s
            while self._process.poll() is None and time.monotonic() < end and not control.shutting_down:
                time.sleep(_POLL_S)
        self.kill()

    def kill(self) -> None:
        """End every process of the container: one dies with its PID 1."""
        # Nothing may be left; macOS says EPERM for a group of zombies.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(timeout=5)

    def _read(self) -> None:
        stream = self._process.stdout
        if stream is None:
            return
        with stream:
            while raw := stream.readline(_LINE_BYTES):
                self._on_line(raw.decode("utf-8", "replace").rstrip("\r\n"))
