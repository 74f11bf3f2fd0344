"""Events, mails and logs over HTTP: what reaches functions and people when something happens."""

import email
import json
import uuid
from email import policy
from typing import Any

import pytest
from botocore.exceptions import ClientError
from sample_stack import EMAIL, Sample, eventually


def heard(sample: Sample, wanted: str, match: str) -> dict[str, Any]:
    """The first event of a detail-type in whose detail `match` stands."""
    queue = sample.client("sqs")

    def ask() -> dict[str, Any] | None:
        found = queue.receive_message(QueueUrl=sample.outputs["QueueUrl"], MaxNumberOfMessages=10)
        for message in found.get("Messages", []):
            event: dict[str, Any] = json.loads(message["Body"])
            if event["detail-type"] == wanted and match in json.dumps(event["detail"], ensure_ascii=False):
                return event
        return None

    event: dict[str, Any] = eventually(ask)
    return event


def test_an_upload_is_told_as_aws_tells_it(sample: Sample) -> None:
    """`Object Created` has the raw key, version, size, etag and a hexadecimal sequencer."""
    key = f"datasets/été {uuid.uuid4().hex}+%2F.jsonl"
    put = sample.client("s3").put_object(Bucket=sample.outputs["Bucket"], Key=key, Body=b"{}\n")
    event = heard(sample, "Object Created", key)
    told = event["detail"]["object"]
    assert (event["source"], event["detail"]["reason"]) == ("aws.s3", "PutObject")
    assert told["key"] == key
    assert told["version-id"] == put["VersionId"]
    assert (told["size"], told["etag"]) == (3, put["ETag"].strip('"'))
    assert int(told["sequencer"], 16) > 0


def test_a_range_of_a_version_is_that_range(sample: Sample) -> None:
    """Of a version that was overwritten a piece is read as of any object, and none behind its end."""
    s3, where = sample.client("s3"), {"Bucket": sample.outputs["Bucket"], "Key": f"range-{uuid.uuid4().hex}"}
    version = s3.put_object(**where, Body=b"0123456789")["VersionId"]
    s3.put_object(**where, Body=b"another")
    for wanted, piece in (
        ("bytes=3-", b"3456789"),
        ("bytes=0-0", b"0"),
        ("bytes=-2", b"89"),
        ("bytes=8-99", b"89"),
    ):
        found = s3.get_object(**where, VersionId=version, Range=wanted)
        assert found["Body"].read() == piece
        assert found["ContentRange"].endswith("/10")
        assert found["ResponseMetadata"]["HTTPStatusCode"] == 206
    with pytest.raises(ClientError, match="InvalidRange"):
        s3.get_object(**where, VersionId=version, Range="bytes=10-")
    assert s3.get_object(**where, VersionId=version)["Body"].read() == b"0123456789"


def test_an_upload_in_parts_is_told_once(sample: Sample) -> None:
    """A multipart upload is one event, when it is complete."""
    s3, where = sample.client("s3"), {"Bucket": sample.outputs["Bucket"], "Key": f"parts-{uuid.uuid4().hex}"}
    upload = s3.create_multipart_upload(**where)["UploadId"]
    part = s3.upload_part(**where, UploadId=upload, PartNumber=1, Body=b"x" * 100)
    s3.complete_multipart_upload(
        **where, UploadId=upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    )
    told = heard(sample, "Object Created", where["Key"])["detail"]
    assert told["reason"] == "CompleteMultipartUpload"
    assert told["object"]["size"] == 100


def test_an_executions_end_is_told_on_the_default_bus(sample: Sample) -> None:
    """Step Functions Execution Status Change carries status, input, error and cause."""
    execution = sample.start(
        sample.machine({"No": {"Type": "Fail", "Error": "GATE_FAILED", "Cause": "worse"}})
    )
    event = heard(sample, "Step Functions Execution Status Change", '"FAILED"')
    detail = event["detail"]
    assert (event["source"], event["resources"]) == ("aws.states", [execution])
    assert (detail["error"], detail["cause"], detail["redriveStatus"]) == (
        "GATE_FAILED",
        "worse",
        "REDRIVABLE",
    )
    assert detail["stopDate"] >= detail["startDate"] > 1_600_000_000_000


