"""Events of AWS services, read whatever shape they come in."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge_core.happenings import ExecutionEnd, JobChange, PackageChange, moment, read, run_of_job
from dropforge_core.identity import job_name
from dropforge_core.ledger import Status

RUN = "c" * 26
NAME = job_name("support-bot", RUN, 1)


def training(**detail):
    return {
        "detail-type": "SageMaker Training Job State Change",
        "detail": {
            "TrainingJobName": NAME,
            "TrainingJobStatus": "InProgress",
            "SecondaryStatus": "Training",
            **detail,
        },
    }


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1700000000123", "2023-11-14T22:13:20.123+00:00"),
        (1700000000123, "2023-11-14T22:13:20.123+00:00"),
        (1700000000.5, "2023-11-14T22:13:20.500+00:00"),
        ("2023-11-14T22:13:20.123Z", "2023-11-14T22:13:20.123+00:00"),
        ("2023-11-14T23:13:20+01:00", "2023-11-14T22:13:20.000+00:00"),
        ("soon", ""),
        (None, ""),
        (True, ""),
        (float("nan"), ""),
        (10**40, ""),
    ],
)
def test_a_time_is_read_in_every_shape(value, expected):
    """Epoch seconds and milliseconds as text or number, ISO 8601; anything else is no time."""
    assert moment(value) == expected


def test_a_job_s_change_has_one_claim_for_all_its_deliveries():
    """The same transition is claimed once; the same state entered again is another."""
    once = [{"Status": "Training", "StartTime": 1700000000123}]
    again = [*once, {"Status": "Training", "StartTime": "1700000009999"}]
    first = read(training(SecondaryStatusTransitions=once))
    assert isinstance(first, JobChange)
    assert first.run_id == RUN
    assert first.claim == read(training(SecondaryStatusTransitions=once, RoleArn="x")).claim
    assert first.claim != read(training(SecondaryStatusTransitions=again)).claim


def test_jobs_are_known_by_their_names():
    """Redriven ones too; what only looks similar is not ours."""
    assert run_of_job(NAME) == (RUN, 0)
    assert run_of_job(NAME + "r2") == (RUN, 2)
    assert run_of_job(job_name("m", RUN, 12, "e") + "r1") == (RUN, 1)
    assert run_of_job(f"xgboost-{RUN}") is None
    assert run_of_job("m-" + RUN.upper() + "-t1") is None


def test_an_execution_that_was_aborted_is_a_cancelled_run():
    """The count of redrives is that of the run: earlier executions and this one's."""
    event = {
        "detail-type": "Step Functions Execution Status Change",
        "detail": {
            "name": RUN + "-2",
            "status": "ABORTED",
            "redriveCount": 1,
            "input": json.dumps({"run_id": RUN, "model": "m", "redrive": 2}),
        },
    }
    end = read(event)
    assert end == ExecutionEnd(run_id=RUN, status="ABORTED", redrive=3, cause="")
    assert end.final_status == Status.CANCELLED
    event["detail"]["status"] = "RUNNING"
    assert read(event) is None


def test_a_package_s_approval_is_one_change():
    """The claim is of the package and its approval, whatever else the event tells."""
    detail = {
        "ModelPackageArn": "arn:aws:sagemaker:us-east-1:1:model-package/support-bot/3",
        "ModelPackageGroupName": "support-bot",
        "ModelPackageStatus": "Completed",
        "ModelApprovalStatus": "Approved",
        "CustomerMetadataProperties": {"run_id": RUN},
    }
    change = read({"detail-type": "SageMaker Model Package State Change", "detail": detail})
    assert isinstance(change, PackageChange)
    assert (change.version, change.run_id, change.approval) == ("3", RUN, "Approved")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)
NAMES = [
    "TrainingJobName",
    "TrainingJobStatus",
    "SecondaryStatus",
    "SecondaryStatusTransitions",
    "ModelPackageArn",
    "ModelApprovalStatus",
    "ModelPackageGroupName",
    "CustomerMetadataProperties",
    "name",
    "status",
    "input",
    "redriveCount",
]
TYPES = [
    "SageMaker Training Job State Change",
    "SageMaker Model Package State Change",
    "Step Functions Execution Status Change",
    "Something",
]


@given(
    st.fixed_dictionaries(
        {
            "detail-type": st.sampled_from(TYPES) | JSON,
            "detail": JSON
            | st.dictionaries(st.sampled_from(NAMES), JSON | st.sampled_from([NAME, RUN, "FAILED"])),
        }
    )
)
def test_no_event_makes_the_reader_fail(event):
    """Foreign, broken or new: it is read or it is nothing."""
    found = read(event)
    assert found is None or found.run_id in {RUN, ""}
