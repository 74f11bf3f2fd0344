"""A checkpoint from the first process to the others, as bytes of safetensors and JSON."""

import json
from typing import Final

import torch
import torch.distributed as dist
from safetensors.torch import load, save

from tuner.checkpoint import PARTS, Checkpoint, read_state, state_document

NOTHING: Final = -1


def send_checkpoint(found: Checkpoint | None) -> None:
    """Tell the others what this process resumes from."""
    if found is None:
        _announce(NOTHING)
        return
    _send(json.dumps(state_document(found.state)).encode())
    for part in PARTS:
        _send(save(dict(getattr(found, part))))


def receive_checkpoint() -> Checkpoint | None:
    """What the first process resumes from; None where it begins."""
    state = _receive()
    if state is None:
        return None
    return Checkpoint(read_state(json.loads(state)), **{part: load(_receive() or b"") for part in PARTS})


def _announce(size: int) -> None:
    dist.broadcast(torch.tensor(size, dtype=torch.int64), src=0)


def _send(content: bytes) -> None:
    _announce(len(content))
    dist.broadcast(torch.frombuffer(bytearray(content), dtype=torch.uint8), src=0)


def _receive() -> bytes | None:
    size = torch.tensor(0, dtype=torch.int64)
    dist.broadcast(size, src=0)
    if int(size) == NOTHING:
        return None
    content = torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(content, src=0)
    return content.numpy().tobytes()
