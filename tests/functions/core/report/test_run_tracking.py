"""What a tracking server is told of a run, and in which pieces."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stub_mlflow import MOST, StubMlflow

from dropforge_core.ledger import Status
from dropforge_core.report.documents import RunDocuments, TrainingSummary
from dropforge_core.tracking import (
    POINTS_AT_MOST,
    RUN_TAG,
    FoundRun,
    Point,
    RunRecord,
    log_batches,
    mlflow_status,
    record,
)

RUN = "k7q2m4x5w3r6t2p7n4b5c6d2fa"
NEW = FoundRun.model_validate({"info": {"run_id": "r1"}})
ENDED_MS = 1_800_000_000_000


def told_of(found, **more):
    return record(
        found, "FINISHED", **{"ended_ms": ENDED_MS, "report_uri": "s3://b/r.html", "cost_usd": 0.25, **more}
    )


def summary(loss, held_out=()):
    return TrainingSummary(
        steps=1, epochs=1.0, tokens=1, seconds=1.5, loss_curve=tuple(loss), eval_curve=tuple(held_out)
    )


def test_a_whole_run_is_told_with_its_verdict_and_figures(registered):
    """Settings, digests, the gate's word and numbers, where the report lies; and no text of any row."""
    told = told_of(registered)
    assert told.name == f"us-addresses-{RUN}"
    assert (told.started_ms, told.ended_ms) == (ENDED_MS - 412_600, ENDED_MS)
    assert told.params["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert told.params["r"] == "16"
    gate = registered.gate
    assert told.tags["dropforge.verdict"] == gate.verdict
    assert {f"dropforge.rule.{rule.name}" for rule in gate.rules} <= told.tags.keys()
    assert told.tags["dropforge.report"] == "s3://b/r.html"
    assert told.tags["dropforge.package_arn"] == registered.package_arn
    assert told.tags["dropforge.base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct@" + "12fd25f7" * 5
    (better,) = (c for c in registered.metrics.comparisons if (c.metric, c.against) == ("field_f1", "base"))
    assert told.figures["gate.field_f1.gain_over_base"] == better.difference
    assert told.figures["gate.field_f1.gain_over_base.lower"] == better.lower
    assert told.figures["training.best_eval_loss"] == 0.094
    assert told.figures["cost_usd"] == 0.25
    assert [p.step for p in told.curves if p.key == "eval_loss"] == [0, 22, 44, 66, 88, 110, 132]
    assert not any("Oak Ave" in text for text in [*told.tags.values(), *told.params.values()])


def test_of_a_run_that_left_nothing_only_its_end_is_told():
    """No document is there: no curve, no figure and no parameter is made up."""
    told = told_of(
        RunDocuments(run_id=RUN, model="m", status="FAILED_CAPACITY"), report_uri="", cost_usd=None
    )
    assert (told.params, told.curves, told.figures) == ({}, (), {})
    assert told.tags == {RUN_TAG: RUN, "dropforge.model": "m", "dropforge.status": "FAILED_CAPACITY"}


def test_every_end_has_mlflows_word_or_is_not_told():
    """What never trained is no run of an experiment; every failure and every judgement is."""
    words = {status: mlflow_status(status) for status in Status if status.is_terminal}
    assert {status for status, word in words.items() if word is None} == {
        *(Status.DATASET_REJECTED, Status.OVER_BUDGET, Status.APPROVAL_DENIED, Status.APPROVAL_EXPIRED),
        *(Status.DUPLICATE, Status.STALE, Status.SUPERSEDED),
    }
    assert all(words[status] == "FAILED" for status in words if status.is_failure)
    assert words[Status.CANCELLED] == "KILLED"
    assert {words[s] for s in (Status.REGISTERED, Status.GATE_FAILED, Status.INCONCLUSIVE)} == {"FINISHED"}


def test_numbers_that_json_does_not_have_are_left_out(registered):
    """Infinities and NaN of a curve, and names that MLflow refuses, do not stop the rest."""
    curve = ((1, math.nan), (2, math.inf), (3, 0.5), (-1, 0.1), (1 << 70, 0.2))
    odd = registered.metrics.model_copy(
        update={
            "metrics": tuple(
                facts.model_copy(
                    update={
                        "estimates": tuple(
                            e.model_copy(update={"metric": "team:metric*1"}) for e in facts.estimates
                        )
                    }
                )
                for facts in registered.metrics.metrics[:1]
            )
        }
    )
    told = told_of(replace(registered, training=summary(curve), metrics=odd))
    assert told.curves == (Point("loss", 3, 0.5),)
    assert "gate.team_metric_1.candidate" in told.figures


@pytest.mark.parametrize("length", [1, POINTS_AT_MOST, POINTS_AT_MOST + 1, 77_777])
def test_a_long_curve_is_thinned_evenly(length):
    """Never more points than the bound, first and last among them, each from the curve."""
    curve = tuple((step, float(step)) for step in range(length))
    points = told_of(RunDocuments(run_id=RUN, model="m", status="REGISTERED", training=summary(curve))).curves
    assert len(points) == min(length, POINTS_AT_MOST)
    assert (points[0].step, points[-1].step) == (0, length - 1)
    assert all(point.value == point.step for point in points)
    gaps = {b.step - a.step for a, b in pairwise(points)}
    assert not gaps or max(gaps) - min(gaps) <= 1


STEPS = st.lists(st.integers(0, 5000), unique=True, max_size=2500).map(sorted)
NAMES = st.text("abcdefgh", min_size=1, max_size=6)


@given(
    loss=STEPS,
    held_out=STEPS,
    figures=st.dictionaries(NAMES, st.floats(-1e9, 1e9), max_size=30),
    params=st.dictionaries(NAMES, st.text(max_size=600), max_size=250),
    tags=st.dictionaries(NAMES, st.text(max_size=20), max_size=250),
    lost=st.integers(0, 12),
)
def test_batches_keep_the_limits_and_a_second_telling_repeats_nothing(  # noqa: PLR0917  # what is drawn
    loss, held_out, figures, params, tags, lost
):
    """Wherever the first telling broke off, the second one completes it: each value once, none twice, none missing."""
    curves = [Point("train/loss", s, s / 7) for s in loss] + [Point("eval/loss", s, s / 3) for s in held_out]
    told = RunRecord(
        name="n", status="FINISHED", started_ms=0, ended_ms=9, params=params, tags=tags,
        curves=tuple(sorted(curves, key=lambda point: point.step)), figures=figures,
    )  # fmt: skip
    server = StubMlflow("")
    server.answer("runs/create", {}, {"experiment_id": "7", "tags": [{"key": "t", "value": "x"}]})
    asked = {"experiment_ids": ["7"], "filter": "tags.`t` = 'x'"}

    def tell(at_most):
        (seen,) = server.answer("runs/search", {}, asked)[1]["runs"]
        for body in list(log_batches(told, FoundRun.model_validate(seen)))[:at_most]:
            assert all(len(items) <= MOST[kind] for kind, items in body.items())
            assert sum(map(len, body.values())) <= 1000
            assert server.answer("runs/log-batch", {}, {"run_id": "r1", **body})[0] == 200

    tell(lost)
    tell(None)
    kept = server.runs["r1"]
    assert kept["params"] == {key: value[:500] for key, value in params.items()}
    assert kept["tags"] == {"t": "x", **tags}
    values = sorted((m["key"], m["step"], m["value"]) for m in kept["metrics"])
    wanted = [(p.key, p.step, p.value) for p in curves] + [(key, 0, v) for key, v in figures.items()]
    assert values == sorted(wanted)
    (seen,) = server.answer("runs/search", {}, asked)[1]["runs"]
    again = list(log_batches(told, FoundRun.model_validate(seen)))
    assert not [body for body in again if "metrics" in body or "params" in body]


def test_what_a_job_with_a_network_told_live_is_not_told_twice(registered):
    """A curve goes on behind the newest step that the server has; parameters that it has are left alone."""
    live = FoundRun.model_validate(
        {
            "info": {"run_id": "r1"},
            "data": {
                "metrics": [
                    {"key": "loss", "value": 0.1, "step": 100, "timestamp": 1},
                    {"key": "eval_loss", "value": 0.096, "step": 132, "timestamp": 1},
                ],
                "params": [{"key": "learning_rate", "value": "another"}],
            },
        }
    )
    bodies = list(log_batches(told_of(registered), live))
    metrics = [m for body in bodies for m in body.get("metrics", ())]
    assert [m["step"] for m in metrics if m["key"] == "loss"] == list(range(101, 133))
    assert not [m for m in metrics if m["key"] == "eval_loss"]
    assert "learning_rate" not in [p["key"] for body in bodies for p in body.get("params", ())]


def test_a_new_run_is_told_whole(registered):
    """Every point of both curves, every figure, once."""
    told = told_of(registered)
    metrics = [m for body in log_batches(told, NEW) for m in body.get("metrics", ())]
    assert len(metrics) == len(told.curves) + len(told.figures)
