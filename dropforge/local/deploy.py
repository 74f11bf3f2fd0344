"""Deploys the real template through the CloudFormation API, as `sam deploy` does."""

import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from botocore.exceptions import ClientError

from dropforge.local import template

STACK: Final = "dropforge"
ARTIFACTS: Final = "dropforge-local-artifacts"
"""Bucket for packages, beside the stack's own."""

_POLL_S: Final = 0.1
_LIMIT_S: Final = 180.0
_GOOD: Final = frozenset({"CREATE_COMPLETE", "UPDATE_COMPLETE"})


class DeploymentFailed(RuntimeError):
    """The stack could not be created. The message names each resource that failed, and why."""


def check(path: Path, parameters: Mapping[str, str]) -> None:
    """Refuse a value that CloudFormation would, before anything is made.

    Args:
        path: template.yaml.
        parameters: only `AllowedPattern` is looked at; those that the template does not have are left out.

    Raises:
        DeploymentFailed: with the parameter, and what it should be.
    """
    known = template.load(path).get("Parameters", {})
    for name, value in parameters.items():
        rules = known.get(name, {})
        pattern = rules.get("AllowedPattern")
        if pattern and not re.fullmatch(pattern, value):
            wanted = rules.get("ConstraintDescription") or f"text that matches {pattern}"
            raise DeploymentFailed(f"{name} can't be {value[:100]!r}; it should be: {wanted}")


def deploy(
    path: Path, parameters: Mapping[str, str], client: Callable[[str], Any], stack: str = STACK
) -> dict[str, str]:
    """Create the stack and return its outputs.

    Args:
        path: template.yaml; local paths in it start from its folder.
        parameters: those that the template does not have are left out.
        client: boto3 client by service name.
        stack: name of the stack.

    Raises:
        DeploymentFailed: with the reasons CloudFormation gave.
    """
    s3, cloudformation = client("s3"), client("cloudformation")
    s3.create_bucket(Bucket=ARTIFACTS)

    def upload(name: str, body: bytes) -> str:
        s3.put_object(Bucket=ARTIFACTS, Key=name, Body=body)
        return f"s3://{ARTIFACTS}/{name}"

    packaged = template.package(template.load(path), path.parent, upload)
    upload("template.json", json.dumps(packaged).encode())
    known = packaged.get("Parameters", {})
    try:
        cloudformation.create_stack(
            StackName=stack,
            TemplateURL=f"{s3.meta.endpoint_url}/{ARTIFACTS}/template.json",
            Parameters=[
                {"ParameterKey": name, "ParameterValue": value}
                for name, value in parameters.items()
                if name in known
            ],
            Capabilities=["CAPABILITY_IAM", "CAPABILITY_NAMED_IAM", "CAPABILITY_AUTO_EXPAND"],
        )
    except ClientError as error:
        raise DeploymentFailed(f"CloudFormation refused {path}: {error}") from error
    return _outputs(cloudformation, stack)


def _outputs(cloudformation: Any, stack: str) -> dict[str, str]:
    end = time.monotonic() + _LIMIT_S
    while True:
        found = cloudformation.describe_stacks(StackName=stack)["Stacks"][0]
        status = found["StackStatus"]
        if not status.endswith("_IN_PROGRESS"):
            break
        if time.monotonic() > end:
            raise DeploymentFailed(f"the stack is still {status} after {_LIMIT_S:.0f} s")
        time.sleep(_POLL_S)
    if status not in _GOOD:
        pages = cloudformation.get_paginator("describe_stack_events").paginate(StackName=stack)
        events = [event for page in pages for event in page["StackEvents"]]
        reasons = [
            f"{event['LogicalResourceId']}: {event.get('ResourceStatusReason', 'no reason given')}"
            for event in reversed(events)
            if event["ResourceStatus"].endswith("_FAILED")
        ]
        raise DeploymentFailed(f"the stack ended {status}:\n" + "\n".join(reasons))
    return {output["OutputKey"]: output["OutputValue"] for output in found.get("Outputs", [])}
