"""The single checks of `doctor` that need more than the stack's outputs: quotas, image, roles, key, secrets, hub.

Each is one function of a client and what to look for, and yields what it found. A call that AWS refuses
raises; the caller reports it as unknown.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Final, Literal

from botocore.exceptions import ClientError

from dropforge.cli.functions import BaseModelUnavailable, Hub, HubUnreachable
from dropforge_core.aws import error_code
from dropforge_core.model import Frozen
from dropforge_core.recipe import BaseModelRef

QUOTA_NAMES: Final[Mapping[str, str]] = {
    "training": "for training job usage",
    "spot training": "for spot training job usage",
    "transform": "for transform job usage",
    "processing": "for processing job usage",
}
"""Use to the end of its quota's name: `ml.g6.xlarge for training job usage`."""
IMAGE: Final = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(\.cn)?/(?P<repository>[a-z0-9][a-z0-9._/-]*)"
    r"(:(?P<tag>[\w][\w.-]{0,127}))?(@(?P<digest>sha256:[0-9a-f]{64}))?"
)
JOB_SERVICE: Final = "sagemaker.amazonaws.com"


class Check(Frozen):
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "warning", "bad", "unknown"]
    """`warning`: runs will go, but not everything that is allowed; `bad`: they won't."""
    found: str
    mend: str = ""


def quotas(
    client: Any,
    wanted: Mapping[str, Iterable[str]],
    region: str,
    name: str = "quota",
    instances: Mapping[str, int] = {},
) -> Iterator[Check]:
    """The quota of every type for each use that is wanted of it, and whether the region has the type at all.

    Args:
        client: Service Quotas.
        wanted: use, as in `QUOTA_NAMES`, to the allowed instance types.
        region: for the words.
        name: of the checks.
        instances: use to the instances that one job takes, where that is more than one.
    """
    known = _sagemaker_quotas(client)
    for use, types in wanted.items():
        allowed, needed = list(dict.fromkeys(types)), instances.get(use, 1)
        found = {t: known.get(f"{t} {QUOTA_NAMES[use]}") for t in allowed}
        usable = [t for t, quota in found.items() if quota and quota["Value"] >= needed]
        if usable:
            yield Check(
                name=name,
                state="ok",
                found=f"{use}: " + ", ".join(f"{found[t]['Value']:g} of {t}" for t in usable),  # type: ignore[index]
            )
        worst: Literal["warning", "bad"] = "warning" if usable else "bad"
        for instance_type, quota in found.items():
            if quota is None:
                yield Check(
                    name=name,
                    state=worst,
                    found=f"{use}: {region} has no quota for {instance_type}, so it does not offer the type for this",
                    mend=f"take {instance_type} out of the recipe's {_setting(use)}, or use another region",
                )
            elif quota["Value"] < needed:
                short = "" if needed == 1 else f", and a job takes {needed}"
                yield Check(
                    name=name,
                    state=worst,
                    found=f"{use}: the quota of {instance_type} is {quota['Value']:g} ({quota['QuotaCode']}){short}",
                    mend="aws service-quotas request-service-quota-increase --service-code sagemaker "
                    f"--quota-code {quota['QuotaCode']} --desired-value {needed}"
                    + (f", or take it out of {_setting(use)}" if usable else ""),
                )


def _setting(use: str) -> str:
    return {
        "transform": "compute.evaluation_instance_types",
        "processing": "place: the stack's parameter CacheInstanceType",
    }.get(use, "compute.instance_types")


def _sagemaker_quotas(client: Any) -> dict[str, Mapping[str, Any]]:
    """Quotas by name: the account's own, and AWS's defaults where the account has none."""
    pages = (
        client.get_paginator(call).paginate(ServiceCode="sagemaker")
        for call in ("list_aws_default_service_quotas", "list_service_quotas")
    )
    return {str(quota["QuotaName"]): quota for page in chain.from_iterable(pages) for quota in page["Quotas"]}


