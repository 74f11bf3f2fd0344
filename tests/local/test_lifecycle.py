"""The engine's process: where it listens, how it starts and that nothing outlives it."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from sample_stack import DOCKERFILE, Sample, eventually

from dropforge.local.engine import Settings
from dropforge.local.stack import Engine, LocalStackFailed

ROOT = Path(__file__).parents[2]


def processes_below(state_dir: Path, but: int = 0) -> list[int]:
    """Every process but this one and `but` whose command line, environment or folder names the state folder."""
    mark, found = str(state_dir).encode(), []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in {os.getpid(), but}:
            continue
        try:
            told = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            folder = str((entry / "cwd").readlink()).encode()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z" and mark in told + folder:
            found.append(int(entry.name))
    return found


def test_only_this_machine_is_served(sample: Sample) -> None:
    """The endpoint listens on 127.0.0.1 and on no other address."""
    host, _, port = sample.engine.endpoint.removeprefix("http://").partition(":")
    assert host == "127.0.0.1"
    table = Path("/proc/net/tcp")
    if not table.exists():
        pytest.skip("no /proc/net/tcp here")
    addresses = {
        line.split()[1].split(":")[0]
        for line in (table.read_text() + Path("/proc/net/tcp6").read_text()).splitlines()
        if line.split()[1].endswith(f":{int(port):04X}") and line.split()[3] == "0A"
    }
    # 127.0.0.1 in the byte order of the table; 0A is LISTEN.
    assert addresses == {"0100007F"}


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    """Starting on a port in use fails with the reason and leaves no process."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(LocalStackFailed, match="Address already in use"):
            Engine(Settings(str(tmp_path / "state"), str(DOCKERFILE), taken.getsockname()[1]))
    assert processes_below(tmp_path / "state") == []


def test_a_broken_dockerfile_is_said(tmp_path: Path) -> None:
    """An image that no process can stand in for is refused at the start, with what to mend."""
    dockerfile = tmp_path / "image" / "Dockerfile"
    dockerfile.parent.mkdir()
    dockerfile.write_text("FROM scratch\nENTRYPOINT python -m tuner\n")
    with pytest.raises(LocalStackFailed, match=r"exec form|no COPY"):
        Engine(Settings(str(tmp_path / "state"), str(dockerfile)))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", ["parent killed", "engine killed", "engine terminated", "closed"])
def test_nothing_is_left_behind(tmp_path: Path, how: str) -> None:
    """However it ends, the engine, its functions and its jobs are gone, and so is a temporary folder, if it could still do that."""
    state = tmp_path / "state"
    script = dedent(f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from sample_stack import DOCKERFILE, SAMPLE, Sample, eventually
        from dropforge.local.deploy import deploy
        from dropforge.local.engine import Settings
        from dropforge.local.stack import Engine

        engine = Engine(Settings({str(state)!r}, str(DOCKERFILE), temporary=True))
        sample = Sample(engine, deploy(SAMPLE / "template.yaml", {{}}, engine.client, stack="sample"))
        sample.start(sample.machine({{"Train": sample.training("left-behind", "sleep")}}))
        sample.client("lambda").invoke(
            FunctionName=sample.outputs["ProbeName"], InvocationType="Event", Payload=b'{{"do":"sleep","seconds":600}}'
        )
        log = engine.state_dir / "lambda/logs"
        eventually(lambda: any("probe does sleep" in path.read_text() for path in log.glob("*.log")))
        eventually(lambda: sample.trains("left-behind"))
        print(engine.pid, flush=True)
        sys.stdin.read()
        engine.close()
    """)
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert parent.stdin is not None
        assert parent.stdout is not None
        engine = int(parent.stdout.readline())
        assert len(processes_below(state, parent.pid)) >= 2
        if how == "closed":
            parent.stdin.close()
        else:
            victim, blow = {
                "parent killed": (parent.pid, signal.SIGKILL),
                "engine killed": (engine, signal.SIGKILL),
                "engine terminated": (engine, signal.SIGTERM),
            }[how]
            os.kill(victim, blow)
        eventually(lambda: not processes_below(state, parent.pid))
        eventually(lambda: _is_gone(engine))
        assert state.exists() == (how == "engine killed")
    finally:
        parent.kill()
        parent.wait()


def _is_gone(pid: int) -> bool:
    """No such process, or one that only waits for its parent to take note."""
    command = Path(f"/proc/{pid}/cmdline")
    return not command.exists() or not command.read_bytes()
