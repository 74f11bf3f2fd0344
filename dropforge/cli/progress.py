"""What the jobs' log lines say about how far they are. Pure; the lines are part of the image's contract."""

import re
from collections.abc import Iterable
from typing import Final

from dropforge_core.model import Frozen

_STEP: Final = re.compile(r"(?:^|\s)step=(\d+)/(\d+)(?:\s|$)")
_NUMBER: Final = re.compile(r"(?:^|\s)([a-z_]+)=([-+]?[0-9.]+(?:[eE][-+]?\d+)?)(?=\s|$)")
_COUNT: Final = re.compile(r"(?:^|\s)files=(\d+)/(\d+)(?:\s|$)")
_ANSWERED: Final = re.compile(r"(?:^|\s)answered=(\d{1,9})(?:\s|$)")
"""Of one request; how many prompts there are in all, the server of a transform job does not know."""


class TrainingProgress(Frozen):
    """The newest of every figure that the trainer printed."""

    step: int = 0
    steps: int = 0
    loss: float | None = None
    eval_loss: float | None = None
    tokens_per_s: float | None = None
    memory_gib: float | None = None
    eta_s: float | None = None

    @property
    def share(self) -> float:
        """0 to 1."""
        return min(1.0, self.step / self.steps) if self.steps else 0.0


class JobProgress(Frozen):
    """How far the newest job is, as its own lines tell."""

    training: TrainingProgress | None = None
    done: int = 0
    total: int = 0
    """Prompts answered, or files of a base model copied."""

    def after(self, lines: Iterable[str]) -> "JobProgress":
        """The progress once these lines are read; lines that say nothing are passed over."""
        training, done, total = self.training, self.done, self.total
        for line in lines:
            if step := _STEP.search(line):
                known = training or TrainingProgress()
                figures = {
                    name: float(value)
                    for name, value in _NUMBER.findall(line)
                    if name in TrainingProgress.model_fields and name not in ("step", "steps")
                }
                training = known.model_copy(update={"step": int(step[1]), "steps": int(step[2]), **figures})
            elif count := _COUNT.search(line):
                done, total = int(count[1]), int(count[2])
            elif answered := _ANSWERED.search(line):
                done += int(answered[1])
        return JobProgress(training=training, done=done, total=total)
