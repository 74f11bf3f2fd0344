"""Only whole checkpoints of this run are resumed from."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tuner.checkpoint import Checkpoint, CheckpointStore, Refused, TrainingState


def at(step: int) -> Checkpoint:
    return Checkpoint(
        state=TrainingState(step=step, loss_curve=[(step, 1.5)], micro_batch_tokens=64),
        adapter={"a": torch.full((3,), float(step))},
        best={},
        optimizer={"a/exp_avg": torch.zeros(3)},
        rng={"cpu": torch.get_rng_state()},
    )


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path, "this run")


def test_what_was_saved_comes_back(store: CheckpointStore) -> None:
    """State and tensors survive the disk exactly."""
    store.save(at(7))
    found = store.newest(lambda _: None)
    assert found is not None
    assert found.state == at(7).state
    assert torch.equal(found.adapter["a"], torch.full((3,), 7.0))
    assert torch.equal(found.rng["cpu"], at(7).rng["cpu"])


def test_two_are_kept(store: CheckpointStore, tmp_path: Path) -> None:
    """Older ones go, so that neither disk nor bucket fills."""
    for step in (5, 10, 15):
        store.save(at(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000015"]


def flip(folder: Path) -> None:
    path = folder / "adapter.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate(folder: Path) -> None:
    path = folder / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def remove(folder: Path) -> None:
    (folder / "rng.safetensors").unlink()


def unfinished(folder: Path) -> None:
    (folder / "MANIFEST.json").unlink()


def half_a_manifest(folder: Path) -> None:
    path = folder / "MANIFEST.json"
    path.write_bytes(path.read_bytes()[:40])


def older_format(folder: Path) -> None:
    path = folder / "MANIFEST.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "format": 0}))


def of_another_run(folder: Path) -> None:
    CheckpointStore(folder.parent, "another run").save(at(10))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip, "adapter.safetensors is not what was written"),
        (truncate, "optimizer.safetensors has"),
        (remove, "rng.safetensors is missing"),
        (unfinished, "MANIFEST.json is missing"),
        (half_a_manifest, "can't be read"),
        (older_format, "format 0"),
        (of_another_run, "belongs to another run"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_damaged_or_foreign_checkpoint_gives_way_to_the_one_before(
    store: CheckpointStore, tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    """The newest that verifies wins, and the log says why the newer one did not."""
    store.save(at(5))
    store.save(at(10))
    damage(tmp_path / "step-00000010")
    with pytest.raises(Refused, match=reason):
        store.load("step-00000010")
    lines: list[str] = []
    found = store.newest(lines.append)
    assert found is not None
    assert found.state.step == 5
    assert reason in lines[0]


def test_an_empty_folder_means_a_fresh_start(tmp_path: Path) -> None:
    """No checkpoint is no error."""
    assert CheckpointStore(tmp_path / "absent", "x").newest(lambda _: None) is None


def test_what_a_crash_left_half_written_is_ignored(store: CheckpointStore, tmp_path: Path) -> None:
    """A folder that was never renamed is not a checkpoint, and the next save at that step succeeds."""
    aside = tmp_path / ".writing-step-00000005"
    aside.mkdir()
    (aside / "adapter.safetensors").write_bytes(b"half")
    assert store.newest(lambda _: None) is None
    store.save(at(5))
    assert store.newest(lambda _: None) is not None