def image(client: Any, uri: str, region: str, name: str = "training image") -> Iterator[Check]:
    """Whether the image is in ECR, in the stack's region, and pinned by digest.

    Args:
        client: ECR of the stack's region.
        uri: the stack's parameter ImageUri.
        region: of the stack.
        name: of the check.
    """
    parts = IMAGE.fullmatch(uri)
    if parts is None:
        yield Check(
            name=name,
            state="bad",
            found=f"{uri or 'nothing'} is no image of ECR, and SageMaker takes no other",
            mend="build one with `make image`, push it to ECR, and deploy with its address",
        )
        return
    if parts["region"] != region:
        yield Check(
            name=name,
            state="bad",
            found=f"{uri} lies in {parts['region']}, the stack in {region}",
            mend=f"push it to ECR in {region}: SageMaker takes images of its own region only",
        )
        return
    wanted = {"imageDigest": parts["digest"]} if parts["digest"] else {"imageTag": parts["tag"] or "latest"}
    try:
        found = client.describe_images(
            registryId=parts["account"], repositoryName=parts["repository"], imageIds=[wanted]
        )["imageDetails"][0]
    except ClientError as error:
        if error_code(error) not in {"RepositoryNotFoundException", "ImageNotFoundException"}:
            raise
        yield Check(
            name=name,
            state="bad",
            found=f"{uri} is not there: {error.response['Error'].get('Message', error_code(error))}",
            mend="push the image, or deploy with the address of one that is there",
        )
        return
    digest = str(found["imageDigest"])
    size = f", {found['imageSizeInBytes'] / 1e9:.1f} GB" if found.get("imageSizeInBytes") else ""
    yield Check(
        name=name,
        state="ok" if parts["digest"] else "warning",
        found=f"{uri} is there{size}" + ("" if parts["digest"] else f"; its tag means {digest} today"),
        mend=""
        if parts["digest"]
        else f"deploy with ImageUri={uri.partition('@')[0].rsplit(':', 1)[0]}@{digest}: a tag may come to mean another image",
    )


def job_roles(client: Any, roles: Mapping[str, str], name: str = "roles") -> Iterator[Check]:
    """Whether the jobs' roles exist and SageMaker may take them.

    Args:
        client: IAM.
        roles: what each is for, to its name.
        name: of the checks.
    """
    for purpose, role in roles.items():
        try:
            document = client.get_role(RoleName=role)["Role"]["AssumeRolePolicyDocument"]
        except ClientError as error:
            if error_code(error) != "NoSuchEntity":
                raise
            yield Check(
                name=name,
                state="bad",
                found=f"the role for {purpose}, {role}, is not there",
                mend="deploy template.yaml again",
            )
            continue
        trusted = _trusts(document if isinstance(document, Mapping) else json.loads(document), JOB_SERVICE)
        yield Check(
            name=name,
            state="ok" if trusted else "bad",
            found=f"{role}, for {purpose}, {'trusts' if trusted else 'does not trust'} {JOB_SERVICE}",
            mend="" if trusted else "deploy template.yaml again: somebody changed who may take the role",
        )


def _trusts(document: Mapping[str, Any], service: str) -> bool:
    statements = document.get("Statement", [])
    for statement in [statements] if isinstance(statements, Mapping) else statements:
        named = statement.get("Principal", {})
        services = named.get("Service", []) if isinstance(named, Mapping) else []
        if statement.get("Effect") == "Allow" and service in (
            [services] if isinstance(services, str) else services
        ):
            return True
    return False


def pass_role(
    client: Any, machine_role: str, roles: Iterable[str], name: str = "PassRole"
) -> Iterator[Check]:
    """Whether the state machine's role may hand the jobs' roles to SageMaker, as IAM simulates it.

    Args:
        client: IAM.
        machine_role: ARN.
        roles: ARNs.
        name: of the check.
    """
    wanted = list(roles)
    answer = client.simulate_principal_policy(
        PolicySourceArn=machine_role,
        ActionNames=["iam:PassRole"],
        ResourceArns=wanted,
        ContextEntries=[
            {
                "ContextKeyName": "iam:PassedToService",
                "ContextKeyValues": [JOB_SERVICE],
                "ContextKeyType": "string",
            }
        ],
    )
    decisions = {
        part["EvalResourceName"]: part["EvalResourceDecision"]
        for result in answer["EvaluationResults"]
        for part in result.get("ResourceSpecificResults")
        or [
            {
                "EvalResourceName": result.get("EvalResourceName"),
                "EvalResourceDecision": result["EvalDecision"],
            }
        ]
    }
    refused = [arn for arn in wanted if decisions.get(arn) != "allowed"]
    yield Check(
        name=name,
        state="bad" if refused else "ok",
        found=f"{machine_role} may not pass {', '.join(refused)} to SageMaker"
        if refused
        else f"{machine_role} may pass {len(wanted)} roles to SageMaker",
        mend="look for a permissions boundary or a policy of your organisation that denies iam:PassRole"
        if refused
        else "",
    )


