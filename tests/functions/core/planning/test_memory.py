"""Memory of a GPU, against published figures and in its direction."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning_cases import LLAMA_3_8B

from dropforge_core.planning import shape_of
from dropforge_core.planning.memory import (
    GIB,
    MARGIN,
    adapter_parameters,
    bytes_per_token,
    largest_micro_batch,
    training_memory,
    weights_bytes,
)
from dropforge_core.recipe import Recipe

SHAPE = shape_of(LLAMA_3_8B)
LLAMA_2_7B = {
    **LLAMA_3_8B,
    "intermediate_size": 11008,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
}


def recipe(**adapter):
    return Recipe.model_validate({"base_model": "org/model", "adapter": adapter})


def test_llama_3_8b_takes_what_was_measured():
    """5.70 GB of NF4 weights, 41.9 M adapter parameters at rank 16, 1.77 MB a token with logits."""
    assert weights_bytes(SHAPE, "nf4") / 1e9 == pytest.approx(5.70, abs=0.01)
    assert adapter_parameters(SHAPE, recipe(r=16)) / 1e6 == pytest.approx(41.9, abs=0.1)
    assert bytes_per_token(SHAPE, checkpointing=True) / 1e6 == pytest.approx(1.77, abs=0.01)


def test_llama_2_7b_has_the_measured_slope():
    """0.84 MB a token were measured between 1k and 8k tokens; the model is within a tenth."""
    assert bytes_per_token(shape_of(LLAMA_2_7B), checkpointing=True) / 1e6 == pytest.approx(0.84, rel=0.1)


@given(st.integers(1, 256), st.integers(0, 20_000), st.booleans())
def test_more_rank_or_more_tokens_never_take_less(rank, tokens, checkpointing):
    """The estimate climbs with rank and micro-batch, and recomputation never costs memory."""
    here = training_memory(SHAPE, recipe(r=rank), micro_batch_tokens=tokens, checkpointing=checkpointing)
    wider = training_memory(
        SHAPE, recipe(r=min(256, rank + 1)), micro_batch_tokens=tokens, checkpointing=checkpointing
    )
    longer = training_memory(
        SHAPE, recipe(r=rank), micro_batch_tokens=tokens + 1, checkpointing=checkpointing
    )
    kept = training_memory(SHAPE, recipe(r=rank), micro_batch_tokens=tokens, checkpointing=False)
    assert here.total <= wider.total
    assert here.total <= longer.total
    assert here.total <= kept.total


@given(st.floats(4, 200), st.booleans(), st.integers(16, 32_768))
def test_the_largest_micro_batch_fits_and_holds_the_longest_row(memory, checkpointing, length):
    """What is answered stays under the margin and is never shorter than a row; None means that none would."""
    asked = Recipe.model_validate({"base_model": "org/model", "training": {"max_seq_len": length}})
    tokens = largest_micro_batch(SHAPE, asked, memory_gib=memory, checkpointing=checkpointing)
    limit = MARGIN * memory * GIB
    if tokens is None:
        assert (
            training_memory(SHAPE, asked, micro_batch_tokens=length + 2, checkpointing=checkpointing).total
            > limit
        )
    else:
        assert tokens >= length
        assert (
            training_memory(SHAPE, asked, micro_batch_tokens=tokens, checkpointing=checkpointing).total
            <= limit
        )
