"""Jobs that are ended at any moment: by SIGTERM, which leaves time, and by SIGKILL, which does not."""

import itertools
import json
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from real_training import HOLDOUT, LONG, ROWS, StopAt, adapter_bytes, train
from safetensors.torch import load_file
from tiny_jobs import SHORT, environment, make_job

from tuner import loop
from tuner.adapters import read_artifact_manifest
from tuner.artifact import TrainingSummary
from tuner.checkpoint import CheckpointStore
from tuner.contract import Container
from tuner.failure import classify
from tuner.signals import Stopped, StopRequest

MANY_PASSES = {
    **LONG,
    "training": {**LONG["training"], "steps": 12, "evals_per_epoch": 6},
}


@pytest.fixture(scope="module")
def undisturbed(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingSummary, bytes]:
    """What the job leaves where nobody stops it, dropout included."""
    container = job(tmp_path_factory.mktemp("undisturbed") / "ml", tiny_base)
    return train(container), adapter_bytes(container)


def job(root: Path, base: Path) -> Container:
    """Several passes a step and several a measurement, so that stops fall between all of them."""
    container = make_job(root, base, rows=ROWS, holdout=HOLDOUT, recipe=MANY_PASSES)
    given = {"run_id": "run1", "attempt": "1", "micro_batch_tokens": "96"}
    container.hyperparameters.write_text(json.dumps(given))
    return container


@pytest.mark.parametrize("seed", range(4))
def test_stops_at_random_moments_change_no_byte(
    tiny_base: Path, tmp_path: Path, undisturbed: tuple[TrainingSummary, bytes], seed: int
) -> None:
    """Ended again and again, between passes of a step or of a measurement, a run ends in the same adapter."""
    container = job(tmp_path / "ml", tiny_base)
    choose = random.Random(seed)
    for _ in range(200):
        try:
            summary = train(container, stop=StopAt(choose.randint(1, 40)))
            break
        except Stopped:
            assert list(container.checkpoints.glob("step-*/MANIFEST.json")) or not container.model.exists()
    whole, adapter = undisturbed
    assert summary.loss_curve == whole.loss_curve
    assert summary.eval_curve == whole.eval_curve
    assert adapter_bytes(container) == adapter


