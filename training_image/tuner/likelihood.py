"""Negative log likelihoods of taught tokens, and of nothing else.

The head multiplies only the positions whose next token is taught. It is frozen, so the gradient with
respect to its input is known in the forward pass, chunk by chunk, and logits are never kept:
with a vocabulary of 128k they would outweigh the rest of the pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tuner.attention import cut_row, row_inputs
from tuner.batching import MicroBatch
from tuner.conversation import Document
from tuner.model import LanguageModel, LogitTransform

CHUNK: Final = 512
"""Positions whose logits exist at the same time."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors of one forward pass over R rows of W tokens with N taught tokens.

    Attributes:
        inputs: keyword arguments of the decoder: input_ids [R, W], position_ids [R, W], attention_mask; where the
            documents lie end to end, R is 1 and `segments` says how they are cut.
        prefix: [1, S] tokens with which every row begins, not part of W; None where nothing is shared.
        places: [N] positions in the flattened [R * W] whose next token is taught.
        targets: [N] the taught tokens.
        weights: [N] float32.
        owners: [N] index of the document in the step that each taught token belongs to.
    """

    inputs: dict[str, Any]
    prefix: Tensor | None
    places: Tensor
    targets: Tensor
    weights: Tensor
    owners: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same on a device; from pinned memory the copy runs beside what the device is doing."""
        if device.type == "cpu":
            return self

        def moved(value: Any) -> Any:
            if isinstance(value, Tensor):
                return (
                    value.pin_memory().to(device, non_blocking=True)
                    if device.type == "cuda"
                    else value.to(device)
                )
            return value.to(device)

        return replace(
            self,
            inputs={name: moved(value) for name, value in self.inputs.items()},
            prefix=None if self.prefix is None else moved(self.prefix),
            places=moved(self.places),
            targets=moved(self.targets),
            weights=moved(self.weights),
            owners=moved(self.owners),
        )


def make_batch(documents: Sequence[Document], shape: MicroBatch, pad_id: int, device: torch.device) -> Batch:
    """Lay documents into rows, or one behind the other where the shape says so; none sees another."""
    return lay_out(documents, shape, pad_id).to(device)


def lay_out(documents: Sequence[Document], shape: MicroBatch, pad_id: int) -> Batch:
    """As `make_batch`, on the host."""
    lay = _in_rows if shape.end_to_end is None else _in_one_row
    return lay(documents, shape, pad_id)


