"""WriteReport over real HTTP: the page is there whatever is left of the run."""

import gzip
import io
import json
import tarfile
from datetime import UTC, datetime, timedelta

import boto3
import pytest
from botocore.exceptions import ClientError

import pricing
import write_report
from dropforge_core.aws import Bucket, Ledger
from dropforge_core.contracts import (
    BaseModelPlan,
    ComputeChoice,
    EvaluationSetup,
    Forecast,
    Interval,
    Plan,
    ReportWritten,
)
from dropforge_core.layout import PRICES, RunLayout
from dropforge_core.planning.calibration import SPEEDS_NOTE, Measurement, read_speeds
from dropforge_core.planning.catalogue import ProcessingRow, load_catalogue
from dropforge_core.report.documents import summary_keys, training_summary
from dropforge_core.report.spending import job_cost

RUN = "c" * 26
LAYOUT = RunLayout(run_id=RUN)
SUMMARY = {
    "steps": 4, "epochs": 1.0, "tokens": 100, "seconds": 3.5, "best_step": 4, "best_eval_loss": 0.5,
    "loss_curve": [[1, 2.0], [4, 0.6]], "eval_curve": [[4, 0.5]], "field_of_tomorrow": 1,
}  # fmt: skip

KNOWN = load_catalogue().model_copy(
    update={"processing": (ProcessingRow(type="ml.m5.xlarge", usd_hour=0.25, source="price-list-2026-08"),)}
)
"""The table that ships, and what a CPU instance might cost."""


class Context:
    """What Powertools reads of a Lambda context."""

    function_name = "f"
    memory_limit_in_mb = 128
    invoked_function_arn = "arn:aws:lambda:us-east-1:0:function:f"
    aws_request_id = "r"


