"""What `doctor` finds before a first run: each check over real HTTP, against the local AWS where it has the service."""

import json

import boto3
import pytest
from aws_answers import answering, connected, served
from stub_hub import serving

from dropforge.cli import checkup
from dropforge.cli.doctor import Deployed, subscription_check, wanted_quotas
from dropforge.cli.functions import Hub
from dropforge_core.recipe import BaseModelRef

COMMIT = "ab" * 20
TRUST = {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}


def quota(name, value, code="L-0000AAAA"):
    return {"QuotaName": name, "QuotaCode": code, "Value": value}


def states(checks):
    return [(check.state, check.found) for check in checks]


def test_quotas_are_told_for_every_type_and_use():
    """The account's quota stands above AWS's default, over pages; a type without one is not offered; 0 names its code."""

    def reply(operation, arguments):
        if operation == "ListAWSDefaultServiceQuotas":
            return {
                "Quotas": [
                    quota("ml.g6.xlarge for training job usage", 0),
                    quota("ml.g5.xlarge for training job usage", 0, "L-11111111"),
                    quota("ml.g5.xlarge for transform job usage", 0, "L-22222222"),
                ]
            }
        if "NextToken" not in arguments:
            return {"Quotas": [quota("endpoints", 5)], "NextToken": "more"}
        return {"Quotas": [quota("ml.g6.xlarge for training job usage", 2)]}

    wanted = {
        "training": ["ml.g6.xlarge", "ml.g5.xlarge", "ml.p5.4xlarge"],
        "transform": ["ml.g5.xlarge"],
    }
    with answering("service-quotas", reply) as client:
        found = list(checkup.quotas(client, wanted, "us-east-1"))
    assert states(found) == [
        ("ok", "training: 2 of ml.g6.xlarge"),
        ("warning", "training: the quota of ml.g5.xlarge is 0 (L-11111111)"),
        (
            "warning",
            "training: us-east-1 has no quota for ml.p5.4xlarge, so it does not offer the type for this",
        ),
        ("bad", "transform: the quota of ml.g5.xlarge is 0 (L-22222222)"),
    ]
    assert "--quota-code L-11111111 --desired-value 1" in found[1].mend
    assert "compute.instance_types" in found[2].mend


def test_the_quotas_that_matter_are_those_of_what_the_stack_allows():
    """Of the default recipe's types those that are allowed, and the others that are; where none is left, that is told."""
    everything, _, none_left = wanted_quotas(Deployed(region="us-east-1"))
    assert not none_left
    assert "ml.g6.xlarge" in everything["training"]
    few = Deployed(
        region="us-east-1",
        parameters={"AllowedInstanceTypes": "ml.g5.xlarge,ml.p5.4xlarge", "CacheInstanceType": "c"},
    )
    wanted, _, none_left = wanted_quotas(few)
    assert not none_left
    assert wanted["training"] == wanted["spot training"] == ("ml.g5.xlarge", "ml.p5.4xlarge")
    assert wanted["transform"] == ("ml.g5.xlarge",)
    assert wanted["processing"] == ("c",)
    other = Deployed(region="us-east-1", parameters={"AllowedInstanceTypes": "ml.p5.4xlarge"})
    assert "None of the recipe's compute.evaluation_instance_types" in wanted_quotas(other)[2]


def test_a_switch_that_is_off_is_told(world):
    """Whoever wonders why an upload starts nothing reads it here, with the command that mends it."""
    ssm = boto3.client("ssm")
    for value, state in (("open", "ok"), ("stopped", "warning")):
        ssm.put_parameter(Name="/doctor/intake", Value=value, Type="String", Overwrite=True)
        [check] = checkup.switch(ssm, "/doctor/intake")
        assert check.state == state
    assert "--name /doctor/intake --value open" in check.mend
    ssm.delete_parameter(Name="/doctor/intake")


