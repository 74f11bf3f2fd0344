"""A base model is computed from its config alone as the library builds it, or bounded, or refused."""

import json

import pytest
from hypothesis import HealthCheck, Phase, given, settings
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


APPROXIMATE = {"origin", "linears", "embedding_parameters", "other_parameters"}
"""Norms, biases and two rows of OPT's positions are bounded; linear layers are compared in any order."""


@pytest.fixture(scope="session")
def library():
    """Transformers and torch, quiet; the tests that need them are left out where they are not installed."""
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


def as_built(library, family, sizes):
    """The configuration as JSON, and the count of what the library builds of it."""
    config = library.AutoConfig.for_model(family, **sizes)
    with pytest.importorskip("torch").device("meta"):
        model = library.AutoModelForCausalLM.from_config(config)
    real = sum(parameter.numel() for parameter in model.parameters())
    return config, pytest.importorskip("tuner.model_shape").count(model), real


def assert_alike(computed, counted):
    """All but norms and biases is exact, and these are less than a thousandth."""
    assert computed.parameters == pytest.approx(counted.parameters, rel=1e-3)
    assert set(computed.linears) == set(counted.linears)
    assert computed.embedding_parameters == pytest.approx(counted.embedding_parameters, rel=1e-4)
    exact = set(type(counted).model_fields) - APPROXIMATE
    assert computed.model_dump(include=exact) == counted.model_dump(include=exact)


@pytest.mark.parametrize("family", sorted(_FAMILIES))
def test_every_known_family_is_computed_as_the_modelling_library_builds_it(library, family):
    """Every layer's name, sizes and number, heads, widths and experts are those of the modules, defaults left out or not."""
    config, counted, real = as_built(library, family, SIZES.get(family, {**WIDE, "num_key_value_heads": 4}))
    assert (counted.origin, counted.parameters) == ("counted", real)
    for spelled_out in (True, False):
        computed = shape_of(json.loads(config.to_json_string(use_diff=not spelled_out)))
        assert computed.origin == "computed"
        assert_alike(computed, counted)


@settings(
    max_examples=12,
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    family=st.sampled_from(["llama", "qwen3", "phi3", "gemma2", "mixtral", "gpt_neox"]),
    heads=st.tuples(st.sampled_from([8, 16, 32]), st.sampled_from([1, 2, 8])),
    sizes=st.fixed_dictionaries(
        {
            "intermediate_size": st.integers(20, 400).map(lambda n: n * 32),
            "num_hidden_layers": st.integers(1, 6),
            "vocab_size": st.integers(1000, 9000),
        }
    ),
)
def test_of_any_sizes_the_arithmetic_is_what_is_built(library, family, heads, sizes):
    """Heads, groups of keys, inner width, depth and vocabulary may be any."""
    attention = {"num_attention_heads": heads[0]}
    if family != "gpt_neox":
        attention["num_key_value_heads"] = heads[0] // heads[1]
    config, counted, _ = as_built(library, family, {**SIZES.get(family, WIDE), **attention, **sizes})
    computed = shape_of(json.loads(config.to_json_string()))
    assert set(computed.linears) == set(counted.linears)
    assert computed.matmul_parameters == counted.matmul_parameters
    assert computed.parameters == pytest.approx(counted.parameters, rel=2e-3)


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


def test_an_unknown_architecture_is_bounded_by_its_weights_or_a_llama():
    """What the config does not explain counts in 16 bits; too few weights leave the bound; any target is all layers."""
    config = {**WIDE, "model_type": "mystery", "torch_dtype": "bfloat16"}
    known = shape_of({**config, "model_type": "llama"})
    shape = shape_of(config, weight_bytes=known.parameters * 2 + 2_000_000)
    assert shape.origin == "bounded"
    assert shape.parameters == known.parameters + 1_000_000
    assert shape_of(config, weight_bytes=known.parameters).parameters == known.parameters
    assert shape.adapted(("Wqkv",)) == shape.linears
    with pytest.raises(BaseModelUnsuitable, match="names Wqkv"):
        known.adapted(("Wqkv",))
    headless = {name: size for name, size in config.items() if name != "num_attention_heads"}
    assert shape_of(headless, weight_bytes=10**9).heads == 32


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