def test_a_jobs_states_are_told_on_the_default_bus(sample: Sample, job_name: str) -> None:
    """SageMaker Training Job State Change arrives, from a source that PutEvents itself refuses."""
    sample.run({"Train": sample.training(job_name, "ok")})
    event = heard(sample, "SageMaker Training Job State Change", job_name)
    assert event["source"] == "aws.sagemaker"
    answer = sample.client("events").put_events(
        Entries=[{"Source": "aws.sagemaker", "DetailType": "forged", "Detail": "{}"}]
    )
    assert answer["FailedEntryCount"] == 1


def test_a_state_machine_speaks_to_functions_over_the_bus(sample: Sample) -> None:
    """events:putEvents with an object as Detail reaches the rule's function on a bus of our own."""
    key = uuid.uuid4().hex
    entry = {
        "EventBusName": sample.outputs["BusName"],
        "Source": "probe",
        "DetailType": "RunEnded",
        "Detail": {"id": key},
    }
    put = {"Resource": "arn:aws:states:::events:putEvents", "Arguments": {"Entries": [entry]}}
    end = sample.run({"Tell": {"Type": "Task", **put, "End": True}})
    assert end["output"]["FailedEntryCount"] == 0
    eventually(lambda: deliveries(sample, key) == 1)


def test_a_function_that_fails_on_an_event_is_called_again(sample: Sample) -> None:
    """EventBridge invokes asynchronously: a failed function gets its event two times more."""
    key = uuid.uuid4().hex
    sample.client("events").put_events(
        Entries=[
            {
                "EventBusName": sample.outputs["BusName"],
                "Source": "probe",
                "DetailType": "x",
                "Detail": json.dumps({"id": key, "fail": True}),
            }
        ]
    )
    eventually(lambda: deliveries(sample, key) == 3)


def test_mail_lies_in_the_outbox(sample: Sample) -> None:
    """What SNS would have mailed is a file with recipient, subject and text."""
    subject, text = f"Run {uuid.uuid4().hex} ended", "REGISTERED · kept for good"
    sample.client("sns").publish(TopicArn=sample.outputs["TopicArn"], Subject=subject, Message=text)
    outbox = sample.engine.state_dir / "outbox"

    def find() -> Any:
        for path in outbox.glob("*.eml"):
            mail = email.message_from_bytes(path.read_bytes(), policy=policy.default)
            if mail["Subject"] == subject:
                return mail
        return None

    mail = eventually(find)
    assert mail["To"] == EMAIL
    assert mail.get_content().strip() == text


def test_a_functions_output_is_in_cloudwatch(sample: Sample) -> None:
    """What a function prints is in /aws/lambda/<name>, between START and REPORT."""
    name, word = sample.outputs["ProbeName"], uuid.uuid4().hex
    answer = sample.client("lambda").invoke(FunctionName=name, Payload=json.dumps({"do": word}))
    assert json.loads(answer["Payload"].read())["function"] == name
    found = sample.client("logs").filter_log_events(logGroupName=f"/aws/lambda/{name}")["events"]
    messages = [event["message"] for event in found]
    assert f"probe does {word}" in messages
    assert any(message.startswith("REPORT RequestId") for message in messages)


def test_an_updated_function_runs_its_new_settings(sample: Sample) -> None:
    """A warm worker of the former configuration serves no invocation after an update."""
    functions, name = sample.client("lambda"), sample.outputs["ProbeName"]
    before = functions.get_function_configuration(FunctionName=name)
    try:
        functions.update_function_configuration(FunctionName=name, Handler="probe.on_event")
        answer = functions.invoke(FunctionName=name, Payload=b'{"do": "echo"}')
        assert json.loads(answer["Payload"].read())["errorType"] == "KeyError"
    finally:
        functions.update_function_configuration(FunctionName=name, Handler=before["Handler"])


def deliveries(sample: Sample, key: str) -> int:
    table = sample.outputs["TableName"]
    found = sample.client("dynamodb").get_item(TableName=table, Key={"pk": {"S": key}}, ConsistentRead=True)
    return int(found.get("Item", {}).get("deliveries", {}).get("N", "0"))
