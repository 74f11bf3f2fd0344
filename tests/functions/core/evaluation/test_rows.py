"""Held-out rows become questions."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge_core.evaluation.rows import HoldoutBroken, HoldoutRow, holdout_rows, lines, question_of

USER = {"role": "user", "content": "Hi"}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=6))
def test_chunks_change_no_line(data, cuts):
    """However a stream is cut, its lines are those of the whole, blank ones left out."""
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    chunks = [data[a:b] for a, b in itertools.pairwise(edges)]
    assert list(lines(chunks)) == [line.strip() for line in data.split(b"\n") if line.strip()]


def test_only_the_last_assistant_turn_is_the_reference():
    """Earlier answers are part of the conversation; what follows the last one is not."""
    row = HoldoutRow("r", [USER, assistant("a"), USER, assistant("b"), USER])
    question = question_of(row)
    assert question.reference == "b"
    assert len(question.messages) == 3


def test_a_turn_that_was_not_trained_on_is_no_reference():
    """Weight 0 takes a turn out, and the weight itself is no part of what is asked."""
    row = HoldoutRow("r", [USER, assistant("a", weight=1), USER, assistant("b", weight=0)])
    assert question_of(row).reference == "a"
    row = HoldoutRow("r", [USER, assistant("a", weight=1), USER, assistant("b")])
    assert question_of(row).messages[1] == assistant("a")


def test_a_tool_call_is_compared_as_json():
    """An answer without text is the compact JSON of its calls."""
    call = {"id": "1", "function": {"name": "f", "arguments": "{}"}}
    row = HoldoutRow("r", [USER, assistant(None, tool_calls=[call])])
    assert question_of(row).reference == '[{"function":{"arguments":"{}","name":"f"},"id":"1"}]'


def test_plain_text_is_measured_whole():
    """A text row asks nothing: it is one assistant message."""
    question = question_of(HoldoutRow("r", [assistant("Once")]))
    assert (question.messages, question.reference) == ((), "Once")


@pytest.mark.parametrize(
    "row", [HoldoutRow("r", [USER]), HoldoutRow("r", []), HoldoutRow("r", [assistant(" ")])]
)
def test_a_row_without_an_answer_asks_nothing(row):
    """No answer, no question."""
    assert question_of(row) is None


def test_a_repeated_row_counts_once_and_a_contradiction_is_refused():
    """The same row twice is one observation; two rows of one id are an error that names the line."""
    one, other = b'{"id": "a", "messages": []}', b'{"id": "a", "messages": [{}]}'
    assert len(list(holdout_rows([one, one]))) == 1
    with pytest.raises(HoldoutBroken, match="line 2"):
        list(holdout_rows([one, other]))
    with pytest.raises(HoldoutBroken, match="line 1"):
        list(holdout_rows([b"{"]))


TOOL = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(
    ("meta", "shown"),
    [({}, ()), ({"tools": None}, ()), ({"tools": TOOL}, (TOOL,)), ({"tools": [TOOL]}, (TOOL,))],
)
def test_the_row_s_tools_are_shown_with_the_question(meta, shown):
    """Every variant is asked with the definitions that training showed."""
    assert question_of(HoldoutRow("r", [USER, assistant("a")], meta)).tools == shown


def test_an_answer_that_calls_tools_travels_as_its_message():
    """Its likelihood is that of the template's text, as in training; the JSON of the calls stays the reference."""
    calls = [{"type": "function", "function": {"name": "weather", "arguments": "{}"}}]
    question = question_of(
        HoldoutRow("r", [USER, assistant(None, tool_calls=calls, weight=1)], {"tools": [TOOL]})
    )
    assert question.answer == {"role": "assistant", "tool_calls": calls}
    assert '"weather"' in question.reference
    assert question_of(HoldoutRow("r", [USER, assistant("a")])).answer is None
