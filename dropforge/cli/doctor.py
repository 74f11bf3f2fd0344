"""`doctor`: what can be checked of a stack before its first run, and what can't, said openly."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dropforge.cli import checkup
from dropforge.cli.base import HUB, STACK_DEFAULT
from dropforge.cli.checkup import Check
from dropforge.cli.console import said
from dropforge.cli.functions import Hub
from dropforge.cli.stack import Stack
from dropforge_core import aws
from dropforge_core.budget import allowed_only, type_names
from dropforge_core.dataset.recipe_problems import read_recipe
from dropforge_core.model import Frozen
from dropforge_core.planning import load_catalogue
from dropforge_core.recipe import Recipe

NOT_CHECKED: Final = (
    "whether the roles' permissions suffice under your organisation's policies, beyond passing roles",
    "whether AWS has GPUs free right now",
)
JOB_ROLES: Final = {"TrainingRole": "training", "EvaluationRole": "evaluation", "CacheRole": "caching"}
"""Logical id in template.yaml to what the role is for."""


class Diagnosis(Frozen):
    """All checks, and what none of them covers."""

    healthy: bool
    checks: tuple[Check, ...]
    not_checked: tuple[str, ...] = NOT_CHECKED


class Deployed(Frozen):
    """What a stack was deployed with."""

    region: str
    parameters: Mapping[str, str] = {}
    resources: Mapping[str, str] = {}
    """Logical to physical id."""

    @classmethod
    def read(cls, stack: Stack) -> "Deployed":
        """From CloudFormation."""
        client = aws.client("cloudformation")
        pages = client.get_paginator("list_stack_resources").paginate(StackName=stack.name)
        return cls(
            region=client.meta.region_name,
            parameters=stack.parameters,
            resources={
                r["LogicalResourceId"]: r["PhysicalResourceId"]
                for page in pages
                for r in page["StackResourceSummaries"]
                if r.get("PhysicalResourceId")
            },
        )

    def recipe(self) -> Recipe | None:
        """The stack's default recipe, whose base model may be `STACK_DEFAULT`; None where it has faults."""
        return read_recipe(self.parameters.get("DefaultRecipe"), f"base_model: {STACK_DEFAULT}\n")[0]


def examine_stack(stack: Stack) -> Diagnosis:
    """Run every check; one that AWS refuses to answer is `unknown` with the reason."""
    checks: list[Check] = []
    for name, look in (
        ("dataset bucket", _bucket),
        ("bucket events", _events),
        ("versioning", _versioning),
        ("state machine", _machine),
        ("run table", _table),
        ("people to tell", _subscriptions),
    ):
        checks += _tried(name, look, stack)
    try:
        deployed = Deployed.read(stack)
    except (ClientError, BotoCoreError) as error:
        checks.append(Check(name="stack", state="unknown", found=f"AWS did not answer: {error}"))
    else:
        for name, deep in _deep_checks(deployed).items():
            checks += _tried(name, deep, stack)
    return Diagnosis(healthy=all(check.state != "bad" for check in checks), checks=tuple(checks))


def _deep_checks(deployed: Deployed) -> dict[str, Callable[[str, Stack], Iterator[Check]]]:
    """The checks that follow from what the stack was deployed with."""
    roles = {
        JOB_ROLES[logical]: deployed.resources[logical]
        for logical in JOB_ROLES
        if logical in deployed.resources
    }
    return {
        "key": lambda name, _: _with(
            "DataKey", deployed, lambda key: checkup.key(aws.client("kms"), key, name), name
        ),
        "secrets": lambda name, _: checkup.secrets(aws.client("secretsmanager"), _secrets(deployed), name),
        "roles": lambda name, _: checkup.job_roles(aws.client("iam"), roles, name),
        "PassRole": lambda name, stack: _pass_role(name, stack, deployed, roles.values()),
        "training image": lambda name, stack: _image(name, stack, deployed),
        "new runs": lambda name, _: _with(
            "IntakeSwitch", deployed, lambda switch: checkup.switch(aws.client("ssm"), switch, name), name
        ),
        "quota": lambda name, stack: _quota(name, stack, deployed),
        "base model": lambda name, stack: _base_model(name, stack, deployed),
    }


def _with(
    logical: str, deployed: Deployed, look: Callable[[str], Iterator[Check]], name: str
) -> Iterator[Check]:
    physical = deployed.resources.get(logical)
    if physical:
        yield from look(physical)
    else:
        yield Check(
            name=name,
            state="unknown",
            found=f"the stack has no resource {logical}",
            mend="deploy the template.yaml of this version",
        )


def _secrets(deployed: Deployed) -> dict[str, str]:
    given = {
        "the hub's token": deployed.parameters.get("HubTokenSecretArn", ""),
        "MLflow's token": deployed.parameters.get("MlflowTokenSecretArn", ""),
        "Slack's webhook": deployed.parameters.get("SlackSecretArn", ""),
    }
    return {purpose: arn for purpose, arn in given.items() if arn}


