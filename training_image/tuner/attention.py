"""Attention over documents that lie end to end in one row: no padding, and none sees another.

A row begins with what all its documents share, if anything; each document attends to that and to itself.
On CUDA one variable-length kernel does all documents (PyTorch's build of FlashAttention 2); elsewhere they are
taken one by one. Models reach it under a name of transformers' attention interface; a call that brings no
`Segments` is transformers' own sdpa.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME: Final = "sdpa_segments"
FLASH_CAPABILITY: Final = (8, 0)
"""Of the first GPUs that FlashAttention 2 runs on (Ampere)."""


@dataclass(frozen=True, slots=True)
class Segments:
    """How one row of T tokens is cut.

    Attributes:
        shared: tokens at its start that every document begins with; documents follow without them.
        lengths: tokens of each document after the shared ones; with `shared` they sum to T.
        queries, keys: int32 starts of the pieces, [pieces + 1], for the kernel; the shared beginning, if any,
            is a piece of its own. A document's keys are the shared ones and its own.
        gather: int64, which token of the row each key is; None where nothing is shared.
    """

    shared: int
    lengths: tuple[int, ...]
    queries: Tensor
    keys: Tensor
    gather: Tensor | None

    @property
    def pieces(self) -> tuple[int, ...]:
        """Tokens of each piece, in the row's order."""
        return (self.shared, *self.lengths) if self.shared else self.lengths

    def to(self, device: torch.device) -> "Segments":
        gather = None if self.gather is None else self.gather.to(device, non_blocking=True)
        queries, keys = (part.to(device, non_blocking=True) for part in (self.queries, self.keys))
        return Segments(self.shared, self.lengths, queries, keys, gather)


def cut_row(lengths: tuple[int, ...], shared: int) -> Segments:
    """Segments on the host; `lengths` without the shared tokens."""
    pieces = (shared, *lengths) if shared else lengths
    widths = (shared, *(shared + length for length in lengths)) if shared else lengths
    gather = None
    if shared:
        beginning = torch.arange(shared)
        starts = torch.tensor([0, *pieces]).cumsum(0).tolist()
        parts = [torch.arange(at, at + size) for at, size in zip(starts[1:], lengths, strict=False)]
        gather = torch.cat([beginning, *(piece for part in parts for piece in (beginning, part))])
    queries, keys = (torch.tensor([0, *sizes]).cumsum(0).to(torch.int32) for sizes in (pieces, widths))
    return Segments(shared, lengths, queries, keys, gather)


