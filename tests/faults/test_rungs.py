"""Ladders that are climbed to their end, and a state that times out: the real machine over HTTP, no training."""

import pytest
from watched_stack import Watched, eventually

from dropforge.local.stack import start

pytestmark = pytest.mark.e2e

FAULTS = [
    {"fault": "hang", "job": "Processing", "name": "slowcopy"},
    {"fault": "capacity", "name": "nospace", "times": 99},
    {"fault": "out_of_memory", "name": "toolarge", "times": 99},
    {"fault": "no_spot", "name": "luckless"},
    {"fault": "time_limit", "name": "luckless"},
    {"fault": "fail", "name": "hotrate", "said": "NAN_LOSS: the loss of step 3 is not a number"},
]
CAPACITY_TYPES = ["ml.g6.xlarge", "ml.g5.xlarge"]
MEMORY_TYPES = ["ml.g6.xlarge", "ml.g6e.xlarge"]


@pytest.fixture(scope="module")
def seen():
    """One stack in which all of them go wrong at once."""
    with start(fast=True) as stack:
        watched = Watched(stack)
        watched.plan_faults(FAULTS)
        watched.upload_with_limit("slowcopy", "CacheBaseModel", 2)
        watched.upload("nospace", f"compute: {{instance_types: [{', '.join(CAPACITY_TYPES)}]}}\n")
        watched.upload(
            "toolarge",
            f"compute: {{instance_types: [{', '.join(MEMORY_TYPES)}]}}\ntraining: {{max_seq_len: 512}}\n",
        )
        watched.upload("luckless", "compute: {instance_types: [ml.g6.xlarge]}\n")
        watched.upload("hotrate")
        yield watched


def test_a_state_that_times_out_stops_its_job_and_a_cancelled_run_ends_cancelled(seen):
    """The hanging copy is Stopped, told as a time-out, and while it waits to try again the run can be cancelled."""
    job = eventually(
        lambda: next(
            (one for one in seen.copies("slowcopy") if one["ProcessingJobStatus"] == "Stopped"), None
        ),
        "the stopped copy",
    )
    assert job["ProcessingJobName"].startswith("slowcopy-")
    rung = eventually(lambda: seen.run("slowcopy").get("rung_01"), "the rung")
    assert "no end of it was heard of within its time" in rung
    seen.cancel("slowcopy")
    assert eventually(lambda: seen.ended("slowcopy"), "the end")["status"] == "CANCELLED"
    assert all(one["ProcessingJobStatus"] == "Stopped" for one in seen.copies("slowcopy"))


def test_where_no_type_has_capacity_each_is_tried_and_the_last_on_demand(seen):
    """Both types on spot, the last on demand, then the end, with every step told and nothing spent."""
    ended = eventually(lambda: seen.ended("nospace"), "the end of the ladder")
    assert ended["status"] == "FAILED_CAPACITY"
    jobs = seen.jobs("nospace")
    asked = [(one["ResourceConfig"]["InstanceType"], one["EnableManagedSpotTraining"]) for one in jobs]
    assert asked == [(CAPACITY_TYPES[0], True), (CAPACITY_TYPES[1], True), (CAPACITY_TYPES[1], False)]
    assert len({one["TrainingJobName"] for one in jobs}) == 3
    assert "on demand" in ended["rung_02"]
    assert "No other allowed type is left" in ended["message"]
    assert "rung_04" not in ended


def test_spot_that_never_comes_is_followed_by_on_demand_and_a_limit_without_adapter_by_the_end(seen):
    """The same type on demand, which the cap pays; a job that reached its limit before it saved anything is not repeated."""
    ended = eventually(lambda: seen.ended("luckless"), "the end of the ladder")
    assert ended["status"] == "FAILED_CAPACITY"
    jobs = seen.jobs("luckless")
    assert [(one["EnableManagedSpotTraining"], one["SecondaryStatus"]) for one in jobs] == [
        (True, "MaxWaitTimeExceeded"),
        (False, "MaxRuntimeExceeded"),
    ]
    assert "on demand" in ended["rung_01"]


def test_a_loss_that_is_no_number_ends_the_run_at_once(seen):
    """Trying again would not help, so there is one job, and the person is told what to change."""
    ended = eventually(lambda: seen.ended("hotrate"), "the end of the run")
    assert ended["status"] == "FAILED_CODE"
    assert len(seen.jobs("hotrate")) == 1
    assert "learning_rate" in ended["message"]


def test_memory_that_never_suffices_halves_and_grows_in_turns_and_ends(seen):
    """Half the micro-batch at the same effective batch, then the larger GPU; checkpoints are shared, names are not."""
    ended = eventually(lambda: seen.ended("toolarge"), "the end of the ladder")
    assert ended["status"] == "FAILED_CAPACITY"
    jobs = seen.jobs("toolarge")
    types = [one["ResourceConfig"]["InstanceType"] for one in jobs]
    assert types[:3] == [MEMORY_TYPES[0], MEMORY_TYPES[0], MEMORY_TYPES[1]]
    asked = [int(one["HyperParameters"]["micro_batch_tokens"]) for one in jobs]
    assert asked[1] == max(512, asked[0] // 2)
    assert len({one["TrainingJobName"] for one in jobs}) == len(jobs)
    assert len({one["CheckpointConfig"]["S3Uri"] for one in jobs}) == 1
    for other in ("slowcopy", "nospace", "luckless", "hotrate"):
        eventually(lambda model=other: seen.ended(model), "the other runs")
    seen.assert_all_money_is_settled(runs=5)
