"""The API over HTTP: what a request must satisfy, what is refused and how, models, registry, tags, lists."""

import json
from http.client import HTTPConnection
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

ARN = "arn:aws:sagemaker:eu-west-1:123456789012"


def refusal(call, **members):
    """Code and message of the refusal that a call meets."""
    with pytest.raises(ClientError) as caught:
        call(**members)
    error = caught.value.response["Error"]
    return error["Code"], error["Message"]


@pytest.mark.parametrize(
    ("members", "texts"),
    [
        (
            {"name": "a" * 64},
            [
                "'trainingJobName' failed to satisfy constraint: Member must have length less than or equal to 63"
            ],
        ),
        ({"name": "under_score"}, ["'trainingJobName'", "regular expression pattern: [a-zA-Z0-9](-*"]),
        (
            {"ResourceConfig": {"InstanceType": "ml.nope", "InstanceCount": 1, "VolumeSizeInGB": 1}},
            ["'ml.nope' at 'resourceConfig.instanceType'", "enum value set: [ml.m4.xlarge"],
        ),
        (
            {"HyperParameters": {"a": "two\nlines"}},
            ["'hyperParameters'", "Map value must satisfy constraint: [Member must satisfy regular"],
        ),
        ({"Environment": {"1x": "v"}}, ["'environment'", "Map keys must satisfy constraint"]),
        ({"Tags": [{"Key": "k", "Value": "50%"}]}, ["'tags.1.member.value'", "regular expression"]),
        (
            {"name": "a" * 64, "RoleArn": "arn:aws:iam::1:user/somebody"},
            ["3 validation errors detected", "'trainingJobName'", "'roleArn'"],
        ),
    ],
)
def test_constraints(lab, members, texts):
    """Maxima, patterns and enums, which botocore lets pass, are enforced in AWS's words, all at once."""
    with pytest.raises(ClientError) as caught:
        lab.train(lab.image("pass"), **members)
    error = caught.value.response["Error"]
    assert error["Code"] == "ValidationException"
    assert "failed to satisfy constraint" in error["Message"]
    for text in texts:
        assert text in error["Message"]
    assert lab.sm.list_training_jobs()["TrainingJobSummaries"] == []


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"EnableManagedSpotTraining": True}, "Invalid MaxWaitTimeInSeconds"),
        (
            {
                "EnableManagedSpotTraining": True,
                "StoppingCondition": {"MaxRuntimeInSeconds": 9, "MaxWaitTimeInSeconds": 8},
            },
            "Invalid MaxWaitTimeInSeconds",
        ),
        (
            {"StoppingCondition": {"MaxRuntimeInSeconds": 9, "MaxWaitTimeInSeconds": 9}},
            "only be set when EnableManagedSpotTraining",
        ),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 28 * 86400 + 1}}, "28 days"),
        (
            {
                "ResourceConfig": {
                    "InstanceType": "ml.g5.xlarge",
                    "InstanceCount": 1,
                    "VolumeSizeInGB": 1,
                    "VolumeKmsKeyId": "key",
                }
            },
            "VolumeKmsKeyId is not supported",
        ),
        (
            {
                "ResourceConfig": {
                    "InstanceType": "ml.g5.xlarge",
                    "InstancePreferences": [{"InstanceType": "ml.g6.xlarge", "InstanceCount": 1}],
                    "VolumeSizeInGB": 1,
                }
            },
            "InstancePreferences can't be used together with InstanceType",
        ),
        ({"algorithm": {"MetricDefinitions": [{"Name": "m", "Regex": "("}]}}, "regex of metric definition"),
        ({"OutputDataConfig": {"S3OutputPath": "https://x/y"}}, "not of the form s3://"),
        (
            {
                "InputDataConfig": [
                    {
                        "ChannelName": "a",
                        "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://b/"}},
                    }
                ]
                * 2
            },
            "must be unique",
        ),
    ],
)
def test_rules(lab, members, text):
    """What SageMaker refuses beyond the shapes is a ValidationException."""
    code, message = refusal(lambda **m: lab.train(lab.image("pass"), **m), **members)
    assert code == "ValidationException"
    assert text in message


