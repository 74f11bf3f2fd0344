"""How documents may lie in one pass so that each gets the states that it gets alone: tried on the model, not assumed.

Rows of one document each, padded behind it, are right for every causal model. Three other ways are cheaper, and
wrong for some: layers that carry a state from token to token (Mamba, linear attention, short convolutions) read on
across the end of a document, whatever an attention mask says, and a mask of ours takes the place of a window's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from tuner.attention import TRIED, is_close, lays_end_to_end
from tuner.contract import Say
from tuner.model import LanguageModel

ATTENDING: Final = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Kinds of layers, by transformers' names, that know of other tokens through a mask alone."""
WINDOWS: Final = ("sliding_window", "attention_chunk_size")
"""What configurations call the reach of a layer that does not attend to all that came before."""
REFUSALS: Final = (TypeError, ValueError, RuntimeError, ImportError, AttributeError, LookupError)
"""What a model ends in that takes no such call."""


@dataclass(frozen=True, slots=True)
class Layouts:
    """What a model allows."""

    end_to_end: bool
    """One document behind the other in one row, by `tuner.attention`."""
    packed: bool
    """Several in each row, parted by a mask."""
    shared: bool
    """A beginning that all documents of a pass have, computed once."""

    def __str__(self) -> str:
        name = "end_to_end" if self.end_to_end else "packed" if self.packed else "padded"
        return f"layout={name} shared_beginning={'yes' if self.shared else 'no'}"


def layouts_of(base: LanguageModel, *, packing: bool, longest: int, say: Say = lambda _: None) -> Layouts:
    """Try each way that is asked for, and switch the model's attention where documents will lie end to end.

    Args:
        base: without an adapter, or with one that changes nothing yet.
        packing: whether the recipe wants more than one document in a row.
        longest: tokens of the longest document.
        say: told why a way that is usual is not taken.
    """
    causal, device = base.causal, base.device
    was_training = causal.training
    causal.eval()
    try:
        flat = packing and not base.lockstep and lays_end_to_end(causal, device)
        window = narrowest_window(causal.config)
        within = window is None or longest <= window
        stateless = not carries_state(causal)
        packed = packing and not flat and stateless and within and _is_exact(base, _packed)
        shared = base.can_share and stateless and within and _is_exact(base, _shared)
    finally:
        causal.train(was_training)
    if packing and not flat and not packed:
        told = f"rows reach beyond its window of {window}" if not within else "its layers would mix documents"
        say(f"phase=not_packed {told}; each row holds one")
    return Layouts(flat, packed, shared)


def carries_state(causal: Any) -> bool:
    """Whether layers hand something from token to token that no mask stops."""
    kinds = getattr(causal.config.get_text_config(), "layer_types", None) or ()
    return not ATTENDING.issuperset(kinds) or any(isinstance(part, nn.Conv1d) for part in causal.modules())


def narrowest_window(config: Any) -> int | None:
    """Tokens that the shortest-sighted layer attends to; None where all attend to all that came before."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if kinds is not None and not any(kind in {"sliding_attention", "chunked_attention"} for kind in kinds):
        return None
    found = [getattr(text, name, None) for name in WINDOWS]
    return min((one for one in found if isinstance(one, int)), default=None)


def _is_exact(
    base: LanguageModel, way: Callable[[LanguageModel, list[Tensor], Tensor], list[Tensor]]
) -> bool:
    """Whether a way gives both documents the states that they get alone."""
    vocabulary = int(base.causal.get_input_embeddings().weight.shape[0])
    ids = (torch.arange(sum(TRIED), device=base.device) * 7919 + 11) % vocabulary
    beginning, *documents = torch.split(ids, list(TRIED))
    with torch.no_grad():
        try:
            alone = [base.hidden(input_ids=torch.cat([beginning, own])[None])[0] for own in documents]
            return is_close(torch.cat(way(base, documents, beginning)), torch.cat(alone))
        except REFUSALS:
            return False


def _packed(base: LanguageModel, documents: list[Tensor], beginning: Tensor) -> list[Tensor]:
    """One row, a mask that parts them."""
    rows = [torch.cat([beginning, own]) for own in documents]
    owners = torch.cat([torch.full_like(row, place) for place, row in enumerate(rows)])
    mask = (owners[:, None] == owners[None, :]).tril()[None, None]
    positions = torch.cat([torch.arange(len(row), device=base.device) for row in rows])
    states = base.hidden(input_ids=torch.cat(rows)[None], position_ids=positions[None], attention_mask=mask)
    return list(torch.split(states[0], [len(row) for row in rows]))


def _shared(base: LanguageModel, documents: list[Tensor], beginning: Tensor) -> list[Tensor]:
    """The beginning once, and a row for each document that goes on from it, the shorter one padded."""
    width = max(map(len, documents))
    ids = torch.stack([torch.cat([own, own.new_zeros(width - len(own))]) for own in documents])
    lengths = torch.tensor([len(own) for own in documents], device=base.device)
    places = torch.arange(len(beginning) + width, device=base.device)
    states = base.decode(
        past_key_values=base.shared_cache(beginning[None], len(documents)),
        input_ids=ids,
        position_ids=places[None, len(beginning) :].expand(len(documents), -1),
        attention_mask=(places[None, :] < len(beginning) + lengths[:, None]).long(),
    )
    first = base.hidden(input_ids=beginning[None])[0]
    return [torch.cat([first, row[: len(own)]]) for row, own in zip(states, documents, strict=True)]