def test_a_quota_must_hold_all_instances_of_a_job():
    """Two hosts need a quota of two: one is told as too small, with the number to ask for."""

    def reply(_operation, _arguments):
        return {"Quotas": [quota("ml.g6.12xlarge for training job usage", 1, "L-1")]}

    with answering("service-quotas", reply) as client:
        (found,) = checkup.quotas(
            client, {"training": ["ml.g6.12xlarge"]}, "us-east-1", instances={"training": 2}
        )
    assert found.state == "bad"
    assert found.found == "training: the quota of ml.g6.12xlarge is 1 (L-1), and a job takes 2"
    assert "--desired-value 2" in found.mend


@pytest.mark.parametrize(
    ("arns", "state", "found"),
    [
        ([], "unknown", "no e-mail address"),
        (["arn:aws:sns:us-east-1:1:t:a"], "ok", "1 subscribed"),
        (["arn:aws:sns:us-east-1:1:t:a", "PendingConfirmation"], "bad", "1 of 2 subscriptions wait"),
    ],
)
def test_an_address_that_was_not_confirmed_is_told(arns, state, found):
    """SNS lists it with a word in the place of its ARN."""
    check = subscription_check("people to tell", [{"SubscriptionArn": arn} for arn in arns])
    assert check.state == state
    assert found in check.found


@pytest.fixture
def ecr(world):
    client = boto3.client("ecr", region_name="us-east-1")
    client.create_repository(repositoryName="dropforge")
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": kind,
            "config": {"mediaType": kind, "digest": "sha256:" + "0" * 64, "size": 9},
            "layers": [],
        }
    )
    digest = client.put_image(repositoryName="dropforge", imageManifest=manifest, imageTag="1")["image"][
        "imageId"
    ]["imageDigest"]
    yield client, digest
    client.delete_repository(repositoryName="dropforge", force=True)


def test_an_image_is_looked_for_and_its_digest_told(ecr):
    """A digest that is there is well, a tag is told what it means, what is missing or elsewhere can't be used."""
    client, digest = ecr
    at = "123456789012.dkr.ecr.us-east-1.amazonaws.com/dropforge"

    def look(uri):
        [check] = checkup.image(client, uri, "us-east-1")
        return check

    assert look(f"{at}@{digest}").state == "ok"
    tagged = look(f"{at}:1")
    assert tagged.state == "warning"
    assert f"ImageUri={at}@{digest}" in tagged.mend
    assert look(f"{at}:2").state == "bad"
    assert look(at.replace("/dropforge", "/nowhere") + ":1").state == "bad"
    assert "us-west-2" in look(at.replace("us-east-1", "us-west-2") + ":1").found
    assert look("docker.io/someone/image:1").state == "bad"
    assert look("").state == "bad"


def test_job_roles_must_be_there_and_trust_sagemaker(world):
    """A role that SageMaker may take is well; one that trusts another, or is gone, stops every job."""
    iam = boto3.client("iam")
    for name, statement in (
        ("good", TRUST),
        ("other", {**TRUST, "Principal": {"Service": "lambda.amazonaws.com"}}),
    ):
        iam.create_role(
            RoleName=name,
            AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [statement]}),
        )
    try:
        found = list(checkup.job_roles(iam, {"training": "good", "evaluation": "other", "caching": "gone"}))
    finally:
        for name in ("good", "other"):
            iam.delete_role(RoleName=name)
    assert [check.state for check in found] == ["ok", "bad", "bad"]
    assert "is not there" in found[2].found


def test_a_key_that_is_to_be_deleted_is_found(world):
    """An enabled key is well; one whose deletion is scheduled would take everything with it."""
    kms = boto3.client("kms")
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    assert [check.state for check in checkup.key(kms, key)] == ["ok"]
    kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
    [check] = checkup.key(kms, key)
    assert check.state == "bad"
    assert "PendingDeletion" in check.found


