"""One run up the whole ladder, beside one that hangs and one that is not let in: the real machine, real training."""

import pytest
from watched_stack import Watched, eventually

from dropforge.local.stack import start

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PLAN = [
    {"fault": "hang", "name": "stuck"},
    {"fault": "quota", "at_most": 1},
    {"fault": "throttle", "name": "rungs", "times": 2},
    {"fault": "capacity", "name": "rungs"},
    {"fault": "internal", "name": "rungs", "times": 2},
    {"fault": "out_of_memory", "name": "rungs", "micro_batch_tokens": 0},
    {"fault": "kill", "name": "rungs", "step": 3},
]


def test_every_rung_beside_a_job_that_hangs_and_a_switch_that_is_off():
    """Whatever was planned to go wrong is got over or told, and of the money only what was spent is gone."""
    with start(fast=True) as stack:
        seen = Watched(stack)
        seen.plan_faults(PLAN)
        (switch,) = [
            found["Name"]
            for found in seen.ssm.describe_parameters()["Parameters"]
            if found["Name"].endswith("/intake")
        ]

        seen.ssm.put_parameter(Name=switch, Value="stopped", Type="String", Overwrite=True)
        seen.upload("refused")
        refused = eventually(lambda: seen.run("refused"), "the refused upload")
        assert refused["status"] == "CANCELLED"
        assert "New runs are stopped in this stack" in refused["message"]
        seen.ssm.put_parameter(Name=switch, Value="open", Type="String", Overwrite=True)

        seen.upload("stuck")
        eventually(
            lambda: [job for job in seen.jobs("stuck") if job["SecondaryStatus"] == "Training"], "hang"
        )
        # Rows so short that a micro-batch can be halved.
        seen.upload("rungs", "training: {max_seq_len: 512}\n")
        waits = eventually(lambda: seen.run("rungs").get("rung_01"), "the quota")
        assert "the account's quota for this instance type is used up or zero" in waits
        assert seen.jobs("rungs") == []

        seen.cancel("stuck")
        eventually(lambda: seen.run("stuck")["status"] == "CANCELLED", "the cancelled run")
        eventually(lambda: seen.jobs("stuck")[0]["TrainingJobStatus"] == "Stopped", "its job")

        ended = eventually(lambda: seen.ended("rungs"), "the end of the ladder")
        assert ended["status"] in {"REGISTERED", "INCONCLUSIVE", "GATE_FAILED"}
        assert "no free instance of this type" in ended["rung_02"]
        assert "AWS met an internal error. The same is tried again" in ended["rung_03"]
        assert "AWS met an internal error for the second time. The same is tried again" in ended["rung_04"]
        assert "memory was too small" in ended["rung_05"]
        assert "rung_06" not in ended
        capacity, *internal, memory, last = seen.jobs("rungs")
        assert capacity["FailureReason"].startswith("CapacityError")
        assert [job["FailureReason"].partition(":")[0] for job in internal] == ["InternalServerError"] * 2
        assert {job["ResourceConfig"]["InstanceType"] for job in internal} == {
            memory["ResourceConfig"]["InstanceType"]
        }
        types = [job["ResourceConfig"]["InstanceType"] for job in (capacity, memory, last)]
        assert types[0] != types[1] == types[2]
        asked = [int(job["HyperParameters"]["micro_batch_tokens"]) for job in (memory, last)]
        assert asked[1] == asked[0] // 2
        assert len({job["CheckpointConfig"]["S3Uri"] for job in seen.jobs("rungs")}) == 1
        assert last["TrainingJobStatus"] == "Completed"
        assert "Interrupted" in [moment["Status"] for moment in last["SecondaryStatusTransitions"]]

        seen.assert_all_money_is_settled(runs=2)


def test_an_evaluation_that_times_out_stops_its_job():
    """A transform job has no limit of its own: that of its state stops it, it is told as a time-out, and what it cost counts."""
    with start(fast=True) as stack:
        seen = Watched(stack)
        seen.plan_faults([{"fault": "hang", "job": "Transform"}])
        seen.upload_with_limit("slowjudge", "EvaluateCandidate", 2)
        job = eventually(
            lambda: next(
                (one for one in seen.evaluations("slowjudge") if one["TransformJobStatus"] == "Stopped"), None
            ),
            "the stopped evaluation",
        )
        rung = eventually(lambda: seen.run("slowjudge").get("rung_01"), "the rung")
        assert "The evaluation did not succeed: no end of it was heard of within its time" in rung
        # While it waits to try again.
        seen.cancel("slowjudge")
        assert eventually(lambda: seen.ended("slowjudge"), "the end")["status"] == "CANCELLED"
        (only,) = seen.evaluations("slowjudge")
        assert only["TransformJobName"] == job["TransformJobName"]
        seen.assert_all_money_is_settled(runs=1)
