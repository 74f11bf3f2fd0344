"""Which rows form an optimiser step, and in which shape a step's documents go through the model.

Documents that begin alike (the template, the system message) share that beginning: it goes through the
model once in a pass, and the rest of every row attends to it. The loss and its gradient stay the same.
Both are pure functions of the lengths and a seed, so a resumed run meets the same steps: the position
in the data is the step's number, and nothing else needs to be saved.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tuner.conversation import Document

SHARED_LEAST: Final = 16
"""Tokens below which a shared beginning does not pay for the second pass through the layers."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Optimiser steps over the examples.

    Attributes:
        lengths: int64 [examples], tokens.
        steps_per_epoch: the same in every epoch.
        steps: of the whole run.
        seed: of the order of each epoch.
    """

    lengths: NDArray[np.int64]
    steps_per_epoch: int
    steps: int
    seed: int
    _cut: dict[int, list[NDArray[np.int64]]] = field(default_factory=dict, repr=False, compare=False)
    """The steps of the epoch that was asked for last: with a million examples they take longer than a step."""

    @property
    def digest(self) -> str:
        """sha256 of the lengths and of the first epoch's order: two runs that agree see the same batches."""
        order = np.random.default_rng([self.seed, 0]).permutation(len(self.lengths))
        return hashlib.sha256(self.lengths.tobytes() + order.astype(np.int64).tobytes()).hexdigest()

    def epoch_at(self, step: int) -> float:
        """Passes over the data after `step` steps."""
        return step / self.steps_per_epoch

    def examples_of(self, step: int) -> list[int]:
        """Indices of the examples of a step, counted from 1; never empty."""
        epoch, place = divmod(step - 1, self.steps_per_epoch)
        if epoch not in self._cut:
            self._cut.clear()
            self._cut[epoch] = self._steps_of(epoch)
        return [int(index) for index in self._cut[epoch][place]]

    def _steps_of(self, epoch: int) -> list[NDArray[np.int64]]:
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.lengths))
        lengths = self.lengths[order]
        # Twice an example's midpoint, in tokens: it belongs to the step in whose window that lies.
        middles = 2 * np.cumsum(lengths) - lengths
        owner = middles * self.steps_per_epoch // (2 * int(lengths.sum()))
        return np.split(order, np.searchsorted(owner, np.arange(1, self.steps_per_epoch)))


