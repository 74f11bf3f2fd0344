"""Keys and values of rows that come and go, written in place.

Rows end in the same column, so the next token of every row has one place; a row of n tokens fills the n
columns before it. What is not a row's is masked. transformers' DynamicCache copies everything for each
token, and can't take a row in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROWTH: Final = 64
"""Columns that are kept free behind the longest row; when they are used up all rows are copied once."""
GROUPED: Final = "dropforge_grouped_sdpa"


@dataclass(slots=True)
class _Window:
    """The columns [start, end) that rows fill, the same in every layer."""

    rows: int = 0
    start: int = 0
    end: int = 0

    @property
    def width(self) -> int:
        return self.end - self.start


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, [capacity, heads, columns, size]."""

    is_sliding = False

    def __init__(self, window: _Window) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._window = window
        self._keys = self._values = torch.empty(0)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: rows join before they are decoded."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write one token of every row behind it, and show all. The window grows when all layers have written."""
        at = self._window
        self._keys[: at.rows, :, at.end] = key_states[:, :, 0]
        self._values[: at.rows, :, at.end] = value_states[:, :, 0]
        shown = slice(at.start, at.end + 1)
        return self._keys[: at.rows, :, shown], self._values[: at.rows, :, shown]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._window.width + query_length, 0

    def get_seq_length(self) -> int:
        return self._window.width

    def get_max_length(self) -> int:
        return -1

    def enlarge(self, capacity: int, columns: int, end: int, like: DynamicLayer | None) -> None:
        at, keys, values = self._window, self._keys, self._values
        if like is not None:
            keys, values = like.keys, like.values  # type: ignore[assignment]
        self._keys = _moved(self._keys, at, (capacity, columns), end, keys)
        self._values = _moved(self._values, at, (capacity, columns), end, values)

    def put(self, row: int, source: int, layer: Any, prefix: int, length: int) -> None:
        end, own = self._window.end, length - prefix
        for target, found in ((self._keys, layer.keys), (self._values, layer.values)):
            target[row, :, end - length : end - own] = found[source, :, :prefix]
            target[row, :, end - own : end] = found[source, :, found.shape[2] - own :]

    def move(self, source: int, target: int) -> None:
        shown = slice(self._window.start, self._window.end)
        self._keys[target, :, shown] = self._keys[source, :, shown]
        self._values[target, :, shown] = self._values[source, :, shown]


def _moved(old: Tensor, at: _Window, size: tuple[int, int], end: int, like: Tensor) -> Tensor:
    """A larger tensor with the window's content ending in column `end`."""
    capacity, columns = size
    # Zeros: what is masked is still multiplied, and 0 times not-a-number is not 0.
    new = like.new_zeros((capacity, like.shape[1], columns, like.shape[3]))
    if at.rows:
        new[: at.rows, :, end - at.width : end] = old[: at.rows, :, at.start : at.end]
    return new


class SlotCache(Cache):
    """A cache for one token a row and pass, of rows that join and leave.

    Attributes:
        lengths: tokens of each row, in the order of the rows.
    """

    def __init__(self, like: DynamicCache) -> None:
        self._window = _Window()
        super().__init__(layers=[_SlotLayer(self._window) for _ in like.layers])
        self._capacity = self._columns = 0
        self.lengths: list[int] = []

    def join(self, filled: DynamicCache, prefix: int, lengths: Sequence[int]) -> None:
        """Take rows in, behind those that are there.

        Args:
            filled: a prefix, padding, and each row's own tokens at the end.
            prefix: tokens at the start that all its rows have.
            lengths: tokens of each row, the prefix counted.
        """
        at, before = self._window, len(self.lengths)
        rows, width = before + len(lengths), max([*self.lengths, *lengths])
        if rows > self._capacity or width > at.end:
            self._make_room(max(rows, self._capacity), width, filled)
        for layer, found in zip(self._own(), filled.layers, strict=True):
            for place, length in enumerate(lengths):
                layer.put(before + place, place, found, prefix, length)
        self.lengths.extend(lengths)
        at.rows = rows
        self._trim()

    def leave(self, rows: Sequence[int]) -> list[int]:
        """Let rows go. The last ones take their places: answers who stands where, as former rows."""
        gone, order = set(rows), list(range(len(self.lengths)))
        for row in sorted(gone):
            while order and order[-1] in gone:
                order.pop()
            if row >= len(order):
                break
            for layer in self._own():
                layer.move(order[-1], row)
            order[row] = order.pop()
        self.lengths = [self.lengths[row] for row in order]
        self._window.rows = len(order)
        self._trim()
        return order

    def mask(self, device: torch.device) -> Tensor:
        """Which columns each row may see once it has one token more, [rows, width + 1] of 0 and 1."""
        width = self._window.width + 1
        lengths = torch.tensor(self.lengths, device=device)
        columns = torch.arange(width, device=device)
        return (columns >= (width - 1 - lengths)[:, None]).long()

    def before_token(self) -> None:
        """Make room for one token of every row."""
        if self._window.end == self._columns:
            self._make_room(self._window.rows, self._window.width, None)

    def after_token(self) -> None:
        """Every layer has written a token of every row."""
        self._window.end += 1
        self.lengths = [length + 1 for length in self.lengths]

    def _make_room(self, capacity: int, width: int, filled: DynamicCache | None) -> None:
        at, columns = self._window, width + GROWTH
        for place, layer in enumerate(self._own()):
            layer.enlarge(capacity, columns, width, None if filled is None else filled.layers[place])
        at.start, at.end = width - at.width, width
        self._capacity, self._columns = capacity, columns

    def _trim(self) -> None:
        self._window.start = self._window.end - max(self.lengths, default=0)

    def _own(self) -> Any:
        return self.layers


def can_take_rows(model: Any) -> bool:
    """Whether every layer of a `LanguageModel` keeps the keys of all tokens, and nothing else."""
    layers = DynamicCache(config=model.causal.config).layers
    return model.can_share and all(type(layer) is DynamicLayer for layer in layers)


def use_grouped_attention(causal: Any) -> None:
    """Where one token a row is decoded, let query heads that share a key head be the rows of one product.

    transformers repeats keys and values for every query head instead, as soon as there is a mask.
    """
    AttentionInterface.register(GROUPED, _grouped_attention)
    AttentionMaskInterface.register(GROUPED, sdpa_mask)
    causal.set_attn_implementation(GROUPED)


def _grouped_attention(  # noqa: PLR0913, PLR0917  # transformers' signature
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    rows, heads, tokens, size = query.shape
    shared = key.shape[1]
    per_head_mask = attention_mask is not None and attention_mask.shape[1] != 1
    if tokens > 1 or shared == heads or per_head_mask or others.get("position_bias") is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **others
        )
    grouped = query.reshape(rows, shared, heads // shared, size)
    found = functional.scaled_dot_product_attention(
        grouped, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    return found.reshape(rows, 1, heads, found.shape[-1]), None