def test_secrets_must_be_there_and_hold_something(world):
    """A missing secret, and one that is to be deleted, are found without reading any value."""
    client = boto3.client("secretsmanager")
    here = client.create_secret(Name="doctor-token", SecretString="hf_x")["ARN"]
    wanted = {"the hub's token": here, "Slack's webhook": "doctor-nowhere"}
    assert [check.state for check in checkup.secrets(client, wanted)] == ["ok", "bad"]
    client.delete_secret(SecretId=here, RecoveryWindowInDays=7)
    found = next(checkup.secrets(client, wanted))
    assert "restore-secret" in found.mend
    assert "hf_x" not in found.model_dump_json()
    client.delete_secret(SecretId=here, ForceDeleteWithoutRecovery=True)


@pytest.mark.parametrize(
    ("repository", "config", "state", "says"),
    [
        (200, 200, "ok", COMMIT),
        (403, 200, "bad", "accept the terms"),
        (200, 403, "bad", "accept the terms"),
        (500, 200, "unknown", ""),
    ],
)
def test_a_gated_base_model_is_found(repository, config, state, says):
    """The hub is asked with the stack's token for listing and config; a refusal of either names the terms to accept."""
    answers = {
        "/api/models/org/tiny/revision/main": [(repository, {"sha": COMMIT, "siblings": []}, {})],
        f"/org/tiny/resolve/{COMMIT}/config.json": [(config, {}, {})],
    }
    with serving(answers) as (endpoint, seen):
        hub = Hub(endpoint, "hf_token", tries=1)
        [check] = checkup.base_model(hub, BaseModelRef(repo="org/tiny"))
    assert check.state == state
    assert says in check.mend + check.found
    assert {authorization for _, authorization in seen} == {"Bearer hf_token"}


def decided(*decisions):
    """SimulatePrincipalPolicy's answer: decision and resource of each."""
    members = "".join(
        f"<member><EvalActionName>iam:PassRole</EvalActionName><EvalResourceName>{arn}</EvalResourceName>"
        f"<EvalDecision>{decision}</EvalDecision></member>"
        for arn, decision in decisions
    )
    space = "https://iam.amazonaws.com/doc/2010-05-08/"
    return (
        f'<SimulatePrincipalPolicyResponse xmlns="{space}"><SimulatePrincipalPolicyResult><IsTruncated>false'
        f"</IsTruncated><EvaluationResults>{members}</EvaluationResults></SimulatePrincipalPolicyResult>"
        "</SimulatePrincipalPolicyResponse>"
    ).encode()


def test_roles_that_may_not_be_passed_are_named():
    """The machine's right to pass each job's role is simulated; an organisation's denial is found and names the role."""
    roles = [f"arn:aws:iam::123456789012:role/{name}" for name in ("training", "caching")]
    asked = []

    def reply(_headers, body):
        asked.append(body.decode())
        return "text/xml", decided((roles[0], "allowed"), (roles[1], "explicitDeny"))

    with served(reply) as endpoint:
        client = connected("iam", endpoint)
        [refused] = checkup.pass_role(client, "arn:aws:iam::123456789012:role/machine", roles)
        [passed] = checkup.pass_role(client, "arn:aws:iam::123456789012:role/machine", roles[:1])
    assert refused.state == "bad"
    assert roles[1] in refused.found
    assert roles[0] not in refused.found
    assert passed.state == "ok"
    assert "iam%3APassedToService" in asked[0]


def test_the_whole_examination_ends_with_a_list(dropforge, world):
    """Every check answers against the local AWS, what it can't tell is unknown, and the document is whole."""
    said = dropforge("doctor", "--json")
    found = {check["name"]: check["state"] for check in said.document["checks"]}
    assert found["PassRole"] == found["quota"] == "unknown"
    assert found["training image"] == "ok"
    assert found["base model"] == "unknown"
    assert said.code == (1 if "bad" in found.values() else 0)
