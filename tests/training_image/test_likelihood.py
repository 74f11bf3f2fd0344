"""The same loss and gradient in every shape a step can take."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import adapted
from tiny_jobs import chat_rows
from torch.nn import functional

from tuner.attention import lays_end_to_end
from tuner.batching import MicroBatch, shape_batches, shared_beginning
from tuner.conversation import Document
from tuner.data import Row, encode_rows
from tuner.likelihood import FrozenHead, make_batch, token_nll
from tuner.model import LanguageModel, LogitTransform, load_base, trainable
from tuner.residency import expand_quantized

CPU = torch.device("cpu")


@pytest.fixture
def model(tiny_base: Path) -> LanguageModel:
    return adapted(load_base(tiny_base, "nf4", CPU))


@pytest.fixture
def documents(model: LanguageModel) -> list[Document]:
    rows = [Row(row["id"], tuple(row["messages"])) for row in chat_rows(9)]
    return [example.documents[0] for example in encode_rows(rows, model.codec, "sft", 512)]


def losses_and_slopes(
    model: LanguageModel, documents: list[Document], plan: list[MicroBatch]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each document, and the gradient of their sum in the first adapter weight."""
    model.causal.zero_grad()
    found = torch.zeros(len(documents))
    for shape in plan:
        batch = make_batch(documents, shape, model.pad_id, CPU)
        found = found.index_add(0, batch.owners, token_nll(model, batch))
    found.sum().backward()
    gradients = [p.grad.flatten() for p in trainable(model.causal).values() if p.grad is not None]
    return found.detach(), torch.cat(gradients)


@pytest.mark.parametrize("way", ["padded", "packed", "shared", "end to end", "end to end, shared"])
def test_documents_do_not_see_one_another(model: LanguageModel, documents: list[Document], way: str) -> None:
    """Losses and gradients equal those of the documents one by one, in every shape that a pass can have."""
    alone = [MicroBatch(((i,),), d.length) for i, d in enumerate(documents)]
    if way == "packed":
        plan = [MicroBatch(((0, 1, 2, 3), (4, 5, 6, 7, 8)), sum(d.length for d in documents))]
    else:
        shared = shared_beginning(documents) if way.endswith("shared") else 0
        assert (shared > 0) == way.endswith("shared")
        sizes, flat = [[d.length] for d in documents], way.startswith("end to end")
        if flat:
            assert lays_end_to_end(model.causal, CPU)
        plan = shape_batches(sizes, 10_000, packing=flat, hidden_size=64, shared=shared, end_to_end=flat)
        assert len(plan) == 1
    expected, expected_slope = losses_and_slopes(model, documents, alone)
    found, slope = losses_and_slopes(model, documents, plan)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(slope, expected_slope, rtol=1e-4, atol=1e-5)


def test_layers_that_are_recomputed_keep_their_documents_apart(
    model: LanguageModel, documents: list[Document]
) -> None:
    """Gradient checkpointing changes no loss and no gradient of documents that lie end to end."""
    assert lays_end_to_end(model.causal, CPU)
    sizes, shared = [[d.length] for d in documents], shared_beginning(documents)
    plan = shape_batches(sizes, 10_000, packing=True, hidden_size=64, shared=shared, end_to_end=True)
    kept, kept_slope = losses_and_slopes(model, documents, plan)
    model.causal.train()
    model.causal.gradient_checkpointing_enable({"use_reentrant": False})
    again, again_slope = losses_and_slopes(model, documents, plan)
    torch.testing.assert_close(again, kept)
    torch.testing.assert_close(again_slope, kept_slope)


def test_what_fills_a_rehearsed_pass_teaches_nothing(model: LanguageModel, documents: list[Document]) -> None:
    """A pass that is widened to its bound computes that many tokens and has the same losses."""
    assert lays_end_to_end(model.causal, CPU)
    (shape,) = shape_batches(
        [[d.length] for d in documents], 10_000, packing=True, hidden_size=64, end_to_end=True
    )
    batch = make_batch(documents, replace(shape, end_to_end=shape.tokens + 500), model.pad_id, CPU)
    assert batch.inputs["input_ids"].shape == (1, sum(d.length for d in documents) + 500)
    longest = max(document.length for document in documents)
    assert int(batch.inputs["position_ids"].max()) == longest - 1
    expected = token_nll(model, make_batch(documents, shape, model.pad_id, CPU))
    torch.testing.assert_close(token_nll(model, batch), expected)


def test_the_loss_is_that_of_the_whole_model(model: LanguageModel, documents: list[Document]) -> None:
    """Logits at labelled positions alone give what transformers' full logits give."""
    document = documents[0]
    batch = make_batch(documents, MicroBatch(((0,),), document.length), model.pad_id, CPU)
    logits = model.causal(input_ids=torch.from_numpy(document.ids)[None]).logits[0, :-1]
    every = functional.cross_entropy(logits, torch.from_numpy(document.ids)[1:], reduction="none")
    expected = every[torch.from_numpy(document.weights)[1:] > 0]
    torch.testing.assert_close(token_nll(model, batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "after",
    [
        LogitTransform(1.0, None),
        LogitTransform(0.25, None),
        LogitTransform(1.0, 3.0),
        LogitTransform(2.0, 5.0),
    ],
)
@pytest.mark.parametrize("biased", [False, True])
def test_the_frozen_head_differentiates_as_autograd_would(after: LogitTransform, biased: bool) -> None:
    """Loss and gradient equal autograd's through the stored logits, with scales, caps and biases."""
    torch.manual_seed(1)
    states = torch.randn(1_100, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 16, dtype=torch.float64)
    bias = torch.randn(50, dtype=torch.float64) if biased else None
    targets = torch.randint(0, 50, (1_100,))
    upstream = torch.rand(1_100)
    logits = after.apply(functional.linear(states, weight, bias))
    plain = functional.cross_entropy(logits, targets, reduction="none")
    (expected,) = torch.autograd.grad((plain * upstream).sum(), states)
    nll: Any = FrozenHead.apply(states, weight, bias, targets, after)
    (found,) = torch.autograd.grad((nll * upstream).sum(), states)
    torch.testing.assert_close(nll.double(), plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_expanded_weights_give_the_same_numbers(tiny_base: Path, documents: list[Document]) -> None:
    """Unpacking NF4 once changes no loss by a single bit."""
    base = load_base(tiny_base, "nf4", CPU)
    batch = make_batch(documents, MicroBatch(tuple((i,) for i in range(9)), 200), base.pad_id, CPU)
    with torch.no_grad():
        before = token_nll(base, batch)
        assert expand_quantized(base.causal) > 0
        after = token_nll(base, batch)
    assert torch.equal(before, after)