def archive(**members):
    """A tar.gz of named members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as packed:
        for name, body in members.items():
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(body)
            packed.addfile(info, io.BytesIO(body))
    return out.getvalue()


@pytest.fixture
def s3(account):
    """The run bucket of a fresh account."""
    return account.s3


def report(s3, status="REGISTERED", **more):
    """Write the report; answer the contract and the page."""
    event = {"run_id": RUN, "model": "m", "status": status, **more}
    answer = ReportWritten.model_validate(write_report.handler(event, Context()))
    page = s3.get_object(Bucket="runs", Key=LAYOUT.report)
    assert page["ContentType"] == "text/html; charset=utf-8"
    return answer, page["Body"].read().decode()


def test_an_empty_run_has_a_page(s3):
    """Nothing but a status and a message still makes a page, and no cost is made up."""
    answer, page = report(s3, status="FAILED_INTERNAL", message="It broke.")
    assert answer.report_uri == f"s3://runs/{LAYOUT.report}"
    assert answer.cost_usd is None
    assert "It broke." in page
    assert "Not reached" in page


def test_the_loss_curve_comes_out_of_the_artifact(s3):
    """The training summary is found inside model.tar.gz, behind other members, and drawn."""
    body = archive(
        adapter_model__safetensors=b"x" * 3_000_000, training_summary__json=json.dumps(SUMMARY).encode()
    )
    s3.put_object(Bucket="runs", Key=f"{LAYOUT.training_output}m-t1/output/model.tar.gz", Body=body)
    _, page = report(s3)
    assert "held-out" in page
    assert "polyline" in page


@pytest.mark.parametrize(
    "body",
    [b"", b"no archive", archive(other=b"x")[:-9], gzip.compress(b"x" * 999)],
    ids=["empty", "no archive", "cut", "no tar"],
)
def test_a_broken_artifact_leaves_a_page(s3, body):
    """An artifact that is empty, cut or something else costs the curve, not the page."""
    s3.put_object(Bucket="runs", Key=f"{LAYOUT.training_output}m-t1/output/model.tar.gz", Body=body)
    assert "Not reached" in report(s3)[1]


@pytest.mark.parametrize("name", ["request.json", "recipe.json", "validation.json", "plan.json", "gate.json"])
def test_an_unreadable_document_is_named(s3, name):
    """A document of another shape is named on the page and shown as missing."""
    s3.put_object(Bucket="runs", Key=LAYOUT.key(name), Body=b'{"another": "version"}')
    _, page = report(s3)
    assert LAYOUT.key(name) in page


def test_the_ledger_s_message_is_the_last_resort(s3):
    """Where the state machine says nothing, the page says what the ledger knows."""
    boto3.client("dynamodb").put_item(
        TableName="runs", Item={"pk": {"S": f"RUN#{RUN}"}, "message": {"S": "Somebody stopped it."}}
    )
    assert "Somebody stopped it." in report(s3, status="CANCELLED")[1]


class FakeJobs:
    """SageMaker as it was on the day: one failed attempt, one that ended, one evaluation."""

    def __init__(self, refuse=False):
        self.refuse = refuse

    def of_run(self, kind, run_id):
        if self.refuse:
            raise ClientError({"Error": {"Code": "AccessDeniedException"}}, "List")
        yield from {
            "ProcessingJob": ["m-b1"],
            "TrainingJob": ["m-t2", "m-t1", "gone"],
            "TransformJob": ["m-e1"],
        }[kind]

    def describe(self, kind, name):
        start = datetime(2026, 1, 1, tzinfo=UTC)
        return {
            "m-t1": {"BillableTimeInSeconds": 0, "ResourceConfig": {"InstanceType": "ml.g5.xlarge"}},
            "m-t2": {
                "BillableTimeInSeconds": 1800,
                "ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 2},
            },
            "m-b1": {
                "ProcessingStartTime": start,
                "ProcessingEndTime": start + timedelta(minutes=2),
                "ProcessingResources": {
                    "ClusterConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1}
                },
            },
            "m-e1": {
                "TransformStartTime": start,
                "TransformEndTime": start + timedelta(minutes=30),
                "TransformResources": {"InstanceType": "ml.unheard.of", "InstanceCount": 1},
            },
        }.get(name)


def test_every_attempt_was_billed():
    """All attempts count, oldest first, each instance of theirs; a type without a price has none."""
    found = list(write_report.measured_jobs(FakeJobs(), RUN, KNOWN))
    assert [(job.kind, job.name, job.billable_s, job.instances) for job in found] == [
        ("caching", "m-b1", 120, 1),
        ("training", "m-t1", 0, 1),
        ("training", "m-t2", 1800, 2),
        ("evaluation", "m-e1", 1800, 1),
    ]
    assert job_cost(found[2]) == pytest.approx(found[2].usd_hour)
    assert found[0].usd_hour == 0.25
    assert found[2].usd_hour > 0
    assert found[3].usd_hour is None


def test_a_service_that_does_not_answer_costs_only_the_jobs():
    """Without permission to look at jobs there is a page without them."""
    assert list(write_report.measured_jobs(FakeJobs(refuse=True), RUN, KNOWN)) == []


def test_the_judged_artifact_is_asked_first():
    """The summary of the job that was judged is read, the small archive before the large."""
    setup = EvaluationSetup(
        job_name="e", sagemaker_model_name="e", prompts=1, variants=("base",), champion_package_arn=None,
        champion_model_data="", model_data="s3://runs/a/m-t2/output/model.tar.gz",
    )  # fmt: skip
    listed = ["a/m-t1/output/model.tar.gz", "a/m-t2/output/model.tar.gz"]
    assert summary_keys(setup, listed) == ("a/m-t2/output/output.tar.gz", "a/m-t2/output/model.tar.gz")
    assert summary_keys(None, listed)[1] == "a/m-t2/output/model.tar.gz"


@pytest.mark.parametrize("size", [1, 7, 512, 10_000])
def test_chunks_of_any_size_give_the_summary(size):
    """However the archive arrives, the summary in it is the same."""
    body = archive(first=b"y" * 5000, training_summary__json=json.dumps(SUMMARY).encode())
    chunks = [body[i : i + size] for i in range(0, len(body), size)]
    assert training_summary(chunks).loss_curve == ((1, 2.0), (4, 0.6))


def leave_a_run(s3, *, device="cuda", memory=9.5):
    """A plan with its forecast, and an artifact whose summary was measured on that device."""
    hours = Interval(low=0.1, expected=0.2, high=0.4)
    plan = Plan(
        run_id=RUN, fits=True, within_budget=True, needs_approval=False, reason="It fits.",
        base_model=BaseModelPlan(
            name="org/model", source="hub:org/model@0", cached=True, prefix="base-models/x/",
            parameters=10**9, cache_job_name="b",
        ),
        compute=ComputeChoice(
            attempt=1, job_name="m-t1", instance_type="ml.g6.xlarge", spot=False, max_runtime_s=1, max_wait_s=1,
            volume_gb=1, micro_batch_tokens=1, remaining_types=(),
        ),
        evaluation_instance_type="ml.g5.xlarge", gradient_checkpointing=False, steps=4, tokens_total=100,
        cost_usd=hours, hours=hours, max_cost_usd=1.0, options=(),
        forecast=Forecast(
            flop_per_token=6e9, mfu=Interval(low=0.1, expected=0.25, high=0.4), measured_runs=0,
            tokens_per_s=hours, memory_gib=12.5, phase_s={"loop": hours},
        ),
    )  # fmt: skip
    s3.put_object(Bucket="runs", Key=LAYOUT.plan, Body=plan.model_dump_json())
    summary = {**SUMMARY, "tokens_per_s": 4000.0, "peak_memory_gib": memory, "device": device}
    s3.put_object(
        Bucket="runs",
        Key=f"{LAYOUT.training_output}m-t1/output/model.tar.gz",
        Body=archive(training_summary__json=json.dumps(summary).encode()),
    )


def test_a_finished_run_leaves_what_was_foretold_beside_what_it_took(s3):
    """The run's item has forecast and measurement; the planner's note has its speed, once however often it ends."""
    boto3.client("dynamodb").put_item(TableName="runs", Item={"pk": {"S": f"RUN#{RUN}"}})
    leave_a_run(s3)
    _, page = report(s3)
    report(s3)
    ledger = Ledger("runs")
    found = Measurement.model_validate_json(ledger.run(RUN)["measured"])
    assert (found.tokens_per_s, found.peak_memory_gib, found.forecast_memory_gib) == (4000.0, 9.5, 12.5)
    assert found.mfu == pytest.approx(4000 * 6e9 / 121e12)
    assert found.forecast_tokens_per_s.expected == pytest.approx(0.25 * 121e12 / 6e9)
    assert found.phase_s["loop"] == 3.5
    [speed] = read_speeds(ledger.note(SPEEDS_NOTE)["speeds"])
    assert (speed.run_id, speed.instance_type, speed.device) == (RUN, "ml.g6.xlarge", "cuda")
    assert "Speed" in page
    assert "12.5 GiB" in page


def test_a_note_that_cannot_be_read_costs_no_page(s3):
    """Where the planner's note is of another version, the report is still written and the note left alone."""
    boto3.client("dynamodb").put_item(
        TableName="runs", Item={"pk": {"S": SPEEDS_NOTE}, "speeds": {"S": "{}"}, "revision": {"N": "3"}}
    )
    leave_a_run(s3)
    answer, _ = report(s3)
    assert answer.report_uri
    assert Ledger("runs").note(SPEEDS_NOTE)["speeds"] == "{}"


def test_prices_that_were_fetched_are_gone_by(s3):
    """A table in the run bucket replaces the one that ships; one that can't be read is passed over."""
    fetched = KNOWN.model_copy(update={"region": "eu-west-1"})
    s3.put_object(Bucket="runs", Key=PRICES, Body=fetched.model_dump_json())
    assert pricing.catalogue(Bucket("runs")).region == "eu-west-1"
    s3.put_object(Bucket="runs", Key=PRICES, Body=b"{}")
    assert pricing.catalogue(Bucket("runs")).region == "us-east-1"
