"""Batched answers are the answers one would get alone."""

from pathlib import Path

import pytest
import torch
from tiny_jobs import chat_rows

from tuner.generation import Decoding, batches_by_tokens, common_prefix, generate, reference_nll
from tuner.model import LanguageModel, load_base


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> LanguageModel:
    return load_base(tiny_base, "nf4", torch.device("cpu"))


@pytest.fixture(scope="module")
def prompts(model: LanguageModel) -> list[list[int]]:
    return [model.codec.prompt(row["messages"][:-1]) for row in chat_rows(6)]


def test_greedy_answers_are_those_of_transformers(model: LanguageModel, prompts: list[list[int]]) -> None:
    """Left padding, the shared beginning and leaving rows change no token of what `generate` says alone."""
    found = generate(model, prompts, Decoding(24, 0.0, seed=0))
    for prompt, answer in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        alone = model.causal.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=sorted(model.codec.stop_ids),
            pad_token_id=model.pad_id,
        )[0, len(prompt) :].tolist()
        stopped = alone[-1] in model.codec.stop_ids
        assert list(answer.tokens) == (alone[:-1] if stopped else alone)
        assert answer.finish_reason == ("stop" if stopped else "length")


def test_rows_that_stop_leave_and_the_others_go_on(model: LanguageModel, prompts: list[list[int]]) -> None:
    """An answer's end shortens the batch without touching its neighbours."""
    whole = generate(model, prompts, Decoding(12, 0.0, seed=0))
    # Whatever one answer says third becomes a stop token: that row, at least, ends early.
    stop = whole[0].tokens[2]
    model.codec.stop_ids = frozenset({*model.codec.stop_ids, stop})
    try:
        found = generate(model, prompts, Decoding(12, 0.0, seed=0))
    finally:
        model.codec.stop_ids = model.codec.stop_ids - {stop}
    for answer, before in zip(found, whole, strict=True):
        cut = before.tokens.index(stop) if stop in before.tokens else len(before.tokens)
        assert answer.tokens == before.tokens[:cut]
        assert answer.finish_reason == ("stop" if stop in before.tokens else before.finish_reason)


def test_sampling_repeats_under_its_seed(model: LanguageModel, prompts: list[list[int]]) -> None:
    """The same seed gives the same answers, another seed others."""
    first, again, other = (generate(model, prompts, Decoding(8, 1.0, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_likelihoods_do_not_depend_on_the_batch(model: LanguageModel) -> None:
    """A reference measures the same alone and among others."""
    documents = [model.codec.conversation(row["messages"])[0] for row in chat_rows(6)]
    together = reference_nll(model, documents)
    assert together == pytest.approx([reference_nll(model, [d])[0] for d in documents], rel=1e-5)


def test_equal_prompts_keep_their_last_token(model: LanguageModel, prompts: list[list[int]]) -> None:
    """Identical prompts share all but the token that the answer continues."""
    assert common_prefix([prompts[0], prompts[0]]) == len(prompts[0]) - 1
    twice = generate(model, [prompts[0], prompts[0]], Decoding(6, 0.0, seed=0))
    assert twice[0] == twice[1]


def test_batches_keep_to_the_bound() -> None:
    """Longest first, every index once, width times rows within the bound unless one alone is wider."""
    sizes = [5, 50, 20, 20, 7, 120]
    batches = list(batches_by_tokens(sizes, 100))
    assert sorted(index for batch in batches for index in batch) == list(range(6))
    assert all(max(sizes[i] for i in b) * len(b) <= 100 or len(b) == 1 for b in batches)
