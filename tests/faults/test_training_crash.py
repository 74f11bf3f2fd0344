"""What a run makes of a training process that dies, on the local AWS, for real."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from dropforge.local.stack import start

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="finds the trainer's process in /proc"),
]

DATA = Path(__file__).parents[2] / "examples" / "us-addresses" / "addresses.jsonl"
LIMIT_S = 240


def eventually(ask):
    """The first answer that is not None."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        if (answer := ask()) is not None:
            return answer
        time.sleep(0.2)
    raise AssertionError(f"nothing came within {LIMIT_S} s")


def trainer(root: Path):
    """The process id of the container that trains under `root`, once it runs."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[1:4] == [b"-m", b"tuner", b"train"] and str(root).encode() in b" ".join(words):
            return int(entry.name)
    return None


def test_a_trainer_that_dies_ends_the_run_as_failed_code():
    """A crash in native code is told once with its last log lines and the command to go on; no package is made."""
    with start(fast=True) as stack:
        bucket, table = stack.outputs["buckets"]["datasets"], stack.outputs["table"]
        stack.client("s3").upload_file(str(DATA), bucket, "datasets/crash/train.jsonl")

        def run():
            """The run's item, where it has ended or trains."""
            items = stack.client("dynamodb").scan(TableName=table, ConsistentRead=True)["Items"]
            runs = [item for item in items if item["pk"]["S"].startswith("RUN#")]
            return {name: value["S"] for name, value in runs[0].items() if "S" in value} if runs else None

        def steps_taken():
            streams = stack.client("logs").describe_log_groups()["logGroups"]
            group = "/aws/sagemaker/TrainingJobs"
            if group not in {found["logGroupName"] for found in streams}:
                return None
            events = stack.client("logs").filter_log_events(logGroupName=group)["events"]
            return True if any("step=" in event["message"] for event in events) else None

        eventually(steps_taken)
        os.kill(eventually(lambda: trainer(stack.state_dir)), signal.SIGABRT)
        ended = eventually(
            lambda: found if (found := run()) and found["status"].startswith("FAILED") else None
        )
        assert ended["status"] == "FAILED_CODE"
        assert "step=" in ended["message"]
        assert f"dropforge redrive {ended['run_id']}" in ended["message"]
        mails = eventually(
            lambda: (
                [
                    path.read_text()
                    for path in stack.outbox.glob("*.eml")
                    if "failed" in path.read_text().lower()
                ]
                or None
            )
        )
        assert len(mails) == 1
        packages = stack.client("sagemaker").list_model_package_groups()["ModelPackageGroupSummaryList"]
        assert packages == []
        (execution,) = stack.client("stepfunctions").list_executions(
            stateMachineArn=stack.outputs["state_machine"]
        )["executions"]
        assert execution["status"] == "FAILED"
        history = stack.client("stepfunctions").describe_execution(executionArn=execution["executionArn"])
        assert json.dumps(history["error"]) == '"FAILED_CODE"'