def attend(  # noqa: PLR0913, PLR0917  # transformers' interface
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: Segments | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers' interface.

    Args:
        module: the attention layer.
        query: [1, heads, T, width of a head].
        key: [1, key heads, T, width of a head].
        value: as the keys.
        attention_mask: of calls without segments.
        dropout: of calls without segments; no model that is laid end to end has it.
        scaling: of the products; None for one over the root of the width.
        segments: how the row is cut.
        others: what sdpa takes too.

    Returns:
        [1, T, heads, width of a head], and no weights.
    """
    if segments is None:
        made: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return made
    if query.is_cuda:
        return _in_one_kernel(query, key, value, scaling, segments), None
    return _one_by_one(query, key, value, scaling, segments), None


def _one_by_one(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, segments: Segments
) -> Tensor:
    times = query.shape[1] // key.shape[1]
    # Split and not sliced: the gradient of n slices is n tensors as large as the row.
    parts = [
        torch.split(part, list(segments.pieces), dim=2)
        for part in (query, repeat_kv(key, times), repeat_kv(value, times))
    ]
    found = []
    for index, (q, k, v) in enumerate(zip(*parts, strict=True)):
        mask = None
        if segments.shared and index:
            k, v = (torch.cat([whole[0], own], dim=2) for whole, own in zip(parts[1:], (k, v), strict=True))  # noqa: PLW2901
            size = (q.shape[2], k.shape[2])
            mask = torch.ones(size, dtype=torch.bool, device=q.device).tril(segments.shared)
        found.append(
            functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling
            )
        )
    return torch.cat(found, dim=2).transpose(1, 2)


def _in_one_kernel(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, segments: Segments
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415  # not in every build of torch

    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    if segments.gather is not None:
        k, v = k[segments.gather], v[segments.gather]
    found: Tensor = varlen_attn(  # type: ignore[assignment]  # a pair only where more is asked for
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        segments.queries,
        segments.keys,
        max(segments.pieces),
        segments.shared + max(segments.lengths),
        scale=scaling,
        # Causal, counted from each piece's last query and key.
        window_size=(-1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return found.unsqueeze(0)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def lays_end_to_end(causal: Any, device: torch.device) -> bool:
    """Switch a model to this attention if its documents may lie end to end, and say whether they may.

    They may where every layer attends to all that came before, and where two documents in one row, with and
    without a shared beginning, get the states that they get alone. That is tried, not assumed: a model with
    attention of its own fails it and stays as it is.
    """
    config = causal.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    whole = set(kinds) == {"full_attention"} if kinds is not None else not any(windows)
    reached = device.type != "cuda" or torch.cuda.get_device_capability(device) >= FLASH_CAPABILITY
    before = causal.config._attn_implementation  # noqa: SLF001  # has no public reader
    if not whole or not reached or getattr(config, "attention_dropout", None) or before != "sdpa":
        return False
    was_training = causal.training
    causal.eval()
    try:
        causal.set_attn_implementation(NAME)
        if _is_exact(causal, device):
            return True
    except (TypeError, ValueError, RuntimeError, ImportError, AttributeError):
        pass  # its own attention takes no such call, or this build has no such kernel
    finally:
        causal.train(was_training)
    causal.set_attn_implementation(before)
    return False


TRIED: Final = (7, 23, 40)
"""Tokens of a shared beginning and of two documents after it."""
ROUNDING: Final = 1e-4
"""Share of a token's state that fp32 may change."""
HALF_ROUNDING, HALF_WORST = 0.15, 0.5
"""The same of bf16, over all tokens and of the worst one. SmolLM2-135M's states of two documents differ between bf16 and
fp32 by 0.025 and 0.11; where one document sees the other, by 0.35 and 1.2."""


def row_inputs(ids: Tensor, positions: Tensor, segments: Segments) -> dict[str, Any]:
    """The decoder's keyword arguments for one row, [1, T] each.

    A mask of four dimensions is left as it is by transformers; this one is never read.
    """
    unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device)
    return {"input_ids": ids, "position_ids": positions, "attention_mask": unread, "segments": segments}


def _is_exact(causal: Any, device: torch.device) -> bool:
    shared = TRIED[0]
    vocabulary = int(causal.get_input_embeddings().weight.shape[0])
    ids = (torch.arange(sum(TRIED), device=device) * 7919 + 11) % vocabulary
    beginning, *documents = torch.split(ids, list(TRIED))
    decoder = causal.get_decoder()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=device.type == "cuda"):
        for common in (0, shared):
            own = [document if common else torch.cat([beginning, document]) for document in documents]
            alone = torch.cat(
                [
                    decoder(
                        input_ids=torch.cat([beginning, document])[None], use_cache=False
                    ).last_hidden_state[0, common:]
                    for document in documents
                ]
            )
            segments = cut_row(tuple(len(part) for part in own), common).to(device)
            row = torch.cat([beginning[:common], *own])[None]
            places = [
                torch.arange(start, start + len(part), device=device)
                for start, part in zip((common, common), own, strict=True)
            ]
            if not common:
                places = [torch.arange(len(part), device=device) for part in own]
            positions = torch.cat([torch.arange(common, device=device), *places])[None]
            states = decoder(use_cache=False, **row_inputs(row, positions, segments)).last_hidden_state
            if not is_close(states[0, common:], alone):
                return False
    return True


def is_close(found: Tensor, expected: Tensor) -> bool:
    """Whether states differ by the rounding of the type they were computed in, and by no more."""
    difference = (found.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1)
    mean, worst = float(difference.mean()), float(difference.max())
    if found.device.type == "cuda":
        return mean < HALF_ROUNDING and worst < HALF_WORST
    return worst < ROUNDING
