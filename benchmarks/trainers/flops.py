"""Floating-point operations that a training step needs, and the most that a device can do.

Counted is what the mathematics of LoRA on a frozen base asks for, and nothing that a program does beyond it (padding,
recomputation, logits nobody needs). A row of n tokens, m of which are taught, in a model of L layers with P weights in
their linear maps, hidden size h, vocabulary V, attention width a = heads * head size, and A weights in the adapter:

    4 P n        frozen maps: 2 per weight forward, 2 for the gradient of their input; their weights need none
    6 A n        the adapter: 2 forward, 4 backward
    6 L a n^2    causal attention: scores and sums 4 a n^2 / 2 forward, twice that backward
    4 h V m      the head, where there is a label

(J. Kaplan et al., arXiv 2001.08361, section 2.1, less the weight gradients that a frozen base lacks.) Model FLOPs
utilisation is these over the device's peak (A. Chowdhery et al., arXiv 2204.02311, appendix B). Under the usual 6 per
weight and token it would read about half as much again.
"""

import time
from collections.abc import Sequence
from typing import Any, Final

import torch

from dropforge_core.planning.catalogue import load_catalogue

ADAPTER_RANK: Final = 16


def training_flops(config: Any, rows: Sequence[tuple[int, int]], rank: int = ADAPTER_RANK) -> float:
    """Of one pass over rows of (tokens, taught tokens), forward and backward.

    Args:
        config: of a Llama: transformers' names.
        rows: tokens and taught tokens of each.
        rank: of an adapter on every linear layer.
    """
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    size = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    width, keys = config.num_attention_heads * size, config.num_key_value_heads * size
    maps = [(hidden, width), (hidden, keys), (hidden, keys), (width, hidden), *[(hidden, inner)] * 3]
    frozen = layers * sum(a * b for a, b in maps)
    adapter = layers * sum(rank * (a + b) for a, b in maps)
    return float(
        sum(
            (4 * frozen + 6 * adapter) * n + 6 * layers * width * n * n + 4 * hidden * config.vocab_size * m
            for n, m in rows
        )
    )


def peak_flops(device: torch.device) -> tuple[float, str]:
    """FLOP/s and where the figure is from: the planner's catalogue for a GPU it knows, else a large product here."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        # The longest name that fits: "A100 80GB" before "A10".
        for known, gpu in sorted(load_catalogue().gpus.items(), key=lambda one: -len(one[0])):
            if all(word in name.replace("-", " ").split() for word in known.split()):
                return gpu.bf16_tflops * 1e12, f"{known}, dense bf16 ({gpu.source})"
    return _measured(device), "the best of ten products of two large square matrices, on this machine"


def _measured(device: torch.device) -> float:
    cuda = device.type == "cuda"
    size = 8_192 if cuda else 2_048
    a, b = (
        torch.randn(size, size, device=device, dtype=torch.bfloat16 if cuda else torch.float32) for _ in "ab"
    )
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        a @ b
        if cuda:
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