def _in_one_row(documents: Sequence[Document], shape: MicroBatch, pad_id: int) -> Batch:
    """What is missing to the shape's tokens (a rehearsal's) is filled by documents that teach nothing.

    They are no longer than the longest here: some models know no position beyond those of real documents.
    """
    shared, total = shape.shared, shape.end_to_end or 0
    order = [member for row in shape.rows for member in row]
    lengths = [documents[member].length - shared for member in order]
    filler = total - shared - sum(lengths)
    pieces = [np.arange(shared), *(np.arange(shared, shared + length) for length in lengths)]
    ids = [documents[order[0]].ids[:shared], *(documents[member].ids[shared:] for member in order)]
    longest = max(lengths)
    for size in [longest] * (filler // longest) + [filler % longest] * (filler % longest > 0):
        lengths.append(size)
        pieces.append(np.arange(shared, shared + size))
        ids.append(np.full(size, pad_id, dtype=np.int64))
    starts = shared + np.concatenate([[0], np.cumsum(lengths)])
    taught = []
    for start, member in zip(starts, order, strict=False):
        document = documents[member]
        which = np.flatnonzero(document.weights)
        places = start + which - 1 - shared
        taught.append((places, document.ids[which], document.weights[which], np.full(len(which), member)))
    places, targets, weights, owners = (
        torch.from_numpy(np.concatenate(column)) for column in zip(*taught, strict=True)
    )
    return Batch(
        inputs=row_inputs(
            torch.from_numpy(np.concatenate(ids))[None],
            torch.from_numpy(np.concatenate(pieces))[None],
            cut_row(tuple(int(length) for length in lengths), shared),
        ),
        prefix=None,
        places=places,
        targets=targets,
        weights=weights,
        owners=owners,
    )


def _in_rows(documents: Sequence[Document], shape: MicroBatch, pad_id: int) -> Batch:
    """Packed documents see only themselves by a block-diagonal causal mask."""
    size, shared = (len(shape.rows), shape.width), shape.shared
    ids = np.full(size, pad_id, dtype=np.int64)
    positions = np.zeros(size, dtype=np.int64)
    blocks = np.full(size, -1, dtype=np.int64)
    taught: list[tuple[Any, Any, Any, Any]] = []
    for row, members in enumerate(shape.rows):
        at = 0
        for member in members:
            document = documents[member]
            span = slice(at, at + document.length)
            ids[row, span] = document.ids
            positions[row, span] = np.arange(document.length)
            blocks[row, span] = member
            which = np.flatnonzero(document.weights)
            place = row * (shape.width - shared) + at + which - 1 - shared
            taught.append((place, document.ids[which], document.weights[which], np.full(len(which), member)))
            at += document.length
    places, targets, weights, owners = (np.concatenate(column) for column in zip(*taught, strict=True))
    if any(len(members) > 1 for members in shape.rows):
        mask = torch.from_numpy(blocks[:, :, None] == blocks[:, None, :]).tril().unsqueeze(1)
    else:
        mask = torch.from_numpy((blocks >= 0).astype(np.int64))
    return Batch(
        inputs={
            "input_ids": torch.from_numpy(ids[:, shared:].copy()),
            "position_ids": torch.from_numpy(positions[:, shared:].copy()),
            "attention_mask": mask,
        },
        prefix=torch.from_numpy(ids[:1, :shared].copy()) if shared else None,
        places=torch.from_numpy(places),
        targets=torch.from_numpy(targets),
        weights=torch.from_numpy(weights),
        owners=torch.from_numpy(owners),
    )


def token_nll(model: LanguageModel, batch: Batch) -> Tensor:
    """Negative log likelihood of each taught token, [N] float32, differentiable."""
    if batch.prefix is None:
        states = model.hidden(**batch.inputs)
    else:
        cache = model.shared_cache(batch.prefix, len(batch.inputs["input_ids"]))
        states = model.decode(past_key_values=cache, **batch.inputs)
    return nll_of_states(model, states.flatten(0, 1)[batch.places], batch.targets)


def nll_of_states(model: LanguageModel, states: Tensor, targets: Tensor) -> Tensor:
    """[N] from the final hidden states [N, hidden size] that predict `targets` [N]."""
    head = model.causal.get_output_embeddings()
    nll: Tensor = FrozenHead.apply(states, head.weight, head.bias, targets, model.logit_transform)  # type: ignore[no-untyped-call]
    return nll


class FrozenHead(torch.autograd.Function):
    """Cross-entropy through a frozen linear head, without keeping logits.

    With p = softmax(z), z = W h + b, the gradient of -log p[t] in h is W^T (p - onehot(t)): it is
    computed beside the loss and scaled by what arrives in the backward pass.
    """

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917  # autograd passes positions only
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, after: LogitTransform
    ) -> Tensor:
        losses = torch.empty(len(targets), dtype=torch.float32, device=states.device)
        wants = ctx.needs_input_grad[0]
        slopes = torch.empty_like(states) if wants else None
        for at in range(0, len(targets), CHUNK):
            part = slice(at, at + CHUNK)
            rows = torch.arange(len(targets[part]), device=states.device)
            logits = functional.linear(states[part].to(weight.dtype), weight, bias).float()
            if after.scale != 1.0:
                logits *= after.scale
            bend = None
            if after.cap is not None:
                bend = torch.tanh(logits / after.cap)
                logits = bend * after.cap
            total = logits.logsumexp(dim=-1)
            losses[part] = total - logits[rows, targets[part]]
            if slopes is not None:
                slope = torch.exp_(logits.sub_(total[:, None]))
                slope[rows, targets[part]] -= 1.0
                if bend is not None:
                    slope *= 1 - bend * bend
                slopes[part] = (slope * after.scale if after.scale != 1.0 else slope).to(
                    weight.dtype
                ) @ weight
        if slopes is not None:
            ctx.save_for_backward(slopes)
        return losses

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return slopes * upstream[0][:, None].to(slopes.dtype), None, None, None, None
