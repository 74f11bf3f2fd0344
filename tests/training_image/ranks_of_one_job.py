"""One of several processes that train job after job together: what Python imports for it is paid for once.

How a job ends for this process is left in its root, in `outcome-<rank>`; `fault.json` there may have one of the
processes run out of memory, or be asked to end.
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
from tuner.signals import Stopped, StopRequest

real_losses = passes.part_losses
RANK = int(os.environ["RANK"])


def trouble(stop: StopRequest, *, rank: int, most: int = 10**9, after: int = 0, ends: int = 10**9) -> None:
    """A device that holds at most so many tokens with their gradients, from a number of passes on.

    Args:
        stop: of this process.
        rank: of the process that has the trouble.
        most: tokens.
        after: passes that fit whatever they are.
        ends: passes after which this process alone is asked to end.
    """
    made = itertools.count()

    def part_losses(objective: Any, model: Any, part: Any, *rest: Any) -> Any:
        place = next(made)
        if rank == RANK:
            stop.asked = place >= ends
            if torch.is_grad_enabled() and place >= after and part.shape.tokens > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return real_losses(objective, model, part, *rest)

    passes.part_losses = part_losses


def run(container: Container) -> None:
    """Train one job in this process, and leave how it ended."""
    stop = StopRequest()
    if (fault := container.root / "fault.json").exists():
        trouble(stop, **json.loads(fault.read_bytes()))
    ticks = itertools.count()
    outcome = "done"
    try:
        train_together(container, stop, print, lambda: float(next(ticks)))
    except Stopped:
        outcome = "stopped"
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
