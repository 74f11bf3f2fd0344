"""What a base model is made of: linear layers, embeddings, experts.

Where the modelling library is at hand, its modules are counted (`CountedShape`, which the job that caches a base
model leaves beside the copy). Before that, and without it, `shape_of` reads `config.json` alone: families whose
block is known are computed exactly up to norms and biases; anything else is refused, or bounded by the size of its
weights. `ModelShape.origin` says which it was.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

from dropforge_core.model import Frozen, Tolerant

DTYPE_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2}


class BaseModelUnsuitable(ValueError):
    """The base model can't be tuned here. The message says what was found, what is needed and how to mend it."""


class Linear(Frozen):
    """One kind of linear layer, `count` of them in the whole model."""

    name: str
    d_in: int
    d_out: int
    count: int

    @property
    def parameters(self) -> int:
        return self.d_in * self.d_out * self.count


Origin = Literal["counted", "computed", "bounded"]
"""Counted on the library's modules; computed from `config.json` by the family's block; bounded by its weights."""


class ModelShape(Frozen):
    """Sizes of a decoder-only language model. All parameter counts are numbers of scalars."""

    origin: Origin = "computed"
    model_type: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    """Inner width of the feed-forward that one token passes; for experts, all its active ones together."""
    linears: tuple[Linear, ...]
    """Layers that are quantised and can carry an adapter; experts and the output head are not among them."""
    embedding_parameters: int
    """Token and position embeddings and, where it is not tied, the output head."""
    expert_parameters: int = 0
    """All routed experts. They are fused tensors, which NF4 leaves in 16 bits."""
    active_expert_parameters: int = 0
    """The share of the experts that one token passes."""
    expert_adapter_rank: int = 0
    """What an adapter on all linear layers has beside these, in experts and routers, for each unit of its rank."""
    other_parameters: int = 0
    """Norms, biases, routers, and weights that the config does not explain."""

    @property
    def linear_parameters(self) -> int:
        return sum(linear.parameters for linear in self.linears)

    @property
    def parameters(self) -> int:
        return (
            self.linear_parameters
            + self.embedding_parameters
            + self.expert_parameters
            + self.other_parameters
        )

    @property
    def matmul_parameters(self) -> int:
        """Parameters that one token is multiplied with: the N of 2N FLOP forward. Embedding look-ups are free."""
        return self.linear_parameters + self.active_expert_parameters + self.vocab * self.hidden

    def adapted(self, targets: str | tuple[str, ...]) -> tuple[Linear, ...]:
        """The linear layers that carry an adapter.

        Raises:
            BaseModelUnsuitable: when a target names no layer. The names of a bounded shape's layers are not
                known, so any target is taken for all of them.
        """
        if isinstance(targets, str) or self.origin == "bounded":
            return self.linears
        names = {linear.name for linear in self.linears}
        if unknown := sorted(set(targets) - names):
            raise BaseModelUnsuitable(
                f"adapter.targets names {', '.join(unknown)}, but this model's linear layers are "
                f"{', '.join(sorted(names))}. Use those names, or 'all-linear'."
            )
        return tuple(linear for linear in self.linears if linear.name in targets)


class CountedShape(Tolerant):
    """A shape that was counted, as it lies beside a cached base model."""

    counted_by: str
    """Library and version."""
    config_sha256: str
    """Of the bytes of the `config.json` that the modules were built of."""
    shape: ModelShape


