"""The host's processes, started and watched by torchrun's agent, and what became of them in one word.

The agent passes SIGTERM on and gives the processes SageMaker's 120 s; where one fails it ends the others,
and nothing is restarted in place: the next attempt of the job resumes from the checkpoint.
"""

import os
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tuner.contract import Container, Say
from tuner.distributed.cluster import Cluster
from tuner.failure import WORDS, Failure, Word
from tuner.signals import Stopped, StopRequest

PORT: Final = 29_400
"""Of the rendezvous on the first of several hosts, where `PET_MASTER_PORT` (torchrun's) names no other."""
RENDEZVOUS_S: Final = 900
"""Hosts of one job start minutes apart where their images are pulled at different speeds."""
GRACE_S: Final = 110
"""Between SIGTERM and SIGKILL of the processes: SageMaker kills the container after 120 s."""
FAILURES: Final = "DROPFORGE_FAILURES"
"""Folder in which every process leaves its reason, as `rank-<n>`; the agent's process makes one of them."""


def failure_file(container: Container) -> Path:
    """Where this process records why it failed."""
    folder = os.environ.get(FAILURES)
    return Path(folder) / f"rank-{os.environ.get('RANK', '0')}" if folder else container.failure


def launch(container: Container, cluster: Cluster, processes: int, stop: StopRequest, say: Say) -> None:
    """Train with `processes` processes on this host, and return when all of them have ended well.

    Raises:
        Failure: the reason of the process that failed first; RANK_LOST where one died without a word.
        Stopped: after SIGTERM, when all processes have ended.
    """
    from torch.distributed.elastic.multiprocessing import SignalException  # noqa: PLC0415  # torch, late
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    from torch.distributed.launcher.api import LaunchConfig, launch_agent  # noqa: PLC0415

    several = len(cluster.hosts) > 1
    say(f"processes={processes * len(cluster.hosts)} hosts={len(cluster.hosts)} host={cluster.place}")
    with tempfile.TemporaryDirectory(prefix="dropforge-") as folder, stop.at_once():
        os.environ[FAILURES] = folder
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
        if several and cluster.network_interface_name:
            # Both libraries otherwise guess, and may guess the container's bridge.
            os.environ.setdefault("NCCL_SOCKET_IFNAME", cluster.network_interface_name)
            os.environ.setdefault("GLOO_SOCKET_IFNAME", cluster.network_interface_name)
        config = LaunchConfig(
            min_nodes=len(cluster.hosts),
            max_nodes=len(cluster.hosts),
            nproc_per_node=processes,
            run_id="train",
            role="train",
            rdzv_backend="static",
            rdzv_endpoint=f"{cluster.order[0]}:{_port() if several else _free_port()}",
            rdzv_configs={"rank": cluster.place, "timeout": RENDEZVOUS_S},
            max_restarts=0,
            local_addr=cluster.current_host,
            signals_to_handle="SIGTERM,SIGINT",
            virtual_local_rank=True,
            shutdown_timeout=GRACE_S,
        )
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            launch_agent(config, sys.executable, ["-m", "tuner", "train", "--root", str(container.root)])
        except SignalException:
            raise Stopped from None
        except ChildFailedError as error:
            raise reason(Path(folder), error.failures) from None
        finally:
            del os.environ[FAILURES]
            for number, handler in before.items():
                signal.signal(number, handler)


def reason(folder: Path, failures: Mapping[int, Any]) -> Failure:
    """One reason out of what the processes left: a word of its own before a signal before a lost peer.

    Args:
        folder: of `rank-<n>` files.
        failures: torch's `ProcessFailure` by rank; `exitcode` is negative for a signal, `timestamp` in seconds.
    """
    told = {rank: found for rank in _ranks(folder) if (found := _read(folder / f"rank-{rank}"))}
    for rank, (word, message) in sorted(told.items()):
        if word != "RANK_LOST":
            return Failure(word, f"process {rank}: {message}")
    # The agent's own SIGTERM, and its SIGKILL half a minute later, come after the one that began it.
    for rank, failure in sorted(failures.items(), key=lambda item: (item[1].timestamp, item[0])):
        if rank not in told and failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
            name = signal.Signals(-failure.exitcode).name
            return Failure(
                "RANK_LOST",
                f"process {rank} was ended by {name} from outside (the host's memory, or its hardware); the others "
                "were ended with it, and the next attempt resumes from the last checkpoint",
            )
    for _, (word, message) in sorted(told.items()):
        return Failure(word, message)
    codes = ", ".join(f"process {rank} with {failure.exitcode}" for rank, failure in sorted(failures.items()))
    return Failure("CODE", f"processes exited without a reason: {codes}")


def _ranks(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("rank-")) for path in folder.glob("rank-*")]


def _read(path: Path) -> tuple[Word, str] | None:
    word, _, message = path.read_text("utf-8").partition(": ")
    return next(((known, message) for known in WORDS if known == word), None)


def _port() -> int:
    told = os.environ.get("PET_MASTER_PORT", "")
    return int(told) if told.isdecimal() else PORT


def _free_port() -> int:
    """On one host nobody else has to know it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
