"""Checkpoints that are whole or do not count.

A checkpoint is a folder of safetensors and JSON, written aside and renamed, with a manifest of hashes
written last. SageMaker copies the folder to S3 while it grows and may be cut at any byte, so a
checkpoint counts only after every file has the manifest's hash; resuming takes the newest that does.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tuner.contract import Say
from tuner.integrity import file_digest

FORMAT: Final = 1
KEPT: Final = 2
MANIFEST: Final = "MANIFEST.json"
_NAME: Final = re.compile(r"step-(\d{8})")


@dataclass(slots=True)
class TrainingState:
    """All that a resumed run needs to go on as if nothing had happened.

    The position in the data is `step`: batches follow from it (`batching.Schedule`).
    """

    step: int = 0
    tokens: int = 0
    """Useful tokens seen, padding not counted."""
    seconds: float = 0.0
    """Wall time in steps, over all attempts."""
    micro_batch_tokens: int = 0
    loss_curve: list[tuple[int, float]] = field(default_factory=list)
    eval_curve: list[tuple[int, float]] = field(default_factory=list)
    best_step: int = 0
    worse_evaluations: int = 0
    """In a row, for early stopping."""

    @property
    def best_eval_loss(self) -> float | None:
        losses = [loss for step, loss in self.eval_curve if step > 0]
        return min(losses, default=None)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A state with its tensors, all on the host."""

    state: TrainingState
    adapter: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    """The adapter with the lowest held-out loss so far; empty before the first evaluation."""
    optimizer: Mapping[str, Tensor]
    rng: Mapping[str, Tensor]


class Refused(Exception):
    """A checkpoint that must not be resumed from, and why."""


class CheckpointStore:
    """The checkpoints of one run in one folder.

    Args:
        folder: `/opt/ml/checkpoints`.
        identity: digest of what is trained on what; a checkpoint of anything else is refused.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder = folder
        self._identity = identity

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write one checkpoint, then drop all but the newest two.

        Raises:
            OSError: when the disk refuses; older checkpoints stay.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        final = self._folder / f"step-{checkpoint.state.step:08d}"
        aside = self._folder / f".writing-{final.name}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for name, tensors in _tensor_files(checkpoint).items():
            save_file(dict(tensors), aside / name)
        (aside / "state.json").write_text(json.dumps(state_document(checkpoint.state)))
        files = {path.name: _entry(path) for path in sorted(aside.iterdir())}
        for path in aside.iterdir():
            _flush(path)
        manifest = {"format": FORMAT, "identity": self._identity, "files": files}
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1))
        _flush(aside / MANIFEST)
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        _flush(self._folder)
        for old in self._names()[KEPT:]:
            # The manifest goes first: a half-deleted checkpoint must not look whole.
            (self._folder / old / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(self._folder / old, ignore_errors=True)
        return final

    def newest(self, say: Say) -> Checkpoint | None:
        """The newest checkpoint that verifies; those that do not are named with the reason."""
        for name in self._names():
            try:
                return self.load(name)
            except Refused as reason:
                say(f"checkpoint={name} refused: {reason}")
        return None

    def load(self, name: str) -> Checkpoint:
        """One checkpoint, after every file was hashed.

        Raises:
            Refused: unfinished, truncated, altered, foreign or of another format.
        """
        folder = self._folder / name
        try:
            manifest = json.loads((folder / MANIFEST).read_bytes())
            if manifest["format"] != FORMAT:
                raise Refused(f"format {manifest['format']}, this image writes {FORMAT}")
            if manifest["identity"] != self._identity:
                raise Refused("it belongs to another run: recipe, data or base model differ")
            for file, entry in manifest["files"].items():
                _verify(folder / file, entry)
            state = read_state(json.loads((folder / "state.json").read_bytes()))
            tensors = {part: load_file(folder / f"{part}.safetensors") for part in PARTS}
        except FileNotFoundError as error:
            raise Refused(f"{Path(str(error.filename)).name} is missing") from None
        except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise Refused(f"its description can't be read ({type(error).__name__})") from None
        return Checkpoint(state, **tensors)

    def _names(self) -> list[str]:
        """Folders of checkpoints, newest first."""
        if not self._folder.is_dir():
            return []
        return sorted((p.name for p in self._folder.iterdir() if _NAME.fullmatch(p.name)), reverse=True)


PARTS: Final = ("adapter", "best", "optimizer", "rng")


def _tensor_files(checkpoint: Checkpoint) -> dict[str, Mapping[str, Tensor]]:
    return {f"{part}.safetensors": getattr(checkpoint, part) for part in PARTS}


def _entry(path: Path) -> dict[str, Any]:
    return {"sha256": file_digest(path), "bytes": path.stat().st_size}


def _verify(path: Path, entry: Mapping[str, Any]) -> None:
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise Refused(f"{path.name} has {size} bytes, {entry['bytes']} were written")
    if file_digest(path) != entry["sha256"]:
        raise Refused(f"{path.name} is not what was written")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def state_document(state: TrainingState) -> dict[str, Any]:
    """As JSON takes it."""
    return {name: getattr(state, name) for name in TrainingState.__slots__}


def read_state(document: Mapping[str, Any]) -> TrainingState:
    """What `state_document` made.

    Raises:
        TypeError, ValueError: where it is not one.
    """
    state = TrainingState(**document)
    state.loss_curve = [(int(step), float(loss)) for step, loss in state.loss_curve]
    state.eval_curve = [(int(step), float(loss)) for step, loss in state.eval_curve]
    return state


def random_state() -> dict[str, Tensor]:
    """The generators' states, one tensor for the host and one for each GPU."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def set_random_state(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if (state := states.get(f"cuda:{index}")) is not None:
                torch.cuda.set_rng_state(state, index)
