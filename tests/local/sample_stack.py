"""The sample stack of the probes, and how they ask the engine about it."""

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dropforge.local.stack import Engine

SAMPLE = Path(__file__).parent / "sample"
DOCKERFILE = SAMPLE / "image" / "training_image" / "Dockerfile"
EMAIL = "you@example.com"


def eventually(ask: Callable[[], Any], seconds: float = 30.0) -> Any:
    """The first true answer; fails where none comes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = ask()
        if answer:
            return answer
        time.sleep(0.05)
    pytest.fail(f"nothing came within {seconds:.0f} s")


@dataclass
class Sample:
    """The engine and what the sample stack gave out."""

    engine: Engine
    outputs: dict[str, str]

    def client(self, service: str) -> Any:
        return self.engine.client(service)

    def machine(self, states: dict[str, Any], **fields: Any) -> str:
        """Create a machine that starts at the first of `states`."""
        definition = {"QueryLanguage": "JSONata", "StartAt": next(iter(states)), "States": states, **fields}
        created = self.client("stepfunctions").create_state_machine(
            name=f"probe-{uuid.uuid4().hex[:12]}",
            definition=json.dumps(definition),
            roleArn="arn:aws:iam::000000000000:role/probe",
        )
        return str(created["stateMachineArn"])

    def start(self, machine: str, given: Any = None, name: str | None = None) -> str:
        named = {"name": name} if name else {}
        started = self.client("stepfunctions").start_execution(
            stateMachineArn=machine, input=json.dumps(given or {}), **named
        )
        return str(started["executionArn"])

    def ended(self, execution: str) -> dict[str, Any]:
        """DescribeExecution once it is over, its output read."""
        states = self.client("stepfunctions")

        def over() -> dict[str, Any] | None:
            found: dict[str, Any] = states.describe_execution(executionArn=execution)
            return None if found["status"] == "RUNNING" else found

        found: dict[str, Any] = eventually(over)
        return {**found, "output": json.loads(found["output"])} if found.get("output") else found

    def run(self, states: dict[str, Any], given: Any = None, **fields: Any) -> dict[str, Any]:
        return self.ended(self.start(self.machine(states, **fields), given))

    def probe(self, payload: dict[str, Any], **fields: Any) -> dict[str, Any]:
        """A Task state that invokes the probe function."""
        return {
            "Type": "Task",
            "Resource": "arn:aws:states:::lambda:invoke",
            "Arguments": {"FunctionName": self.outputs["ProbeArn"], "Payload": payload},
            **({} if "Next" in fields else {"End": True}),
            **fields,
        }

    def training(self, name: str, mode: str, **fields: Any) -> dict[str, Any]:
        """A Task state that runs a training job to its end."""
        return {
            "Type": "Task",
            "Resource": "arn:aws:states:::sagemaker:createTrainingJob.sync",
            "Arguments": {
                "TrainingJobName": name,
                "RoleArn": "arn:aws:iam::000000000000:role/probe",
                "AlgorithmSpecification": {
                    "TrainingImage": "probe:local",
                    "TrainingInputMode": "File",
                    "MetricDefinitions": [{"Name": "loss", "Regex": "loss=([0-9.]+)"}],
                },
                "HyperParameters": {"mode": mode},
                "OutputDataConfig": {"S3OutputPath": f"s3://{self.outputs['Bucket']}/out/"},
                "ResourceConfig": {
                    "InstanceType": "ml.m5.large",
                    "InstanceCount": 1,
                    "VolumeSizeInGB": 1,
                },
                "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
            },
            **({} if "Next" in fields else {"End": True}),
            **fields,
        }

    def trains(self, name: str) -> bool:
        """Whether the job exists and its container runs."""
        client = self.client("sagemaker")
        if not client.list_training_jobs(NameContains=name)["TrainingJobSummaries"]:
            return False
        return bool(client.describe_training_job(TrainingJobName=name)["SecondaryStatus"] == "Training")

    def job_status(self, name: str) -> str:
        found = self.client("sagemaker").describe_training_job(TrainingJobName=name)
        return str(found["TrainingJobStatus"])
