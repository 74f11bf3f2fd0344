"""GPU memory of training and of evaluation, in bytes, before anything is started.

The weights' share is the one of QLoRA (arXiv 2305.14314); the activations' share is a linear model
per token that was checked against published measurements of 7-8B models: see docs/planning.md.
"""

from typing import Final, NamedTuple

from dropforge_core.contracts import Residency
from dropforge_core.model import Frozen
from dropforge_core.planning.shape import ModelShape
from dropforge_core.recipe import Recipe

GIB: Final = 2**30
NF4_BITS: Final = 4.127
"""Bits per parameter: 4, and 0.127 for doubly quantised block constants (arXiv 2305.14314, section 3)."""
ADAPTER_BYTES: Final = 4 + 4 + 8
"""Per adapter parameter: fp32 weight, gradient, Adam's two moments. 8-bit Adam needs 6 less: that is reserve."""
LOGIT_BYTES: Final = 2 + 4 + 4
"""Per logit: bf16, its fp32 copy, the gradient. Only positions with a label have logits."""
LOSS_CHUNK: Final = 512
"""Positions whose logits exist at a time: the trainer's loss makes them chunk by chunk and keeps none
(`likelihood.CHUNK` of the image)."""
MASK_BYTES: Final = 1 + 2
"""Per pair of positions of a row: the boolean mask that keeps packed documents apart, and sdpa's copy of it in 16 bits."""
CONTEXT_BYTES: Final = int(1.5 * GIB)
"""CUDA context, cuBLAS workspaces, fragmentation."""
MARGIN: Final = 0.85
"""A type is taken only where the estimate is at most this share of its nominal memory."""
LOGIT_ROWS: Final = 1024
"""Positions whose logits exist at a time when only the likelihood is wanted."""
LARGE_PASS: Final = 4096
"""Tokens of a micro-batch that keep a GPU's matrix units busy; larger ones are hardly faster."""
EVALUATION_BATCH: Final = 16
"""Prompts that are answered together, as the evaluation's time is planned."""


class MemoryEstimate(Frozen):
    """Parts of the peak, in bytes."""

    weights: int
    adapter: int
    activations: int
    dequantised: int
    """One layer's weights in 16 bits, as they are needed for its product."""
    logits: int = 0
    """Of one chunk of the loss; with an unfused loss they are activations."""
    mask: int = 0
    context: int = CONTEXT_BYTES

    @property
    def total(self) -> int:
        return (
            self.weights
            + self.adapter
            + self.activations
            + self.dequantised
            + self.logits
            + self.mask
            + self.context
        )

    @property
    def gib(self) -> float:
        return self.total / GIB


def shortest_micro_batch(recipe: Recipe) -> int:
    """Tokens that one forward pass must be able to hold: the longest row, twice for a preference pair."""
    return recipe.training.max_seq_len * (2 if recipe.method == "dpo" else 1)


def weights_bytes(shape: ModelShape, quantization: str, residency: Residency = "4bit") -> int:
    """Resident base model: NF4 linears with everything else in 16 bits, or all of it in 16 bits.

    Residency `bf16` unpacks NF4 linears once, layer by layer, and keeps none of them packed.
    """
    if quantization == "none" or residency == "bf16":
        return shape.parameters * 2
    unquantised = shape.parameters - shape.linear_parameters
    return int(shape.linear_parameters * NF4_BITS / 8) + unquantised * 2


def adapter_parameters(shape: ModelShape, recipe: Recipe) -> int:
    """Trainable scalars: r * (d_in + d_out) a layer, a magnitude per output with DoRA, and what experts carry.

    Raises:
        BaseModelUnsuitable: when a target names no layer.
    """
    experts = recipe.adapter.r * shape.expert_adapter_rank if isinstance(recipe.adapter.targets, str) else 0
    return experts + dense_adapter_parameters(shape, recipe)


def dense_adapter_parameters(shape: ModelShape, recipe: Recipe) -> int:
    """Those of them that every token passes.

    Raises:
        BaseModelUnsuitable: when a target names no layer.
    """
    adapter = recipe.adapter
    return sum(
        linear.count * (adapter.r * (linear.d_in + linear.d_out) + (linear.d_out if adapter.dora else 0))
        for linear in shape.adapted(adapter.targets)
    )


def bytes_per_token(shape: ModelShape, *, checkpointing: bool, fused_loss: bool = True) -> float:
    """Activations of one token in a micro-batch.

    With gradient checkpointing every layer keeps its input (2 bytes a channel) and one layer at a
    time is whole; without it all layers are whole (34 bytes a channel, arXiv 2205.05198, without the
    attention matrix, which FlashAttention does not keep; 6 more for each inner channel of the
    feed-forward). An unfused loss keeps the logits of every position; a fused one the gradient at the final
    hidden state, which the whole layer covers.
    """
    layer = 34 * shape.hidden + 6 * shape.ffn
    layers = shape.layers * shape.hidden * 2 + layer if checkpointing else shape.layers * layer
    return layers if fused_loss else shape.vocab * LOGIT_BYTES + layers


