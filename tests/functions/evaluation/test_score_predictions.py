"""ScorePredictions over real HTTP: one decision, written down, whatever else fails."""

from dropforge_core.gate.documents import GateReport, MetricsReport
from dropforge_core.gate.examples import ExampleAnswers
from dropforge_core.layout import RunLayout

LAYOUT = RunLayout(run_id="b" * 26)


def test_a_better_candidate_passes_and_the_documents_say_why(run):
    """ScorePredictions answers PASS, and gate.json, metrics.json and examples.json follow their schemas."""
    setup = run.prepare()
    run.answer()
    found = run.score(setup)
    assert found.verdict == "PASS"
    assert found.approval_status == "PendingManualApproval"
    assert found.metrics_uri == f"s3://runs/{LAYOUT.metrics}"
    gate = GateReport.model_validate_json(run.read(LAYOUT.gate))
    assert gate.provenance.dataset_digest == found.metadata["dataset_digest"]
    assert MetricsReport.model_validate_json(run.read(LAYOUT.metrics)).variants == setup.variants
    assert ExampleAnswers.model_validate_json(run.read(LAYOUT.examples)).examples
    assert run.status() == "GATING"


def test_scoring_again_is_the_same_decision(run):
    """A retried ScorePredictions gives the same digest and the same token."""
    setup = run.prepare()
    run.answer()
    assert run.score(setup) == run.score(setup)


def test_no_output_fails_closed(run):
    """Where the transform left nothing the verdict is FAIL, not an exception and not a pass."""
    found = run.score(run.prepare())
    assert (found.verdict, found.approval_status) == ("FAIL", "nothing")


def test_a_bus_that_refuses_changes_no_verdict(run, monkeypatch):
    """The verdict stands where the event could not be published."""
    setup = run.prepare()
    run.answer()
    monkeypatch.setenv("EVENT_BUS", "no-such-bus")
    assert run.score(setup).verdict == "PASS"
