"""The frozen base over several GPUs: each keeps a part of every block and gathers one block at a time (FSDP2).

Only the blocks' frozen weights are sharded. Embeddings, head and norms are small beside them, and the
adapter lies whole in every process, so nothing that is learnt is ever a shard. NF4 weights travel packed:
FSDP2 gathers plain parameters and drops what bitsandbytes hangs on its own, so the packed bytes are held as
a flat parameter in a floating type and their constants beside it. A gathered weight is bit for bit the one
that was quantised.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from tuner.failure import Failure
from tuner.model import LanguageModel, compute_dtype
from tuner.residency import is_packed

LEAST: Final = 1024
"""Numbers below which a parameter (a norm, a bias) is not worth sharding."""


class PackedLinear(nn.Linear):
    """bitsandbytes' 4-bit layer with its packed weights as one flat parameter of a floating type."""

    def __init__(self, part: Any, carrier: torch.dtype) -> None:
        super().__init__(part.in_features, part.out_features, bias=False, device="meta")
        self.compute_dtype: torch.dtype = part.compute_dtype or torch.float32
        self.quant_state = part.weight.quant_state
        self.weight = nn.Parameter(part.weight.data.flatten().view(carrier), requires_grad=False)
        self.bias = part.bias

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        import bitsandbytes  # noqa: PLC0415  # three seconds to import

        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        packed = self.weight.view(torch.uint8).unsqueeze(1)
        product: Tensor = bitsandbytes.matmul_4bit(  # type: ignore[attr-defined]  # exported, but not by name
            input.to(self.compute_dtype), packed.t(), quant_state=self.quant_state, bias=bias
        )
        return product.to(input.dtype)


@dataclass(frozen=True, slots=True)
class Mesh:
    """The processes over which a base is spread, and this process's device."""

    device: torch.device
    within: DeviceMesh

    @classmethod
    def over(cls, device: torch.device, *, hosts: int, per_host: int) -> "Mesh":
        """Over the GPUs of one host where it has several, so that weights never cross the network; else over all."""
        # peft takes a sharded layer's sizes from the layer, not from a shard, where the dimension has this name.
        names = ("hosts", "fsdp") if per_host > 1 else ("fsdp", "gpus")
        return cls(device, init_device_mesh(device.type, (hosts, per_host), mesh_dim_names=names)["fsdp"])


def shard_base(base: LanguageModel, mesh: Mesh) -> LanguageModel:
    """Spread the blocks of a base that lies on the host over the mesh's devices.

    Raises:
        Failure: BASE_MODEL where transformers does not say what the model's blocks are.
    """
    causal, device = base.causal, mesh.device
    carrier = compute_dtype(device)
    for name, part in list(causal.named_modules()):
        if is_packed(part) and part.weight.numel() % carrier.itemsize == 0:
            causal.set_submodule(name, PackedLinear(part, carrier))
    decoder = causal.get_decoder()
    kinds = set(getattr(causal, "_no_split_modules", None) or ())
    blocks = [part for part in decoder.modules() if type(part).__name__ in kinds]
    if not blocks:
        raise Failure("BASE_MODEL", f"{base.manifest.name} names no blocks that could be spread over GPUs")
    spread = {
        p for block in blocks for p in block.parameters() if p.numel() >= LEAST and p.is_floating_point()
    }
    kept = {p for p in causal.parameters() if p not in spread}
    for block in blocks:
        fully_shard(block, mesh=mesh.within, ignored_params=kept)
    fully_shard(decoder, mesh=mesh.within, ignored_params=kept)
    for part in causal.modules():
        if isinstance(part, PackedLinear):
            part.quant_state.to(device)
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, buffer.to(device))
    for parameter in kept:
        parameter.data = parameter.data.to(device)
    return replace(base, device=device, lockstep=True)
