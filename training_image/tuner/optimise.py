"""AdamW with a warm-up and a decay, over the adapter's parameters alone."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dropforge_core.recipe import Training


def learning_rate_at(
    step: int, steps: int, peak: float, warmup_ratio: float, schedule: Literal["cosine", "linear", "constant"]
) -> float:
    """Learning rate of a step counted from 1: linear climb, then decay to 0 after the last step."""
    warmup = math.ceil(steps * warmup_ratio)
    if step <= warmup:
        return peak * step / warmup
    if schedule == "constant":
        return peak
    # The last step still moves: 0 would be reached one step after it.
    done = (step - warmup - 1) / max(1, steps - warmup)
    return peak * (0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1 - done)


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], training: Training, lora_plus_ratio: float | None = None
) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) in fp32.

    The adapter is about one percent of the model, so 8-bit states would save megabytes and cost exactness.

    Args:
        parameters: the adapter's, by name.
        training: learning rate and weight decay.
        lora_plus_ratio: how many times faster the B matrices learn than the rest (arXiv 2402.12354).
    """
    groups: list[dict[str, Any]] = [{"params": list(parameters.values()), "times": 1.0}]
    if lora_plus_ratio is not None:
        groups = [
            {"params": [p for name, p in parameters.items() if (".lora_B." in name) == outer], "times": times}
            for outer, times in ((False, 1.0), (True, lora_plus_ratio))
        ]
    return torch.optim.AdamW(
        groups,
        lr=training.learning_rate,
        betas=(0.9, 0.999),
        weight_decay=training.weight_decay,
        foreach=False,
        # One kernel for all: one by one, thousands of small ones take longer than a small model's whole step.
        fused=all(parameter.is_cuda for parameter in parameters.values()),
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["times"]


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scale the gradients to at most `max_norm` and return their norm before that."""
    return float(torch.nn.utils.clip_grad_norm_(list(parameters), max_norm))


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter>/<field>` tensors on the host."""
    return {
        f"{name}/{field}": torch.as_tensor(value).detach().to("cpu", copy=True).contiguous()
        for name, parameter in parameters.items()
        for field, value in sorted(optimizer.state.get(parameter, {}).items())
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` took out.

    Raises:
        KeyError: when a tensor belongs to no parameter.
    """
    # An optimizer counts parameters in the order of its groups.
    order = {id(p): index for index, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    places = {name: order[id(parameter)] for name, parameter in parameters.items()}
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, field = key.rpartition("/")
        state.setdefault(places[name], {})[field] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
