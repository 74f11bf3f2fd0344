"""Comparisons by a judge: what is asked, how words are read, and that no text can end its own part."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge_core.budget import judge_refused
from dropforge_core.evaluation.judge import (
    ORDERS,
    JudgeRecord,
    Pair,
    Said,
    conclude,
    key_of,
    read_answer,
    to_ask,
    verdict_of,
)
from dropforge_core.recipe import Judge, RecipeInvalid, parse_recipe

JUDGE = Judge(
    model="amazon.nova-pro-v1:0", usd_per_million_input_tokens=1.0, usd_per_million_output_tokens=4.0
)
PAIR = Pair("r", "base", "question", "right", "mine", "theirs")


def recorded(pairs, verdicts):
    """A record in which each comparison has its two verdicts."""
    return JudgeRecord(
        said=tuple(
            Said(key=key_of(pair.request(JUDGE, order)), verdict=verdict, input_tokens=10, output_tokens=1)
            for pair, both in zip(pairs, verdicts, strict=True)
            for order, verdict in zip(ORDERS, both, strict=True)
        )
    )


@pytest.mark.parametrize(
    ("text", "order", "verdict"),
    [
        ("FIRST", "candidate_first", "candidate"),
        (" first.\n", "candidate_second", "reference"),
        ("**Second**", "candidate_second", "candidate"),
        ("Let me see.\nTIE", "candidate_first", "tie"),
        ("FIRST or SECOND", "candidate_first", "unreadable"),
        ("", "candidate_first", "unreadable"),
        ("FIRSTLY", "candidate_first", "unreadable"),
    ],
)
def test_only_the_one_word_is_a_verdict(text, order, verdict):
    """FIRST, SECOND or TIE, alone or in the last line; anything else is not guessed at."""
    assert verdict_of(text, order) == verdict


def test_an_answer_that_was_cut_off_is_unreadable():
    """Whatever it begins with: a stop for length or by a filter is no verdict."""
    request = PAIR.request(JUDGE, "candidate_first")
    answer = {"output": {"message": {"content": [{"text": "FIRST"}]}}, "stopReason": "max_tokens"}
    assert read_answer(request, "candidate_first", answer).verdict == "unreadable"
    assert read_answer(request, "candidate_first", answer | {"stopReason": "end_turn"}).verdict == "candidate"


@given(st.lists(st.text(max_size=60), min_size=4, max_size=4), st.sampled_from(ORDERS))
def test_no_text_ends_its_own_part(parts, order):
    """Whatever rows and answers hold, the marker stands at the five places where it was put, and once where it is told."""
    question, right, mine, theirs = parts
    request = Pair("r", "base", question, right, mine, theirs).request(JUDGE, order)
    text = request["messages"][0]["content"][0]["text"]
    marker = re.match(r"The marker is (\S+)", text)[1]
    assert text.count(marker) == 6
    json.dumps(request, ensure_ascii=False).encode()


@given(
    st.lists(st.tuples(*[st.sampled_from(["candidate", "reference", "tie", "unreadable"])] * 2), max_size=30)
)
def test_wins_need_both_orders(verdicts):
    """A win is two verdicts for the candidate, a loss two against it or one that can't be read; all else is a tie."""
    pairs = [Pair(f"{i}", "base", "q", "right", "mine", f"theirs {i}") for i in range(len(verdicts))]
    found = conclude(pairs, JUDGE, recorded(pairs, verdicts))
    won = sum(both == ("candidate", "candidate") for both in verdicts)
    lost = sum("unreadable" in both or both == ("reference", "reference") for both in verdicts)
    assert (found.judge.won, found.judge.lost, found.judge.tied) == (won, lost, len(verdicts) - won - lost)
    if verdicts:
        gain = sum(0.5 - score for score in found.by_variant["base"].values())
        assert gain == (won - lost) / 2


