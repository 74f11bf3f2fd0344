"""The same layers in fewer passes over memory, for GPUs: what lies between the products is bound by it.

- An adapter's update is added by the product that makes it: one pass over the output, where peft takes six (eight over
  a packed base).
- A norm is PyTorch's one kernel, which keeps its input and a number a token; written out it keeps two copies in fp32.
- The gated feed-forward keeps gate and way up, and computes their product again in the backward pass.

All are PyTorch's own kernels: neither Triton nor a compiler is needed in the image. A layer is only touched where it
computes what it should, tried on random numbers; any other stays as transformers and peft made it.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

TRIED_TOKENS: Final = 5
ROUNDING: Final = 1e-5
HALF_ROUNDING: Final = 0.02
"""Share of one layer's output that fp32, or bf16, may change."""
REFUSALS: Final = (TypeError, ValueError, RuntimeError, AttributeError)
"""What a layer of another kind ends in."""


def fuse(causal: nn.Module) -> dict[str, int]:
    """Replace what can be replaced in a model that carries one adapter; says how many of each kind.

    The modules stay where they are, with their parameters: only their `forward` is another.
    """
    ways: dict[str, Callable[[nn.Module], Callable[..., Tensor] | None]] = {
        "adapters": _adapter,
        "norms": _norm,
        "feed_forwards": _feed_forward,
    }
    done: Counter[str] = Counter(dict.fromkeys(ways, 0))
    refused: set[tuple[str, type]] = set()
    for part in list(causal.modules()):
        for name, way in ways.items():
            forward = None if (name, type(part)) in refused else way(part)
            if forward is None:
                continue
            if _computes_the_same(part, forward):
                part.forward = forward
                done[name] += 1
            else:
                refused.add((name, type(part)))
    return dict(done)


def _computes_the_same(part: nn.Module, forward: Callable[..., Tensor]) -> bool:
    width = _width(part)
    like = next(part.parameters())
    generator = torch.Generator().manual_seed(5)
    given = torch.randn(1, TRIED_TOKENS, width, generator=generator).to(like.device)
    was_training = part.training
    part.eval()
    half = like.device.type == "cuda" or any(p.dtype == torch.bfloat16 for p in part.parameters())
    try:
        with torch.no_grad(), torch.autocast(like.device.type, torch.bfloat16, enabled=half):
            given = given.bfloat16() if half else given
            expected, found = part(given), forward(given)
    except REFUSALS:
        return False
    finally:
        part.train(was_training)
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    difference = (found.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-9)
    return float(difference) < (HALF_ROUNDING if half else ROUNDING)


def _width(part: Any) -> int:
    """Channels that a layer takes in."""
    for name in ("in_features", "hidden_size"):
        if isinstance(size := getattr(part, name, None), int):
            return size
    if (gate := getattr(part, "gate_proj", None)) is not None:
        return int(gate.in_features)
    return int(part.weight.shape[0])


# --- adapters ---------------------------------------------------------------------------------------


def _adapter(part: Any) -> Callable[..., Tensor] | None:
    from peft.tuners.lora import LoraLayer  # noqa: PLC0415  # five seconds that other verbs save

    if not isinstance(part, LoraLayer) or not isinstance(part.get_base_layer(), nn.Linear):
        return None
    names = list(part.active_adapters)
    if len(names) != 1 or names[0] not in part.lora_A or part.lora_variant or part.lora_bias[names[0]]:
        return None
    return partial(_adapted, part, names[0])


def _adapted(layer: Any, name: str, x: Tensor) -> Tensor:
    """W x + B (s A x), the sum taken by the last product."""
    base: Tensor = layer.base_layer(x)
    if layer.disable_adapters:
        return base
    inner = layer.lora_A[name](layer.lora_dropout[name](x)) * layer.scaling[name]
    outer = layer.lora_B[name].weight.t()
    return torch.addmm(base.flatten(0, -2), inner.flatten(0, -2), outer).view_as(base)


# --- norms ------------------------------------------------------------------------------------------


def _norm(part: Any) -> Callable[..., Tensor] | None:
    if not type(part).__name__.endswith("RMSNorm") or not isinstance(
        getattr(part, "weight", None), nn.Parameter
    ):
        return None
    epsilon = getattr(part, "variance_epsilon", getattr(part, "eps", None))
    return partial(_normed, part, float(epsilon)) if isinstance(epsilon, float) else None


def _normed(layer: Any, epsilon: float, x: Tensor) -> Tensor:
    # Autocast would have it in fp32, in and out; the kernel sums in fp32 by itself.
    with torch.autocast(x.device.type, enabled=False):
        return functional.rms_norm(x, layer.weight.shape, layer.weight.to(x.dtype), epsilon)


# --- feed-forward -----------------------------------------------------------------------------------


def _feed_forward(part: Any) -> Callable[..., Tensor] | None:
    inside = {name for name, _ in part.named_children()}
    return partial(_gated, part) if {"gate_proj", "up_proj", "down_proj"} <= inside else None


def _gated(layer: Any, x: Tensor) -> Tensor:
    product: Tensor = GatedProduct.apply(layer.gate_proj(x), layer.up_proj(x))  # type: ignore[no-untyped-call]
    down: Tensor = layer.down_proj(product)
    return down


class GatedProduct(torch.autograd.Function):
    """silu(gate) * up, of which nothing is kept but gate and up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        slope = upstream[0]
        return torch.ops.aten.silu_backward(slope * up, gate), slope * functional.silu(gate)