@pytest.mark.parametrize(
    "members",
    [
        {"algorithm": {"TrainingInputMode": "Pipe"}, "InputDataConfig": "channel"},
        {"ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 1}},
        {"CheckpointConfig": {"S3Uri": "s3://runs/c/", "LocalPath": "/tmp/elsewhere"}},
        {"RetryStrategy": {"MaximumRetryAttempts": 2}},
    ],
)
def test_only_in_the_cloud(lab, members):
    """A valid request that this engine can't serve is refused loudly, naming the page that says so."""
    if members.get("InputDataConfig") == "channel":
        source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://runs/a/"}}
        members = {**members, "InputDataConfig": [{"ChannelName": "a", "DataSource": source}]}
    code, message = refusal(lambda **m: lab.train(lab.image("pass"), **m), **members)
    assert code == "NotSupportedLocally"
    assert "docs/local-aws.md" in message


def test_operations(lab):
    """An operation that is not offered, and one that does not exist, are told apart."""
    code, message = refusal(lab.sm.list_endpoints)
    assert code == "NotSupportedLocally"
    assert "ListEndpoints" in message
    assert post(lab, "SageMaker.MakeCoffee", b"{}")[1]["__type"] == "UnknownOperationException"
    assert post(lab, "Other.ListModels", b"{}")[1]["__type"] == "UnknownOperationException"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "SerializationException"),
        (b"[]", "SerializationException"),
        (b'{"MaxResults": "ten"}', "SerializationException"),
        (b'{"MaxResults": true}', "SerializationException"),
        (b'{"Surprise": 1}', "ValidationException"),
        (b'{"MaxResults": 101}', "ValidationException"),
    ],
)
def test_bodies(lab, body, code):
    """Whatever the body, the answer is a 400 that says what is wrong."""
    status, answer = post(lab, "SageMaker.ListModels", body)
    assert (status, answer["__type"]) == (400, code)


def test_nulls_and_times(lab):
    """A null member is an absent one; times are numbers of seconds on the wire."""
    lab.train(lab.image("pass"))
    status, answer = post(lab, "SageMaker.DescribeTrainingJob", b'{"TrainingJobName": "job"}')
    assert status == 200
    assert isinstance(answer["CreationTime"], float)
    assert post(lab, "SageMaker.ListModels", b'{"NameContains": null}')[0] == 200


def post(lab, target, body):
    connection = HTTPConnection(urlsplit(lab.sm.meta.endpoint_url).netloc)
    connection.request("POST", "/", body, {"X-Amz-Target": target})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


# --- jobs by name -------------------------------------------------------------------------------------


def test_job_names(lab):
    """A name is taken until its job is deleted, which only an ended job can be."""
    image = lab.image("time.sleep(60)")
    lab.train(image)
    code, message = refusal(lambda: lab.train(image))
    assert code == "ResourceInUse"
    assert f"{ARN}:training-job/job" in message
    assert refusal(lab.sm.delete_training_job, TrainingJobName="job")[0] == "ResourceInUse"
    lab.sm.stop_training_job(TrainingJobName="job")
    lab.ended("Training")
    lab.sm.delete_training_job(TrainingJobName="job")
    assert refusal(lab.sm.describe_training_job, TrainingJobName="job") == (
        "ValidationException",
        "Requested resource not found.",
    )
    lab.train(image)


@pytest.mark.parametrize("kind", ["processing", "transform"])
def test_unknown_jobs(lab, kind):
    """A job that is not there can't be described or stopped."""
    name = {f"{kind.title()}JobName": "nobody"}
    for call in (f"describe_{kind}_job", f"stop_{kind}_job"):
        assert refusal(getattr(lab.sm, call), **name)[0] == "ValidationException"


def test_list_jobs(lab):
    """Lists filter by name and status, sort both ways and come in pages that join to the whole."""
    image = lab.image("pass")
    for name in ("b-1", "a-2", "c-3"):
        lab.train(image, name)
        lab.ended("Training", name)
    listed = lab.sm.get_paginator("list_training_jobs").paginate(
        SortBy="Name", SortOrder="Descending", PaginationConfig={"PageSize": 2}
    )
    pages = [[job["TrainingJobName"] for job in page["TrainingJobSummaries"]] for page in listed]
    assert pages == [["c-3", "b-1"], ["a-2"]]
    by_age = lab.sm.list_training_jobs(StatusEquals="Completed")["TrainingJobSummaries"]
    assert [job["TrainingJobName"] for job in by_age] == ["b-1", "a-2", "c-3"]
    assert lab.sm.list_training_jobs(StatusEquals="Failed")["TrainingJobSummaries"] == []
    (found,) = lab.sm.list_training_jobs(NameContains="A-")["TrainingJobSummaries"]
    assert found["TrainingJobArn"] == f"{ARN}:training-job/a-2"
    assert (
        lab.sm.list_training_jobs(CreationTimeAfter=found["CreationTime"], NameContains="b")[
            "TrainingJobSummaries"
        ]
        == []
    )
    assert refusal(lab.sm.list_training_jobs, NextToken="bm9uc2Vuc2U=")[0] == "ValidationException"


