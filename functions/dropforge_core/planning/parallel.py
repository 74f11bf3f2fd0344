"""Several GPUs in one training job: how they share it, what each must hold, and what that makes of their speed.

What fits into one GPU is trained data-parallel: every GPU has the whole base and its part of each step. What
does not is sharded: each GPU of a host keeps its part of every block and gathers one block at a time (FSDP).
"""

from typing import Final, NamedTuple

from dropforge_core.contracts import Interval, Parallelism
from dropforge_core.planning.catalogue import Instance
from dropforge_core.planning.duration import Workload, mean_length
from dropforge_core.planning.memory import (
    GIB,
    MARGIN,
    NF4_BITS,
    Layout,
    MemoryEstimate,
    bytes_per_token,
    fastest_layout,
    shortest_micro_batch,
    training_memory,
)
from dropforge_core.planning.shape import ModelShape
from dropforge_core.recipe import Recipe

GATHERED_BLOCKS: Final = 2
"""Blocks that are whole at a time: the one that computes, and the next one, fetched meanwhile."""
PACKED_BITS: Final = 4.0
"""Of an NF4 weight, those that are sharded; what `NF4_BITS` has beyond them stays whole in every GPU."""
EFFICIENCY: Final[dict[Parallelism, Interval]] = {
    "dp": Interval(low=0.6, expected=0.9, high=0.98),
    "fsdp": Interval(low=0.2, expected=0.55, high=0.9),
}
"""Speed of one of several GPUs, of what it would have alone. An assumption, and wide, until runs are measured."""


class Sharing(NamedTuple):
    """How a job's GPUs are used."""

    ranks: int
    parallelism: Parallelism
    layout: Layout
    memory: MemoryEstimate
    """Of one GPU."""


def share(shape: ModelShape, recipe: Recipe, instance: Instance) -> Sharing:
    """Data-parallel where the model fits into one GPU, sharded where it does not.

    A GPU need not hold more of a step at a time than its part of it. DoRA needs whole weights for its norms, so
    it is never sharded. `layout.micro_batch_tokens` is None where the model fits neither way.

    Raises:
        BaseModelUnsuitable: when adapter.targets names no layer of this model.
    """
    ranks = instance.gpus * recipe.compute.instance_count
    alone = fastest_layout(shape, recipe, memory_gib=instance.gpu.memory_gib, gpus=ranks)
    if ranks == 1 or alone.micro_batch_tokens is not None or recipe.adapter.dora:
        layout = alone._replace(micro_batch_tokens=_part(alone.micro_batch_tokens, recipe, ranks))
        memory = training_memory(
            shape,
            recipe,
            micro_batch_tokens=layout.micro_batch_tokens or shortest_micro_batch(recipe),
            checkpointing=layout.checkpointing,
            residency=layout.residency,
        )
        return Sharing(ranks, "dp", layout, memory)
    return _sharded(shape, recipe, instance, ranks=ranks)


def shards_of(instance: Instance, recipe: Recipe) -> int:
    """Parts of a sharded base: one for each GPU of a host where it has several, else one for each host."""
    return instance.gpus if instance.gpus > 1 else recipe.compute.instance_count


def sharded_memory(
    shape: ModelShape, recipe: Recipe, *, shards: int, micro_batch_tokens: int, checkpointing: bool
) -> MemoryEstimate:
    """Peak of one GPU that keeps one of `shards` parts of every block.

    Embeddings and head (16 bits), the adapter with its gradient and moments, and the constants of NF4 blocks lie
    whole in every GPU; `GATHERED_BLOCKS` blocks are whole at a time.
    """
    plain = training_memory(shape, recipe, micro_batch_tokens=micro_batch_tokens, checkpointing=checkpointing)
    outside = min(shape.parameters - shape.linear_parameters, 2 * shape.vocab * shape.hidden)
    packed = recipe.quantization == "nf4"
    linear_bits = PACKED_BITS if packed else 16.0
    constants = shape.linear_parameters * (NF4_BITS - PACKED_BITS) / 8 if packed else 0.0
    others = shape.parameters - shape.linear_parameters - outside
    blocks = shape.linear_parameters * linear_bits / 8 + others * 2
    gathered = blocks / shape.layers * GATHERED_BLOCKS
    return plain.model_copy(update={"weights": int(blocks / shards + gathered + constants + outside * 2)})


def efficiency(work: Workload, sharing: Sharing) -> Interval:
    """Speed of a job's GPUs together, of as many that each work alone.

    More GPUs than a step has rows have nothing to do in it.
    """
    if sharing.ranks == 1:
        return Interval(low=1.0, expected=1.0, high=1.0)
    rows = max(1.0, work.recipe.training.effective_batch_tokens / max(1.0, mean_length(work)))
    busy = min(1.0, rows / sharing.ranks)
    share_of = EFFICIENCY[sharing.parallelism]
    return Interval(low=share_of.low * busy, expected=share_of.expected * busy, high=share_of.high * busy)


def _sharded(shape: ModelShape, recipe: Recipe, instance: Instance, *, ranks: int) -> Sharing:
    shortest, shards = shortest_micro_batch(recipe), shards_of(instance, recipe)
    for checkpointing in (False, True):
        fixed = sharded_memory(
            shape, recipe, shards=shards, micro_batch_tokens=0, checkpointing=checkpointing
        ).total
        room = MARGIN * instance.gpu.memory_gib * GIB - fixed
        most = int(room // bytes_per_token(shape, checkpointing=checkpointing)) - 1
        if most >= shortest or checkpointing:
            tokens = min(most, recipe.training.effective_batch_tokens) if most >= shortest else None
            layout = Layout("auto", checkpointing, _part(tokens, recipe, ranks))
            break
    memory = sharded_memory(
        shape,
        recipe,
        shards=shards,
        micro_batch_tokens=layout.micro_batch_tokens or shortest,
        checkpointing=layout.checkpointing,
    )
    return Sharing(ranks, "fsdp", layout, memory)


def _part(tokens: int | None, recipe: Recipe, ranks: int) -> int | None:
    """Of what fits, no more than one GPU's part of a step, and no less than the longest row."""
    if tokens is None:
        return None
    return max(shortest_micro_batch(recipe), min(tokens, -(-recipe.training.effective_batch_tokens // ranks)))
