"""Greedy or sampled answers and likelihoods of references, for many prompts at once.

What all prompts of a batch begin with (the template, the system message) is computed once and its
keys and values are shared; rows that are done leave the batch. Rows are padded on the left, so the
next token of every row stands in the same column.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuner.batching import MicroBatch, shared_beginning
from tuner.conversation import Document
from tuner.likelihood import make_batch, token_nll
from tuner.model import LanguageModel


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are generated."""

    max_new_tokens: int
    temperature: float = 0.0
    """0 takes the likeliest token; above 0 each answer is drawn under a seed of its own."""
    seed: int = 17

    def seed_of(self, record: str) -> int:
        """The seed of one record's answer, whoever else is answered with it; 63 bits."""
        digest = hashlib.sha256(f"{self.seed} {record}".encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said after a prompt."""

    tokens: tuple[int, ...]
    """Without the stop token."""
    finish_reason: str
    """`stop` or `length`."""


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Tokens that all sequences share at their start, short of the shortest one's last token."""
    shortest = min(len(sequence) for sequence in sequences) - 1
    first = sequences[0]
    for at in range(max(0, shortest)):
        if any(sequence[at] != first[at] for sequence in sequences):
            return at
    return max(0, shortest)


def batches_by_tokens(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices by falling length, cut where width times rows would pass `max_tokens`."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and lengths[batch[0]] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.inference_mode()
def reference_nll(model: LanguageModel, documents: Sequence[Document]) -> list[float]:
    """Negative log likelihood of each document's taught tokens, natural log, summed; weights are not used."""
    shape = MicroBatch(
        rows=tuple((index,) for index in range(len(documents))),
        width=max(document.length for document in documents),
        shared=shared_beginning(documents) if model.can_share else 0,
    )
    batch = make_batch(documents, shape, model.pad_id, model.device)
    sums = torch.zeros(len(documents), dtype=torch.float64, device=model.device)
    sums.index_add_(0, batch.owners, token_nll(model, batch).double())
    return [float(value) for value in sums]


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    records: Sequence[str] = (),
) -> list[Answer]:
    """Answer every prompt, in one batch that none joins.

    Args:
        model: as one variant.
        prompts: tokens.
        decoding: length, temperature, seed.
        records: ids that sampling is seeded by; the prompts' places where not given.
    """
    prefix = common_prefix(prompts) if model.can_share else 0
    ids, mask = pad_left(model, prompts, prefix)
    cache = model.shared_cache(_to(model, np.asarray([prompts[0][:prefix]], dtype=np.int64)), len(prompts))
    choosers = [chooser(model, decoding, record) for record in records or map(str, range(len(prompts)))]
    said: list[list[int]] = [[] for _ in prompts]
    reasons = ["length"] * len(prompts)
    alive = list(range(len(prompts)))
    seen = _to(model, np.concatenate([np.ones((len(prompts), prefix), dtype=np.int64), mask], axis=1))
    states = prefill(model, ids, mask, prefix, cache)[:, -1]
    for turn in range(decoding.max_new_tokens):
        chosen = choose(model, states, decoding.temperature, [choosers[row] for row in alive])
        keep = []
        for place, token in enumerate(chosen.tolist()):
            if token in model.codec.stop_ids:
                reasons[alive[place]] = "stop"
            else:
                said[alive[place]].append(token)
                keep.append(place)
        if not keep or turn == decoding.max_new_tokens - 1:
            break
        if len(keep) < len(alive):
            kept = _to(model, np.asarray(keep))
            cache.batch_select_indices(kept)
            chosen, seen = chosen[kept], seen[kept]
            alive = [alive[place] for place in keep]
        seen = torch.cat([seen, seen.new_ones((len(alive), 1))], dim=1)
        states = _decode(model, chosen[:, None], seen, cache)[:, -1]
    return [Answer(tuple(tokens), reason) for tokens, reason in zip(said, reasons, strict=True)]


def chooser(model: LanguageModel, decoding: Decoding, record: str) -> torch.Generator:
    """Where the answer of one record takes its random numbers from."""
    return torch.Generator(device=model.device).manual_seed(decoding.seed_of(record))


def choose(
    model: LanguageModel, states: Tensor, temperature: float, choosers: Sequence[torch.Generator]
) -> Tensor:
    """The next token of each row, [rows], from its last state [rows, hidden size] and its own chooser."""
    logits = model.logits(states)
    if temperature <= 0:
        return logits.argmax(dim=-1)
    shares = torch.softmax(logits / temperature, dim=-1)
    drawn = [torch.multinomial(row, 1, generator=own) for row, own in zip(shares, choosers, strict=True)]
    return torch.cat(drawn)


def pad_left(
    model: LanguageModel, prompts: Sequence[Sequence[int]], prefix: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What follows the prefix of each prompt, [rows, width], and which of it is no padding."""
    width = max(len(prompt) for prompt in prompts) - prefix
    ids = np.full((len(prompts), width), model.pad_id, dtype=np.int64)
    mask = np.zeros((len(prompts), width), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - (len(prompt) - prefix) :] = prompt[prefix:]
        mask[row, width - (len(prompt) - prefix) :] = 1
    return ids, mask


def prefill(model: LanguageModel, ids: Any, mask: Any, prefix: int, cache: Any) -> Tensor:
    """States of the part after the prefix, [rows, width, hidden size]."""
    whole = np.concatenate([np.ones((len(ids), prefix), dtype=np.int64), mask], axis=1)
    positions = np.maximum(np.cumsum(whole, axis=1) - 1, 0)[:, prefix:]
    return model.decode(
        input_ids=_to(model, ids),
        attention_mask=_to(model, whole),
        position_ids=_to(model, positions),
        past_key_values=cache,
    )


def _decode(model: LanguageModel, ids: Tensor, seen: Tensor, cache: Any) -> Tensor:
    return model.decode(
        input_ids=ids,
        attention_mask=seen,
        position_ids=seen.sum(dim=1, keepdim=True) - 1,
        past_key_values=cache,
    )


def _to(model: LanguageModel, array: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(model.device)
