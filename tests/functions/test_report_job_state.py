"""ReportJobState over HTTP: each change told once, runs closed that ended unseen, jobs stopped."""

import json
from datetime import UTC, datetime

import pytest
from botocore.exceptions import ClientError

import report_job_state
from dropforge_core.aws import Bus, Ledger, Purse
from dropforge_core.budget import Caps, micro
from dropforge_core.events import RunEvent
from dropforge_core.identity import job_name
from dropforge_core.ledger import Status
from dropforge_core.planning import load_catalogue
from money import reserve

RUN = "f" * 26
NAME = job_name("m", RUN, 1)


@pytest.fixture
def ledger(account):
    made = Ledger("runs")
    made.open_run(RUN, "m", Status.TRAINING, {})
    return made


@pytest.fixture
def tell(account, context):
    return lambda event: report_job_state.handler(event, context)["done"]


def training(secondary="Training", name=NAME):
    transitions = [{"Status": secondary, "StartTime": "1700000000123"}]
    return {
        "detail-type": "SageMaker Training Job State Change",
        "detail": {
            "TrainingJobName": name,
            "TrainingJobStatus": "InProgress",
            "SecondaryStatus": secondary,
            "SecondaryStatusTransitions": transitions,
        },
    }


def ended(status, redrive=0):
    return {
        "detail-type": "Step Functions Execution Status Change",
        "detail": {
            "name": RUN,
            "status": status,
            "input": json.dumps({"run_id": RUN, "model": "m"}),
            "redriveCount": redrive,
        },
    }


def test_a_state_is_told_once_however_often_it_comes(ledger, tell, published):
    """SageMaker may send several events for one change."""
    assert [tell(training()) for _ in range(3)] == ["told", "told already", "told already"]
    [(kind, event)] = published
    assert kind == "TrainingProgressed"
    assert event.data == {"secondary_status": "Training", "job_name": NAME}
    assert event.message == "The training job is training."


def test_what_is_not_ours_is_ignored(ledger, tell, published):
    """Foreign jobs, runs that the ledger does not know, broken events, other states."""
    foreign = [
        training(name="xgboost-2026-01-01"),
        training(name=job_name("m", "g" * 26, 1)),
        {},
        {"detail-type": "Scheduled Event", "detail": {}},
        {"detail-type": "SageMaker Training Job State Change", "detail": None},
    ]
    assert {tell(event) for event in foreign} == {"ignored"}
    assert published == []


def test_an_aborted_execution_ends_its_run_as_cancelled_once(ledger, tell, published):
    """The state machine can't say it itself; a second delivery says nothing."""
    assert [tell(ended("ABORTED")) for _ in range(2)] == ["closed", "ended already"]
    [(kind, event)] = published
    assert (kind, event.status, event.message) == ("RunEnded", "CANCELLED", "The run was cancelled.")
    assert ledger.run(RUN)["status"] == "CANCELLED"


def test_an_outcome_that_was_recorded_stays(ledger, tell, published):
    """The state machine said how it ended: its own failure event changes and tells nothing."""
    ledger.move(RUN, Status.GATE_FAILED, {"message": "no better"})
    assert tell(ended("FAILED")) == "ended already"
    assert ledger.run(RUN)["status"] == "GATE_FAILED"
    assert published == []


def test_an_end_that_was_cut_off_before_it_was_told_is_told(ledger, tell, published):
    """Aborted between writing its outcome and telling it: the outcome stays, and is told, once by this way."""
    ledger.move(RUN, Status.INCONCLUSIVE, {"message": "no telling", "report_uri": "s3://r"})
    assert [tell(ended("ABORTED")) for _ in range(2)] == ["closed", "ended already"]
    [(kind, event)] = published
    assert (kind, event.status, event.message) == ("RunEnded", "INCONCLUSIVE", "no telling")
    assert event.data["report_uri"] == "s3://r"
    assert ledger.run(RUN)["status"] == "INCONCLUSIVE"


