"""What a base model is made of, counted on the modules that transformers builds of its `config.json`.

They are built on torch's `meta` device, so that no weight takes memory. The planner reads the answer.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from dropforge_core.layout import MODEL_SHAPE
from dropforge_core.planning.shape import CountedShape, Linear, ModelShape
from tuner.contract import Say

if TYPE_CHECKING:
    from tuner.cache_base_model import Place

_BLOCK: Final = re.compile(r"(.*?\.\d+)\.")
_ATTENTION: Final = ("head_dim", "head_size", "num_heads", "num_attention_heads", "num_key_value_heads")
"""A module with one of these attributes is an attention; its layers are no feed-forward's."""


class NotCountable(Exception):
    """The modules can't be built of the configuration; the message is the library's."""


def counted_shape(folder: Path) -> CountedShape:
    """Count the model whose `config.json` lies in a folder.

    Raises:
        NotCountable: where transformers does not know the model, or can't build it.
        OSError: where there is no such file.
    """
    text = (folder / "config.json").read_bytes()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            causal: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
        shape = count(causal)
    except Exception as error:  # the library raises whatever a configuration makes of its arithmetic
        raise NotCountable(f"{type(error).__name__}: {error}") from error
    return CountedShape(
        counted_by=f"transformers {version('transformers')}",
        config_sha256=hashlib.sha256(text).hexdigest(),
        shape=shape,
    )


def write_counted_shape(place: "Place", scratch: Path, say: Say) -> None:
    """Count a copy's model and leave the answer beside it.

    Nothing depends on it: where the model can't be built the reason is told, and plans go on without.

    Args:
        place: of the copy, whose `config.json` is there.
        scratch: a folder for it.
        say: prints a line.
    """
    (scratch / "config.json").write_bytes(place.read("config.json"))
    try:
        counted = counted_shape(scratch)
    except NotCountable as error:
        say(f"phase=not_counted {error}")
        return
    place.s3.put_object(
        Bucket=place.bucket, Key=place.prefix + MODEL_SHAPE, Body=counted.model_dump_json().encode()
    )
    say(f"phase=counted parameters={counted.shape.parameters} by={counted.counted_by.replace(' ', '-')}")


def count(causal: Any) -> ModelShape:
    """The shape of a causal language model, which is built for this alone: it carries an adapter afterwards."""
    text = causal.config.get_text_config(decoder=True)
    vocab, width = causal.get_input_embeddings().weight.shape
    hidden = _largest(text, "hidden_size") or width
    head = causal.get_output_embeddings()
    layers = {
        name: _sizes(part)
        for name, part in causal.named_modules()
        if isinstance(part, nn.Linear | Conv1D) and part is not head
    }
    tables = [part.weight for part in causal.modules() if isinstance(part, nn.Embedding)]
    tables += [head.weight] if head is not None else []
    embedding = sum({id(table): table.numel() for table in tables}.values())
    stacks = dict(_stacks(causal))
    experts = sum(stack.numel() for stack in stacks.values())
    chosen = _experts_of_a_token(causal, text)
    linear = sum(d_in * d_out for d_in, d_out in layers.values())
    whole = sum(parameter.numel() for parameter in causal.parameters())
    kinds = Counter((name.rsplit(".", 1)[-1], *sizes) for name, sizes in layers.items())
    heads = _largest(text, "num_attention_heads")
    # Last, for it changes the model.
    adapters = _adapter_of_rank_one(causal)
    on_layers = sum(d_in + d_out for d_in, d_out in layers.values())
    return ModelShape(
        origin="counted",
        model_type=str(text.model_type),
        vocab=vocab,
        hidden=hidden,
        layers=_largest(text, "num_hidden_layers") or _longest_list(causal),
        heads=heads,
        kv_heads=min(heads, _largest(text, "num_key_value_heads") or heads),
        # Of an attention with compressed keys all of these are told; it is as wide as the widest.
        head_dim=_largest(text, "head_dim", "qk_head_dim", "v_head_dim") or hidden // max(1, heads),
        ffn=_feed_forward(_outside_attention(causal, layers), stacks, hidden, chosen),
        linears=tuple(
            Linear(name=name, d_in=d_in, d_out=d_out, count=number)
            for (name, d_in, d_out), number in kinds.items()
        ),
        embedding_parameters=embedding,
        expert_parameters=experts,
        expert_adapter_rank=max(0, adapters - on_layers),
        active_expert_parameters=sum(
            stack.numel() // stack.shape[0] * _passed(stack, chosen) for stack in stacks.values()
        ),
        other_parameters=whole - linear - embedding - experts,
    )


