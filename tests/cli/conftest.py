"""A stack as the command line meets it: outputs in CloudFormation, a ledger, two buckets, over real HTTP."""

import contextlib
import json
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest

from dropforge.cli import main
from dropforge_core import aws
from dropforge_core.layout import RunLayout

RUN = "abcdefghijklmnopqrstuvwxyz"
OTHER = "zyxwvutsrqponmlkjihgfedcba"
ACCOUNT = "123456789012"
DEFINITION = json.dumps({"StartAt": "S", "States": {"S": {"Type": "Succeed"}}})


class Said(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


class World:
    """Writes what the pipeline would have written."""

    def __init__(self) -> None:
        region = "us-east-1"
        role = boto3.client("iam").create_role(RoleName="r", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
        self.machine = boto3.client("stepfunctions").create_state_machine(
            name="FineTune", definition=DEFINITION, roleArn=role
        )["stateMachineArn"]
        self.topic = boto3.client("sns").create_topic(Name="told")["TopicArn"]
        self.s3 = boto3.client("s3")
        for bucket in ("datasets", "runs"):
            self.s3.create_bucket(Bucket=bucket)
        self.s3.put_bucket_versioning(Bucket="datasets", VersioningConfiguration={"Status": "Enabled"})
        self.s3.put_bucket_notification_configuration(
            Bucket="datasets", NotificationConfiguration={"EventBridgeConfiguration": {}}
        )
        text = {"AttributeType": "S"}
        boto3.client("dynamodb").create_table(
            TableName="table",
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": n, **text} for n in ("pk", "model", "received_at")],
            GlobalSecondaryIndexes=[
                {
                    "IndexName": "by-model",
                    "KeySchema": [
                        {"AttributeName": "model", "KeyType": "HASH"},
                        {"AttributeName": "received_at", "KeyType": "RANGE"},
                    ],
                    "Projection": {"ProjectionType": "ALL"},
                }
            ],
            BillingMode="PAY_PER_REQUEST",
        )
        self.ledger = aws.Ledger("table")
        outputs = {
            "DatasetBucketName": "datasets",
            "RunBucketName": "runs",
            "RunTableName": "table",
            "EventBusName": "bus",
            "StateMachineArn": self.machine,
            "NotificationTopicArn": self.topic,
            "DecideApprovalFunctionName": "decide",
            "ImageUri": f"{ACCOUNT}.dkr.ecr.{region}.amazonaws.com/dropforge:1",
        }
        template = {
            "Parameters": {"AllowedInstanceTypes": {"Type": "String", "Default": ""}},
            "Resources": {"Queue": {"Type": "AWS::SQS::Queue"}},
            "Outputs": {name: {"Value": value} for name, value in outputs.items()},
        }
        self._template = json.dumps(template)
        boto3.client("cloudformation").create_stack(StackName="dropforge", TemplateBody=self._template)

    def deploy(self, **parameters: str) -> None:
        """The stack once more, with other parameters."""
        boto3.client("cloudformation").update_stack(
            StackName="dropforge",
            TemplateBody=self._template,
            Parameters=[{"ParameterKey": name, "ParameterValue": text} for name, text in parameters.items()],
        )

    def run(self, run_id: str = RUN, status: str = "TRAINING", **fields: str) -> None:
        """A run's item, as the pipeline leaves it."""
        item = {
            "pk": f"RUN#{run_id}",
            "run_id": run_id,
            "model": "support-bot",
            "status": status,
            "received_at": "2026-11-21T05:00:00+00:00",
            **fields,
        }
        boto3.client("dynamodb").put_item(
            TableName="table", Item={**{k: {"S": v} for k, v in item.items()}, "rank": {"N": "50"}}
        )

    def execution(self, run_id: str = RUN) -> str:
        """A running execution of that name."""
        return str(
            boto3.client("stepfunctions").start_execution(
                stateMachineArn=self.machine, name=run_id, input=json.dumps({"run_id": run_id})
            )["executionArn"]
        )

    def document(self, name: str, document: Any, run_id: str = RUN) -> None:
        """A JSON document of the run bucket, by the name of its place in `RunLayout`."""
        key = getattr(RunLayout(run_id=run_id), name)
        self.s3.put_object(Bucket="runs", Key=key, Body=json.dumps(document).encode())

    def log(self, group: str, stream: str, *lines: str) -> None:
        """Lines of a job."""
        logs = boto3.client("logs")
        with contextlib.suppress(logs.exceptions.ResourceAlreadyExistsException):
            logs.create_log_group(logGroupName=group)
        with contextlib.suppress(logs.exceptions.ResourceAlreadyExistsException):
            logs.create_log_stream(logGroupName=group, logStreamName=stream)
        now = int(time.time() * 1000)
        logs.put_log_events(
            logGroupName=group,
            logStreamName=stream,
            logEvents=[{"timestamp": now + i, "message": line} for i, line in enumerate(lines)],
        )


@pytest.fixture
def world(aws_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for name, value in {
        "AWS_ENDPOINT_URL": aws_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("DROPFORGE_STACK", raising=False)
    boto3.setup_default_session()
    aws.client.cache_clear()
    urllib.request.urlopen(urllib.request.Request(f"{aws_server}/moto-api/reset", method="POST")).close()
    yield World()
    aws.client.cache_clear()


@pytest.fixture
def dropforge(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a command line in this process."""

    def call(*arguments: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["dropforge", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return call


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A sane little dataset."""
    words = [
        "amber",
        "birch",
        "cedar",
        "dune",
        "ember",
        "fjord",
        "grove",
        "heath",
        "inlet",
        "jetty",
        "knoll",
        "larch",
    ]
    file = tmp_path / "rows.jsonl"
    with file.open("w") as out:
        for index, word in enumerate(words * 2):
            messages = [
                {
                    "role": "user",
                    "content": f"What does {word} number {index} mean to the {words[-index % 12]}?",
                },
                {"role": "assistant", "content": f"It is {word}, and {index * 37} of them."},
            ]
            out.write(json.dumps({"messages": messages}) + "\n")
    return file
