"""The host's agent, for real, over processes that only do what a test tells them."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_jobs import environment

from tuner.contract import Container
from tuner.distributed.cluster import PROCESSES, read_cluster
from tuner.distributed.launch import FAILURES, launch
from tuner.failure import Failure
from tuner.signals import Stopped, StopRequest

RANK = """
import json, os, pathlib, signal, sys, time
root = pathlib.Path(sys.argv[-1])
rank = os.environ["RANK"]
deed = json.loads((root / "deeds.json").read_bytes()).get(rank, "end")
def leave(*_):
    (root / f"ended-{rank}").write_text("asked to end")
    sys.exit(143)
signal.signal(signal.SIGTERM, leave)
(root / f"started-{rank}").write_text(json.dumps([sys.argv[1:], dict(os.environ)]))
while deed != "end" and len(list(root.glob("started-*"))) < 2:
    time.sleep(0.01)
if deed == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if deed.startswith("say "):
    pathlib.Path(os.environ["DROPFORGE_FAILURES"], f"rank-{rank}").write_text(deed[4:])
    sys.exit(1)
while deed == "work":
    time.sleep(0.01)
"""


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Container:
    """A job whose processes are `RANK` in place of the trainer."""
    (tmp_path / "image" / "tuner").mkdir(parents=True)
    (tmp_path / "image" / "tuner" / "__init__.py").touch()
    (tmp_path / "image" / "tuner" / "__main__.py").write_text(RANK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "image"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "ml").mkdir()
    return Container(tmp_path / "ml")


def run(container: Container, **deeds: str) -> list[str]:
    """Two processes on this host; each ends at once, or does its deed, by `rank0` and `rank1`."""
    (container.root / "deeds.json").write_text(
        json.dumps({name.removeprefix("rank"): deed for name, deed in deeds.items()})
    )
    lines: list[str] = []
    launch(container, read_cluster(container), 2, StopRequest(), lines.append)
    return lines


def started(container: Container, rank: int) -> tuple[list[str], Mapping[str, str]]:
    arguments, given = json.loads((container.root / f"started-{rank}").read_bytes())
    return arguments, given


def test_every_process_is_the_trainer_with_torchrun_s_environment(container: Container) -> None:
    """Each knows its number, how many there are, its device and its share of the cores."""
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert run(container) == ["processes=2 hosts=1 host=0"]
    for rank in range(2):
        arguments, given = started(container, rank)
        assert arguments == ["train", "--root", str(container.root)]
        assert (given["RANK"], given["WORLD_SIZE"], given["LOCAL_WORLD_SIZE"]) == (str(rank), "2", "2")
        # Each sees one device only, so that its first one is its own.
        assert given["LOCAL_RANK"] == "0"
        assert int(given["OMP_NUM_THREADS"]) == max(1, (os.cpu_count() or 1) // 2)
        assert given["MASTER_ADDR"]
    assert FAILURES not in os.environ
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_a_dead_process_ends_all(container: Container) -> None:
    """The other is asked to end, and the job's reason names the one that was killed."""
    with pytest.raises(Failure, match="RANK_LOST: process 1 was ended by SIGKILL from outside"):
        run(container, rank0="work", rank1="die")
    assert (container.root / "ended-0").read_text() == "asked to end"


def test_a_process_s_own_word_is_the_job_s(container: Container) -> None:
    """Whoever failed by itself is named with its reason; the other is asked to end."""
    with pytest.raises(Failure, match=r"^NAN_LOSS: process 0: the loss of these rows is not finite: row-7$"):
        run(container, rank0="say NAN_LOSS: the loss of these rows is not finite: row-7", rank1="work")
    assert (container.root / "ended-1").read_text() == "asked to end"


def test_sigterm_reaches_every_process(container: Container) -> None:
    """The agent passes it on, waits for all to end, and is itself stopped: no failure."""

    def ask() -> None:
        while len(list(container.root.glob("started-*"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(Stopped):
        run(container, rank0="work", rank1="work")
    asking.join()
    assert [(container.root / f"ended-{rank}").read_text() for rank in range(2)] == ["asked to end"] * 2


HOST = """
import sys
from pathlib import Path
from tuner.contract import Container
from tuner.distributed.cluster import read_cluster
from tuner.distributed.launch import launch
from tuner.signals import StopRequest
import os
os.environ["PYTHONPATH"] = sys.argv[2]
container = Container(Path(sys.argv[1]))
launch(container, read_cluster(container), 1, StopRequest(), print)
"""


def test_two_hosts_find_one_another_by_resourceconfig(container: Container, tmp_path: Path) -> None:
    """Each host starts its own process; together they are two, under the first host's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    hosts = ["127.0.0.2", "127.0.0.1"]
    agents = []
    for name in hosts:
        here = Container(tmp_path / name)
        here.resource_config.parent.mkdir(parents=True)
        document: dict[str, Any] = {"current_host": name, "hosts": hosts, "network_interface_name": "lo"}
        here.resource_config.write_text(json.dumps(document))
        (here.root / "deeds.json").write_text("{}")
        agents.append(
            subprocess.Popen(
                [sys.executable, "-c", HOST, str(here.root), os.environ["PYTHONPATH"]],
                env=environment(PET_MASTER_PORT=port),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        told = [agent.communicate(timeout=120)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], told
    for rank, name in enumerate(sorted(hosts)):
        _, given = started(Container(tmp_path / name), rank)
        assert (given["RANK"], given["WORLD_SIZE"], given["LOCAL_WORLD_SIZE"]) == (str(rank), "2", "1")
        assert given["MASTER_ADDR"] == "127.0.0.1"
        assert given["NCCL_SOCKET_IFNAME"] == given["GLOO_SOCKET_IFNAME"] == "lo"
        assert f"processes=2 hosts=2 host={rank}" in told[hosts.index(name)]


def test_one_host_with_one_process_starts_no_other(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine with one GPU, or none, trains in the process that SageMaker started."""
    from tuner import __main__ as entry  # noqa: PLC0415  # the verb under test
    from tuner import loop  # noqa: PLC0415  # torch, as the verb imports it

    trained: list[Container] = []
    monkeypatch.setenv(PROCESSES, "1")
    monkeypatch.setattr(loop, "train", lambda given, *_: trained.append(given))
    entry.run_training(container, StopRequest())
    assert trained == [container]
    assert not list(container.root.iterdir())