def test_a_second_end_is_not_taken_for_the_first(ledger, tell, published):
    """Cancelled and told, started again, ended by its state machine, cut off before that told it: it is told as well."""
    tell(ended("ABORTED"))
    ledger.move(RUN, Status.TRAINING, redrive=1)
    recorded = {"message": "better", "ended_by": "RecordOutcome", "told_end": ""}
    ledger.move(RUN, Status.REGISTERED, recorded, redrive=1)
    assert tell(ended("ABORTED", redrive=1)) == "closed"
    assert [event.status for _, event in published] == ["CANCELLED", "REGISTERED"]


def test_an_end_that_could_not_be_told_is_told_when_the_event_comes_again(ledger, tell, monkeypatch):
    """The bus failed once: the handler fails too, and its next try tells what the ledger has already."""
    seen = []

    def publish(_bus, kind, event):
        seen.append((kind, event))
        if len(seen) == 1:
            raise RuntimeError("the bus is away")

    monkeypatch.setattr(Bus, "publish", publish)
    with pytest.raises(RuntimeError):
        tell(ended("TIMED_OUT"))
    assert tell(ended("TIMED_OUT")) == "closed"
    assert tell(ended("TIMED_OUT")) == "ended already"
    assert [event.status for _, event in seen] == ["FAILED_INTERNAL"] * 2
    assert isinstance(seen[1][1], RunEvent)


class RunningJobs:
    """SageMaker with jobs in progress; transform jobs can't be listed."""

    def __init__(self, names):
        self.names = names
        self.stopped = []

    def list_training_jobs(self, **asked):
        assert asked.get("StatusEquals", "InProgress") == "InProgress"
        found = [name for name in self.names if asked["NameContains"] in name]
        return {"TrainingJobSummaries": [{"TrainingJobName": name} for name in found]}

    def list_transform_jobs(self, **asked):
        raise ClientError({"Error": {"Code": "ThrottlingException"}}, "ListTransformJobs")

    def list_processing_jobs(self, **asked):
        return {"ProcessingJobSummaries": []}

    def describe_training_job(self, **asked):
        return {}

    def stop_training_job(self, **asked):
        self.stopped.append(asked["TrainingJobName"])


def test_no_job_outlives_its_run(ledger, tell, published, monkeypatch):
    """What still runs is stopped, but not the jobs of a redrive that began since, nor those of others."""
    running = RunningJobs([NAME, NAME + "r1", f"other-{RUN}"])
    monkeypatch.setattr(report_job_state.Jobs, "connect", lambda: report_job_state.Jobs(running))
    # What the jobs cost can't be found either: the event has to come again for that, and tells nothing twice.
    for _ in range(2):
        with pytest.raises(ClientError):
            tell(ended("ABORTED"))
    assert len(published) == 1
    assert running.stopped == [NAME, NAME]
    assert NAME in published[0][1].message


def test_a_job_that_is_created_while_its_run_is_stopped_is_stopped_when_it_is_heard_of(
    ledger, tell, published, monkeypatch
):
    """Its execution was aborted before the job could be listed; a run that goes on keeps its job."""
    running = RunningJobs([])
    monkeypatch.setattr(report_job_state.Jobs, "connect", lambda: report_job_state.Jobs(running))
    tell(training("Starting"))
    assert running.stopped == []
    ledger.move(RUN, Status.CANCELLED)
    tell(training("Pending"))
    assert running.stopped == [NAME]


class Billed:
    """SageMaker with one training job that ran for half an hour on an ml.g5.xlarge."""

    def __init__(self):
        self.seconds = 1800

    def list_training_jobs(self, **asked):
        names = [NAME] if "StatusEquals" not in asked and asked["NameContains"] in NAME else []
        return {"TrainingJobSummaries": [{"TrainingJobName": name} for name in names]}

    def list_transform_jobs(self, **asked):
        return {"TransformJobSummaries": []}

    def list_processing_jobs(self, **asked):
        return {"ProcessingJobSummaries": []}

    def describe_training_job(self, **asked):
        resources = {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1}
        return {"BillableTimeInSeconds": self.seconds, "ResourceConfig": resources}


