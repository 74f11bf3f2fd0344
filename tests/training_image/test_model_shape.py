"""What a base model is made of is counted on the modules that are trained, whatever its architecture."""

import json
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from dropforge_core.layout import MODEL_SHAPE
from dropforge_core.planning import CountedShape
from dropforge_core.planning.memory import adapter_parameters
from dropforge_core.recipe import Recipe
from tuner.cache_base_model import Place
from tuner.model_shape import NotCountable, count, counted_shape, write_counted_shape

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
}
UNKNOWN = {
    "olmo": {**SMALL},
    "bloom": {"hidden_size": 64, "n_layer": 3, "n_head": 4, "vocab_size": 500},
    "falcon": {**SMALL, "new_decoder_architecture": True, "num_kv_heads": 2},
    "gpt_oss": {**SMALL, "num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 16},
    "deepseek_v3": {
        **SMALL,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 32,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 32,
        "kv_lora_rank": 16,
    },
    "olmoe": {**SMALL, "num_experts": 4, "num_experts_per_tok": 2},
    "mamba": {"hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 500, "state_size": 8},
}
"""Architectures of which the planner's arithmetic knows nothing."""


def built(family: str, sizes: dict[str, Any]) -> Any:
    config = AutoConfig.for_model(family, **sizes)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("family", [*UNKNOWN, "llama"])
def test_parameters_and_adapter_are_those_of_the_model_that_is_trained(family: str) -> None:
    """Every parameter is counted once, and an adapter on all layers has as many as peft puts there."""
    sizes = UNKNOWN.get(family, SMALL)
    shape, model = count(built(family, sizes)), built(family, sizes)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert 0 < shape.linear_parameters < shape.parameters
    assert 0 <= shape.other_parameters < shape.parameters / 10
    assert (shape.vocab, shape.hidden, shape.layers) == (500, 64, 3)
    if family == "mamba":
        return  # its way out takes no adapter; the plan counts one for it all the same
    recipe = Recipe.model_validate({"base_model": "org/m", "adapter": {"r": 4}})
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert adapter_parameters(shape, recipe) == trained


def test_experts_are_counted_whole_and_what_a_token_passes_apart() -> None:
    """Two of eight experts are passed: a quarter of their weights; dense and shared ones widen the feed-forward."""
    shape = count(built("deepseek_v3", UNKNOWN["deepseek_v3"]))
    assert shape.expert_parameters == 2 * 8 * 3 * 64 * 32
    assert shape.active_expert_parameters == shape.expert_parameters // 4
    assert shape.ffn == 160
    assert shape.head_dim == 128 + 64
    assert count(built("gpt_oss", UNKNOWN["gpt_oss"])).ffn == 2 * 160
    assert count(built("mamba", UNKNOWN["mamba"])).heads == 0


def test_a_configuration_that_the_library_does_not_know_is_told(tmp_path: Path) -> None:
    """An unknown type and impossible sizes are refused with the library's words; code is never asked for."""
    for config in ({"model_type": "mystery"}, {**SMALL, "model_type": "llama", "hidden_act": "nonsense"}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(NotCountable, match=r"mystery|nonsense"):
            counted_shape(tmp_path)


def test_the_count_lies_beside_the_copy_or_the_reason_is_told(s3_endpoint: str, tmp_path: Path) -> None:
    """A model of any architecture has its document; one that can't be built leaves none, and a line in the log."""
    s3 = boto3.client("s3", endpoint_url=s3_endpoint)
    s3.create_bucket(Bucket="shapes")
    place = Place(s3, "shapes", f"base-models/tiny/{'b' * 40}/")
    lines: list[str] = []
    config = json.dumps({**UNKNOWN["gpt_oss"], "model_type": "gpt_oss"}).encode()
    for body in (json.dumps({"model_type": "mystery"}).encode(), config):
        s3.put_object(Bucket="shapes", Key=place.prefix + "config.json", Body=body)
        write_counted_shape(place, tmp_path, lines.append)
    assert lines[0].startswith("phase=not_counted ValueError: ")
    assert lines[1].startswith("phase=counted parameters=")
    counted = CountedShape.model_validate_json(place.read(MODEL_SHAPE))
    assert counted.shape == count(built("gpt_oss", UNKNOWN["gpt_oss"]))
    assert counted.counted_by.startswith("transformers 5.")
