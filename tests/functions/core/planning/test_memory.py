"""Memory of a GPU, against published figures and in its direction."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning_cases import LLAMA_3_8B

from dropforge_core.planning import shape_of
from dropforge_core.planning.memory import (
    GIB,
    LARGE_PASS,
    LOSS_CHUNK,
    MARGIN,
    NF4_BITS,
    adapter_parameters,
    bytes_per_token,
    fastest_layout,
    largest_micro_batch,
    shortest_micro_batch,
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
    unfused = bytes_per_token(SHAPE, checkpointing=True, fused_loss=False)
    assert unfused / 1e6 == pytest.approx(1.77, abs=0.01)
    assert bytes_per_token(SHAPE, checkpointing=True) == unfused - 128256 * 10


def test_llama_2_7b_has_the_measured_slope():
    """0.84 MB a token were measured between 1k and 8k tokens; the model is within a tenth."""
    unfused = bytes_per_token(shape_of(LLAMA_2_7B), checkpointing=True, fused_loss=False)
    assert unfused / 1e6 == pytest.approx(0.84, rel=0.1)


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


@given(st.integers(1, 256), st.integers(0, 20_000), st.booleans())
def test_an_unpacked_base_never_takes_less_than_a_packed_one(rank, tokens, checkpointing):
    """bf16 is 3.9 times NF4 in the linear layers, and nothing else of the estimate depends on it."""
    packed, unpacked = (
        training_memory(
            SHAPE,
            recipe(r=rank),
            micro_batch_tokens=tokens,
            checkpointing=checkpointing,
            residency=residency,
        )
        for residency in ("4bit", "bf16")
    )
    assert unpacked.total - packed.total == pytest.approx(SHAPE.linear_parameters * (2 - NF4_BITS / 8), abs=2)


@pytest.mark.parametrize(
    ("memory", "asked", "gpus", "expected"),
    [
        (24, {}, 1, ("4bit", True)),
        (48, {}, 1, ("4bit", False)),
        (80, {}, 1, ("bf16", False)),
        (80, {}, 4, ("auto", False)),
        (80, {"quantization": "none"}, 1, ("auto", False)),
        (8, {}, 1, ("4bit", True)),
    ],
)
def test_the_base_is_unpacked_where_passes_stay_large(memory, asked, gpus, expected):
    """8B: in 4 bits up to 48 GiB, unpacked on 80; never with recomputation; never decided for a base that is not NF4."""
    parsed = Recipe.model_validate({"base_model": "org/model", **asked})
    layout = fastest_layout(SHAPE, parsed, memory_gib=memory, gpus=gpus)
    assert (layout.residency, layout.checkpointing) == expected


@given(st.floats(4, 200), st.integers(16, 32_768), st.integers(64, 65_536))
def test_the_fastest_layout_fits(memory, length, batch):
    """Whatever is recommended stays under the margin, and an unpacked base does not make passes small."""
    asked = Recipe.model_validate(
        {"base_model": "org/model", "training": {"max_seq_len": length, "effective_batch_tokens": batch}}
    )
    found = fastest_layout(SHAPE, asked, memory_gib=memory, gpus=1)
    if found.micro_batch_tokens is None:
        assert found.residency == "4bit"
        return
    estimate = training_memory(
        SHAPE,
        asked,
        micro_batch_tokens=found.micro_batch_tokens,
        checkpointing=found.checkpointing,
        residency=found.residency,
    )
    assert estimate.total <= MARGIN * memory * GIB
    if found.residency == "bf16":
        packed = largest_micro_batch(SHAPE, asked, memory_gib=memory, checkpointing=False)
        assert found.micro_batch_tokens >= min(packed, LARGE_PASS)


@given(st.integers(16, 131_072), st.integers(0, 131_072), st.integers(64, 1_000_000))
def test_longer_rows_never_take_less(length, more, step):
    """The estimate of a micro-batch of the shortest kind climbs with the longest row and with the step."""

    def shortest(rows, tokens):
        asked = Recipe.model_validate(
            {
                "base_model": "org/model",
                "training": {"max_seq_len": min(131_072, rows), "effective_batch_tokens": tokens},
            }
        )
        return training_memory(
            SHAPE, asked, micro_batch_tokens=shortest_micro_batch(asked), checkpointing=True
        ).total

    assert shortest(length, step) <= shortest(length + more, step)
    assert shortest(length, step) <= shortest(length, 2 * step)


def test_a_fused_loss_spares_the_logits_of_all_but_a_chunk():
    """With a vocabulary of 128k, 8k tokens without a fused loss take 9 GB more than with one."""
    fused, whole = (
        training_memory(SHAPE, recipe(), micro_batch_tokens=8192, checkpointing=True, fused_loss=kind).total
        for kind in (True, False)
    )
    assert (whole - fused) / 1e9 == pytest.approx((8192 - LOSS_CHUNK) * 128256 * 10 / 1e9)


def test_the_chunk_is_the_trainers():
    """The planner's chunk is as large as the one that the image's loss takes."""
    source = Path(__file__).parents[4] / "training_image/tuner/likelihood.py"
    [chunk] = re.findall(r"^CHUNK: Final = (\d+)$", source.read_text(), re.MULTILINE)
    assert int(chunk) == LOSS_CHUNK
