"""Which models take documents end to end, and that the kernel is told what the CPU does."""

from typing import Any

import pytest
import torch
from small_models import SMALL
from transformers import AutoConfig, AutoModelForCausalLM

from tuner.attention import NAME, cut_row, lays_end_to_end, row_inputs

CPU = torch.device("cpu")


def build(kind: str, **changes: Any) -> Any:
    torch.manual_seed(3)
    config = AutoConfig.for_model(kind, **{**SMALL, **changes})
    # Without a wish: sdpa where the architecture has it.
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "granite", "phi3"])
def test_models_of_full_attention_take_documents_end_to_end(kind: str) -> None:
    """States in one row are those of each document alone, and ordinary calls stay transformers' own."""
    extra: dict[str, Any] = {"pad_token_id": 0} if kind == "phi3" else {}
    causal = build(kind, **({"sliding_window": None} | extra if kind == "mistral" else extra))
    ids = torch.arange(30)[None] % 128
    before = causal(input_ids=ids).logits
    assert lays_end_to_end(causal, CPU)
    assert torch.equal(causal(input_ids=ids).logits, before)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("mistral", {"sliding_window": 16}),
        ("gemma3_text", {"sliding_window": 16}),
        ("llama", {"attention_dropout": 0.1}),
        ("gpt_neo", {"num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]}),
        ("mamba", {"state_size": 8, "expand": 2, "num_hidden_layers": 2}),
    ],
)
def test_a_model_that_would_mix_documents_stays_padded(kind: str, changes: dict[str, Any]) -> None:
    """Windows, dropped attention and attention of a model's own are recognised, and the model is as it was."""
    causal = build(kind, **changes)
    before = causal.config._attn_implementation
    ids = torch.arange(30)[None] % 128
    expected = causal(input_ids=ids).logits
    assert not lays_end_to_end(causal, CPU)
    assert causal.config._attn_implementation == before
    torch.testing.assert_close(causal(input_ids=ids).logits, expected)


@pytest.mark.parametrize("shared", [0, 5])
def test_the_kernel_is_told_what_the_cpu_does(monkeypatch: pytest.MonkeyPatch, shared: int) -> None:
    """By starts of pieces and gathered keys, with the mask counted from the end, the same attention results."""
    from tuner import attention  # noqa: PLC0415

    lengths = (7, 1, 12)

    def by_starts(q: Any, k: Any, v: Any, queries: Any, keys: Any, *_: Any, **options: Any) -> Any:
        assert options["window_size"] == (-1, 0)
        found = []
        for at, until, first, last in zip(queries, queries[1:], keys, keys[1:], strict=False):
            rows, columns = int(until - at), int(last - first)
            mask = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows)
            one, keyed, valued = (
                part.transpose(0, 1)[None] for part in (q[at:until], k[first:last], v[first:last])
            )
            answer = torch.nn.functional.scaled_dot_product_attention(
                one, keyed, valued, attn_mask=mask, scale=options["scale"], enable_gqa=True
            )
            found.append(answer[0].transpose(0, 1))
        return torch.cat(found)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", by_starts)
    torch.manual_seed(5)
    segments = cut_row(lengths, shared)
    size = shared + sum(lengths)
    query, key, value = (torch.randn(1, heads, size, 8) for heads in (4, 2, 2))
    expected = attention._one_by_one(query, key, value, 0.3, segments)
    found = attention._in_one_kernel(query, key, value, 0.3, segments)
    torch.testing.assert_close(found, expected)


def test_a_mask_of_a_row_is_never_built() -> None:
    """T documents' tokens need no T x T numbers."""
    causal = build("llama")
    assert lays_end_to_end(causal, CPU)
    assert causal.config._attn_implementation == NAME
    inputs = row_inputs(torch.arange(20)[None], torch.arange(20)[None], cut_row((20,), 0))
    assert inputs["attention_mask"].numel() == 1
    states = causal.get_decoder()(use_cache=False, **inputs).last_hidden_state
    expected = causal.get_decoder()(input_ids=torch.arange(20)[None], use_cache=False).last_hidden_state
    torch.testing.assert_close(states, expected)
