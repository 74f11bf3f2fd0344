"""Training in the test's own process, and what it leaves behind."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tiny_jobs import SHORT, chat_rows, seal

from tuner import loop
from tuner.artifact import TrainingSummary
from tuner.contract import Container
from tuner.signals import StopRequest

ROWS, HOLDOUT = chat_rows(40), chat_rows(6, seed=1)
DROPOUT: dict[str, Any] = {**SHORT, "adapter": {"r": 8, "alpha": 16, "dropout": 0.1}}
LONG: dict[str, Any] = {
    **DROPOUT,
    "training": {**DROPOUT["training"], "steps": 60, "effective_batch_tokens": 256},
}


def train(
    container: Container, say: Callable[[str], None] = lambda _: None, stop: StopRequest | None = None
) -> TrainingSummary:
    """Train by a clock that counts calls."""
    ticks = itertools.count()
    return loop.train(container, stop or StopRequest(), say, lambda: float(next(ticks)))


def adapter_bytes(container: Container) -> bytes:
    return (container.model / "adapter_model.safetensors").read_bytes()


class StopAt(StopRequest):
    """Asks to end at one of the moments at which training looks, counted from 1."""

    def __init__(self, moment: int) -> None:
        super().__init__()
        self._left = moment

    def check(self) -> None:
        self._left -= 1
        self.asked = self._left <= 0
        super().check()


def poison(base: Path, target: Path, word: str) -> Path:
    """A copy of the base in which one token's embedding is not a number."""
    target.mkdir()
    for path in base.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    vocabulary = json.loads((base / "tokenizer.json").read_bytes())["model"]["vocab"]
    weights = load_file(target / "model.safetensors")
    weights["model.embed_tokens.weight"][vocabulary[word]] = float("nan")
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    seal(target)
    return target
