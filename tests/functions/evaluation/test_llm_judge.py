"""A judge on Bedrock, asked by real boto3 over HTTP: what it decides, what it costs, and what can't move it."""

import json

import pytest
from converse_fake import ConverseFake

import judging
from dropforge_core.aws import Bucket, Ledger, client
from dropforge_core.evaluation.judge import usd
from dropforge_core.gate.documents import GateReport
from dropforge_core.layout import RunLayout
from dropforge_core.recipe import BaseModelRef, Evaluation, Gate, Judge, Recipe

RUN = "b" * 26
LAYOUT = RunLayout(run_id=RUN)
MODEL = "eu.amazon.nova-pro-v1:0"
JUDGE = Judge(model=MODEL, rows=30, usd_per_million_input_tokens=1.0, usd_per_million_output_tokens=4.0)
POLICY = Gate(primary="judge_preference", forgetting="off")


@pytest.fixture
def fake(account, monkeypatch):
    made = ConverseFake()
    monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", made.endpoint)
    client.cache_clear()
    yield made
    made.close()


def scored(run, judge=JUDGE, gate=POLICY):
    """The gate's outcome where the candidate answers right and the base does not."""
    recipe = Recipe(
        base_model=BaseModelRef(repo="org/base"),
        evaluation=Evaluation(judge=judge, generate_at_most=40),
        gate=gate,
    )
    run.put(LAYOUT.recipe, recipe.model_dump_json())
    setup = run.prepare()
    run.answer()
    return run.score(setup), setup


def report(run):
    return GateReport.model_validate_json(run.read(LAYOUT.gate))


def test_a_judge_decides_by_both_orders(run, fake):
    """Each row is asked twice with the answers changed round, of the pinned model, at temperature 0; gate.json tells all."""
    found, _ = scored(run)
    assert found.verdict == "PASS"
    assert len(fake.requests) == 2 * 30
    assert {model for model, _ in fake.requests} == {MODEL}
    assert all(body["inferenceConfig"]["temperature"] == 0 for _, body in fake.requests)
    facts = report(run).judge
    assert (facts.model, facts.rows, facts.won, facts.lost, facts.disagreed) == (MODEL, 30, 30, 0, 0)
    assert facts.first_place == 30  # half of the verdicts: it does not look at places
    assert facts.cost_usd == pytest.approx((60 * 300 * 1.0 + 60 * 2 * 4.0) / 1e6)


def test_a_judge_that_looks_at_places_decides_nothing(run, fake):
    """Whoever always prefers the first answer disagrees with itself on every row: ties only, and no pass."""
    fake.says = lambda *_: "FIRST"
    found, _ = scored(run)
    assert found.verdict != "PASS"
    facts = report(run).judge
    assert (facts.won, facts.lost, facts.tied, facts.disagreed, facts.first_place) == (0, 0, 30, 30, 60)


def test_what_can_not_be_read_counts_against_the_candidate(run, fake):
    """An essay instead of a word is no verdict for the candidate, however it praises it."""
    fake.says = lambda *_: "Both have merits, but the first one is so much better that I would choose it"
    found, _ = scored(run)
    assert found.verdict == "FAIL"
    assert (report(run).judge.lost, report(run).judge.unreadable) == (30, 60)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ((403, "AccessDeniedException"), "AccessDeniedException"),
        ((400, "ValidationException"), "ValidationException"),
    ],
)
def test_a_judge_that_can_not_be_asked_never_passes(run, fake, error, told):
    """Without every verdict the metric has no score: the gate fails closed, and says what Bedrock answered."""
    fake.says = lambda *_: error
    found, _ = scored(run)
    assert found.verdict != "PASS"
    (note,) = [note for note in report(run).notes if "judge" in note.lower() and "did not judge" in note]
    assert told in note


def test_no_verdict_is_paid_for_twice(run, fake):
    """Scoring again asks nothing, writes the same bytes and counts the same money; recomputing needs no judge at all."""
    _, setup = scored(run)
    first = run.read(LAYOUT.gate)
    asked = len(fake.requests)
    run.score(setup)
    paid = usd(JUDGE, judging.judge_record(Bucket("runs"), LAYOUT).said)
    assert float(Ledger("runs").run(RUN)["judge_usd"]) == pytest.approx(paid, abs=1e-6)
    assert paid > 0
    assert len(fake.requests) == asked
    assert run.read(LAYOUT.gate) == first
    assert judging.recompute(Bucket("runs"), RUN).same
    assert len(fake.requests) == asked


def test_an_altered_verdict_alters_the_decision(run, fake):
    """One verdict of the record changed: recomputing says that judge and digest are not the same."""
    scored(run)
    record = json.loads(run.read(LAYOUT.judge))
    record["said"][0]["verdict"] = "reference"
    run.put(LAYOUT.judge, json.dumps(record))
    found = judging.recompute(Bucket("runs"), RUN)
    assert not found.same
    assert "judge" in found.differs


def test_the_cap_ends_the_asking(run, fake):
    """Verdicts stop before they could cost more than the recipe allows, and what was not judged decides nothing."""
    dear = JUDGE.model_copy(update={"usd_per_million_input_tokens": 1000.0, "max_cost_usd": 20.0})
    found, _ = scored(run, dear)
    spent = sum(one["input_tokens"] for one in json.loads(run.read(LAYOUT.judge))["said"]) * 1000 / 1e6
    assert spent <= 20.0
    assert found.verdict != "PASS"
    assert any("max_cost_usd" in note for note in report(run).notes)


def test_without_a_judge_nobody_is_asked(run, fake):
    """It is off by default: no request, no metric, nothing in gate.json."""
    scored(run, None, Gate(forgetting="off"))
    assert fake.requests == []
    assert report(run).judge is None
