"""Several processes train what one would: on CPUs, over gloo, with the image's own entry point."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from real_training import HOLDOUT, ROWS, StopAt, adapter_bytes, poison, train
from safetensors.torch import load_file
from tiny_jobs import SHORT, environment, make_job

from tuner.contract import Container
from tuner.signals import Stopped

WEIGHTS = 2e-4
"""Most that an adapter's number may differ: sums over processes are rounded in another order, and Adam divides."""
LOSS = 5e-6
"""Likewise for a loss of about 4, which is told to six decimals."""
STUCK_S = 300
"""After which processes that wait for one another are ended; they take a tenth of it."""
PAIRS = [{**row, "chosen": row["messages"][-1], "rejected": "I do not know."} for row in ROWS]
FEW = {**SHORT, "training": {**SHORT["training"], "steps": 5}}
DPO = {**FEW, "method": "dpo"}
BAD_ROW = {
    "id": "row-bad",
    "messages": [{"role": "user", "content": "Z"}, {"role": "assistant", "content": "fine"}],
}


def job(
    root: Path,
    base: Path,
    parallelism: str = "dp",
    *,
    rows: Sequence[Mapping[str, Any]] = ROWS,
    recipe: Mapping[str, Any] = SHORT,
    **config: Any,
) -> Container:
    """A job whose steps are uneven: two processes never have equally many passes in all of them."""
    holdout = PAIRS[:4] if rows is PAIRS else HOLDOUT
    container = make_job(root, base, rows=rows, holdout=holdout, recipe=recipe, **config)
    given = json.loads(container.hyperparameters.read_bytes())
    container.hyperparameters.write_text(
        json.dumps({**given, "parallelism": parallelism, "micro_batch_tokens": "200"})
    )
    return container


def troubled(container: Container, **fault: int) -> Container:
    """The job in which one process meets something, see `ranks_of_one_job.trouble`."""
    (container.root / "fault.json").write_text(json.dumps(fault))
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
                script,
                env=environment(RANK=str(number), **shared),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            ended.callback(rank.wait)
            ended.callback(end_session, rank)
            ranks.append(rank)
        codes = [rank.wait(timeout=STUCK_S) for rank in ranks]
        assert codes == [0, 0], [(folder / f"rank-{number}.log").read_text() for number in range(2)]


def end_session(leader: subprocess.Popen[bytes]) -> None:
    """Kill a process and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Made:
    """Jobs made by two processes, and some of them by one."""

    alone: Mapping[str, Container]
    together: Mapping[str, Container]


@pytest.fixture(scope="module")
def made(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("jobs")
    poisoned = poison(tiny_base, folder / "poisoned", "Z")

    def few(name: str, parallelism: str = "dp", base: Path = tiny_base, **rest: Any) -> Container:
        return job(folder / name, base, parallelism, **{"recipe": FEW, **rest})

    jobs = Made(
        alone={
            "sft": job(folder / "alone", tiny_base),
            "few": few("few"),
            "dpo": few("dpo", rows=PAIRS, recipe=DPO),
        },
        together={
            "dp": job(folder / "dp", tiny_base),
            "fsdp": job(folder / "fsdp", tiny_base, "fsdp"),
            "dp, dpo": few("dp_dpo", rows=PAIRS, recipe=DPO),
            "fsdp, dpo, recomputed": few(
                "fsdp_dpo", "fsdp", rows=PAIRS, recipe=DPO, gradient_checkpointing=True
            ),
            "dp, short": troubled(few("short"), rank=1, most=128),
            "dp, short later": troubled(few("later"), rank=1, most=128, after=5),
            "fsdp, short": troubled(few("fsdp_short", "fsdp"), rank=1, most=128),
            "dp, stopped": troubled(few("stopped"), rank=1, ends=5),
            "dp, begun by one": few("begun"),
            "dp, nan": few("dp_nan", base=poisoned, rows=[*ROWS, BAD_ROW]),
            "fsdp, nan": few("fsdp_nan", "fsdp", poisoned, rows=[*ROWS, BAD_ROW]),
        },
    )
    for container in jobs.alone.values():
        train(container)
    with pytest.raises(Stopped):
        train(jobs.together["dp, begun by one"], stop=StopAt(12))
    run_together(folder, *jobs.together.values())
    return jobs


def outcomes(container: Container) -> list[str]:
    """How the job ended, for each of the two processes."""
    return [(container.root / f"outcome-{rank}").read_text() for rank in range(2)]


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


@pytest.mark.parametrize(
    ("name", "one"),
    [
        ("dp", "sft"),
        ("fsdp", "sft"),
        ("dp, dpo", "dpo"),
        ("fsdp, dpo, recomputed", "dpo"),
        ("dp, short", "few"),
        ("dp, short later", "few"),
        ("dp, begun by one", "few"),
    ],
)
def test_two_processes_train_what_one_does(made: Made, name: str, one: str) -> None:
    """At one effective batch the loss curves and the adapter are those of one process, to rounding.

    Also where one of the two runs out of memory, before the first step or later, and all go on in halves; and
    where they go on from a checkpoint of one.
    """
    assert outcomes(made.together[name]) == ["done", "done"]
    assert_same_training(made.together[name], made.alone[one])


def test_who_is_asked_to_end_ends_all_and_one_may_go_on(made: Made) -> None:
    """One process's SIGTERM stops both after the same pass; what they left is resumed by one alone."""
    container = made.together["dp, stopped"]
    assert outcomes(container) == ["stopped", "stopped"]
    assert 0 < summary(container)["steps"] < 5
    lines: list[str] = []
    train(container, lines.append)
    assert [line for line in lines if line.startswith("resumed=step-")]
    assert_same_training(container, made.alone["few"])