def _sizes(part: nn.Linear | Conv1D) -> tuple[int, int]:
    """(inputs, outputs)."""
    if isinstance(part, nn.Linear):
        return part.in_features, part.out_features
    d_in, d_out = part.weight.shape
    return d_in, d_out


def _adapter_of_rank_one(causal: Any) -> int:
    """Scalars that the trainer's library trains for each unit of rank; 0 where it takes no adapter on all layers."""
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415  # five seconds that tests of the rest save

    adapter = LoraConfig(r=1, lora_alpha=1, target_modules="all-linear", task_type="CAUSAL_LM")
    try:
        adapted = get_peft_model(causal, adapter, low_cpu_mem_usage=True)
    except ValueError:
        return 0
    return sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)


def _stacks(causal: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights of many experts in one tensor [experts, ., .]: transformers fuses them so."""
    for path, part in causal.named_modules():
        if not isinstance(part, nn.modules.conv._ConvNd):  # noqa: SLF001  # the base of all convolutions
            for name, parameter in part.named_parameters(path, recurse=False):
                if parameter.ndim == 3 and min(parameter.shape) > 1:
                    yield name, parameter


def _experts_of_a_token(causal: nn.Module, text: Any) -> int:
    """As the router says, else the configuration; 0 where neither does."""
    routers = [getattr(part, "top_k", None) for part in causal.modules()]
    return max((told for told in routers if isinstance(told, int)), default=0) or _largest(
        text, "num_experts_per_tok"
    )


def _passed(stack: Tensor, chosen: int) -> int:
    """Parts of a stack that one token passes: all, where nothing chooses among them."""
    return min(chosen, stack.shape[0]) or stack.shape[0]


def _outside_attention(
    causal: nn.Module, layers: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    attentions = {
        path for path, part in causal.named_modules() if any(hasattr(part, name) for name in _ATTENTION)
    }
    return {name: sizes for name, sizes in layers.items() if name.rpartition(".")[0] not in attentions}


def _feed_forward(
    layers: Mapping[str, tuple[int, int]], stacks: Mapping[str, Tensor], hidden: int, chosen: int
) -> int:
    """Inner width of the widest block: what its ways back to the hidden size take in, together."""
    back = {
        name.rpartition(".")[0]: (_block(name), d_in)
        for name, (d_in, d_out) in layers.items()
        if d_out == hidden  # the last such layer of a module; its gate may be as wide
    }
    widths: dict[str, int] = defaultdict(int)
    for block, d_in in back.values():
        widths[block] += d_in
    inner: dict[tuple[str, int], int] = {}
    for name, stack in stacks.items():
        # The gate and the way up may be one tensor; the narrowest is the way back.
        key = (_block(name), _passed(stack, chosen))
        width = min((size for size in stack.shape[1:] if size != hidden), default=hidden)
        inner[key] = min(inner.get(key, width), width)
    for (block, passed), width in inner.items():
        widths[block] += passed * width
    return max(widths.values(), default=0)


def _block(name: str) -> str:
    found = _BLOCK.match(name)
    return found[1] if found else ""


def _longest_list(causal: nn.Module) -> int:
    return max((len(part) for part in causal.modules() if isinstance(part, nn.ModuleList)), default=1)


def _largest(text: Any, *names: str) -> int:
    """The largest of a configuration's values, some of which are told by layer; 0 where it has none."""
    values = [getattr(text, name, None) for name in names]
    flat = [one for value in values for one in (value if isinstance(value, list | tuple) else [value])]
    return max((one for one in flat if isinstance(one, int)), default=0)
