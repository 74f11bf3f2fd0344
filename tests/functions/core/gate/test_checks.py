"""Canaries: what must be answered right is, or the candidate does not pass, however good its averages are."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge_core.contracts import AnswerCheck
from dropforge_core.evaluation.rows import Question
from dropforge_core.gate.checks import as_canary, fault_of
from dropforge_core.recipe import Gate

QUESTION = Question(messages=({"role": "user", "content": "Is it safe?"},), reference="No.")


def rule(judgement, name):
    """The one rule of that name, or None."""
    return next((one for one in judgement.gate.rules if one.name == name), None)


def with_canary(evaluated, text, check=None, row_id="bird"):
    """One canary more, answered with a text by the candidate and rightly by the base."""
    evaluated.ask(row_id, "No.", base=("No.", 9.0), candidate=(text, 8.0))
    for place in (-2, -1):
        line = json.loads(evaluated.prompts[place])
        line |= {"purpose": "canary", "check": check or {"equals": ["No."]}}
        evaluated.prompts[place] = json.dumps(line).encode()
    return evaluated


def test_one_failed_canary_fails_whatever_the_averages_say(improved):
    """A candidate that passes every other rule fails by one canary, which is named; the same one answered right passes."""
    assert with_canary(improved(), "no").judged().gate.verdict == "PASS"
    judgement = with_canary(improved(), "Yes, it is.").judged()
    assert judgement.gate.verdict == "FAIL"
    assert [one.id for one in judgement.gate.canaries.failed] == ["bird"]
    assert "bird" in rule(judgement, "canaries").reason
    assert "Yes" not in rule(judgement, "canaries").reason


def test_a_passed_canary_bounds_what_may_still_fail(improved):
    """Without a failure the upper bound is 1 - alpha^(1/n): 95 % for one canary, about 3/n for many."""
    few = with_canary(improved(), "No.").judged().gate.canaries
    assert few.upper == pytest.approx(0.95)
    found = improved()
    for i in range(60):
        with_canary(found, "No.", row_id=f"bird-{i}")
    assert found.judged().gate.canaries.upper == pytest.approx(3 / 60, rel=0.06)


def test_canaries_are_no_sample(improved):
    """They are chosen, not drawn: no metric, flip or sample size counts them."""
    plain, judgement = improved().judged(), with_canary(improved(), "Yes.").judged()
    assert judgement.metrics.metrics == plain.metrics.metrics
    assert judgement.gate.flips == plain.gate.flips
    assert judgement.gate.coverage.expected == plain.gate.coverage.expected + 2


def test_no_canary_no_rule(improved):
    """Without canaries there is no rule about them, and gate.json says that none were asked."""
    judgement = improved().judged()
    assert rule(judgement, "canaries") is None
    assert judgement.gate.canaries is None


def test_a_canary_without_a_text_fails(improved):
    """No generated answer is no right answer."""
    found = with_canary(improved(), None)
    assert found.judged().gate.verdict == "FAIL"


@pytest.mark.parametrize(
    ("mark", "check"),
    [
        (True, AnswerCheck(equals=("No.",))),
        ({"contains": "911"}, AnswerCheck(contains=("911",))),
        (
            {"contains": ["doctor", "911"], "excludes": "ibuprofen"},
            AnswerCheck(contains=("doctor", "911"), excludes=("ibuprofen",)),
        ),
    ],
)
def test_marks_that_are_understood(mark, check):
    """A row says what its answer must be: true for its reference, or texts."""
    found = as_canary(QUESTION, mark)
    assert (found.purpose, found.check) == ("canary", check)


@pytest.mark.parametrize("mark", [None, False])
def test_rows_that_are_no_canary_stay_as_they_are(mark):
    """An absent or false mark makes no canary."""
    assert as_canary(QUESTION, mark) is QUESTION


@pytest.mark.parametrize(
    "mark", ["yes", 1, [], {}, {"contain": "x"}, {"contains": []}, {"contains": [1]}, {"equals": " "}]
)
def test_marks_that_are_not_understood_fail_closed(mark):
    """A mark with a slip makes a canary that no answer passes: a check is never silently dropped."""
    found = as_canary(QUESTION, mark)
    assert found.purpose == "canary"
    assert "neither true nor an object" in fault_of(found.check, "No.")


def test_words_are_found_as_words():
    """'no' is not in 'know'; case, spaces and Unicode forms make no difference; what is excluded must be absent."""
    check = AnswerCheck(contains=("no",), excludes=("maybe not",))
    assert fault_of(check, "I  do not KNOW") is not None
    assert fault_of(check, "Well, \uff2e\uff2f!") is None
    assert fault_of(check, "No. Maybe   NOT.") is not None


@given(st.text(max_size=40), st.text(min_size=1, max_size=20))
def test_any_text_can_be_checked(said, wanted):
    """Whatever stands in answer and check, there is a verdict; an answer that is the text itself has it."""
    check = AnswerCheck(contains=(wanted,))
    fault_of(check, said)
    assert fault_of(AnswerCheck(equals=(wanted,)), wanted) is None


def test_a_reused_hold_out_is_told_and_ends_in_an_open_verdict(improved):
    """Decision 2 says so; beyond the recipe's bound a candidate that would pass is left open for a person."""
    second = improved().judged(use=2)
    assert second.gate.verdict == "PASS"
    assert "decision 2" in rule(second, "holdout_reuse").reason
    assert second.gate.holdout.chance_of_false_pass == pytest.approx(1 - 0.95**2)
    worn = improved().judged(Gate(max_holdout_uses=3), use=4)
    assert worn.gate.verdict == "INCONCLUSIVE"
    assert "hold out new rows" in worn.gate.summary


def test_the_hold_out_is_known_by_its_content(improved):
    """Its digest follows from questions and references alone: other ids, order and variants change nothing."""
    one, other = improved(), improved(variants=("base", "champion", "candidate"))
    other.prompts = [line.replace(b"row-", b"other-") for line in reversed(other.prompts)]
    for at, line in enumerate(other.prompts):
        other.prompts[at] = line.replace(b"question other-", b"question row-")
    assert one.joined().holdout_digest == other.joined().holdout_digest
    other.prompts[0] = other.prompts[0].replace(b"answer 59", b"answer 60")
    other.prompts[1] = other.prompts[1].replace(b"answer 59", b"answer 60")
    other.prompts[2] = other.prompts[2].replace(b"answer 59", b"answer 60")
    assert one.joined().holdout_digest != other.joined().holdout_digest