def assert_same_training(container: Container, alone: Container) -> None:
    """Curves, tokens and adapter agree to rounding."""
    found, expected = summary(container), summary(alone)
    for curve in ("loss_curve", "eval_curve"):
        assert [step for step, _ in found[curve]] == [step for step, _ in expected[curve]]
        wanted = [pytest.approx(loss, abs=LOSS) for _, loss in expected[curve]]
        assert [loss for _, loss in found[curve]] == wanted
    assert found["tokens"] == expected["tokens"]
    theirs = load_file(alone.model / "adapter_model.safetensors")
    mine = load_file(container.model / "adapter_model.safetensors")
    assert mine.keys() == theirs.keys()
    for part, tensor in theirs.items():
        assert float((tensor - mine[part]).abs().max()) <= WEIGHTS
        assert float(tensor.abs().max()) > 100 * WEIGHTS


@pytest.mark.parametrize(("name", "halved"), [("dp", False), ("dp, short", True), ("dp, short later", True)])
def test_all_processes_halve_where_one_is_short_of_memory(made: Made, name: str, halved: bool) -> None:
    """The first process, which had room, records a size that fits the other."""
    manifest = json.loads((made.together[name].model / "manifest.json").read_bytes())
    assert manifest["micro_batch_tokens"] <= (128 if halved else 200)
    assert (manifest["micro_batch_tokens"] == 200) != halved


def test_a_sharded_pass_that_breaks_off_ends_the_job_for_the_ladder(made: Made) -> None:
    """The others wait inside the same pass, so nothing can be done again: OOM_GPU at once, and nobody waits on."""
    first, second = outcomes(made.together["fsdp, short"])
    assert second.startswith("OOM_GPU: ")
    assert "micro-batch" in second
    assert first.startswith("RANK_LOST: ")


@pytest.mark.parametrize("name", ["dp, nan", "fsdp, nan"])
def test_a_number_that_is_none_in_one_process_names_the_row(made: Made, name: str) -> None:
    """Whoever has the row says NAN_LOSS with its id, the other says that it lost a peer; no artifact is left."""
    told = sorted(outcomes(made.together[name]))
    assert told[0].startswith("NAN_LOSS: the loss of these rows is not finite: ")
    assert "row-bad" in told[0]
    assert told[1].startswith("RANK_LOST: ")
    assert not made.together[name].model.exists()


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
    assert adapter_bytes(container) == adapter_bytes(made.together["dp"])
    assert summary(container)["loss_curve"] == summary(made.together["dp"])["loss_curve"]
    # However many processes there are, a step has one line.
    lines = (stopped.log + killed.log).splitlines()
    steps = [line.split()[0] for line in lines if line.startswith("step=") and " loss=" in line]
    assert len(steps) == len(set(steps)) > 5