def training_memory(  # noqa: PLR0913  # by name only; each is another way of training
    shape: ModelShape,
    recipe: Recipe,
    *,
    micro_batch_tokens: int,
    checkpointing: bool,
    residency: Residency = "4bit",
    fused_loss: bool = True,
) -> MemoryEstimate:
    """Peak of one GPU while it trains with micro-batches of that many tokens.

    The attention mask is that of the widest rows that the recipe allows, in a micro-batch of the whole step. In residency `bf16` the largest layer is counted as well: it is there twice while it is unpacked.
    """
    per_token = bytes_per_token(shape, checkpointing=checkpointing, fused_loss=fused_loss)
    training = recipe.training
    most = max(shortest_micro_batch(recipe), training.effective_batch_tokens)
    return MemoryEstimate(
        weights=weights_bytes(shape, recipe.quantization, residency),
        adapter=adapter_parameters(shape, recipe) * ADAPTER_BYTES,
        activations=int(micro_batch_tokens * per_token),
        dequantised=_largest_layer(shape, recipe) * (3 if recipe.adapter.dora else 1),
        logits=LOSS_CHUNK * shape.vocab * LOGIT_BYTES if fused_loss else 0,
        mask=most * training.max_seq_len * MASK_BYTES,
    )


def largest_micro_batch(
    shape: ModelShape,
    recipe: Recipe,
    *,
    memory_gib: float,
    checkpointing: bool,
    residency: Residency = "4bit",
) -> int | None:
    """The most tokens that fit, up to the effective batch; None where not even the shortest fits."""
    shortest = shortest_micro_batch(recipe)
    fixed = training_memory(
        shape, recipe, micro_batch_tokens=0, checkpointing=checkpointing, residency=residency
    ).total
    room = MARGIN * memory_gib * GIB - fixed
    # One token less than the quotient: activations are cut to whole bytes, the limit is not.
    most = int(room // bytes_per_token(shape, checkpointing=checkpointing)) - 1
    if most < shortest:
        return None
    return max(shortest, min(most, recipe.training.effective_batch_tokens))


class Layout(NamedTuple):
    """How a type's memory is used."""

    residency: Residency
    checkpointing: bool
    micro_batch_tokens: int | None
    """None where not even the shortest fits."""


def fastest_layout(shape: ModelShape, recipe: Recipe, *, memory_gib: float, gpus: int) -> Layout:
    """The fastest way in which the model fits.

    Recomputation costs a third more time, so it is taken only where memory asks for it. A base that is unpacked
    once spares its dequantisation in every pass, but not at the price of small passes: it is recommended where
    the micro-batch stays as it was, or at least LARGE_PASS. Where the base is not quantised, or several GPUs share
    it, the job decides.
    """

    def fit(residency: Residency, *, checkpointing: bool) -> int | None:
        return largest_micro_batch(
            shape, recipe, memory_gib=memory_gib, checkpointing=checkpointing, residency=residency
        )

    decided = recipe.quantization == "nf4" and gpus == 1
    packed: Residency = "4bit" if decided else "auto"
    whole = fit(packed, checkpointing=False)
    if whole is None:
        return Layout(packed, checkpointing=True, micro_batch_tokens=fit(packed, checkpointing=True))
    unpacked = fit("bf16", checkpointing=False) if decided else None
    if unpacked is not None and unpacked >= min(whole, LARGE_PASS):
        return Layout("bf16", checkpointing=False, micro_batch_tokens=unpacked)
    return Layout(packed, checkpointing=False, micro_batch_tokens=whole)


def evaluation_memory(shape: ModelShape, recipe: Recipe) -> MemoryEstimate:
    """Least peak of the evaluation: base, two adapters in 16 bits, and the longest row with its answer alone.

    The server takes as many rows together as memory allows, down to one.
    """
    length = recipe.training.max_seq_len + recipe.evaluation.generation.max_new_tokens
    cache = length * shape.layers * 2 * shape.kv_heads * shape.head_dim * 2
    layer = length * (34 * shape.hidden + 6 * shape.ffn)
    logits = min(length, LOGIT_ROWS) * shape.vocab * LOGIT_BYTES
    return MemoryEstimate(
        weights=weights_bytes(shape, recipe.quantization),
        adapter=adapter_parameters(shape, recipe) * 2 * 2,
        activations=cache + layer + logits,
        dequantised=_largest_layer(shape, recipe),
    )


def _largest_layer(shape: ModelShape, recipe: Recipe) -> int:
    if recipe.quantization == "none":
        return 0
    return max((linear.d_in * linear.d_out for linear in shape.linears), default=0) * 2