# --- models -------------------------------------------------------------------------------------------


def create_model(lab, name="model", **container):
    given = {"Image": "repo/image:1", "ModelDataUrl": "s3://runs/model.tar.gz", **container}
    return lab.sm.create_model(
        ModelName=name, ExecutionRoleArn="arn:aws:iam::123456789012:role/x", PrimaryContainer=given
    )


def test_models(lab):
    """A model is made once, described as it was asked for, listed, and gone when deleted."""
    assert create_model(lab)["ModelArn"] == f"{ARN}:model/model"
    code, message = refusal(lambda: create_model(lab))
    assert code == "ValidationException"
    assert message.startswith("Cannot create already existing model")
    described = lab.sm.describe_model(ModelName="model")
    assert described["PrimaryContainer"]["ModelDataUrl"] == "s3://runs/model.tar.gz"
    assert described["EnableNetworkIsolation"] is False
    assert [found["ModelName"] for found in lab.sm.list_models()["Models"]] == ["model"]
    lab.sm.delete_model(ModelName="model")
    assert "Could not find model" in refusal(lab.sm.describe_model, ModelName="model")[1]


def test_model_data(lab):
    """Only what batch transform can load is taken: one gzip-compressed archive."""
    code, message = refusal(lambda: create_model(lab, ModelDataUrl="s3://runs/model/"))
    assert code == "ValidationException"
    assert ".tar.gz" in message


# --- registry -----------------------------------------------------------------------------------------


def package(lab, **members):
    specification = {"Containers": [{"Image": "repo/image:1", "ModelDataUrl": "s3://runs/model.tar.gz"}]}
    return lab.sm.create_model_package(
        **{
            "ModelPackageGroupName": "bot",
            "InferenceSpecification": {**specification, "SupportedContentTypes": ["application/jsonlines"]},
            "ModelApprovalStatus": "PendingManualApproval",
            **members,
        }
    )["ModelPackageArn"]


def test_packages(lab):
    """Packages are numbered within their group, which is named or given by ARN, and listed by approval."""
    group = lab.sm.create_model_package_group(ModelPackageGroupName="bot")["ModelPackageGroupArn"]
    assert group == f"{ARN}:model-package-group/bot"
    assert package(lab) == f"{ARN}:model-package/bot/1"
    second = package(lab, ModelPackageGroupName=group, CustomerMetadataProperties={"run_id": "abc"})
    assert second == f"{ARN}:model-package/bot/2"
    described = lab.sm.describe_model_package(ModelPackageName=second)
    assert described["ModelPackageVersion"] == 2
    assert described["ModelPackageGroupName"] == "bot"
    assert described["ModelPackageStatus"] == "Completed"
    assert described["CustomerMetadataProperties"] == {"run_id": "abc"}

    lab.sm.update_model_package(ModelPackageArn=second, ModelApprovalStatus="Approved")
    approved = lab.sm.list_model_packages(ModelPackageGroupName="bot", ModelApprovalStatus="Approved")
    assert [found["ModelPackageArn"] for found in approved["ModelPackageSummaryList"]] == [second]
    newest = lab.sm.list_model_packages(
        ModelPackageGroupName=group, SortBy="CreationTime", SortOrder="Descending", MaxResults=1
    )
    assert newest["ModelPackageSummaryList"][0]["ModelPackageArn"] == second

    lab.services[0].close()
    details = [detail for _, _, detail in lab.events]
    assert {kind for kind, _, _ in lab.events} == {"SageMaker Model Package State Change"}
    assert [detail["ModelApprovalStatus"] for detail in details] == [
        "PendingManualApproval",
        "PendingManualApproval",
        "Approved",
    ]
    assert "UpdatedModelPackageFields" not in details[1]
    assert details[2]["UpdatedModelPackageFields"] == ["ModelApprovalStatus"]
    assert details[2]["ModelPackageArn"] == second


def test_client_token(lab):
    """The same token with the same request is one package; with another request it is a conflict."""
    lab.sm.create_model_package_group(ModelPackageGroupName="bot")
    token = "00000000-0000-5000-8000-000000000000"
    assert package(lab, ClientToken=token) == package(lab, ClientToken=token)
    assert len(lab.sm.list_model_packages(ModelPackageGroupName="bot")["ModelPackageSummaryList"]) == 1
    code, _ = refusal(lambda: package(lab, ClientToken=token, ModelApprovalStatus="Approved"))
    assert code == "ConflictException"
    assert package(lab, ClientToken="another") == f"{ARN}:model-package/bot/2"


