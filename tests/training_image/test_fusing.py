"""Layers in fewer passes over memory have the same losses, the same gradients, and keep less."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import adapted
from tiny_jobs import chat_rows
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from dropforge_core.recipe import Recipe
from tuner.batching import MicroBatch
from tuner.data import Row, encode_rows
from tuner.fusing import GatedProduct, fuse
from tuner.likelihood import make_batch, token_nll
from tuner.model import LanguageModel, attach_adapter, keep_input_type, load_base, trainable
from tuner.residency import expand_quantized

CPU = torch.device("cpu")


def learnt(base: LanguageModel) -> tuple[Tensor, Tensor]:
    """Losses of some rows, and all gradients of their sum."""
    rows = [Row(row["id"], tuple(row["messages"])) for row in chat_rows(5)]
    documents = [example.documents[0] for example in encode_rows(rows, base.codec, "sft", 512)]
    shape = MicroBatch(tuple((i,) for i in range(5)), max(d.length for d in documents))
    base.causal.zero_grad()
    nll = token_nll(base, make_batch(documents, shape, base.pad_id, CPU))
    nll.sum().backward()  # type: ignore[no-untyped-call]
    return nll.detach(), torch.cat(
        [p.grad.flatten() for p in trainable(base.causal).values() if p.grad is not None]
    )


@pytest.mark.parametrize("residency", ["4bit", "bf16"])
def test_losses_and_gradients_stay(tiny_base: Path, residency: str) -> None:
    """Adapters, norms and feed-forwards of a Llama are all taken, and no gradient changes beyond rounding."""
    base = load_base(tiny_base, "nf4", CPU)
    if residency == "bf16":
        expand_quantized(base.causal)
    adapted(base, r=4)
    before, slopes = learnt(base)
    layers = base.causal.config.num_hidden_layers
    assert fuse(base.causal) == {"adapters": 7 * layers, "norms": 2 * layers + 1, "feed_forwards": layers}
    after, found = learnt(base)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, slopes, rtol=1e-4, atol=1e-5)


def test_the_adapter_can_still_be_switched_off(tiny_base: Path) -> None:
    """Preferences ask the bare base for its likelihoods."""
    base = load_base(tiny_base, "nf4", CPU)
    recipe = Recipe.model_validate({"base_model": "s3://some-bucket/x/"})
    model = attach_adapter(base, recipe, gradient_checkpointing=False)
    ids = torch.arange(12)[None]
    bare = base.hidden(input_ids=ids)
    with torch.no_grad():
        for parameter in trainable(base.causal).values():
            parameter.normal_(std=0.05)
    fuse(base.causal)
    assert not torch.allclose(base.hidden(input_ids=ids), bare, atol=1e-3)
    with model.disable_adapter():
        torch.testing.assert_close(base.hidden(input_ids=ids), bare, rtol=1e-5, atol=1e-5)


def small(kind: str, **changes: Any) -> Any:
    torch.manual_seed(3)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    causal = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**sizes, **heads, **changes}))
    with torch.no_grad():
        for parameter in causal.parameters():
            parameter.normal_(std=0.2)
    return causal


@pytest.mark.parametrize(
    ("kind", "norms", "feed_forwards"),
    [
        ("qwen3", 9, 2),
        ("gemma2", 0, 0),
        ("gemma3_text", 0, 0),
        ("phi3", 5, 0),
        ("olmo2", 9, 2),
        ("gpt_oss", 5, 0),
    ],
)
def test_only_what_computes_the_same_is_replaced(kind: str, norms: int, feed_forwards: int) -> None:
    """Norms that add one to their weight and gates of another kind stay; the states stay in every case."""
    causal = small(kind).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = causal(input_ids=ids).logits
        assert fuse(causal) == {"adapters": 0, "norms": norms, "feed_forwards": feed_forwards}
        torch.testing.assert_close(causal(input_ids=ids).logits, before, rtol=1e-4, atol=1e-4)


def test_adapters_of_another_kind_are_left_alone(tiny_base: Path) -> None:
    """DoRA's magnitude is no sum."""
    base = adapted(load_base(tiny_base, "nf4", CPU), r=4, dora=True)
    assert fuse(base.causal)["adapters"] == 0


def test_the_gated_product_differentiates_as_autograd_would() -> None:
    """Numerically, in double precision."""
    torch.manual_seed(1)
    gate, up = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in "gu")
    assert torch.autograd.gradcheck(GatedProduct.apply, (gate, up))


def kept_bytes(causal: Any, ids: Tensor) -> int:
    """Of activations that the backward pass needs, each once, under the types of a GPU's pass."""
    weights = {p.untyped_storage().data_ptr() for p in causal.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)
        return tensor

    held: list[Tensor] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        causal.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state.sum()
    return sum(found.values())


def test_less_is_kept_for_the_backward_pass() -> None:
    """In bf16, as on a GPU: without the casts of the adapter's input, and again with the fused layers."""
    causal = small("llama", hidden_size=64, intermediate_size=160).bfloat16()
    base = LanguageModel(causal, None, 0, CPU, None)  # type: ignore[arg-type]  # neither codec nor manifest is asked
    causal.requires_grad_(requires_grad=False)
    adapted(base, r=4)
    ids = torch.arange(48)[None]
    as_it_comes = kept_bytes(causal, ids)
    keep_input_type(causal)
    uncast = kept_bytes(causal, ids)
    assert fuse(causal) == {"adapters": 14, "norms": 5, "feed_forwards": 2}
    fused = kept_bytes(causal, ids)
    assert uncast < 0.95 * as_it_comes
    assert fused < 0.9 * uncast