def plan_steps(
    lengths: Sequence[int], effective_batch_tokens: int, *, epochs: float | None, steps: int | None, seed: int
) -> Schedule:
    """Cut each epoch into windows of equal token counts, close to `effective_batch_tokens`.

    A window is at least as wide as the longest example: midpoints of neighbours are then never further
    apart than a window is wide, so no step is empty.
    """
    array = np.asarray(lengths, dtype=np.int64)
    per_epoch = max(1, int(array.sum()) // max(effective_batch_tokens, int(array.max())))
    if steps is None:
        steps = max(1, int(np.ceil((3.0 if epochs is None else epochs) * per_epoch)))
    return Schedule(array, per_epoch, steps, seed)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass: rows of documents, by their index in the step.

    Attributes:
        rows: documents of each row; more than one where rows are packed.
        width: tokens of the longest row.
        shared: tokens at the start of every row that are computed once.
        end_to_end: tokens of all rows laid one behind the other, shared ones once, as `tuner.attention` takes
            them; None where they lie side by side and shorter ones are padded.
    """

    rows: tuple[tuple[int, ...], ...]
    width: int
    shared: int = 0
    end_to_end: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens computed, padding counted."""
        if self.end_to_end is not None:
            return self.end_to_end
        return _computed(len(self.rows), self.width, self.shared)


def _computed(rows: int, width: int, shared: int) -> int:
    return shared + rows * (width - shared)


def shared_beginning(documents: Sequence[Document]) -> int:
    """Tokens with which all documents begin and that none of them is taught; 0 where it is not worth it.

    The last token before the first taught one predicts it, so it stays in every row.
    """
    if len(documents) < 2:
        return 0
    least = min(int(np.flatnonzero(document.weights)[0]) for document in documents) - 1
    if least < SHARED_LEAST:
        return 0
    heads = np.stack([document.ids[:least] for document in documents])
    alike = (heads == heads[0]).all(axis=0)
    shared = least if alike.all() else int(np.argmin(alike))
    return shared if shared >= SHARED_LEAST else 0


def shape_batches(  # noqa: PLR0913  # what a shape depends on
    groups: Sequence[Sequence[int]],
    max_tokens: int,
    *,
    packing: bool,
    hidden_size: int,
    shared: int = 0,
    end_to_end: bool = False,
) -> list[MicroBatch]:
    """Micro-batches of at most `max_tokens`: end to end, or padded by length or packed, whichever costs less.

    A group's documents (a preference pair) stay in one micro-batch. Cost per token and layer is
    24 h^2 FLOPs for the linear parts and 4 h w for attention over a row of w tokens (Kaplan et al.,
    arXiv 2001.08361, table 1, with the dense mask that sdpa computes), hence 1 + w / (6 h).

    Args:
        groups: document lengths of each example.
        max_tokens: bound of one forward pass; an example that is longer travels alone.
        packing: whether rows may hold more than one document.
        hidden_size: h.
        shared: tokens with which all documents begin; packed rows can't share them.
        end_to_end: whether the model takes documents without padding; nothing is cheaper.
    """
    if end_to_end and packing:
        return _end_to_end(groups, max_tokens, shared)
    padded = _padded(groups, max_tokens, shared)
    if not packing or any(len(group) != 1 for group in groups):
        return padded
    packed = _packed([group[0] for group in groups], max_tokens)
    return min(padded, packed, key=lambda plan: sum(_cost(batch, hidden_size) for batch in plan))


def _cost(batch: MicroBatch, hidden_size: int) -> float:
    return batch.tokens * (1 + batch.width / (6 * hidden_size))


def _padded(groups: Sequence[Sequence[int]], max_tokens: int, shared: int) -> list[MicroBatch]:
    """Examples by falling length, cut where the next would pass the bound."""
    starts = np.concatenate([[0], np.cumsum([len(group) for group in groups])])
    order = sorted(range(len(groups)), key=lambda index: (-max(groups[index]), index))
    batches: list[MicroBatch] = []
    rows: list[tuple[int, ...]] = []
    width = 0
    for index in order:
        widest = max(width, *groups[index])
        if rows and _computed(len(rows) + len(groups[index]), widest, shared) > max_tokens:
            batches.append(MicroBatch(tuple(rows), width, shared))
            rows, widest = [], max(groups[index])
        width = widest
        rows.extend((int(starts[index]) + part,) for part in range(len(groups[index])))
    batches.append(MicroBatch(tuple(rows), width, shared))
    return batches


def _end_to_end(groups: Sequence[Sequence[int]], max_tokens: int, shared: int) -> list[MicroBatch]:
    """Best-fit decreasing into passes: the fewer there are, the less often the shared beginning is computed."""
    starts = np.concatenate([[0], np.cumsum([len(group) for group in groups])])
    sizes = [sum(length - shared for length in group) for group in groups]
    passes = [
        (
            sum(sizes[index] for index in part),
            [int(starts[index]) + at for index in part for at in range(len(groups[index]))],
        )
        for part in _best_fit(sizes, max_tokens - shared)
    ]
    flat = [length for group in groups for length in group]
    return [
        MicroBatch(tuple((m,) for m in members), max(flat[m] for m in members), shared, shared + size)
        for size, members in passes
    ]


def _best_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of the sizes in as few bins as best-fit decreasing finds; what is larger than a bin is alone in one."""
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        fits = [place for place, left in enumerate(room) if left >= sizes[index]]
        if fits:
            best = min(fits, key=lambda place: (room[place], place))
            bins[best].append(index)
            room[best] -= sizes[index]
        else:
            bins.append([index])
            room.append(capacity - sizes[index])
    return bins


def _packed(lengths: Sequence[int], max_tokens: int) -> list[MicroBatch]:
    """Best-fit decreasing into rows as wide as the longest document, then rows into micro-batches.

    Rows no wider than need be: attention over a row costs its width for every token.
    """
    width = max(lengths)
    rows = _best_fit(lengths, width)
    height = max(1, max_tokens // width)
    return [
        MicroBatch(tuple(tuple(row) for row in part), max(sum(lengths[i] for i in row) for row in part))
        for part in (rows[at : at + height] for at in range(0, len(rows), height))
    ]
