"""Base models are counted from their config alone."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropforge_core.planning.shape import (
    _FAMILIES,
    BaseModelUnsuitable,
    shape_of,
    weight_bytes_of,
)

WIDE = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "vocab_size": 32000,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SPARSE = {"num_key_value_heads": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 768}
SIZES = {
    "gpt2": {"n_embd": 1024, "n_layer": 4, "n_head": 16, "vocab_size": 50257},
    "gpt_neox": WIDE,
    "opt": {
        **{key: value for key, value in WIDE.items() if key != "intermediate_size"},
        "ffn_dim": 8192,
        "word_embed_proj_dim": 2048,
    },
    "gemma": {**WIDE, "num_attention_heads": 8, "num_key_value_heads": 1},
    "gemma2": {**WIDE, "num_attention_heads": 8, "num_key_value_heads": 4},
    "gemma3_text": {**WIDE, "num_attention_heads": 8, "num_key_value_heads": 4},
    "mixtral": {**WIDE, "num_key_value_heads": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**WIDE, **SPARSE, "num_experts": 8, "shared_expert_intermediate_size": 2048},
    "qwen3_moe": {**WIDE, **SPARSE, "num_experts": 8, "head_dim": 128},
}
"""Where a family needs other keys than WIDE with four key-value heads."""


@pytest.mark.parametrize("family", sorted(_FAMILIES))
def test_every_known_family_is_counted_as_the_modelling_library_builds_it(family):
    """The parameters differ by less than a thousandth, and the names of the linear layers are the real ones."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(
        family, **SIZES.get(family, {**WIDE, "num_key_value_heads": 4})
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    real = sum(parameter.numel() for parameter in model.parameters())
    modules = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    for spelled_out in (True, False):
        shape = shape_of(json.loads(config.to_json_string(use_diff=not spelled_out)))
        assert shape.parameters == pytest.approx(real, rel=1e-3)
        assert {linear.name for linear in shape.linears} <= modules


def test_llama_3_8b_has_the_published_sizes():
    """8.03 B parameters, of which 6.98 B lie in linear layers of the blocks."""
    shape = shape_of(
        {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        }
    )
    assert shape.parameters / 1e9 == pytest.approx(8.03, abs=0.005)
    assert shape.linear_parameters == 32 * (4096 * (4096 * 2 + 1024 * 2) + 3 * 4096 * 14336)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "llama", "auto_map": {"AutoModel": "x.Y"}}, "never run"),
        ({"model_type": "llama", "quantization_config": {"bits": 4}}, "quantised already"),
        ({"model_type": "mystery", "hidden_size": 8}, "not known to the planner"),
        ({"model_type": "llama"}, "none of: hidden_size"),
        ({"model_type": "llama", "hidden_size": "wide"}, "expected a positive whole number"),
        ([], "not a JSON object"),
    ],
)
def test_what_cannot_be_tuned_is_refused_in_words(config, says):
    """Remote code, quantised weights, unknown blocks and broken keys each have their sentence."""
    with pytest.raises(BaseModelUnsuitable, match=says):
        shape_of(config)


def test_an_unknown_architecture_is_bounded_by_its_weights_or_refused():
    """Weights that the config does not explain are counted in 16 bits; too few of them is a refusal."""
    config = {**WIDE, "model_type": "mystery", "torch_dtype": "bfloat16"}
    known = shape_of({**config, "model_type": "llama"})
    shape = shape_of(config, weight_bytes=known.parameters * 2 + 2_000_000)
    assert shape.parameters == known.parameters + 1_000_000
    with pytest.raises(BaseModelUnsuitable, match="can't be planned"):
        shape_of(config, weight_bytes=known.parameters)


def test_weights_that_a_repository_carries_twice_count_once():
    """`consolidated.safetensors` beside `model-*.safetensors` is the same model again."""
    files = {"model-1.safetensors": 5, "model-2.safetensors": 6, "consolidated.safetensors": 11, "a.bin": 9}
    assert weight_bytes_of(files) == 11
    assert weight_bytes_of({"adapter.safetensors": 3}) == 3
    assert weight_bytes_of({"pytorch_model.bin": 3}) is None


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from([*WIDE, "model_type", "head_dim", "num_experts", "text_config", "dtype"]),
        st.none()
        | st.integers()
        | st.text(max_size=5)
        | st.just("llama")
        | st.dictionaries(st.text(), st.integers()),
    )
)
def test_any_config_is_a_shape_or_a_refusal(config):
    """No JSON object makes the parser fail in another way."""
    try:
        parameters = shape_of(config, weight_bytes=10**9).parameters
    except BaseModelUnsuitable:
        return
    assert parameters > 0
