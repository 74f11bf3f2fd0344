"""Two residencies of the same NF4-rounded base: packed in 4 bits, or unpacked once.

Every product multiplies dequantised weights. Kept packed they are dequantised again in each pass; unpacked
once they are read. The numbers are the same, so an adapter trained under one loads under the other.
"""

import os
from collections.abc import Iterator
from typing import Any, Final, Literal

import torch
from torch import nn

from dropforge_core.contracts import Residency
from tuner.failure import Failure

Resident = Literal["4bit", "bf16", "unquantised"]

GPU_SHARE: Final = 1 / 3
"""Of the memory that is free after loading: the rest is for activations, whose bound the plan set for 4 bits."""
HOST_SHARE: Final = 1 / 8
"""Of the machine's memory, where the model computes on the CPU."""
PLANNED_SHARE: Final = 0.9
"""Of the GPU's memory that is free after loading, where the plan counted the unpacked base."""
PLANNED_HOST_SHARE: Final = 0.5
"""Of the machine's memory, where a plan that was made for a GPU is carried out on a CPU."""


def settle(wish: Residency, causal: nn.Module, device: torch.device, *, tight: bool) -> Resident:
    """Bring the base into the residency that was asked for, and answer which one it is.

    `auto` unpacks where the unpacked weights fit comfortably. `bf16` is the plan's reckoning: where there is less
    room than was reckoned with, the base stays packed, which is slower and trains the same.

    Args:
        wish: from the plan.
        causal: loaded; its layers are replaced in place.
        device: where it lies.
        tight: the plan recomputes activations, so memory has no room for a larger base.

    Raises:
        Failure: CODE where 4 bits are asked of a base that is not quantised.
    """
    packed = list(_packed_layers(causal))
    if not packed:
        if wish == "4bit":
            raise Failure("CODE", "residency 4bit needs quantization nf4; the recipe says none")
        return "unquantised"
    size = packed[0][1].weight.quant_state.dtype.itemsize
    unpacked_bytes = sum(part.in_features * part.out_features * size for _, part in packed)
    if wish == "auto":
        wish = "bf16" if not tight and unpacked_bytes <= _room(device) else "4bit"
    elif wish == "bf16" and unpacked_bytes > _planned_room(device):
        wish = "4bit"
    del packed
    if wish == "bf16":
        expand_quantized(causal)
    return wish


def _room(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] * GPU_SHARE
    return _host_memory() * HOST_SHARE


def _planned_room(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] * PLANNED_SHARE
    return _host_memory() * PLANNED_HOST_SHARE


def _host_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def expand_quantized(causal: nn.Module) -> int:
    """Replace NF4 layers by full layers that hold the same numbers, and say how many.

    In the base's compute type: bf16 on a GPU, fp32 on a CPU. One layer at a time is held twice.
    """
    names = [name for name, _ in _packed_layers(causal)]
    for name in names:
        causal.set_submodule(name, unpacked(causal.get_submodule(name)))
    return len(names)


def unpacked(part: Any, dtype: torch.dtype | None = None) -> nn.Linear:
    """A linear layer with the numbers of `part`, which may be NF4."""
    weight = dequantised(part)
    full = nn.Linear(part.in_features, part.out_features, bias=part.bias is not None, device="meta")
    full.weight = nn.Parameter(weight.to(dtype or weight.dtype), requires_grad=False)
    if part.bias is not None:
        full.bias = nn.Parameter(part.bias.data.to(dtype or part.bias.dtype), requires_grad=False)
    return full


def dequantised(part: Any) -> torch.Tensor:
    """Weights [out, in] of a linear layer, as its products multiply them."""
    if not is_packed(part):
        weight: torch.Tensor = part.weight.data
        return weight
    from bitsandbytes.functional import dequantize_4bit  # noqa: PLC0415  # three seconds to import

    full: torch.Tensor = dequantize_4bit(part.weight.data, part.weight.quant_state)
    return full


def is_packed(part: nn.Module) -> bool:
    from bitsandbytes.nn.modules import Linear4bit  # noqa: PLC0415  # three seconds to import

    return isinstance(part, Linear4bit)


def _packed_layers(causal: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, part) for name, part in causal.named_modules() if is_packed(part))
