"""Work in several processes gives what it gives in one, tells its bytes, and ends when something breaks."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from dropforge.cli.console import CommandFailed
from dropforge.cli.parallel import SMALLEST_PART, Meter, Workers, cores, part_size


def square(item, *, meter):
    """Something to do that tells how far it is."""
    meter(item)
    return item * item


def kill_itself(item):
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def refuse(item):
    if item == 3:
        raise FileNotFoundError(2, "No such file", "part 3")
    return item


class Unpicklable:
    """Stands for a progress bar."""

    def __reduce__(self):
        raise TypeError("a progress bar can't be sent")


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_every_item_is_worked_on_once_and_every_byte_told(jobs):
    """Whatever the number of processes, the results are the same and the counts add up, a bar staying here."""
    told, bar = [], Unpicklable()
    meter = Meter.telling(lambda count: told.append((count, bar)))
    results = Workers(jobs, meter).each(partial(square, meter=meter), range(1, 21))
    assert sorted(results) == [item * item for item in range(1, 21)]
    assert sum(count for count, _ in told) == sum(range(1, 21))


def test_nothing_to_do_starts_nothing():
    """A dataset without parts is no reason for processes."""
    meter = Meter.telling(lambda _: None)
    assert list(Workers(4, meter).each(kill_itself, ())) == []


def test_a_process_that_was_killed_is_told():
    """The kernel kills what takes too much memory: the command says so and ends."""
    with pytest.raises(CommandFailed, match="--jobs 1"):
        list(Workers(2, Meter.telling(lambda _: None)).each(kill_itself, range(10)))


def test_what_the_work_raises_comes_here():
    """An exception is the same one as in a single process."""
    for jobs in (1, 2):
        with pytest.raises(FileNotFoundError) as error:
            list(Workers(jobs, Meter.telling(lambda _: None)).each(refuse, range(10)))
        assert error.value.filename == "part 3"


INTERRUPTED = """
import sys, time
from dropforge.cli.parallel import Meter, Workers

def wait(item):
    print("working", flush=True)
    time.sleep(0.5)
    return item

if __name__ == "__main__":
    try:
        list(Workers(2, Meter.telling(lambda _: None)).each(wait, range(1000)))
    except KeyboardInterrupt:
        sys.exit(130)
"""


def test_an_interrupt_ends_all_processes(tmp_path):
    """^C goes to the whole group: no traceback of a worker, and nobody is left behind."""
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    child = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdout.readline() == "working\n"
    os.killpg(child.pid, signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert (child.returncode, said) == (130, "")
    # The server from which workers are made ends a moment after its last child.
    deadline = time.monotonic() + 30
    while is_there(child.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_there(child.pid)


def is_there(group):
    """Whether any process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_parts_are_small_enough_for_all_and_not_too_small():
    """Every process gets several parts of a large dataset; a small one is hardly divided."""
    assert part_size(1 << 30, 4, 32 << 20) == 32 << 20
    assert part_size(100 << 20, 4, 32 << 20) == (100 << 20) // 16
    assert part_size(1 << 20, 4, 32 << 20) == SMALLEST_PART
    assert cores() >= 1
