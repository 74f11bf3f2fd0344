"""The stack that the environment names: its resources, found through CloudFormation's outputs."""

import json
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Final

import pydantic
from botocore.exceptions import BotoCoreError, ClientError

from dropforge.cli.console import CommandFailed
from dropforge_core import aws
from dropforge_core.contracts import RunRequest
from dropforge_core.layout import RunLayout
from dropforge_core.model import Frozen, Tolerant

DEFAULT_NAME: Final = "dropforge"
SHORTEST_PREFIX: Final = 4
"""Characters of a run's id that are enough to name it, where they are unambiguous."""
RUN_KEY: Final = "RUN#"


class Resources(Frozen):
    """The outputs of template.yaml that the command line needs."""

    dataset_bucket: str
    run_bucket: str
    run_table: str
    event_bus: str
    state_machine_arn: str
    topic_arn: str
    decide_approval_function: str
    image_uri: str = ""

    @classmethod
    def from_outputs(cls, outputs: Mapping[str, str], stack: str) -> "Resources":
        """Read CloudFormation's outputs.

        Raises:
            CommandFailed: naming the outputs that are missing.
        """
        names = {
            "dataset_bucket": "DatasetBucketName",
            "run_bucket": "RunBucketName",
            "run_table": "RunTableName",
            "event_bus": "EventBusName",
            "state_machine_arn": "StateMachineArn",
            "topic_arn": "NotificationTopicArn",
            "decide_approval_function": "DecideApprovalFunctionName",
        }
        if missing := [output for output in names.values() if output not in outputs]:
            raise CommandFailed(
                f"The stack '{stack}' has no output {', '.join(missing)}: it is not a Dropforge stack, or an "
                "older one. Deploy template.yaml, or name another stack with --stack or DROPFORGE_STACK."
            )
        found = {field: outputs[output] for field, output in names.items()}
        return cls(**found, image_uri=outputs.get("ImageUri", ""))


class RunRecord(Tolerant):
    """A run's item of the ledger."""

    run_id: str
    model: str
    status: str
    rank: int = 0
    received_at: str = ""
    bytes: int = 0
    """Of the data files as stored."""
    message: str = ""
    report_uri: str = ""
    package_arn: str = ""
    duplicate_of: str = ""
    cost_usd: str = ""
    job_name: str = ""
    execution_arn: str = ""

    @property
    def redrive(self) -> int:
        """How often the run was driven again."""
        return self.rank // 100


class Stack:
    """A deployed stack, in the cloud or on this machine."""

    def __init__(self, name: str, resources: Resources, parameters: Mapping[str, str]) -> None:
        self.name = name
        self.resources = resources
        self.parameters = parameters
        """What it was deployed with."""
        self.ledger = aws.Ledger(resources.run_table)
        self.datasets = aws.Bucket(resources.dataset_bucket)
        self.runs_bucket = aws.Bucket(resources.run_bucket)

    @classmethod
    def find(cls, name: str) -> "Stack":
        """The stack of that name at the endpoint, region and account of the environment.

        Raises:
            CommandFailed: when there is none, or AWS can't be asked.
        """
        try:
            stacks = aws.client("cloudformation").describe_stacks(StackName=name)["Stacks"]
        except ClientError as error:
            raise CommandFailed(f"The stack '{name}' can't be read: {error}. {_where()}") from error
        except BotoCoreError as error:
            raise CommandFailed(f"AWS can't be reached: {str(error).rstrip('.')}. {_where()}") from error
        outputs = {o["OutputKey"]: o["OutputValue"] for o in stacks[0].get("Outputs", [])}
        parameters = {p["ParameterKey"]: p.get("ParameterValue", "") for p in stacks[0].get("Parameters", [])}
        return cls(name, Resources.from_outputs(outputs, name), parameters)

    def records(self, model: str | None = None) -> list[RunRecord]:
        """All runs, or those of one model, newest first."""
        found = [RunRecord.model_validate(aws.plain(item)) for item in self._items(model)]
        return sorted(found, key=lambda run: (run.received_at, run.run_id), reverse=True)

    def _items(self, model: str | None) -> Iterator[Mapping[str, Any]]:
        if model:
            pages = (
                aws.client("dynamodb")
                .get_paginator("query")
                .paginate(
                    TableName=self.resources.run_table,
                    IndexName="by-model",
                    KeyConditionExpression="#model = :model",
                    ExpressionAttributeNames={"#model": "model"},
                    ExpressionAttributeValues={":model": {"S": model}},
                )
            )
        else:
            pages = (
                aws.client("dynamodb")
                .get_paginator("scan")
                .paginate(
                    TableName=self.resources.run_table,
                    FilterExpression="begins_with(pk, :run)",
                    ExpressionAttributeValues={":run": {"S": RUN_KEY}},
                )
            )
        for page in pages:
            yield from (item for item in page["Items"] if item["pk"]["S"].startswith(RUN_KEY))

    def record(self, run_id: str) -> RunRecord | None:
        """One run as the ledger knows it now."""
        item = self.ledger.run(run_id)
        return RunRecord.model_validate(item) if item else None

    def resolve(self, asked: str) -> RunRecord:
        """The run of that id, or of the only id that begins so.

        Raises:
            CommandFailed: when there is none, or more than one.
        """
        asked = asked.strip().lower()
        if exact := self.record(asked):
            return exact
        alike = [r for r in self.records() if len(asked) >= SHORTEST_PREFIX and r.run_id.startswith(asked)]
        if len(alike) == 1:
            return alike[0]
        if alike:
            raise CommandFailed(f"More than one run begins with '{asked}': give more of its id.")
        raise CommandFailed(f"There is no run '{asked}'. `dropforge runs` lists them.")

    def document(self, key: str) -> dict[str, Any] | None:
        """A JSON document of the run bucket, or None where it was never written."""
        try:
            loaded: dict[str, Any] = json.loads(self.runs_bucket.read(key))
        except aws.ObjectVanished:
            return None
        return loaded

    def request(self, run_id: str) -> RunRequest | None:
        """What intake accepted."""
        found = self.document(RunLayout(run_id=run_id).request)
        try:
            return RunRequest.model_validate(found) if found else None
        except pydantic.ValidationError:
            return None

    @cached_property
    def is_local(self) -> bool:
        """Whether the environment points at another endpoint than AWS."""
        return bool(os.environ.get("AWS_ENDPOINT_URL"))


def _where() -> str:
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    if endpoint:
        return f"AWS_ENDPOINT_URL is {endpoint}: is `dropforge local up` running there?"
    return "For the local AWS start `dropforge local up` and set AWS_ENDPOINT_URL as it says."