def key(client: Any, key_id: str, name: str = "key") -> Iterator[Check]:
    """Whether the stack's KMS key works.

    Args:
        client: KMS.
        key_id: id or ARN.
        name: of the check.
    """
    found = client.describe_key(KeyId=key_id)["KeyMetadata"]
    enabled = found["KeyState"] == "Enabled"
    yield Check(
        name=name,
        state="ok" if enabled else "bad",
        found=f"{found['Arn']} is {found['KeyState']}",
        mend=""
        if enabled
        else "enable it, or cancel its deletion, in KMS: without it nothing that the stack wrote can be read",
    )


def switch(client: Any, parameter: str, name: str = "new runs") -> Iterator[Check]:
    """Whether uploads start runs.

    Args:
        client: Systems Manager.
        parameter: name of the kill switch.
        name: of the check.
    """
    value = str(client.get_parameter(Name=parameter)["Parameter"]["Value"])
    is_open = value == "open"
    yield Check(
        name=name,
        state="ok" if is_open else "warning",
        found=f"{parameter} is '{value}': uploads start {'runs' if is_open else 'nothing'}",
        mend="" if is_open else f"aws ssm put-parameter --name {parameter} --value open --overwrite",
    )


def secrets(client: Any, wanted: Mapping[str, str], name: str = "secrets") -> Iterator[Check]:
    """Whether the secrets that the stack was given are there and hold a value. The value is not read.

    Args:
        client: Secrets Manager.
        wanted: what each is for, to its ARN or name.
        name: of the checks.
    """
    for purpose, secret in wanted.items():
        mend = "create it, or deploy with the ARN of one that is there"
        try:
            found = client.describe_secret(SecretId=secret)
        except ClientError as error:
            if error_code(error) != "ResourceNotFoundException":
                raise
            yield Check(name=name, state="bad", found=f"{secret}, {purpose}, is not there", mend=mend)
            continue
        current = any("AWSCURRENT" in labels for labels in found.get("VersionIdsToStages", {}).values())
        if found.get("DeletedDate"):
            told, mend = "is to be deleted", "restore it: `aws secretsmanager restore-secret`"
        elif not current:
            told, mend = "has no value", "give it one: `aws secretsmanager put-secret-value`"
        else:
            told, mend = "is there and has a value", ""
        yield Check(name=name, state="bad" if mend else "ok", found=f"{secret}, {purpose}, {told}", mend=mend)


def base_model(hub: Hub, ref: BaseModelRef, name: str = "base model") -> Iterator[Check]:
    """Whether the hub gives the base model to this token; a gated one is refused.

    Args:
        hub: with the token that the stack uses.
        ref: of the default recipe.
        name: of the check.
    """
    if ref.repo is None:
        yield Check(name=name, state="ok", found=f"{ref.s3} is asked of no hub")
        return
    try:
        found = hub.resolve(ref.repo, ref.revision)
        hub.config(ref.repo, found.commit)
    except BaseModelUnavailable as error:
        yield Check(
            name=name,
            state="bad",
            found=str(error),
            mend=f"accept the terms of {ref.repo} on its page with the account of the stack's token "
            "(parameter HubTokenSecretArn), or give the model as an S3 prefix",
        )
    except HubUnreachable as error:
        yield Check(name=name, state="unknown", found=str(error))
    else:
        yield Check(name=name, state="ok", found=f"{ref.repo} may be read, at {found.commit}")