@pytest.mark.parametrize(
    "metadata",
    [{"k": "a,b"}, {"k": ""}, {"k": "x" * 257}, {"k" * 129: "v"}, {str(n): "v" for n in range(51)}],
)
def test_package_metadata(lab, metadata):
    """Customer metadata outside SageMaker's charset, lengths and number is refused."""
    endpoint = lab.sm.meta.endpoint_url
    lenient = boto3.client(
        "sagemaker",
        endpoint_url=endpoint,
        region_name="eu-west-1",
        aws_access_key_id="x",
        aws_secret_access_key="x",
        config=Config(parameter_validation=False),
    )
    lenient.create_model_package_group(ModelPackageGroupName="bot")
    code, message = refusal(
        lenient.create_model_package, ModelPackageGroupName="bot", CustomerMetadataProperties=metadata
    )
    assert code == "ValidationException"
    assert "'customerMetadataProperties'" in message


def test_package_refusals(lab):
    """Tags and names do not go with versions; a missing group or package is a ValidationException."""
    assert "does not exist" in refusal(lambda: package(lab))[1]
    lab.sm.create_model_package_group(ModelPackageGroupName="bot")
    assert refusal(lambda: package(lab, Tags=[{"Key": "k", "Value": "v"}]))[0] == "ValidationException"
    assert refusal(lambda: package(lab, ModelPackageName="bot"))[0] == "ValidationException"
    missing = f"{ARN}:model-package/bot/9"
    assert "does not exist" in refusal(lab.sm.describe_model_package, ModelPackageName=missing)[1]


def test_groups(lab):
    """A group is made once, and deleted only when it is empty; numbers begin anew in a new group."""
    make = lab.sm.create_model_package_group
    make(ModelPackageGroupName="bot", ModelPackageGroupDescription="For bots")
    code, message = refusal(make, ModelPackageGroupName="bot")
    assert code == "ValidationException"
    assert "already exists" in message
    described = lab.sm.describe_model_package_group(ModelPackageGroupName="bot")
    assert described["ModelPackageGroupDescription"] == "For bots"
    arn = package(lab)
    code, _ = refusal(lab.sm.delete_model_package_group, ModelPackageGroupName="bot")
    assert code == "ConflictException"
    lab.sm.delete_model_package(ModelPackageName=arn)
    assert package(lab) == f"{ARN}:model-package/bot/2"
    lab.sm.delete_model_package(ModelPackageName=f"{ARN}:model-package/bot/2")
    lab.sm.delete_model_package_group(ModelPackageGroupName="bot")
    assert lab.sm.list_model_package_groups()["ModelPackageGroupSummaryList"] == []
    make(ModelPackageGroupName="bot")
    assert package(lab) == arn


def test_metadata_update(lab):
    """An update adds and removes customer metadata and leaves the rest."""
    lab.sm.create_model_package_group(ModelPackageGroupName="bot")
    arn = package(lab, CustomerMetadataProperties={"a": "1", "b": "2"})
    lab.sm.update_model_package(
        ModelPackageArn=arn, CustomerMetadataProperties={"c": "3"}, CustomerMetadataPropertiesToRemove=["a"]
    )
    described = lab.sm.describe_model_package(ModelPackageName=arn)
    assert described["CustomerMetadataProperties"] == {"b": "2", "c": "3"}
    assert described["ModelApprovalStatus"] == "PendingManualApproval"


# --- tags ---------------------------------------------------------------------------------------------


def test_tags(lab):
    """Tags given at creation and later are listed; deleted ones are not; unknown resources have none."""
    lab.train(lab.image("pass"), Tags=[{"Key": "run_id", "Value": "abc"}])
    arn = f"{ARN}:training-job/job"
    lab.sm.add_tags(ResourceArn=arn, Tags=[{"Key": "more", "Value": "x"}, {"Key": "run_id", "Value": "def"}])
    assert lab.sm.list_tags(ResourceArn=arn)["Tags"] == [
        {"Key": "run_id", "Value": "def"},
        {"Key": "more", "Value": "x"},
    ]
    lab.sm.delete_tags(ResourceArn=arn, TagKeys=["run_id"])
    assert lab.sm.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "more", "Value": "x"}]
    assert refusal(lab.sm.list_tags, ResourceArn=arn + "-not")[0] == "ValidationException"
    lab.sm.create_model_package_group(ModelPackageGroupName="bot", Tags=[{"Key": "k", "Value": "v"}])
    group = f"{ARN}:model-package-group/bot"
    assert lab.sm.list_tags(ResourceArn=group)["Tags"] == [{"Key": "k", "Value": "v"}]
    create_model(lab)
    assert lab.sm.list_tags(ResourceArn=f"{ARN}:model/model")["Tags"] == []
