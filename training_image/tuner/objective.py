"""What a step minimises: weighted likelihood of answers, or preference between two of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from tuner.batching import MicroBatch, shape_batches, shared_beginning
from tuner.conversation import Document
from tuner.data import Example
from tuner.failure import Failure
from tuner.likelihood import Batch, lay_out, make_batch, token_nll
from tuner.model import LanguageModel

DPO_BETA: Final = 0.1
"""Strength of the pull towards the reference model where the recipe says none (arXiv 2305.18290, section 6)."""


@dataclass(frozen=True, slots=True)
class Part:
    """One micro-batch of a step, ready for the device."""

    documents: tuple[Document, ...]
    owners: tuple[int, ...]
    """Index in the step's examples of each document."""
    shape: MicroBatch


class Objective(Protocol):
    """Loss of a micro-batch as a sum, so that parts of any size add up to the same step."""

    def weight(self, examples: Sequence[Example]) -> float:
        """What the sum of losses is divided by: the mean is over the whole step, not over its parts."""

    def losses(self, model: LanguageModel, batch: Batch, part: Part) -> Tensor:
        """Loss of each document or pair, unnormalised, differentiable."""


class AnswerLikelihood:
    """Supervised fine-tuning: sum of weight times negative log likelihood over taught tokens."""

    def weight(self, examples: Sequence[Example]) -> float:
        return float(sum(float(d.weights.sum()) for example in examples for d in example.documents))

    def losses(self, model: LanguageModel, batch: Batch, part: Part) -> Tensor:
        nll = token_nll(model, batch)
        return _by_document(nll * batch.weights, batch.owners, len(part.documents))


class Preference:
    """Direct preference optimisation (arXiv 2305.18290, equation 7); the reference is the bare base.

    loss = -log sigmoid(beta * [(log pi(c) - log ref(c)) - (log pi(r) - log ref(r))]), where c is the
    chosen and r the rejected answer, and log p an answer's log likelihood summed over its tokens.
    """

    def __init__(self, adapter_off: Callable[[], Any], beta: float | None = None) -> None:
        self._beta = DPO_BETA if beta is None else beta
        self._adapter_off = adapter_off
        """Context manager in which the model answers as its reference."""

    def weight(self, examples: Sequence[Example]) -> float:
        return float(len(examples))

    def losses(self, model: LanguageModel, batch: Batch, part: Part) -> Tensor:
        count = len(part.documents)
        with torch.no_grad(), self._adapter_off():
            reference = _by_document(token_nll(model, batch), batch.owners, count)
        gained = reference - _by_document(token_nll(model, batch), batch.owners, count)
        return -functional.logsigmoid(self._beta * (gained[0::2] - gained[1::2]))


def _by_document(values: Tensor, owners: Tensor, count: int) -> Tensor:
    return torch.zeros(count, dtype=values.dtype, device=values.device).index_add(0, owners, values)


def split_step(  # noqa: PLR0913  # what a shape depends on
    examples: Sequence[Example],
    max_tokens: int,
    *,
    packing: bool,
    sharing: bool,
    hidden_size: int,
    end_to_end: bool = False,
) -> list[Part]:
    """The micro-batches of one step.

    Args:
        examples: of the step.
        max_tokens: bound of one forward pass.
        packing: whether rows may hold more than one document.
        sharing: whether a common beginning may be computed once a pass.
        hidden_size: of the model.
        end_to_end: whether the model takes documents one behind the other, without padding.
    """
    flat = [(owner, d) for owner, example in enumerate(examples) for d in example.documents]
    shapes = shape_batches(
        [[d.length for d in example.documents] for example in examples],
        max_tokens,
        packing=packing,
        hidden_size=hidden_size,
        shared=shared_beginning([document for _, document in flat]) if sharing else 0,
        end_to_end=end_to_end,
    )
    parts = []
    for shape in shapes:
        members = sorted(member for row in shape.rows for member in row)
        local = {member: place for place, member in enumerate(members)}
        parts.append(
            Part(
                documents=tuple(flat[member][1] for member in members),
                owners=tuple(flat[member][0] for member in members),
                shape=replace(shape, rows=tuple(tuple(local[m] for m in row) for row in shape.rows)),
            )
        )
    return parts


def part_losses(
    objective: Objective,
    model: LanguageModel,
    part: Part,
    examples: Sequence[Example],
    laid_out: Batch | None = None,
) -> Tensor:
    """Losses of one micro-batch, whose tensors may have been laid out on the host before.

    Raises:
        Failure: NAN_LOSS naming the rows whose loss is not finite, by id.
    """
    batch = (laid_out or lay_out(part.documents, part.shape, model.pad_id)).to(model.device)
    losses = objective.losses(model, batch, part)
    finite = torch.isfinite(losses.detach())
    if not bool(finite.all()):
        per_loss = len(part.documents) // len(losses)
        suspects = [int(index) * per_loss for index in torch.nonzero(~finite).flatten()]
        # Rows that share a pass infect one another: 0 times NaN is NaN in a masked attention too.
        # A sharded base makes no pass for one process alone.
        alone = [
            at
            for at in suspects
            if not model.lockstep and not _is_finite_alone(model, part.documents[at : at + per_loss])
        ]
        bad = [examples[part.owners[at]] for at in alone or suspects]
        raise Failure("NAN_LOSS", f"the loss of these rows is not finite: {row_ids(bad)}")
    return losses


def _is_finite_alone(model: LanguageModel, documents: Sequence[Document]) -> bool:
    with torch.no_grad():
        for document in documents:
            shape = MicroBatch(((0,),), document.length)
            batch = make_batch([document], shape, model.pad_id, model.device)
            if not bool(torch.isfinite(token_nll(model, batch)).all()):
                return False
    return True


def row_ids(examples: Sequence[Example], limit: int = 10) -> str:
    """Ids for a message: ids only, never text."""
    ids = list(dict.fromkeys(example.id for example in examples))
    return ", ".join(ids[:limit]) + (f" and {len(ids) - limit} more" if len(ids) > limit else "")
