"""Continuous batching gives the answers that one would get alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_jobs import chat_rows

from tuner.adapters import Variants
from tuner.engine import continuous
from tuner.engine.continuous import TOO_LARGE, ContinuousEngine, Limits, completions
from tuner.engine.protocol import Completion, Question
from tuner.generation import Answer, Decoding, generate, reference_nll
from tuner.model import LanguageModel, load_base

GREEDY = Decoding(10)


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> LanguageModel:
    return load_base(tiny_base, "none", torch.device("cpu"))


@pytest.fixture(scope="module")
def questions(model: LanguageModel) -> list[Question]:
    """Some begin alike, two do not; lengths and limits differ."""
    rows = chat_rows(7)
    for row in rows[5:]:
        del row["messages"][0]
    return [
        Question(
            ticket,
            row["id"],
            "base",
            model.codec.prompt(row["messages"][:-1]),
            model.codec.conversation(row["messages"])[0],
            max_new_tokens=0 if ticket == 3 else 7 + ticket,
        )
        for ticket, row in enumerate(rows)
    ]


@pytest.fixture(scope="module")
def alone(model: LanguageModel, questions: list[Question]) -> dict[int, Completion]:
    """What a static batch of one says of each question."""
    return {
        q.ticket: Completion(
            q.ticket,
            reference_nll(model, [q.document])[0],
            generate(model, [q.prompt], replace(GREEDY, max_new_tokens=q.max_new_tokens))[0]
            if q.generate
            else None,
        )
        for q in questions
    }


def engine_of(model: LanguageModel, decoding: Decoding = GREEDY, **limits: int) -> ContinuousEngine:
    bounds = Limits(**{"rows": 64, "tokens": 100_000, **limits})
    return ContinuousEngine(Variants(model), decoding, lambda _: None, bounds)


def same(found: Sequence[Completion], expected: dict[int, Completion]) -> bool:
    assert sorted(c.ticket for c in found) == sorted(expected)
    for completion in found:
        other = expected[completion.ticket]
        assert completion.nll == pytest.approx(other.nll, rel=1e-5)
        assert completion.answer == other.answer
    return True


@pytest.mark.parametrize("limits", [{}, {"rows": 1}, {"rows": 3}, {"tokens": 300}, {"tokens": 1}])
def test_greedy_answers_do_not_depend_on_the_batch(
    model: LanguageModel,
    questions: list[Question],
    alone: dict[int, Completion],
    limits: dict[str, int],
) -> None:
    """All together, one by one, or as room allows: every question gets the answer that it gets alone."""
    assert same(list(completions(engine_of(model, **limits), questions)), alone)


def test_questions_that_come_later_join(
    model: LanguageModel, questions: list[Question], alone: dict[int, Completion]
) -> None:
    """A lot that arrives while another is answered changes no answer, and waits for none of them to end."""
    engine = engine_of(model)
    engine.submit(questions[:4])
    found: list[Completion] = []
    for _ in range(4):
        found += engine.step()
    engine.submit(questions[4:])
    together = False
    while len(found) < len(questions):
        found += engine.step()
        open_now = {row.question.ticket for row in engine._rows}
        together |= min(open_now, default=9) < 4 <= max(open_now, default=0)
    assert together
    assert same(found, alone)
    assert engine.step() == []


def test_a_stop_token_ends_one_answer_only(model: LanguageModel, questions: list[Question]) -> None:
    """The row of an answer that ends is filled again; its neighbours say what they would have said."""
    wanted = [replace(q, max_new_tokens=8) for q in questions]
    whole = {c.ticket: c.answer for c in completions(engine_of(model), wanted) if c.answer}
    stop = whole[0].tokens[2]
    usual = model.codec.stop_ids
    model.codec.stop_ids = frozenset({*usual, stop})
    try:
        found = list(completions(engine_of(model, rows=3), wanted))
    finally:
        model.codec.stop_ids = usual
    assert any(c.answer and c.answer.finish_reason == "stop" for c in found)
    for completion in found:
        before = whole[completion.ticket]
        cut = before.tokens.index(stop) if stop in before.tokens else len(before.tokens)
        reason = "stop" if stop in before.tokens else before.finish_reason
        assert completion.answer == Answer(before.tokens[:cut], reason)


def test_sampling_depends_on_the_record_alone(model: LanguageModel, questions: list[Question]) -> None:
    """Under one seed a record's draw is the same in any company; under another it is another one."""
    warm = replace(GREEDY, temperature=1.0)
    wanted = [q for q in questions if q.generate]
    together = {c.ticket: c.answer for c in completions(engine_of(model, warm), wanted)}
    few = {c.ticket: c.answer for c in completions(engine_of(model, warm, rows=2), wanted[::-1])}
    other = {c.ticket: c.answer for c in completions(engine_of(model, replace(warm, seed=1)), wanted)}
    assert together == few
    assert together != other


def test_where_memory_runs_out_fewer_go_on(
    model: LanguageModel,
    questions: list[Question],
    alone: dict[int, Completion],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pass that does not fit is done by fewer rows and changes no answer."""
    plain = SlotsThatFill(limit=2)
    monkeypatch.setattr(continuous, "SlotCache", plain)
    assert same(list(completions(engine_of(model), questions)), alone)
    assert plain.refused


def test_a_record_that_does_not_fit_alone_is_told(
    model: LanguageModel, questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a fault of that record, and the engine goes on."""
    monkeypatch.setattr(continuous, "SlotCache", SlotsThatFill(limit=0))
    found = {c.ticket: c for c in completions(engine_of(model), questions)}
    assert found.keys() == {q.ticket for q in questions}
    assert {c.fault for c in found.values() if c.ticket != 3} == {TOO_LARGE}
    assert found[3].fault is None

    def refuse(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(continuous, "reference_nll", refuse)
    assert all(c.fault == TOO_LARGE for c in completions(engine_of(model), questions))


class SlotsThatFill:
    """Makes slot caches that refuse to hold more rows than the limit."""

    def __init__(self, limit: int) -> None:
        self.limit, self.refused = limit, 0
        self.real = continuous.SlotCache

    def __call__(self, like: Any) -> Any:
        cache, join = self.real(like), self.real.join

        def bounded(filled: Any, prefix: int, lengths: Sequence[int]) -> None:
            if len(cache.lengths) + len(lengths) > self.limit:
                self.refused += 1
                raise MemoryError
            join(cache, filled, prefix, lengths)

        cache.join = bounded  # type: ignore[method-assign]
        return cache


def test_models_that_take_no_rows_answer_in_whole_batches(
    model: LanguageModel,
    questions: list[Question],
    alone: dict[int, Completion],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where layers keep something else than all keys, batches stay as they are, with the same answers."""
    monkeypatch.setattr(continuous, "can_take_rows", lambda _: False)
    assert same(list(completions(engine_of(model, rows=3), questions)), alone)


def test_a_reset_engine_has_forgotten(
    model: LanguageModel, questions: list[Question], alone: dict[int, Completion]
) -> None:
    """Nothing of what was open turns up among later answers."""
    engine = engine_of(model)
    engine.submit([replace(q, ticket=100 + q.ticket) for q in questions])
    for _ in range(3):
        engine.step()
    engine.reset()
    assert same(list(completions(engine, questions)), alone)