class _Family(Frozen):
    """How the blocks of one model_type are built."""

    attention: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Four names where the projections are apart, two where q, k and v are one layer."""
    mlp: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    """Three names: gated. Two where the gate is fused (see `gated`) or there is none."""
    gated: bool = True
    tied: bool = False
    """Default of tie_word_embeddings, which config.json leaves out where it is the default."""
    head_dim: int | None = None
    """Default where it is not hidden / heads."""
    positions: bool = False
    """Learned position embeddings."""
    adapts_experts: bool = False
    """An adapter on all linear layers has its share of every expert and of the router too (peft's conversion)."""


_PLAIN: Final = {"mlp": ("fc1", "fc2"), "gated": False}
_FAMILIES: Final[Mapping[str, _Family]] = {
    "llama": _Family(),
    "mistral": _Family(),
    "mixtral": _Family(adapts_experts=True),
    "qwen2": _Family(),
    "qwen2_moe": _Family(),
    "qwen3": _Family(head_dim=128),
    "qwen3_moe": _Family(adapts_experts=True),
    "olmo2": _Family(),
    "granite": _Family(),
    "stablelm": _Family(),
    "smollm3": _Family(tied=True),
    "cohere": _Family(tied=True),
    "gemma": _Family(tied=True, head_dim=256),
    "gemma2": _Family(tied=True, head_dim=256),
    "gemma3_text": _Family(tied=True, head_dim=256),
    "phi3": _Family(attention=("qkv_proj", "o_proj"), mlp=("gate_up_proj", "down_proj")),
    "phi": _Family(attention=("q_proj", "k_proj", "v_proj", "dense"), **_PLAIN),
    "starcoder2": _Family(mlp=("c_fc", "c_proj"), gated=False, tied=True),
    "gpt2": _Family(
        attention=("c_attn", "c_proj"), mlp=("c_fc", "c_proj"), gated=False, tied=True, positions=True
    ),
    "gpt_neox": _Family(
        attention=("query_key_value", "dense"), mlp=("dense_h_to_4h", "dense_4h_to_h"), gated=False
    ),
    "opt": _Family(attention=("q_proj", "k_proj", "v_proj", "out_proj"), tied=True, positions=True, **_PLAIN),
}


def shape_of(config: Mapping[str, Any], weight_bytes: int | None = None) -> ModelShape:
    """The shape from a parsed `config.json`.

    `weight_bytes` is the size of the safetensors files, where it is known: weights that the config
    does not explain (a vision tower, say) are then counted too, and an architecture that is not in
    the table is bounded instead of refused: as a Llama of its sizes, or as its weights where these are more.

    Raises:
        BaseModelUnsuitable: for remote code, weights quantised already, an unknown architecture
            without sizes, or keys that are missing.
    """
    refuse_unsuitable(config)
    text = config.get("text_config")
    inner: Mapping[str, Any] = {**config, **text} if isinstance(text, Mapping) else config
    model_type = str(inner.get("model_type", "unknown"))
    family = _FAMILIES.get(model_type)
    dtype = DTYPE_BYTES.get(str(inner.get("dtype") or inner.get("torch_dtype")))
    if family is None and weight_bytes is None:
        raise BaseModelUnsuitable(
            f"model_type '{model_type[:60]}' is not known to the planner and the size of its weights could not "
            f"be read, so its memory can't be told. Known: {', '.join(sorted(_FAMILIES))}."
        )
    shape = _count(inner, model_type, family or _Family())
    if weight_bytes is None or (dtype is None and family is not None):
        return shape
    stored = weight_bytes // (dtype or 2)
    unexplained = max(0, stored - shape.parameters)
    return shape.model_copy(
        update={
            "other_parameters": shape.other_parameters + unexplained,
            "origin": "computed" if family else "bounded",
        }
    )


def refuse_unsuitable(config: Mapping[str, Any]) -> None:
    """What can't be tuned whatever its shape.

    Raises:
        BaseModelUnsuitable: for remote code, and weights quantised already.
    """
    if not isinstance(config, Mapping):
        raise BaseModelUnsuitable("config.json of the base model is not a JSON object.")
    if "auto_map" in config:
        raise BaseModelUnsuitable(
            "the base model's config.json has 'auto_map', which needs code from the model's repository. "
            "Such code is never run. Use a model that transformers supports natively."
        )
    if config.get("quantization_config"):
        raise BaseModelUnsuitable(
            "the base model's weights are quantised already (config.json has 'quantization_config'). "
            "Give the original 16-bit model; 'quantization: nf4' in the recipe quantises it for training."
        )


def weight_bytes_of(files: Mapping[str, int]) -> int | None:
    """Bytes of the safetensors that would be loaded, from file names and sizes; None where there are none.

    Some repositories carry the same weights twice (`consolidated.safetensors`); `model*` goes first.
    """
    tensors = {
        name: size for name, size in files.items() if name.endswith(".safetensors") and "/" not in name
    }
    named = {name: size for name, size in tensors.items() if name.startswith("model")}
    return sum((named or tensors).values()) or None


def _count(config: Mapping[str, Any], model_type: str, family: _Family) -> ModelShape:
    hidden = _number(config, "hidden_size", "n_embd", "d_model")
    layers = _number(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    # A block without attention has no heads; attention of the usual width stands for what it does instead.
    heads_of_unknown = None if model_type in _FAMILIES else max(1, hidden // 64)
    heads = _number(config, "num_attention_heads", "n_head", "n_heads", default=heads_of_unknown)
    vocab = _number(config, "vocab_size")
    head_dim = _number(config, "head_dim", default=family.head_dim or max(1, hidden // heads))
    kv_heads = min(heads, _number(config, "num_key_value_heads", "num_kv_heads", default=heads))
    ffn = _number(config, "intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)
    experts = _number(config, "num_local_experts", "num_experts", "n_routed_experts", default=0)
    linears = _attention(family, hidden, heads * head_dim, kv_heads * head_dim, layers)
    expert_parameters = active = routers = adapters = 0
    width = ffn
    if experts:
        per_token = min(experts, _number(config, "num_experts_per_tok", "experts_per_token", default=2))
        inner = _number(config, "moe_intermediate_size", default=ffn)
        # A family that has dense blocks among the sparse ones is counted as sparse throughout: that is more.
        expert_parameters = layers * experts * 3 * hidden * inner
        active = layers * per_token * 3 * hidden * inner
        routers = layers * experts * hidden
        width = per_token * inner
        if family.adapts_experts:
            # Gate and way up are one tensor, whose adapter has twice the rank.
            each = 2 * (hidden + 2 * inner) + inner + hidden
            adapters = layers * (experts * each + experts + hidden)
        if shared := _number(config, "shared_expert_intermediate_size", default=0):
            linears += _mlp(family, hidden, shared, layers)
            linears += (Linear(name="shared_expert_gate", d_in=hidden, d_out=1, count=layers),)
            width += shared
    else:
        linears += _mlp(family, hidden, ffn, layers)
    tied = bool(config.get("tie_word_embeddings", family.tied))
    positions = (
        _number(config, "max_position_embeddings", "n_positions", default=0) if family.positions else 0
    )
    return ModelShape(
        model_type=model_type,
        vocab=vocab,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=width,
        linears=_merged(linears),
        embedding_parameters=vocab * hidden * (1 if tied else 2) + positions * hidden,
        expert_parameters=expert_parameters,
        active_expert_parameters=active,
        expert_adapter_rank=adapters,
        # Norms and biases: a bound rather than a count, below 1 % of any model worth tuning.
        other_parameters=layers * 4 * hidden + hidden + routers,
    )


def _attention(family: _Family, hidden: int, queries: int, keys: int, layers: int) -> tuple[Linear, ...]:
    *inputs, output = family.attention
    widths = (queries, keys, keys) if len(inputs) == 3 else (queries + 2 * keys,)
    return (
        *(
            Linear(name=name, d_in=hidden, d_out=width, count=layers)
            for name, width in zip(inputs, widths, strict=True)
        ),
        Linear(name=output, d_in=queries, d_out=hidden, count=layers),
    )


def _mlp(family: _Family, hidden: int, ffn: int, layers: int) -> tuple[Linear, ...]:
    *inputs, output = family.mlp
    width = 2 * ffn if family.gated and len(inputs) == 1 else ffn
    return (
        *(Linear(name=name, d_in=hidden, d_out=width, count=layers) for name in inputs),
        Linear(name=output, d_in=ffn, d_out=hidden, count=layers),
    )


def _merged(linears: tuple[Linear, ...]) -> tuple[Linear, ...]:
    """Layers of one name and size are one entry."""
    counts: dict[tuple[str, int, int], int] = {}
    for linear in linears:
        key = (linear.name, linear.d_in, linear.d_out)
        counts[key] = counts.get(key, 0) + linear.count
    return tuple(Linear(name=n, d_in=i, d_out=o, count=count) for (n, i, o), count in counts.items())


def _number(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**40:
            return value
        if value is not None and value != 0:
            raise BaseModelUnsuitable(
                f"config.json of the base model: '{name}' is {str(value)[:40]!r}, expected a positive whole number."
            )
    if default is None:
        raise BaseModelUnsuitable(f"config.json of the base model has none of: {', '.join(names)}.")
    return default
