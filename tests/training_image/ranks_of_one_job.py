"""One of several processes that train job after job together: what Python imports for it is paid for once.

How a job ends for this process is left in its root, in `outcome-<rank>`; `fault.json` there may have one of the
processes run out of memory.
"""

import importlib
import itertools
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from tuner import passes
from tuner.contract import Container
from tuner.distributed.worker import train_together
from tuner.failure import classify
from tuner.signals import StopRequest

real_losses = passes.part_losses
RANK = int(os.environ["RANK"])


def narrow(rank: int, most: int, after: int) -> None:
    """A device that holds at most so many tokens with their gradients, from a number of passes on."""
    made = itertools.count()

    def part_losses(objective: Any, model: Any, part: Any, examples: Any) -> Any:
        if torch.is_grad_enabled() and next(made) >= after and part.shape.tokens > most and rank == RANK:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real_losses(objective, model, part, examples)

    passes.part_losses = part_losses


def run(container: Container) -> None:
    """Train one job in this process, and leave how it ended."""
    if (fault := container.root / "fault.json").exists():
        narrow(**json.loads(fault.read_bytes()))
    ticks = itertools.count()
    outcome = "done"
    try:
        train_together(container, StopRequest(), print, lambda: float(next(ticks)))
    except Exception as error:  # noqa: BLE001  # as the entry point does
        traceback.print_exc()
        outcome = str(classify(error))
    sys.stdout.flush()
    (container.root / f"outcome-{RANK}").write_text(outcome)


for name in ("peft", "bitsandbytes", "transformers.integrations.bitsandbytes", "torch.distributed.fsdp"):
    importlib.import_module(name)
for told in sys.argv[1:]:
    os.environ["MASTER_PORT"], _, root = told.partition(":")
    # A process for each job: a failed one loses its connections only by ending. Nothing has run threads yet.
    if (child := os.fork()) == 0:
        run(Container(Path(root)))
        os._exit(0)
    os.waitpid(child, 0)