def _pass_role(name: str, stack: Stack, deployed: Deployed, roles: Iterable[str]) -> Iterator[Check]:
    if stack.is_local:
        yield Check(name=name, state="unknown", found="the local AWS does not simulate policies")
        return
    client = aws.client("iam")
    arns = [client.get_role(RoleName=role)["Role"]["Arn"] for role in roles]
    yield from _with(
        "FineTuneRole",
        deployed,
        lambda role: checkup.pass_role(client, client.get_role(RoleName=role)["Role"]["Arn"], arns, name),
        name,
    )


def _image(name: str, stack: Stack, deployed: Deployed) -> Iterator[Check]:
    if stack.is_local:
        yield Check(name=name, state="ok", found="the local AWS runs the image's code from this checkout")
        return
    yield from checkup.image(aws.client("ecr"), stack.resources.image_uri, deployed.region, name)


def _quota(name: str, stack: Stack, deployed: Deployed) -> Iterator[Check]:
    if stack.is_local:
        yield Check(name=name, state="unknown", found="the local AWS has no quotas")
        return
    wanted, instances, none_left = wanted_quotas(deployed)
    if none_left:
        yield Check(name=name, state="bad", found=none_left)
        return
    yield from checkup.quotas(aws.client("service-quotas"), wanted, deployed.region, name, instances)


def wanted_quotas(deployed: Deployed) -> tuple[Mapping[str, Sequence[str]], Mapping[str, int], str]:
    """(use to instance types, use to the instances of one job, why there are none) of the stack's runs.

    The types are those of the default recipe that the stack allows, and all others that it allows by name, for which
    another recipe may ask.
    """
    parameters = deployed.parameters
    allowed, table = type_names(parameters.get("AllowedInstanceTypes", "")), load_catalogue()
    recipe = deployed.recipe() or Recipe.model_validate({"base_model": STACK_DEFAULT})
    limited, none_left = allowed_only(recipe, allowed)
    compute = limited.compute
    others = [found for found in map(table.find, allowed) if found is not None]
    training = tuple(dict.fromkeys((*compute.instance_types, *(one.type for one in others))))
    transform = (*compute.evaluation_instance_types, *(one.type for one in others if one.transform))
    wanted: dict[str, Sequence[str]] = {"training": training, "transform": tuple(dict.fromkeys(transform))}
    if compute.spot:
        # Where spot has none left, the ladder goes on demand.
        wanted["spot training"] = training
    if cache_type := parameters.get("CacheInstanceType"):
        wanted["processing"] = (cache_type,)
    return wanted, dict.fromkeys(("training", "spot training"), compute.instance_count), none_left


def _base_model(name: str, stack: Stack, deployed: Deployed) -> Iterator[Check]:
    recipe = deployed.recipe()
    if recipe is None:
        yield Check(
            name=name,
            state="bad",
            found="the stack's parameter DefaultRecipe has faults",
            mend="`dropforge validate --recipe` on a file with its text lists them",
        )
        return
    if recipe.base_model.repo == STACK_DEFAULT:
        yield Check(
            name=name,
            state="unknown",
            found="the stack's default recipe names no base model; each dataset's own recipe does",
        )
        return
    if stack.is_local:
        yield Check(name=name, state="unknown", found="the local AWS fetches nothing from a hub")
        return
    secret = deployed.parameters.get("HubTokenSecretArn", "")
    token = (
        str(aws.client("secretsmanager").get_secret_value(SecretId=secret)["SecretString"]).strip()
        if secret
        else ""
    )
    yield from checkup.base_model(Hub(HUB, token, tries=2), recipe.base_model, name)


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
    yield subscription_check(name, found)


def subscription_check(name: str, subscriptions: Sequence[Mapping[str, Any]]) -> Check:
    """Whether those of ListSubscriptionsByTopic's answer are confirmed: an ARN takes the place of a word then."""
    pending = [one for one in subscriptions if not str(one["SubscriptionArn"]).startswith("arn:")]
    if not subscriptions:
        return Check(
            name=name,
            state="unknown",
            found="no e-mail address is subscribed",
            mend="set the stack's e-mail parameter, or subscribe to its topic, if you want e-mail",
        )
    if pending:
        return Check(
            name=name,
            state="bad",
            found=f"{len(pending)} of {len(subscriptions)} subscriptions wait for confirmation",
            mend="click the link in the e-mail that AWS sent",
        )
    return Check(name=name, state="ok", found=f"{len(subscriptions)} subscribed")


def view(found: Diagnosis) -> RenderableType:
    """The checks for a terminal."""
    marks = {
        "ok": ("✓", "green"),
        "warning": ("!", "yellow"),
        "bad": ("✗", "red"),
        "unknown": ("?", "yellow"),
    }
    table = Table.grid(padding=(0, 1))
    for check in found.checks:
        mark, style = marks[check.state]
        mend = f"\n→ {check.mend}" if check.mend else ""
        table.add_row(Text(mark, style=style), Text(check.name, style="bold"), said(check.found + mend))
    left = [said(f"  {thing}", "dim") for thing in found.not_checked]
    return Group(table, Text(), Text("not checked:", style="dim"), *left)
