"""NF4 with double quantisation (QLoRA, arXiv 2305.14314, section 3), a layer at a time, and how it is kept in files.

A packed weight is kept as bitsandbytes and transformers keep it: `<name>` (two numbers a byte), `<name>.absmax`,
`<name>.nested_absmax`, `<name>.quant_map`, `<name>.nested_quant_map`, and shape, type and offset in
`<name>.quant_state.bitsandbytes__nf4`.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Final

import torch
from torch import Tensor

BLOCK: Final = 64
"""Weights that share a scale."""
NESTED_BLOCK: Final = 256
"""Scales that share a scale."""
CHUNK: Final = 1 << 22
"""Weights quantised at a time on a CPU, a multiple of BLOCK: the library's kernel takes 14 bytes for each."""
STATE: Final = "quant_state.bitsandbytes__nf4"
PARTS: Final = ("absmax", "nested_absmax", "quant_map", "nested_quant_map", STATE)
"""What stands beside a packed weight."""


def quantiser_digest(device: str) -> str:
    """sha256 hex of what decides about the bits: the form, the library's version, and which of its kernels rounds.

    Kernels for CPUs and GPUs may differ in ties, so the kind of device belongs to it.
    """
    about = {
        "form": 1,
        "quant_type": "nf4",
        "block": BLOCK,
        "nested_block": NESTED_BLOCK,
        "bitsandbytes": version("bitsandbytes"),
        "device": device,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def quantised(weight: Tensor) -> dict[str, Tensor]:
    """A weight [out, in] as its packed form: "" and the names of PARTS, on the weight's device.

    The bits are those of the library's own `quantize_4bit(weight, compress_statistics=True)`. On a CPU it is done
    in chunks, so that a large layer takes little more than itself.
    """
    from bitsandbytes import functional  # noqa: PLC0415  # three seconds to import

    flat = weight.reshape(-1)
    step = CHUNK if weight.device.type == "cpu" else flat.numel()
    packed, scales, code = [], [], torch.empty(0)
    for part in torch.split(flat, step):
        bits, state = functional.quantize_4bit(
            part, blocksize=BLOCK, compress_statistics=False, quant_type="nf4"
        )
        packed.append(bits)
        scales.append(state.absmax)
        code = state.code
    absmax = torch.cat(scales)
    offset = absmax.mean()
    nested, second = functional.quantize_blockwise(absmax - offset, blocksize=NESTED_BLOCK)
    whole = functional.QuantState(  # type: ignore[no-untyped-call]
        absmax=nested,
        shape=weight.shape,
        dtype=weight.dtype,
        blocksize=BLOCK,
        code=code,
        quant_type="nf4",
        offset=offset,
        state2=second,
    )
    return {"": torch.cat(packed), **whole.as_dict(packed=True)}


def packed_parameter(
    parts: Mapping[str, Tensor], module: Any, device: torch.device, dtype: torch.dtype
) -> Any:
    """The parameter of a 4-bit layer from what `quantised` answered or a file has.

    Args:
        parts: "" and the names of PARTS.
        module: the layer that will hold it.
        device: where it goes.
        dtype: what its products are computed in.
    """
    from bitsandbytes.nn.modules import Params4bit  # noqa: PLC0415  # three seconds to import

    stats = {name: tensor for name, tensor in parts.items() if name}
    parameter = Params4bit.from_prequantized(
        parts[""], quantized_stats=stats, requires_grad=False, device=device, module=module
    )
    parameter.quant_state.dtype = dtype
    return parameter
