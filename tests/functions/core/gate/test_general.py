"""The probe for what was forgotten: fixed questions, asked before and after."""

import json

import pytest

from dropforge_core.contracts import AnswerCheck
from dropforge_core.evaluation.prompts import SHARD_BYTES, SHARD_NEW_TOKENS
from dropforge_core.gate.checks import fault_of
from dropforge_core.gate.general import ANSWER_TOKENS, general_shards, questions
from dropforge_core.metrics.text import normalised
from dropforge_core.recipe import Gate, parse_recipe


def rule(judgement):
    """The rule on forgetting, or None."""
    return next((one for one in judgement.gate.rules if one.name == "not_forgotten"), None)


def probed(evaluated, base_wrong=(), candidate_wrong=()):
    """An evaluation in which the general questions were asked too; some are answered wrong."""
    wrong = {"base": set(base_wrong), "candidate": set(candidate_wrong)}
    for shard in general_shards(Gate()):
        for number, line in enumerate(shard.body.splitlines()):
            prompt = json.loads(line)
            evaluated.prompts.append(line)
            said = "pineapples" if number in wrong[prompt["variant"]] else f"It is {prompt['reference']}."
            evaluated.predictions.append(
                json.dumps(
                    {
                        "id": prompt["id"],
                        "variant": prompt["variant"],
                        "text": said,
                        "nll": 3.0,
                        "reference_bytes": len(prompt["reference"].encode()),
                    }
                ).encode()
            )
    return evaluated


def test_the_questions_are_many_short_and_answerable():
    """100 to 200 of them, each its own, with answers that their own check accepts and an empty answer does not."""
    found = questions()
    assert 100 <= len(found) <= 200
    assert len({one.ask for one in found}) == len({one.id for one in found}) == len(found)
    for one in found:
        assert len(one.ask) < 120
        assert all(normalised(word) for word in one.accept)
    for shard in general_shards(Gate()):
        for line in shard.body.splitlines():
            prompt = json.loads(line)
            assert prompt["generate"]
            assert prompt["purpose"] == "general"
            check = next(one for one in found if one.id == prompt["id"])
            assert prompt["check"]["contains"] == list(check.accept)


def test_every_accepted_answer_is_accepted_in_a_sentence():
    """A short sentence around the word counts; a greeting does not."""
    for shard in general_shards(Gate()):
        for line in shard.body.splitlines():
            prompt = json.loads(line)
            check = next(one for one in questions() if one.id == prompt["id"])
            for word in check.accept:
                assert fault_of(AnswerCheck.model_validate(prompt["check"]), f"The answer is {word}.") is None
            assert fault_of(AnswerCheck.model_validate(prompt["check"]), "Hmm, well.") is not None


def test_a_shard_is_one_small_request():
    """The questions of one variant fit one request, in bytes and in tokens to generate."""
    found = list(general_shards(Gate()))
    assert [shard.name for shard in found] == ["general-base.jsonl", "general-candidate.jsonl"]
    assert all(len(shard.body) < SHARD_BYTES for shard in found)
    assert all(shard.prompts * ANSWER_TOKENS < SHARD_NEW_TOKENS for shard in found)


def test_off_asks_nothing():
    """A recipe can turn the questions off, also with YAML's bare off; a number sets the margin."""
    recipe = parse_recipe("base_model: org/base\ngate: {forgetting: off}")
    assert recipe.gate.forgetting == "off"
    assert list(general_shards(recipe.gate)) == []
    assert parse_recipe("base_model: org/base\ngate: {forgetting: 0.1}").gate.forgetting == 0.1
    assert parse_recipe("base_model: org/base").gate.forgetting == "report"


def test_reported_but_not_decided(improved):
    """Without a margin the drop is in gate.json, by id, and decides nothing."""
    judgement = probed(improved(), candidate_wrong=range(80)).judged()
    assert judgement.gate.verdict == "PASS"
    assert rule(judgement) is None
    found = judgement.gate.forgetting
    assert (found.base_right, found.candidate_right, len(found.forgotten)) == (160, 80, 80)
    assert found.forgotten[0] == "general-001"
    assert found.comparison.upper < 0


@pytest.mark.parametrize(("wrong", "verdict"), [(0, "PASS"), (10, "INCONCLUSIVE"), (60, "FAIL")])
def test_the_drop_is_bounded(improved, wrong, verdict):
    """No drop passes, a clear one fails, and one that 160 questions can't tell from the margin stays open."""
    judgement = probed(improved(), candidate_wrong=range(wrong)).judged(Gate(forgetting=0.05))
    assert rule(judgement).verdict == verdict
    assert judgement.gate.verdict == verdict


def test_learned_answers_weigh_against_forgotten_ones(improved):
    """What matters is the balance: as many learned as forgotten is no drop."""
    judgement = probed(improved(), base_wrong=range(5), candidate_wrong=range(5, 10)).judged(
        Gate(forgetting=0.1)
    )
    assert judgement.gate.forgetting.comparison.difference == 0
    assert rule(judgement).verdict == "PASS"


def test_a_bound_without_questions_fails_closed(improved):
    """A recipe that bounds forgetting, and answers without the questions: no pass."""
    judgement = improved().judged(Gate(forgetting=0.1))
    assert rule(judgement).verdict == judgement.gate.verdict == "FAIL"


def test_a_missing_general_answer_breaks_validity(improved):
    """The questions are asked like any other: one answer that is missing fails the gate."""
    found = probed(improved())
    found.predictions.pop()
    assert found.judged(Gate(forgetting=0.1)).gate.verdict == "FAIL"


def test_general_questions_are_in_no_metric(improved):
    """They are no part of the hold-out: metrics and their digest are the same with and without them."""
    assert probed(improved()).judged().metrics == improved().judged().metrics
