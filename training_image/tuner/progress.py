"""Metric lines on stdout, which SageMaker's regexes read, and a progress file for who polls."""

import json
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tuner.contract import Say
from tuner.tracking import Ended, Tracker


class Progress:
    """Tells how training goes, one line a step.

    Args:
        say: prints a line.
        path: the progress file, replaced whole so that no reader meets half of it; None where another process writes it.
        steps: of the whole run.
        trackers: who is told the same numbers.
    """

    def __init__(self, say: Say, path: Path | None, steps: int, trackers: Sequence[Tracker] = ()) -> None:
        self.trackers = trackers
        self._say = say
        self._path = path
        self._steps = steps

    def step(  # noqa: PLR0913  # one keyword a metric of the line
        self,
        step: int,
        *,
        epoch: float,
        loss: float,
        grad_norm: float,
        learning_rate: float,
        tokens_per_s: float,
        eta_s: float,
    ) -> None:
        self._say(
            f"step={step}/{self._steps} epoch={epoch:.2f} loss={loss:.4f} grad_norm={grad_norm:.3f} "
            f"learning_rate={learning_rate:.1e} tokens_per_s={tokens_per_s:.0f} "
            f"memory_gib={peak_memory_gib():.2f} eta_s={eta_s:.0f}"
        )
        self._write({"phase": "training", "step": step, "loss": loss, "eta_s": round(eta_s)})
        self._track(
            step,
            {
                "loss": loss,
                "grad_norm": grad_norm,
                "learning_rate": learning_rate,
                "epoch": epoch,
                "tokens_per_s": tokens_per_s,
                "memory_gib": peak_memory_gib(),
            },
        )

    def evaluation(self, step: int, loss: float) -> None:
        self._say(f"step={step}/{self._steps} eval_loss={loss:.4f}")
        self._track(step, {"eval_loss": loss})

    def close(self, status: Ended) -> None:
        """Tell the trackers that this attempt is over."""
        for tracker in self.trackers:
            tracker.close(status)

    def _track(self, step: int, metrics: dict[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(step, metrics)

    def note(self, line: str) -> None:
        self._say(line)

    def phase(self, name: str) -> None:
        self._say(f"phase={name}")
        self._write({"phase": name})

    def _write(self, document: dict[str, Any]) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._path.with_suffix(".writing")
        aside.write_text(json.dumps({**document, "steps": self._steps}))
        aside.replace(self._path)


def peak_memory_gib() -> float:
    """Peak of the GPU's allocations, or of the process's resident memory where there is no GPU."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux


class Stopwatch:
    """Seconds and tokens of the steps of this attempt."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started = clock()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = self._clock()
        passed, self._started = now - self._started, now
        return passed
