"""Service integrations against a client that answers from a script: what HTTP probes can't bring about."""

from typing import Any, Literal

import pytest
from botocore.exceptions import ConnectTimeoutError

from dropforge.local.asl import wire
from dropforge.local.asl.failure import Failure
from dropforge.local.asl.history import History
from dropforge.local.asl.task import Resource, TaskCall
from dropforge.local.asl.waiting import LiveControl
from dropforge.local.callbacks import Callbacks, TaskDoesNotExist
from dropforge.local.integrations import Integrations, resource_fault


class SageMaker:
    """A training job that is, or becomes, what it is told."""

    def __init__(self, status: str) -> None:
        self._status = status

    def create_training_job(self, **_: Any) -> dict[str, str]:
        return {"TrainingJobArn": "arn:job"}

    def describe_training_job(self, TrainingJobName: str) -> dict[str, str]:  # noqa: N803  # the API's name
        return {"TrainingJobName": TrainingJobName, "TrainingJobStatus": self._status}


class Unreachable:
    """A service that can't be reached."""

    def update_item(self, **_: Any) -> None:
        raise ConnectTimeoutError(endpoint_url="http://nowhere")


def call_of(resource: str, **arguments: Any) -> TaskCall:
    parsed = Resource.parse(f"arn:aws:states:::{resource}")
    assert parsed is not None
    control = LiveControl(None)
    return TaskCall(
        "Call", parsed, arguments, None, "arn:e", "arn:m", None, None, control, History([], control.now)
    )


@pytest.mark.parametrize(("stopped_job", "fails"), [("fails", True), ("succeeds", False)])
def test_a_stopped_job_is_what_the_setting_says(
    stopped_job: Literal["fails", "succeeds"], fails: bool
) -> None:
    """AWS does not say whether `.sync` fails on a stopped job, so both can be had."""
    work = Integrations(lambda _: SageMaker("Stopped"), Callbacks(), stopped_job)
    call = call_of("sagemaker:createTrainingJob.sync", TrainingJobName="j")
    if fails:
        with pytest.raises(Failure, match=r"States\.TaskFailed"):
            work.run(call)
    else:
        assert work.run(call)["TrainingJobStatus"] == "Stopped"


def test_a_service_out_of_reach_is_an_sdk_client_exception() -> None:
    """Connection errors have the name that Retry lists."""
    work = Integrations(lambda _: Unreachable(), Callbacks())
    with pytest.raises(Failure, match=r"DynamoDB\.SdkClientException"):
        work.run(call_of("dynamodb:updateItem", TableName="t", Key={}))


@pytest.mark.parametrize(
    ("service_id", "name"),
    [
        ("SFN", "Sfn"),
        ("DynamoDB", "DynamoDb"),
        ("SageMaker", "SageMaker"),
        ("CloudWatch Logs", "CloudWatchLogs"),
        ("S3", "S3"),
        ("EventBridge", "EventBridge"),
    ],
)
def test_sdk_errors_begin_with_the_java_name(service_id: str, name: str) -> None:
    """SDK integrations call services as the Java SDK does."""
    assert wire.java_name(service_id) == name


def test_pascal_case_reaches_camel_case_apis() -> None:
    """SDK integrations write members in PascalCase, whatever the API's own case."""
    model = wire.operation("sfn", "startExecution")
    assert model is not None
    assert wire.to_api({"StateMachineArn": "a", "Input": "{}"}, model.input_shape) == {
        "stateMachineArn": "a",
        "input": "{}",
    }


@pytest.mark.parametrize(
    ("arn", "known"),
    [
        ("arn:aws:states:::sagemaker:createTrainingJob.sync", True),
        ("arn:aws:states:::sagemaker:createModel.sync", False),
        ("arn:aws:states:::aws-sdk:sagemaker:noSuchThing", False),
        ("arn:aws:states:::aws-sdk:nosuchservice:get", False),
        ("arn:aws:states:::batch:submitJob.sync", False),
        ("arn:aws:lambda:us-east-1:1:function:f", False),
    ],
)
def test_resources_that_cannot_run_are_known_beforehand(arn: str, known: bool) -> None:
    """A machine is refused at its creation, not in the middle of a run."""
    assert (resource_fault(arn) is None) is known


def test_a_heartbeat_keeps_a_task_alive_and_its_absence_ends_it() -> None:
    """Without a beat within HeartbeatSeconds the task is States.HeartbeatTimeout; an unknown token is refused."""
    callbacks, control = Callbacks(), LiveControl(None)
    with (
        callbacks.expect("token", control) as answer,
        pytest.raises(Failure, match=r"States\.HeartbeatTimeout"),
    ):
        answer.wait(None, 0.05)
    with pytest.raises(TaskDoesNotExist):
        callbacks.beat("another")
