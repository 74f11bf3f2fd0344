"""Several processes train what one would: on CPUs, over gloo, with the image's own entry point."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from real_training import HOLDOUT, ROWS, adapter_bytes, train
from safetensors.torch import load_file
from tiny_jobs import SHORT, environment, make_job

from tuner.contract import Container

WEIGHTS = 1e-4
"""Most that an adapter's number may differ: sums over processes are rounded in another order, and Adam divides."""
LOSS = 5e-6
"""Likewise for a loss of about 4, which is told to six decimals."""


def job(root: Path, base: Path, parallelism: str = "dp", **config: Any) -> Container:
    """A job whose steps are uneven: two processes never have equally many passes in all of them."""
    container = make_job(root, base, rows=ROWS, holdout=HOLDOUT, recipe=SHORT, **config)
    given = json.loads(container.hyperparameters.read_bytes())
    container.hyperparameters.write_text(
        json.dumps({**given, "parallelism": parallelism, "micro_batch_tokens": "200"})
    )
    return container


def summary(container: Container) -> Mapping[str, Any]:
    document: Mapping[str, Any] = json.loads((container.model / "training_summary.json").read_bytes())
    return document


def run_together(folder: Path, *containers: Container) -> None:
    """Two processes train the jobs, one after the other."""
    jobs = [f"{free_port()}:{container.root}" for container in containers]
    script = [sys.executable, str(Path(__file__).parent / "ranks_of_one_job.py"), *jobs]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    with contextlib.ExitStack() as ended:
        ranks = []
        for number in range(2):
            log = ended.enter_context((folder / f"rank-{number}.log").open("w"))
            rank = subprocess.Popen(
                script, env=environment(RANK=str(number), **shared), stdout=log, stderr=subprocess.STDOUT
            )
            ended.callback(rank.wait)
            ended.callback(rank.kill)
            ranks.append(rank)
        while None in (codes := [rank.poll() for rank in ranks]) and not any(codes):
            time.sleep(0.05)
        assert codes == [0, 0], [(folder / f"rank-{number}.log").read_text() for number in range(2)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Made:
    """The same job, made by one process and by two."""

    alone: Container
    dp: Container
    fsdp: Container


@pytest.fixture(scope="module")
def made(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("jobs")
    jobs = Made(
        alone=job(folder / "alone", tiny_base),
        dp=job(folder / "dp", tiny_base),
        fsdp=job(folder / "fsdp", tiny_base, "fsdp"),
    )
    train(jobs.alone)
    run_together(folder, jobs.dp, jobs.fsdp)
    return jobs


class Ended(NamedTuple):
    code: int
    log: str


def attempt(container: Container, interrupt: Callable[[subprocess.Popen[str]], None], after: str) -> Ended:
    """One job of two processes, started as SageMaker starts it and interrupted after a line of its log."""
    with subprocess.Popen(
        [sys.executable, "-m", "tuner", "train", "--root", str(container.root)],
        env=environment(PET_NPROC_PER_NODE="2", OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as agent:
        try:
            assert agent.stdout is not None
            lines: list[str] = []
            for line in agent.stdout:
                lines.append(line)
                if line.startswith(after):
                    interrupt(agent)
                    after = "nothing more"
            return Ended(agent.wait(timeout=120), "".join(lines))
        finally:
            agent.kill()


def kill_a_rank(agent: subprocess.Popen[str]) -> None:
    """Kill the second process that the agent started."""
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    second = next(
        pid for pid in children if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    )
    os.kill(int(second), signal.SIGKILL)


@pytest.mark.parametrize("parallelism", ["dp", "fsdp"])
def test_two_processes_train_what_one_does(made: Made, parallelism: str) -> None:
    """At one effective batch the loss curves and the adapter are those of one process, to rounding."""
    found, expected = summary(getattr(made, parallelism)), summary(made.alone)
    for curve in ("loss_curve", "eval_curve"):
        assert [step for step, _ in found[curve]] == [step for step, _ in expected[curve]]
        for (_, mine), (_, theirs) in zip(found[curve], expected[curve], strict=True):
            assert mine == pytest.approx(theirs, abs=LOSS)
    assert found["tokens"] == expected["tokens"]
    one = load_file(made.alone.model / "adapter_model.safetensors")
    two = load_file(getattr(made, parallelism).model / "adapter_model.safetensors")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert float((tensor - two[name]).abs().max()) <= WEIGHTS
        assert float(tensor.abs().max()) > 100 * WEIGHTS


@pytest.mark.slow
def test_stopped_and_killed_it_ends_as_if_nothing_had_happened(
    made: Made, tiny_base: Path, tmp_path: Path
) -> None:
    """SIGTERM reaches all processes, a dead one ends the job as RANK_LOST, and what resumes leaves the same bytes."""
    container = job(tmp_path / "ml", tiny_base, checkpoint_every_steps=1)
    stopped = attempt(container, lambda agent: agent.send_signal(signal.SIGTERM), after="step=3/")
    killed = attempt(container, kill_a_rank, after="step=6/")
    assert [stopped.code, killed.code] == [143, 1]
    assert "phase=stopping" in stopped.log
    assert "resumed=step-" in killed.log
    assert container.failure.read_text().startswith("RANK_LOST: process 1 was ended by SIGKILL")
    run_together(tmp_path, container)
    assert adapter_bytes(container) == adapter_bytes(made.dp)
    assert summary(container)["loss_curve"] == summary(made.dp)["loss_curve"]
    # However many processes there are, a step has one line.
    lines = (stopped.log + killed.log).splitlines()
    steps = [line.split()[0] for line in lines if line.startswith("step=") and " loss=" in line]
    assert len(steps) == len(set(steps)) > 5
