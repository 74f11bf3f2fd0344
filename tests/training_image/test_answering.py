"""From request lines to prediction lines, whatever the lines and whoever asks at the same time."""

import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_jobs import chat_rows

from tuner.adapters import Variants
from tuner.answering import Answerer
from tuner.engine.continuous import ContinuousEngine
from tuner.engine.protocol import Completion, Question
from tuner.generation import Answer, Decoding
from tuner.model import load_base

ROWS = chat_rows(6, seed=4)
LIMIT = 5


class Echo:
    """An engine that answers one question a step with its own first tokens, in no particular order."""

    def __init__(self) -> None:
        self.open: list[Question] = []
        self.asked: list[Question] = []

    def submit(self, questions: Sequence[Question]) -> None:
        self.open += questions
        self.asked += questions

    def step(self) -> list[Completion]:
        if not self.open:
            return []
        question = self.open.pop(len(self.open) // 2)
        answer = Answer(tuple(question.prompt[: question.max_new_tokens]), "length")
        return [Completion(question.ticket, 1.5, answer if question.generate else None)]

    def reset(self) -> None:
        self.open.clear()


@pytest.fixture(scope="module")
def variants(tiny_base: Path) -> Variants:
    return Variants(load_base(tiny_base, "none", torch.device("cpu")))


def record(row: dict[str, Any], **changed: Any) -> bytes:
    asked = {
        "id": row["id"],
        "variant": "base",
        "messages": row["messages"][:-1],
        "reference": row["messages"][-1]["content"],
        "generate": True,
    }
    return json.dumps({**asked, **changed}).encode()


GARBLED = st.one_of(
    st.binary(max_size=30).filter(lambda line: b"\n" not in line),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    ).map(lambda value: json.dumps(value).encode()),
    st.builds(
        lambda field, value: record(ROWS[0], **{field: value}),
        st.sampled_from(["id", "variant", "messages", "reference", "generate", "tools", "answer", "unknown"]),
        st.none() | st.integers() | st.text(max_size=3) | st.just([{"role": "user"}]) | st.just([{}]),
    ),
    st.integers(0, 200).map(lambda cut: record(ROWS[1])[:cut]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(GARBLED | st.sampled_from(ROWS).map(record), max_size=6))
def test_every_line_gets_one_line(variants: Variants, lines: list[bytes]) -> None:
    """Whatever stands in a request, each line that is not blank gets one prediction in its place, and nothing fails."""
    answered = Answerer(variants, Echo(), LIMIT, lambda _: None).answer(b"\n".join(lines)).splitlines()
    asked = [line for line in lines if line.strip()]
    assert len(answered) == len(asked)
    for line, told in zip(asked, map(json.loads, answered), strict=True):
        assert isinstance(told["id"], str)
        if line in {record(row) for row in ROWS}:
            assert told["id"] == json.loads(line)["id"]
            assert told["nll"] == 1.5
            assert told["completion_tokens"] == LIMIT
            assert told["finish_reason"] == "length"
            assert told["prompt_tokens"] > LIMIT
        assert ("error" in told) != ("nll" in told)


def test_a_record_s_own_limit_and_the_job_s(variants: Variants) -> None:
    """The smaller of both holds; where nothing is to be generated there is no text."""
    engine = Echo()
    body = b"\n".join(
        [
            record(ROWS[0], max_new_tokens=2),
            record(ROWS[1], max_new_tokens=99),
            record(ROWS[2], generate=False),
        ]
    )
    told = list(map(json.loads, Answerer(variants, engine, LIMIT, lambda _: None).answer(body).splitlines()))
    assert [question.max_new_tokens for question in engine.asked] == [2, LIMIT, 0]
    assert [line.get("completion_tokens") for line in told] == [2, LIMIT, None]
    assert "text" not in told[2]


def test_a_template_that_breaks_is_a_line(variants: Variants, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a chat template raises over one record, that record gets an error and its neighbours their answers."""
    codec = variants.codec("base")
    prompt = codec.prompt

    def breaks(messages: Sequence[Any], tools: Sequence[Any] = ()) -> list[int]:
        if messages[-1]["content"] == ROWS[1]["messages"][-2]["content"]:
            raise IndexError("list index out of range")
        return prompt(messages, tools)

    monkeypatch.setattr(codec, "prompt", breaks)
    body = b"\n".join(map(record, ROWS[:3]))
    told = list(map(json.loads, Answerer(variants, Echo(), LIMIT, lambda _: None).answer(body).splitlines()))
    assert ["error" in line for line in told] == [False, True, False]
    assert "IndexError" in told[1]["error"]


def test_requests_that_overlap_are_worked_on_together(variants: Variants) -> None:
    """Records of several requests are open at the same time, and each request gets its own lines in order."""

    class Patient(Echo):
        """Answers nothing until the records of all requests are there."""

        def step(self) -> list[Completion]:
            return super().step() if len(self.asked) == 4 * len(ROWS) else []

    answerer = Answerer(variants, Patient(), LIMIT, lambda _: None)
    bodies = [b"\n".join(record(row, id=f"{row['id']}-{n}") for row in ROWS) for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(answerer.answer, bodies))
    for number, answered in enumerate(found):
        ids = [json.loads(line)["id"] for line in answered.splitlines()]
        assert ids == [f"{row['id']}-{number}" for row in ROWS]


def test_an_engine_that_breaks_fails_all_that_is_open_and_nothing_later(variants: Variants) -> None:
    """Each open request is told; what comes afterwards is answered by an engine that has forgotten them."""
    everyone = threading.Barrier(2)

    class Breaks(Echo):
        broken = False

        def step(self) -> list[Completion]:
            if not self.broken and len(self.asked) == 2:
                self.broken = True
                raise RuntimeError("no luck")
            return super().step() if self.broken else []

    engine = Breaks()
    answerer = Answerer(variants, engine, LIMIT, lambda _: None)

    def ask(row: dict[str, Any]) -> str:
        everyone.wait()
        with pytest.raises(RuntimeError, match="no luck"):
            answerer.answer(record(row))
        return str(row["id"])

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ask, ROWS[:2])) == [row["id"] for row in ROWS[:2]]
    told = json.loads(answerer.answer(record(ROWS[2])))
    assert (told["id"], told["nll"]) == (ROWS[2]["id"], 1.5)
    assert not engine.open


def test_texts_do_not_depend_on_who_asks_at_the_same_time(variants: Variants) -> None:
    """With the real engine, greedy answers are the same alone, together, and in requests that overlap."""

    def answerer() -> Answerer:
        return Answerer(
            variants, ContinuousEngine(variants, Decoding(12), lambda _: None), 12, lambda _: None
        )

    def texts(answered: bytes) -> dict[str, Any]:
        return {line["id"]: line["text"] for line in map(json.loads, answered.splitlines())}

    together = texts(answerer().answer(b"\n".join(map(record, ROWS))))
    one = answerer()
    alone: dict[str, Any] = {}
    for row in ROWS:
        alone |= texts(one.answer(record(row)))
    shared = answerer()
    with ThreadPoolExecutor(3) as pool:
        parts = pool.map(shared.answer, (b"\n".join(map(record, ROWS[at::3])) for at in range(3)))
        overlapping: dict[str, Any] = {}
        for part in parts:
            overlapping |= texts(part)
    assert together == alone == overlapping
    assert together.keys() == {row["id"] for row in ROWS}