@given(st.permutations(range(12)), st.integers(0, 11))
def test_the_order_of_verdicts_changes_nothing_and_one_missing_undoes_all(order, gone):
    """The same verdicts in any order conclude the same; without one of them nothing is measured."""
    pairs = [Pair(f"{i}", "base", "q", "right", "mine", f"theirs {i}") for i in range(6)]
    record = recorded(pairs, [("candidate", "tie")] * 6)
    shuffled = JudgeRecord(said=tuple(record.said[i] for i in order))
    assert conclude(pairs, JUDGE, shuffled) == conclude(pairs, JUDGE, record)
    less = JudgeRecord(said=tuple(one for i, one in enumerate(record.said) if i != gone))
    assert conclude(pairs, JUDGE, less).by_variant == {}
    assert len(list(to_ask(pairs, JUDGE, less.said))) == 1


def test_what_needs_no_judge_is_not_asked():
    """Equal answers tie, and an empty one of the candidate loses, without a request."""
    pairs = [Pair("a", "base", "q", "r", "same", "same"), Pair("b", "base", "q", "r", " ", "x")]
    assert list(to_ask(pairs, JUDGE, ())) == []
    found = conclude(pairs, JUDGE, JudgeRecord())
    assert found.by_variant["base"] == {"a": 0.5, "b": 1.0}


@pytest.mark.parametrize(
    "model",
    [
        "amazon.nova-pro",
        "anthropic.claude-latest",
        "arn:aws:bedrock:eu-west-1:1:prompt-router/x",
        "nova-pro-v1:0",
    ],
)
def test_a_judge_that_is_not_pinned_is_refused(model):
    """Only an id with its version: what a name without one means may change between two decisions."""
    text = (
        "base_model: org/base\nevaluation: {judge: {model: '" + model + "', usd_per_million_input_tokens: 1, "
        "usd_per_million_output_tokens: 1}}"
    )
    with pytest.raises(RecipeInvalid) as found:
        parse_recipe(text)
    assert [fault.path for fault in found.value.faults] == ["evaluation.judge.model"]


def test_a_section_that_lacks_a_field_is_told_with_the_others():
    """A judge without its prices, beside another fault: all three are told at once, and reading ends."""
    with pytest.raises(RecipeInvalid) as found:
        parse_recipe(
            "base_model: org/base\nevaluation: {judge: {model: 'amazon.nova-pro-v1:0'}}\ngate: {delta: 2}"
        )
    assert {fault.path for fault in found.value.faults} == {
        "evaluation.judge.usd_per_million_input_tokens",
        "evaluation.judge.usd_per_million_output_tokens",
        "gate.delta",
    }


def test_a_gate_by_a_judge_needs_one():
    """A recipe that decides by the judge's preference without a judge is refused before anything is spent."""
    with pytest.raises(RecipeInvalid) as found:
        parse_recipe("base_model: org/base\ngate: {primary: judge_preference}")
    assert "evaluation.judge" in found.value.faults[0].expected


def test_a_threshold_of_a_comparison_is_refused():
    """The candidate's own score is always a half: no threshold of it could mean anything."""
    with pytest.raises(RecipeInvalid) as found:
        parse_recipe(
            "base_model: org/base\ngate: {minimum: {judge_preference: 0.5}}\nevaluation: {judge: {model: "
            "'amazon.nova-pro-v1:0', usd_per_million_input_tokens: 1, usd_per_million_output_tokens: 1}}"
        )
    assert [fault.path for fault in found.value.faults] == ["gate.minimum"]


@pytest.mark.parametrize(
    ("allowed", "refused"),
    [
        ("", True),
        ("amazon.nova-lite-v1:0", True),
        ("nova-pro-v1:0", False),
        ("amazon.nova-pro-v1:0", False),
    ],
)
def test_only_the_stacks_model_may_judge(allowed, refused):
    """Without the stack's parameter, or with another model in it, the plan refuses and says how to mend it."""
    recipe = parse_recipe(
        "base_model: org/base\nevaluation: {judge: {model: 'eu.amazon.nova-pro-v1:0', "
        "usd_per_million_input_tokens: 1, usd_per_million_output_tokens: 1}}"
    )
    assert ("JudgeModelId" in judge_refused(recipe, allowed)) is refused
