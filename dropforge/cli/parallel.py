"""Work on the parts of a dataset in several processes, with a count of bytes that all of them add to."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.context import BaseContext
from multiprocessing.synchronize import Lock
from typing import Any, Final, TypeVar

from dropforge.cli.console import RUN_FAILED, CommandFailed

PARALLEL_FROM: Final = 64 << 20
"""Bytes of a dataset from which on processes are worth starting: it takes a second, in which one process checks some 40 MB."""
PARTS_A_JOB: Final = 4
"""Parts for each process at least, so that none waits long for the last one."""
SMALLEST_PART: Final = 4 << 20
_POLL_S: Final = 0.1

Item = TypeVar("Item")
Result = TypeVar("Result")
Tell = Callable[[int], None]


def cores() -> int:
    """Processors that this process may use, which is less than the machine has in a container or under taskset."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def part_size(total: int, jobs: int, largest: int) -> int:
    """Bytes of a part, so that every process has a few of them.

    Args:
        total: bytes of the dataset.
        jobs: processes.
        largest: bytes that a part has at most.
    """
    return max(SMALLEST_PART, min(largest, total // (jobs * PARTS_A_JOB)))


@dataclass(frozen=True, slots=True)
class Meter:
    """A counter that processes share. Where it was made it tells at once; elsewhere it adds to what `drain` gives.

    It can be sent to processes as they start, and not later.
    """

    tell: Tell | None
    _sum: Any
    _lock: Lock

    @classmethod
    def telling(cls, tell: Tell) -> "Meter":
        """A meter whose counts come to `tell`."""
        context = _context()
        return cls(tell, context.RawValue("q", 0), context.Lock())

    def __call__(self, count: int) -> None:
        if self.tell is not None:
            self.tell(count)
            return
        with self._lock:
            self._sum.value += count

    def __reduce__(self) -> tuple[Any, ...]:
        return Meter, (None, self._sum, self._lock)

    def drain(self) -> None:
        """Tell what the other processes have counted since the last time."""
        with self._lock:
            count, self._sum.value = self._sum.value, 0
        if count and self.tell is not None:
            self.tell(count)


@dataclass(frozen=True, slots=True)
class Workers:
    """Calls a function for every item, in `jobs` processes.

    The function must be picklable. It is sent once to each process, not with every item, because a tokenizer
    may hang on it.
    """

    jobs: int
    meter: Meter

    def each(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterable[Result]:
        """The results, as they come.

        Raises:
            CommandFailed: when a process was killed.
            Exception: what the function raises; the others end what they have begun.
        """
        if self.jobs == 1 or len(items) < 2:
            return map(work, items)
        return self._in_processes(work, items)

    def _in_processes(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        pool = ProcessPoolExecutor(
            min(self.jobs, len(items)), mp_context=_context(), initializer=_begin, initargs=(work,)
        )
        try:
            yield from self._results(pool, items)
        except BrokenProcessPool as error:
            raise CommandFailed(
                "A process of the check was killed, most likely for want of memory. Try again with --jobs 1.",
                RUN_FAILED,
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
            self.meter.drain()

    def _results(self, pool: ProcessPoolExecutor, items: Sequence[Item]) -> Iterator[Result]:
        waiting = iter(items)
        running: set[Future[Result]] = set()
        while True:
            # A few more than run, so that none has to wait, and no more: a dataset may have many parts.
            for item in islice(waiting, 2 * self.jobs - len(running)):
                running.add(pool.submit(_work, item))
            if not running:
                return
            done, running = wait(running, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            self.meter.drain()
            for future in done:
                yield future.result()


_function: Callable[[Any], Any] | None = None
"""What this process was started for."""


def _begin(work: Callable[[Any], Any]) -> None:
    global _function  # noqa: PLW0603  # set once, as the process begins
    _function = work
    # ^C reaches all processes of a terminal; the first one ends the others in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _work(item: Any) -> Any:
    if _function is None:
        raise RuntimeError("the process has no work")
    return _function(item)


def _context() -> BaseContext:
    """How processes are started. Never by plain fork: threads of the progress bar and of libraries are running."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # Loaded once, in the process from which all others are made.
    with suppress(ValueError):
        context.set_forkserver_preload(["dropforge.cli.warm"])
    return context
