"""`doctor`: what can be checked of a stack before its first run, and what can't, said openly."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal

from botocore.exceptions import BotoCoreError, ClientError
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dropforge.cli.console import said
from dropforge.cli.stack import Stack
from dropforge_core import aws
from dropforge_core.model import Frozen

NOT_CHECKED: Final = (
    "whether a base model on the hub is gated for your token",
    "whether the roles' permissions suffice under your organisation's policies",
    "whether AWS has GPUs free right now",
)
GPU_QUOTAS: Final = ("for training job usage", "for spot training job usage")


class Check(Frozen):
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "bad", "unknown"]
    found: str
    mend: str = ""


class Diagnosis(Frozen):
    """All checks, and what none of them covers."""

    healthy: bool
    checks: tuple[Check, ...]
    not_checked: tuple[str, ...] = NOT_CHECKED


def examine_stack(stack: Stack) -> Diagnosis:
    """Run every check; one that AWS refuses to answer is `unknown` with the reason."""
    checks = tuple(
        outcome
        for name, look in (
            ("dataset bucket", _bucket),
            ("bucket events", _events),
            ("versioning", _versioning),
            ("state machine", _machine),
            ("run table", _table),
            ("people to tell", _subscriptions),
            ("training image", _image),
            ("GPU quota", _quota),
        )
        for outcome in _tried(name, look, stack)
    )
    return Diagnosis(healthy=all(check.state != "bad" for check in checks), checks=checks)


def _tried(name: str, look: Callable[[str, Stack], Iterator[Check]], stack: Stack) -> Iterator[Check]:
    try:
        yield from look(name, stack)
    except (ClientError, BotoCoreError) as error:
        yield Check(name=name, state="unknown", found=f"AWS did not answer: {error}")


def _bucket(name: str, stack: Stack) -> Iterator[Check]:
    for bucket in (stack.resources.dataset_bucket, stack.resources.run_bucket):
        aws.client("s3").head_bucket(Bucket=bucket)
        yield Check(name=name, state="ok", found=f"{bucket} is there and may be read")


def _events(name: str, stack: Stack) -> Iterator[Check]:
    bucket = stack.resources.dataset_bucket
    found = aws.client("s3").get_bucket_notification_configuration(Bucket=bucket)
    yield event_check(name, bucket, found)


def event_check(name: str, bucket: str, configuration: Mapping[str, Any]) -> Check:
    """Whether GetBucketNotificationConfiguration's answer has EventBridge on; an empty member means on."""
    on = "EventBridgeConfiguration" in configuration
    return Check(
        name=name,
        state="ok" if on else "bad",
        found=f"{bucket} {'sends' if on else 'does not send'} its events to EventBridge",
        mend="" if on else "deploy template.yaml again; the setting takes about five minutes",
    )


def _versioning(name: str, stack: Stack) -> Iterator[Check]:
    bucket = stack.resources.dataset_bucket
    on = aws.client("s3").get_bucket_versioning(Bucket=bucket).get("Status") == "Enabled"
    yield Check(
        name=name,
        state="ok" if on else "bad",
        found=f"{bucket} {'keeps' if on else 'does not keep'} versions",
        mend="" if on else "turn versioning on, or two quick uploads may become one event",
    )


def _machine(name: str, stack: Stack) -> Iterator[Check]:
    found = aws.client("stepfunctions").describe_state_machine(
        stateMachineArn=stack.resources.state_machine_arn
    )
    active = found.get("status", "ACTIVE") == "ACTIVE"
    yield Check(
        name=name,
        state="ok" if active else "bad",
        found=f"{found['name']} is {found.get('status', 'ACTIVE')}",
    )


def _table(name: str, stack: Stack) -> Iterator[Check]:
    found = aws.client("dynamodb").describe_table(TableName=stack.resources.run_table)["Table"]
    indexed = any(i.get("IndexName") == "by-model" for i in found.get("GlobalSecondaryIndexes", []))
    yield Check(
        name=name,
        state="ok" if indexed else "bad",
        found=f"{found['TableName']} {'has' if indexed else 'lacks'} its index by-model",
        mend="" if indexed else "deploy template.yaml again",
    )


def _subscriptions(name: str, stack: Stack) -> Iterator[Check]:
    found: list[dict[str, Any]] = aws.client("sns").list_subscriptions_by_topic(
        TopicArn=stack.resources.topic_arn
    )["Subscriptions"]
    pending = [s for s in found if not str(s["SubscriptionArn"]).startswith("arn:")]
    if not found:
        yield Check(
            name=name,
            state="unknown",
            found="no e-mail address is subscribed",
            mend="set the stack's e-mail parameter, or subscribe to its topic, if you want e-mail",
        )
    elif pending:
        yield Check(
            name=name,
            state="bad",
            found=f"{len(pending)} of {len(found)} subscriptions wait for confirmation",
            mend="click the link in the e-mail that AWS sent",
        )
    else:
        yield Check(name=name, state="ok", found=f"{len(found)} subscribed")


def _image(name: str, stack: Stack) -> Iterator[Check]:
    image = stack.resources.image_uri
    if not image:
        yield Check(
            name=name,
            state="bad",
            found="the stack has no training image",
            mend="build one with `make image`, push it, and deploy with its address",
        )
        return
    pinned = "@sha256:" in image
    yield Check(
        name=name,
        state="ok" if pinned or stack.is_local else "unknown",
        found=f"{image}{'' if pinned else ' (a tag, which may come to mean another image)'}",
        mend="" if pinned or stack.is_local else "deploy with the digest that `make image` recorded",
    )


def _quota(name: str, stack: Stack) -> Iterator[Check]:
    if stack.is_local:
        yield Check(name=name, state="unknown", found="the local AWS has no quotas")
        return
    pages = (
        aws.client("service-quotas").get_paginator("list_service_quotas").paginate(ServiceCode="sagemaker")
    )
    usable = sorted(
        quota["QuotaName"].removesuffix(suffix).strip()
        for page in pages
        for quota in page["Quotas"]
        for suffix in GPU_QUOTAS
        if quota["QuotaName"].endswith(suffix)
        and quota["QuotaName"].startswith(("ml.g", "ml.p"))
        and quota["Value"] >= 1
    )
    types = sorted(set(usable))
    yield Check(
        name=name,
        state="ok" if types else "bad",
        found=f"training is allowed on {', '.join(types)}"
        if types
        else "no GPU instance may be used for training",
        mend="" if types else "ask for 'ml.g6.xlarge for training job usage' in Service Quotas",
    )


def view(found: Diagnosis) -> RenderableType:
    """The checks for a terminal."""
    marks = {"ok": ("✓", "green"), "bad": ("✗", "red"), "unknown": ("?", "yellow")}
    table = Table.grid(padding=(0, 1))
    for check in found.checks:
        mark, style = marks[check.state]
        mend = f"\n→ {check.mend}" if check.mend else ""
        table.add_row(Text(mark, style=style), Text(check.name, style="bold"), said(check.found + mend))
    left = [said(f"  {thing}", "dim") for thing in found.not_checked]
    return Group(table, Text(), Text("not checked:", style="dim"), *left)