def test_a_run_that_died_leaves_only_what_it_cost_in_the_caps(ledger, tell, published, monkeypatch):
    """Its reservation is settled when its execution ended, and again by a job that ended after it; its item says the cost."""
    billed = Billed()
    monkeypatch.setattr(report_job_state.Jobs, "connect", lambda: report_job_state.Jobs(billed))
    purse, caps = Purse("runs"), Caps(stack_day_usd=10)
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert reserve(purse, run_id=RUN, model="m", limit_usd=8.0, caps=caps, at=noon) == ""
    assert purse.taken("SPENT#stack#2026-03-01") == 8_000_000
    tell(ended("ABORTED"))
    hour = load_catalogue().find("ml.g5.xlarge").usd_hour
    assert purse.taken("SPENT#stack#2026-03-01") == micro(hour / 2)
    assert float(ledger.run(RUN)["cost_usd"]) == pytest.approx(hour / 2, abs=1e-6)
    billed.seconds = 3600
    late = training("Stopped")
    late["detail"]["TrainingJobStatus"] = "Stopped"
    tell(late)
    for account in ("stack#2026-03-01", "stack#2026-03", "model#m#2026-03-01", "model#m#2026-03"):
        assert purse.taken(f"SPENT#{account}") == micro(hour)
    assert float(ledger.run(RUN)["cost_usd"]) == pytest.approx(hour, abs=1e-6)


def test_a_success_settles_what_the_state_machine_could_not(ledger, tell, published, monkeypatch):
    """SettleRun failed and the run went on to its end: money and slot come back all the same, and nothing is told."""
    monkeypatch.setattr(report_job_state.Jobs, "connect", lambda: report_job_state.Jobs(Billed()))
    purse, noon = Purse("runs"), datetime(2026, 3, 1, 12, tzinfo=UTC)
    reserve(purse, run_id=RUN, model="m", limit_usd=8.0, caps=Caps(), at=noon)
    ledger.move(RUN, Status.REGISTERED)
    assert tell(ended("SUCCEEDED")) == "ended already"
    hour = load_catalogue().find("ml.g5.xlarge").usd_hour
    assert purse.held(RUN).reserved_micro == 0
    assert purse.taken("SPENT#stack#2026-03-01") == micro(hour / 2)
    assert published == []


def test_an_old_end_takes_nothing_from_a_run_that_was_started_again(ledger, tell, published):
    """Its event may come late: slot and money are by then those of the next execution."""
    ledger.move(RUN, Status.TRAINING, redrive=1)
    purse, noon = Purse("runs"), datetime(2026, 3, 1, 12, tzinfo=UTC)
    reserve(purse, run_id=RUN, model="m", limit_usd=8.0, caps=Caps(), at=noon)
    tell(ended("ABORTED"))
    assert purse.held(RUN).reserved_micro == 8_000_000


def test_a_package_s_approval_is_told_once(account, ledger, tell, published):
    """The run is found by the package's own metadata, since events leave it out."""
    account.sagemaker.create_model_package_group(ModelPackageGroupName="m", ModelPackageGroupDescription="m")
    arn = account.sagemaker.create_model_package(
        ModelPackageGroupName="m",
        ModelApprovalStatus="PendingManualApproval",
        CustomerMetadataProperties={"run_id": RUN},
    )["ModelPackageArn"]

    def change(approval):
        return {
            "detail-type": "SageMaker Model Package State Change",
            "detail": {
                "ModelPackageArn": arn,
                "ModelPackageGroupName": "m",
                "ModelPackageStatus": "Completed",
                "ModelApprovalStatus": approval,
            },
        }

    told = [tell(change(a)) for a in ("PendingManualApproval", "PendingManualApproval", "Approved")]
    assert told == ["told", "told already", "told"]
    assert [event.data["approval_status"] for _, event in published] == ["PendingManualApproval", "Approved"]
    assert ledger.run(RUN)["approval_status"] == "Approved"
