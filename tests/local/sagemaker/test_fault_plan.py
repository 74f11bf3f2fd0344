"""Faults on purpose: each comes as SageMaker would say it, as often as planned, and to no other job."""

import json

import pytest
from botocore.exceptions import ClientError

from dropforge.local.sagemaker.errors import ApiError
from dropforge.local.sagemaker.fault_plan import FaultPlan

QUICK = 'print("step=1/3 loss=1", flush=True)'
CHECKPOINTS = {"S3Uri": "s3://runs/ckpt/"}


@pytest.fixture
def plan(lab):
    """Write the plan of the lab's service, which reads it at the next call."""

    def go(*faults):
        (lab.root / "sagemaker").mkdir(exist_ok=True)
        (lab.root / "sagemaker" / "faults.json").write_text(json.dumps({"faults": faults}))

    return go


def refusal(create):
    with pytest.raises(ClientError) as caught:
        create()
    return caught.value.response["Error"]


def test_calls_are_refused_as_often_as_planned(lab, plan):
    """Throttled twice and without quota once, each in SageMaker's words; the next call makes the job."""
    # The client tries each throttled call once more by itself.
    plan({"fault": "throttle", "times": 4}, {"fault": "quota"})
    image = lab.image(QUICK)
    codes = [refusal(lambda: lab.train(image))["Code"] for _ in range(2)]
    assert codes == ["ThrottlingException"] * 2
    full = refusal(lambda: lab.train(image))
    assert full["Code"] == "ResourceLimitExceeded"
    assert "'ml.g5.xlarge for training job usage'" in full["Message"]
    lab.train(image)
    assert lab.ended("Training")["TrainingJobStatus"] == "Completed"


def test_a_quota_of_one_lets_one_in_at_a_time(lab, plan):
    """The second is refused while the first is in progress, and not after it; a job that hangs can be stopped."""
    plan({"fault": "quota", "at_most": 1}, {"fault": "hang", "name": "first"})
    image = lab.image(QUICK)
    lab.train(image, "first")
    assert refusal(lambda: lab.train(image, "second"))["Code"] == "ResourceLimitExceeded"
    lab.until(lambda: lab.describe("Training", "first")["SecondaryStatus"] == "Training")
    lab.sm.stop_training_job(TrainingJobName="first")
    assert lab.ended("Training", "first")["TrainingJobStatus"] == "Stopped"
    lab.train(image, "second")
    assert lab.ended("Training", "second")["TrainingJobStatus"] == "Completed"


def test_ends_are_those_of_sagemaker(lab, plan):
    """A machine that never came, a limit that was reached, and what a container says, each once; then a job runs."""
    plan(
        {"fault": "no_spot"},
        {"fault": "time_limit"},
        {"fault": "fail", "said": "NAN_LOSS: as planned"},
    )
    image = lab.image(QUICK)
    spot = {
        "EnableManagedSpotTraining": True,
        "StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 90},
    }
    expected = ["MaxRuntimeExceeded", "Failed", "MaxWaitTimeExceeded", "Completed"]
    for number, (status, members) in enumerate(zip(expected, ({}, {}, spot, spot), strict=True)):
        lab.train(image, f"job{number}", **members)
        ended = lab.ended("Training", f"job{number}")
        assert ended["SecondaryStatus"] == status
    assert lab.describe("Training", "job1")["FailureReason"].startswith(
        "AlgorithmError: NAN_LOSS: as planned"
    )


def test_a_quota_for_a_time_comes_back(tmp_path):
    """It refuses from its first refusal on for as long as planned, however often it is asked."""
    path, now = tmp_path / "faults.json", [100.0]
    path.write_text(json.dumps({"faults": [{"fault": "quota", "seconds": 30}]}))
    plan = FaultPlan(path, lambda: now[0])
    refused = []
    for at in (100.0, 115.0, 129.0, 130.0, 200.0):
        now[0] = at
        try:
            plan.refuse("Training", {"TrainingJobName": "job"}, 0)
            refused.append(False)
        except ApiError as error:
            assert error.code == "ResourceLimitExceeded"
            refused.append(True)
    assert refused == [True, True, True, False, False]


def test_jobs_fail_at_their_start_in_turn(lab, plan):
    """Capacity, an internal error, memory above a batch size: each job meets the first that is left for it."""
    plan(
        {"fault": "capacity"},
        {"fault": "internal"},
        {"fault": "out_of_memory", "micro_batch_tokens": 512, "times": 9},
    )
    image = lab.image(QUICK)
    reasons = []
    for number, tokens in enumerate((1024, 1024, 1024, 512)):
        lab.train(image, f"job-{number}", HyperParameters={"micro_batch_tokens": str(tokens)})
        reasons.append(lab.ended("Training", f"job-{number}").get("FailureReason", "").split(":")[0])
    assert reasons == ["CapacityError", "InternalServerError", "AlgorithmError", ""]


def test_a_machine_is_taken_away_at_its_step(lab, plan):
    """The container is killed where it tells the step; the same job goes on from what was synced."""
    plan({"fault": "kill", "step": 2})
    image = lab.image(
        """
        folder = root / "checkpoints"
        if (folder / "done").exists():
            sys.exit(0)
        (folder / "done").write_text("1")
        time.sleep(0.5)
        print("step=1/3 loss=1")
        print("step=2/3 loss=1")
        time.sleep(60)
        """
    )
    lab.train(
        image,
        CheckpointConfig=CHECKPOINTS,
        EnableManagedSpotTraining=True,
        StoppingCondition={"MaxRuntimeInSeconds": 50, "MaxWaitTimeInSeconds": 55},
    )
    described = lab.ended("Training")
    assert described["TrainingJobStatus"] == "Completed"
    assert [m["Status"] for m in described["SecondaryStatusTransitions"]].count("Interrupted") == 1