def test_a_stop_while_a_checkpoint_is_written_lets_it_be_whole(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request waits for the end of the write; what lies there afterwards is resumed from."""
    container = make_job(
        tmp_path / "ml", tiny_base, rows=ROWS, holdout=HOLDOUT, recipe=LONG, checkpoint_every_steps=3
    )
    real, stop = CheckpointStore.save, StopRequest()

    def save(store: CheckpointStore, checkpoint: Any) -> Path:
        if not stop.asked:
            signal.raise_signal(signal.SIGTERM)
        return real(store, checkpoint)

    monkeypatch.setattr(CheckpointStore, "save", save)
    with stop, pytest.raises(Stopped):
        train(container, stop=stop)
    monkeypatch.undo()
    lines: list[str] = []
    train(container, lines.append)
    assert "resumed=step-00000003" in lines
    assert not [line for line in lines if "refused" in line]


def test_a_stop_while_the_artifact_is_written_lets_it_be_whole(
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: tuple[TrainingSummary, bytes],
) -> None:
    """Training is over by then: the job ends well, with the artifact that it would have left."""
    container = job(tmp_path / "ml", tiny_base)
    real, stop = loop.write_artifact, StopRequest()

    def write_artifact(*given: Any, **named: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        real(*given, **named)

    monkeypatch.setattr(loop, "write_artifact", write_artifact)
    with stop:
        summary = train(container, stop=stop)
    assert stop.asked
    assert summary.stopped_by == "end"
    assert read_artifact_manifest(container.model)["last_step"] == summary.steps == 12
    assert adapter_bytes(container) == undisturbed[1]


def test_a_run_that_is_cut_short_leaves_its_best_adapter(tiny_base: Path, tmp_path: Path) -> None:
    """At a limit of time or dollars the artifact is the best that was measured, not the last, and says so."""
    training = {**LONG["training"], "learning_rate": 0.5, "steps": 400, "evals_per_epoch": 8}
    container = make_job(
        tmp_path / "ml", tiny_base, rows=ROWS, holdout=HOLDOUT, recipe={**LONG, "training": training}
    )
    worse = itertools.count()

    class AfterWorse(StopRequest):
        """The limit comes when the held-out loss has been falling back for a while."""

        def check(self) -> None:
            self.asked = measured > 0 and next(worse) > 60
            super().check()

    measured = 0

    def say(line: str) -> None:
        nonlocal measured
        measured += "eval_loss=" in line and not line.startswith("step=0/")

    with pytest.raises(Stopped):
        train(container, say, AfterWorse())
    manifest = read_artifact_manifest(container.model)
    newest = CheckpointStore(container.checkpoints, identity(container)).newest(lambda _: None)
    assert newest is not None
    assert manifest["stopped_by"] == "time_limit"
    assert 0 < manifest["saved_step"] == newest.state.best_step < manifest["last_step"] == newest.state.step
    saved = load_file(container.model / "adapter_model.safetensors")
    assert sorted(float(t.double().sum()) for t in saved.values()) == sorted(
        float(t.double().sum()) for t in newest.best.values()
    )
    assert sorted(float(t.double().sum()) for t in saved.values()) != sorted(
        float(t.double().sum()) for t in newest.adapter.values()
    )


def identity(container: Container) -> str:
    """What the newest checkpoint says that it belongs to."""
    newest = max(container.checkpoints.glob("step-*"))
    told: str = json.loads((newest / "MANIFEST.json").read_bytes())["identity"]
    return told


def test_few_steps_are_kept_by_time(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a run has fewer steps than lie between two checkpoints, the clock makes some all the same."""
    real, saved = CheckpointStore.save, []

    def save(store: CheckpointStore, checkpoint: Any) -> Path:
        saved.append(checkpoint.state.step)
        return real(store, checkpoint)

    monkeypatch.setattr(CheckpointStore, "save", save)
    every: dict[str, Any] = {"rows": ROWS, "recipe": SHORT, "checkpoint_every_steps": 1000}
    train(make_job(tmp_path / "seldom", tiny_base, **every, checkpoint_every_s=1_000_000))
    assert saved == [12]
    saved.clear()
    # The clock counts how often it is asked: twice a step at least.
    train(make_job(tmp_path / "often", tiny_base, **every, checkpoint_every_s=6))
    assert len(saved) > 2
    assert saved[-1] == 12
    assert saved[0] < 6


def test_a_full_disk_ends_in_words_and_the_next_attempt_goes_on(
    tiny_base: Path, tmp_path: Path, undisturbed: tuple[TrainingSummary, bytes]
) -> None:
    """DISK_FULL with what to raise; the checkpoint before is whole, and from it the run ends in the same bytes."""
    container = make_job(
        tmp_path / "ml", tiny_base, rows=ROWS, holdout=HOLDOUT, recipe=MANY_PASSES, checkpoint_every_steps=3
    )
    given = {"run_id": "run1", "attempt": "1", "micro_batch_tokens": "96"}
    container.hyperparameters.write_text(json.dumps(given))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(line: str) -> None:
        if line.startswith("step=5/"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))

    try:
        with pytest.raises(Exception, match=r"os error 27|File too large") as refused:
            train(container, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(classify(refused.value)).startswith("DISK_FULL: no space left while writing ")
    assert "volume_gb" in str(classify(refused.value))
    lines: list[str] = []
    train(container, lines.append)
    assert "resumed=step-00000003" in lines
    assert not [line for line in lines if "refused" in line]
    assert adapter_bytes(container) == undisturbed[1]


def wait_for(process: subprocess.Popen[str], beginning: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(beginning):
            return
    raise AssertionError(f"the job ended without a line {beginning!r}")


@pytest.mark.parametrize("beginning", ["phase=loading_base_model", "phase=tokenising"])
def test_sigterm_while_loading_ends_clean(
    tiny_base: Path, tmp_path: Path, start_tuner: Callable[..., subprocess.Popen[str]], beginning: str
) -> None:
    """Nothing was learnt and nothing is waited for: exit 143, no failure, no artifact, no checkpoint."""
    container = make_job(tmp_path / "ml", tiny_base, rows=ROWS * 200, holdout=HOLDOUT, recipe=LONG)
    process = start_tuner("train", "--root", str(container.root))
    wait_for(process, beginning)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    assert not container.failure.exists()
    assert not container.model.exists()
    assert not container.checkpoints.exists()


def test_sigterm_leaves_a_checkpoint_and_an_adapter(
    tiny_base: Path, tmp_path: Path, start_tuner: Callable[..., subprocess.Popen[str]]
) -> None:
    """A stopped job exits 143, can be resumed, and what it learnt so far can be evaluated."""
    recipe = {**LONG, "training": {**LONG["training"], "steps": 5_000, "evals_per_epoch": 1}}
    container = make_job(tmp_path / "ml", tiny_base, rows=ROWS, holdout=HOLDOUT, recipe=recipe)
    process = start_tuner("train", "--root", str(container.root))
    wait_for(process, "step=20/")
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    assert not container.failure.exists()
    assert list(container.checkpoints.glob("step-*/MANIFEST.json"))
    summary = json.loads((container.model / "training_summary.json").read_bytes())
    assert summary["stopped_by"] == "time_limit"
    assert 20 <= summary["steps"] < 5_000
    assert load_file(container.model / "adapter_model.safetensors")


def test_a_stop_before_the_first_step_leaves_no_artifact(tiny_base: Path, tmp_path: Path) -> None:
    """Nothing was learnt, so there is nothing to evaluate; the next attempt trains from the start."""
    container = make_job(tmp_path / "ml", tiny_base, rows=ROWS, holdout=HOLDOUT, recipe=MANY_PASSES)
    stop = StopRequest()
    stop.asked = True
    with pytest.raises(Stopped):
        loop.train(container, stop, lambda _: None, lambda: 0.0)
    assert not container.model.exists()
    assert train(container).steps == 12


def test_killed_runs_resume_as_if_nothing_had_happened(
    tiny_base: Path, tmp_path: Path, start_tuner: Callable[..., subprocess.Popen[str]]
) -> None:
    """Killed twice, without a word, the next attempt ends with the same curves and the same adapter bytes."""
    every: dict[str, Any] = {"rows": ROWS, "holdout": HOLDOUT, "recipe": LONG, "checkpoint_every_steps": 5}
    whole = make_job(tmp_path / "whole", tiny_base, **every)
    expected = train(whole)
    broken = make_job(tmp_path / "broken", tiny_base, **every)
    for beginning in ("step=13/", "step=34/"):
        process = start_tuner("train", "--root", str(broken.root))
        wait_for(process, beginning)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not broken.model.exists()
    lines: list[str] = []
    resumed = train(broken, lines.append)
    assert any(line.startswith("resumed=step-000000") for line in lines)
    assert not any(line.startswith("step=1/") for line in lines)
    assert resumed.loss_curve == expected.loss_curve
    assert resumed.eval_curve == expected.eval_curve
    assert adapter_bytes(broken) == adapter_bytes(whole)


def test_a_checkpoint_cut_anywhere_is_never_resumed_from(tiny_base: Path, tmp_path: Path) -> None:
    """Whatever file of the newest checkpoint is cut or flipped, training goes on from the one before."""
    container = make_job(
        tmp_path / "ml", tiny_base, rows=ROWS, holdout=HOLDOUT, recipe=MANY_PASSES, checkpoint_every_steps=5
    )
    whole = train(container)
    adapter = adapter_bytes(container)
    newest = max(container.checkpoints.glob("step-*"))
    for damaged, how in zip(sorted(newest.iterdir()), itertools.cycle((cut, flip)), strict=False):
        kept = damaged.read_bytes()
        damaged.write_bytes(how(kept))
        lines: list[str] = []
        assert train(container, lines.append).loss_curve == whole.loss_curve
        assert adapter_bytes(container) == adapter
        assert any(f"checkpoint={newest.name} refused" in line for line in lines), damaged.name


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_nothing_slow_is_imported_before_signals_are_heard() -> None:
    """To PID 1 a SIGTERM without a handler is no signal: the handler is there before the first long import."""
    code = "import sys, tuner.__main__; print(sorted({'pydantic', 'numpy', 'torch', 'boto3'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
