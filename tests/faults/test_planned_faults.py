"""One run up the whole ladder, beside one that hangs and one that is not let in: the real machine, real training."""

import json
import time
from pathlib import Path

import pytest

from dropforge.local.stack import start

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

DATA = Path(__file__).parents[2] / "examples" / "us-addresses" / "addresses.jsonl"
LIMIT_S = 400
PLAN = [
    {"fault": "hang", "name": "stuck"},
    {"fault": "quota", "at_most": 1},
    {"fault": "throttle", "name": "rungs", "times": 2},
    {"fault": "capacity", "name": "rungs"},
    {"fault": "out_of_memory", "name": "rungs", "micro_batch_tokens": 0},
    {"fault": "kill", "name": "rungs", "step": 3},
]


class Watched:
    """The stack, asked the way a person would look at it."""

    def __init__(self, stack):
        self.stack = stack
        self.sagemaker, self.dynamodb = stack.client("sagemaker"), stack.client("dynamodb")
        self.states, self.ssm = stack.client("stepfunctions"), stack.client("ssm")

    def upload(self, model):
        self.stack.client("s3").upload_file(
            str(DATA), self.stack.outputs["buckets"]["datasets"], f"datasets/{model}/train.jsonl"
        )

    def items(self, prefix):
        found = self.dynamodb.scan(TableName=self.stack.outputs["table"], ConsistentRead=True)["Items"]
        plain = [{name: str(next(iter(value.values()))) for name, value in item.items()} for item in found]
        return [item for item in plain if item["pk"].startswith(prefix)]

    def run(self, model):
        return next((item for item in self.items("RUN#") if item["model"] == model), {})

    def jobs(self, model):
        """Descriptions of its training jobs, oldest first."""
        names = [
            found["TrainingJobName"]
            for found in self.sagemaker.list_training_jobs(
                NameContains=model, SortBy="CreationTime", SortOrder="Ascending"
            )["TrainingJobSummaries"]
        ]
        return [self.sagemaker.describe_training_job(TrainingJobName=name) for name in names]


def eventually(ask, what):
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        if answer := ask():
            return answer
        time.sleep(0.3)
    raise AssertionError(f"{what}: nothing came within {LIMIT_S} s")


def test_every_rung_beside_a_job_that_hangs_and_a_switch_that_is_off():
    """Whatever was planned to go wrong is got over or told, and of the money only what was spent is gone."""
    with start(fast=True) as stack:
        seen = Watched(stack)
        (stack.state_dir / "sagemaker" / "faults.json").write_text(json.dumps({"faults": PLAN}))
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
        stack.client("s3").put_object(
            Bucket=stack.outputs["buckets"]["datasets"],
            Key="datasets/rungs/recipe.yaml",
            Body=b"training: {max_seq_len: 512}\n",
        )
        seen.upload("rungs")
        waits = eventually(lambda: seen.run("rungs").get("rung_01"), "the quota")
        assert "the account's quota for this instance type is used up or zero" in waits
        assert seen.jobs("rungs") == []

        executions = seen.states.list_executions(
            stateMachineArn=stack.outputs["state_machine"], statusFilter="RUNNING"
        )["executions"]
        (stuck,) = [one for one in executions if one["name"] == seen.run("stuck")["run_id"]]
        seen.states.stop_execution(executionArn=stuck["executionArn"])
        eventually(lambda: seen.run("stuck")["status"] == "CANCELLED", "the cancelled run")
        eventually(lambda: seen.jobs("stuck")[0]["TrainingJobStatus"] == "Stopped", "its job")

        ended = eventually(
            lambda: run if (run := seen.run("rungs")).get("ended_at") else None, "the end of the ladder"
        )
        assert ended["status"] in {"REGISTERED", "INCONCLUSIVE", "GATE_FAILED"}
        assert "no free instance of this type" in ended["rung_02"]
        assert "memory was too small" in ended["rung_03"]
        assert "rung_04" not in ended
        capacity, memory, last = seen.jobs("rungs")
        assert capacity["FailureReason"].startswith("CapacityError")
        types = [job["ResourceConfig"]["InstanceType"] for job in (capacity, memory, last)]
        assert types[0] != types[1] == types[2]
        asked = [int(job["HyperParameters"]["micro_batch_tokens"]) for job in (memory, last)]
        assert asked[1] == asked[0] // 2
        assert len({job["CheckpointConfig"]["S3Uri"] for job in (capacity, memory, last)}) == 1
        assert last["TrainingJobStatus"] == "Completed"
        assert "Interrupted" in [moment["Status"] for moment in last["SecondaryStatusTransitions"]]

        accounts = {item["pk"]: int(item["taken"]) for item in seen.items("SPENT#stack#")}
        reservations = [json.loads(item["reservation"]) for item in seen.items("RESERVATION#")]
        assert len(reservations) == 2
        assert all(one["reserved_micro"] == 0 for one in reservations)
        assert set(accounts.values()) == {sum(one["spent_micro"] for one in reservations)}
