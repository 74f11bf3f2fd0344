"""Processes end when they are told to, and with the engine that started them."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from dropforge.local.sagemaker.process import Container, Control, Halt


def start(tmp_path, script, lines):
    return Container(
        [sys.executable, "-u", "-c", textwrap.dedent(script)], dict(os.environ), tmp_path, lines.append
    )


def test_exit_and_lines(tmp_path):
    """Both streams arrive line by line, undecodable bytes replaced, and the exit code with them."""
    lines = []
    script = """
        import os, sys
        os.write(1, b"out\\r\\n\\xff\\n")
        os.write(2, b"err without newline")
        sys.exit(3)
    """
    with start(tmp_path, script, lines) as container:
        assert container.wait(Control()) is None
    assert container.exit_code() == 3
    assert lines == ["out", "\ufffd", "err without newline"]


def test_endless_line(tmp_path):
    """Output without a newline is cut, not collected for ever."""
    lines = []
    with start(tmp_path, "print('x' * 1_000_000, end='')", lines) as container:
        container.wait(Control())
    assert [len(line) for line in lines] == [262_144] * 3 + [1_000_000 - 3 * 262_144]


def test_signal_dispositions(tmp_path):
    """A container starts with SIGPIPE's default, though Python ignores it in the engine and the launcher."""
    with Container(
        ["/bin/sh", "-c", "kill -PIPE $$; exit 0"], dict(os.environ), tmp_path, print
    ) as container:
        container.wait(Control())
    assert container.exit_code() == 128 + signal.SIGPIPE


@pytest.mark.parametrize("reason", [Halt.STOPPED, Halt.MAX_RUNTIME])
def test_halt(tmp_path, reason):
    """A container is ended by what was asked for, or by the deadline that passed."""
    control = Control()
    with start(tmp_path, "import time; time.sleep(60)", []) as container:
        if reason is Halt.STOPPED:
            control.ask(reason)
        else:
            control.limit(reason, 0.2)
        assert container.wait(control) is reason
        container.stop(5, control)
    assert container.exit_code() == 128 + signal.SIGTERM


TRY_TO_LEAVE = """
import ctypes, sys
libc = ctypes.CDLL(None)
sys.exit(libc.unshare(0x40000000) != 0 and libc.unshare(0x50000000) != 0)
"""


def network_can_be_left():
    """Whether this kernel lets a process have a network of its own."""
    tried = [sys.executable, "-c", TRY_TO_LEAVE]
    return sys.platform == "linux" and subprocess.run(tried, check=False).returncode == 0


@pytest.mark.skipif(not network_can_be_left(), reason="this kernel keeps network namespaces to itself")
@pytest.mark.parametrize("isolated", [True, False])
def test_isolation(tmp_path, isolated):
    """An isolated container reaches no server of the host, has a loopback of its own, and owns its files."""
    script = """
        import pathlib, socket, sys
        def reaches(port):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
            except OSError:
                return False
            return True
        own = socket.create_server(("127.0.0.1", 0))
        pathlib.Path("written").write_text("x")
        print(reaches(int(sys.argv[1])), reaches(own.getsockname()[1]), pathlib.Path("written").owner() != "nobody")
    """
    lines = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        argv = [sys.executable, "-c", textwrap.dedent(script), port]
        with Container(argv, dict(os.environ), tmp_path, lines.append, isolated=isolated) as container:
            container.wait(Control())
    assert lines == [f"{not isolated} True True"]


def test_first_deadline_wins():
    """Of two deadlines that have passed, the earlier is the reason; a limit taken away is none."""
    now = [0.0]
    control = Control(lambda: now[0])
    control.limit(Halt.MAX_WAIT, 2)
    control.limit(Halt.MAX_RUNTIME, 1)
    assert control.reason() is None
    now[0] = 5.0
    assert control.reason() is Halt.MAX_RUNTIME
    control.limit(Halt.MAX_RUNTIME, None)
    assert control.reason() is Halt.MAX_WAIT
    control.ask(Halt.SHUTDOWN)
    control.ask(Halt.STOPPED)
    assert control.reason() is Halt.SHUTDOWN


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
@pytest.mark.parametrize("isolated", [True, False])
def test_dies_with_the_engine(tmp_path, isolated):
    """An engine that is killed with SIGKILL takes its containers with it."""
    engine = textwrap.dedent(
        """
        import os, pathlib, sys, time
        from dropforge.local.sagemaker.process import Container
        Container([sys.executable, "-u", "-c", "import os, time; print(os.getpid()); time.sleep(120)"],
                  dict(os.environ), pathlib.Path(sys.argv[1]), lambda line: print(line, flush=True), isolated=sys.argv[2] == "True")
        time.sleep(120)
        """
    )
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", engine, str(tmp_path), str(isolated)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'functions'}"},
        text=True,
    ) as process:
        pid = process.stdout.readline().strip()
        assert Path("/proc", pid).exists()
        process.kill()
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            if Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} lives on")
