"""A fresh AWS account over HTTP, in which handlers find themselves through their environment."""

import boto3
import pytest

from dropforge_core.aws import Bus, client


class Context:
    """What Powertools reads of a Lambda context."""

    function_name = "f"
    memory_limit_in_mb = 128
    invoked_function_arn = "arn:aws:lambda:us-east-1:0:function:f"
    aws_request_id = "r"


class Account:
    """Clients of the account, with the stack's bucket `runs`, table `runs` and bus `default`."""

    def __init__(self) -> None:
        names = ("s3", "dynamodb", "sagemaker", "logs", "secretsmanager")
        self.s3, self.dynamodb, self.sagemaker, self.logs, self.secrets = (boto3.client(n) for n in names)
        self.s3.create_bucket(Bucket="runs")
        self.dynamodb.create_table(
            TableName="runs",
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )

    def put(self, key: str, body: bytes | str) -> None:
        self.s3.put_object(Bucket="runs", Key=key, Body=body)

    def get(self, key: str) -> bytes:
        return self.s3.get_object(Bucket="runs", Key=key)["Body"].read()

    def destroy(self) -> None:
        for entry in self.s3.list_objects_v2(Bucket="runs").get("Contents", []):
            self.s3.delete_object(Bucket="runs", Key=entry["Key"])
        self.s3.delete_bucket(Bucket="runs")
        self.dynamodb.delete_table(TableName="runs")
        # Packages can't be deleted here; none may be a champion of the next test.
        for group in self.sagemaker.list_model_package_groups()["ModelPackageGroupSummaryList"]:
            packages = self.sagemaker.list_model_packages(
                ModelPackageGroupName=group["ModelPackageGroupName"], ModelApprovalStatus="Approved"
            )
            for package in packages["ModelPackageSummaryList"]:
                self.sagemaker.update_model_package(
                    ModelPackageArn=package["ModelPackageArn"], ModelApprovalStatus="Rejected"
                )


@pytest.fixture
def account(empty_aws, monkeypatch):
    """The account; it is emptied after each test."""
    for name, value in {
        "AWS_ENDPOINT_URL": empty_aws,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "POWERTOOLS_TRACE_DISABLED": "true",
        "POWERTOOLS_METRICS_NAMESPACE": "Dropforge",
        "POWERTOOLS_SERVICE_NAME": "dropforge",
        "RUN_TABLE": "runs",
        "RUN_BUCKET": "runs",
        "EVENT_BUS": "default",
    }.items():
        monkeypatch.setenv(name, value)
    client.cache_clear()
    made = Account()
    yield made
    made.destroy()
    client.cache_clear()


@pytest.fixture
def published(monkeypatch):
    """What is published on the bus: (detail type, event), in order."""
    seen = []
    monkeypatch.setattr(Bus, "publish", lambda _bus, kind, event: seen.append((kind, event)))
    return seen


@pytest.fixture
def context():
    return Context()
