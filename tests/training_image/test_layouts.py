"""Which models may have several documents in a row, and that what is allowed changes no loss."""

from typing import Any

import numpy as np
import pytest
import torch
from small_models import SMALL
from transformers import AutoConfig, AutoModelForCausalLM

from tuner.batching import MicroBatch
from tuner.conversation import Document
from tuner.layouts import Layouts, layouts_of, narrowest_window
from tuner.likelihood import make_batch, token_nll
from tuner.model import LanguageModel

CPU = torch.device("cpu")
LARGER: dict[str, Any] = {**SMALL, "num_hidden_layers": 4, "pad_token_id": 0}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
MAMBA = {"mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_chunk_size": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LARGER,
    "qwen3": LARGER,
    "olmo2": LARGER,
    "gemma2": {**LARGER, "sliding_window": 512},
    "mistral": {**LARGER, "sliding_window": 64},
    "gpt_oss": {**LARGER, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 64},
    "gpt2": {"vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "opt": {**LARGER, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"vocab_size": 128, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "gpt_neo": {
        **LARGER,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 2]],
        "window_size": 8,
    },
    "lfm2": {**LARGER, "layer_types": ["conv", "full_attention"] * 2},
    "qwen3_next": {**LARGER, **LINEAR, **EXPERTS},
    "bamba": {**LARGER, **MAMBA, "attn_layer_indices": [1]},
    "falcon_h1": {**LARGER, **MAMBA, "mamba_d_ssm": 64},
    "mamba": {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "rwkv": {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
}
STATEFUL = {"lfm2", "qwen3_next", "bamba", "falcon_h1", "mamba", "rwkv"}
LENGTHS = (50, 31, 44)
BEGINNING = 20


def build(family: str, **changes: Any) -> LanguageModel:
    torch.manual_seed(3)
    config = AutoConfig.for_model(family, **{**FAMILIES[family], **changes})
    causal = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in causal.parameters():
            # As drawn for training, layers hardly change what they are given.
            parameter.mul_(4)
    return LanguageModel(causal, None, 0, CPU, None)  # type: ignore[arg-type]  # neither codec nor manifest is asked


def documents() -> list[Document]:
    """They begin alike, as rows under one system message do."""
    draw = np.random.default_rng(7)
    beginning = draw.integers(1, 128, BEGINNING)
    made = []
    for length in LENGTHS:
        weights = np.zeros(length, dtype=np.float32)
        weights[-8:] = 1
        made.append(Document(np.concatenate([beginning, draw.integers(1, 128, length - BEGINNING)]), weights))
    return made


def losses(base: LanguageModel, shape: MicroBatch, given: list[Document]) -> torch.Tensor:
    with torch.no_grad():
        batch = make_batch(given, shape, base.pad_id, CPU)
        return torch.zeros(len(given)).index_add(0, batch.owners, token_nll(base, batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_allowed_changes_no_loss(family: str) -> None:
    """Padded always, and end to end, packed or with one beginning where it is allowed: each document's own loss."""
    base, given = build(family), documents()
    alone = torch.cat([losses(base, MicroBatch(((0,),), d.length), [d]) for d in given])
    found = layouts_of(base, packing=True, longest=max(LENGTHS))
    shapes = {"padded": MicroBatch(((0,), (1,), (2,)), 50)}
    if found.end_to_end:
        shapes["end to end"] = MicroBatch(((0,), (1,), (2,)), 50, 0, sum(LENGTHS))
    if found.packed:
        shapes["packed"] = MicroBatch(((0, 1), (2,)), 81)
    if found.shared:
        shapes["shared"] = MicroBatch(((0,), (1,), (2,)), 50, BEGINNING)
    for name, shape in shapes.items():
        torch.testing.assert_close(losses(base, shape, given), alone, rtol=1e-4, atol=1e-4, msg=name)
    if family in STATEFUL:
        assert found == Layouts(end_to_end=False, packed=False, shared=False)


def test_a_mask_alone_does_not_part_documents_in_layers_with_a_state() -> None:
    """What would happen without the trial: the second document of a row has another loss than alone."""
    base, given = build("lfm2"), documents()
    alone = torch.cat([losses(base, MicroBatch(((0,),), d.length), [d]) for d in given[:2]])
    packed = losses(base, MicroBatch(((0, 1),), 81), given[:2])
    torch.testing.assert_close(packed[0], alone[0], rtol=1e-4, atol=1e-4)
    assert abs(float(packed[1] - alone[1])) > 1e-3


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", Layouts(end_to_end=True, packed=False, shared=True)),
        ("gemma2", Layouts(end_to_end=False, packed=True, shared=False)),
        ("lfm2", Layouts(end_to_end=False, packed=False, shared=False)),
    ],
)
def test_the_cheapest_exact_way_is_found(family: str, expected: Layouts) -> None:
    """Full attention takes all; windows that hold every row are packed by a mask; a state is never crossed."""
    assert layouts_of(build(family), packing=True, longest=max(LENGTHS)) == expected


def test_a_recipe_without_packing_has_one_document_a_row() -> None:
    """A beginning may still be shared: rows stay apart."""
    assert layouts_of(build("llama"), packing=False, longest=50) == Layouts(False, False, True)


def test_rows_that_reach_beyond_a_window_are_not_packed() -> None:
    """A mask of ours would take the window's place; the log says why each row holds one."""
    base, lines = build("gemma2", sliding_window=40), list[str]()
    assert narrowest_window(base.causal.config) == 40
    assert not layouts_of(base, packing=True, longest=50, say=lines.append).packed
    assert lines == ["phase=not_packed rows reach beyond its window of 40; each row holds one"]
    assert layouts_of(build("gemma2", sliding_window=90), packing=True, longest=50).packed
    assert narrowest_window(build("qwen3").causal.config) is None
