"""Processing jobs over HTTP: inputs, arguments, outputs, the exit message, the ways to end."""

import json

import pytest
from botocore.exceptions import ClientError


def s3_input(uri, path):
    return {
        "InputName": "given",
        "S3Input": {"S3Uri": uri, "LocalPath": path, "S3DataType": "S3Prefix", "S3InputMode": "File"},
    }


def s3_output(uri, path, mode="EndOfJob"):
    return {
        "Outputs": [
            {"OutputName": "made", "S3Output": {"S3Uri": uri, "LocalPath": path, "S3UploadMode": mode}}
        ]
    }


def test_completed(lab):
    """Inputs lie where they were asked for, arguments follow `--root`, outputs and the message come out."""
    lab.put("raw/a.txt", "alpha")
    image = lab.image(
        """
        text = (root / "processing" / "input" / "a.txt").read_text()
        config = json.loads((root / "config" / "processingjobconfig.json").read_text())
        (root / "processing" / "output" / "result.json").write_text(
            json.dumps({"text": text, "argv": [verb, *sys.argv[4:]], "name": config["ProcessingJobName"]})
        )
        (root / "output" / "message").write_text("cached 1 file")
        print("said")
        """
    )
    lab.process(
        image,
        app={"ContainerArguments": ["cache-base-model", "--source", "hub:x"]},
        ProcessingInputs=[s3_input("s3://runs/raw/", "/opt/ml/processing/input")],
        ProcessingOutputConfig=s3_output("s3://runs/made", "/opt/ml/processing/output"),
    )
    described = lab.ended("Processing")
    assert described["ProcessingJobStatus"] == "Completed"
    assert described["ExitMessage"] == "cached 1 file"
    assert described["ProcessingEndTime"] >= described["ProcessingStartTime"]
    assert json.loads(lab.read("s3://runs/made/result.json")) == {
        "text": "alpha",
        "argv": ["cache-base-model", "--source", "hub:x"],
        "name": "job",
    }
    assert lab.log_lines("/aws/sagemaker/ProcessingJobs", "job") == ["said"]


def test_events(lab):
    """Processing events write times as numbers of milliseconds and enums in capitals."""
    lab.put("raw/a.txt", "alpha")
    lab.process(lab.image("pass"), ProcessingInputs=[s3_input("s3://runs/raw/", "/opt/ml/processing/input")])
    lab.ended("Processing")
    lab.services[0].close()
    assert {kind for kind, _, _ in lab.events} == {"SageMaker Processing Job State Change"}
    last = lab.events[-1][2]
    assert last["ProcessingJobStatus"] == "Completed"
    assert isinstance(last["CreationTime"], int)
    assert last["ProcessingInputs"][0]["S3Input"]["S3DataType"] == "S3_PREFIX"
    assert last["ProcessingInputs"][0]["S3Input"]["S3InputMode"] == "FILE"


def test_own_entry_point(lab):
    """An entry point of the request takes the image's place, its python being the engine's."""
    image = lab.image("sys.exit(9)")
    lab.image("print('mine', verb)", name="mine.py")
    lab.process(
        image,
        app={"ContainerEntrypoint": ["python3", str(lab.root / "mine.py")], "ContainerArguments": ["go"]},
    )
    assert lab.ended("Processing")["ProcessingJobStatus"] == "Completed"
    assert lab.log_lines("/aws/sagemaker/ProcessingJobs", "job") == ["mine go"]


def test_failed(lab):
    """A non-zero exit fails the job with its code and message, and stores no output of the end."""
    image = lab.image(
        """
        (root / "processing" / "output" / "half").write_text("x")
        (root / "output" / "message").write_text("BASE_MODEL: no such revision")
        sys.exit(1)
        """
    )
    lab.process(image, ProcessingOutputConfig=s3_output("s3://runs/made", "/opt/ml/processing/output"))
    described = lab.ended("Processing")
    assert described["FailureReason"] == "AlgorithmError: , exit code: 1"
    assert described["ExitMessage"] == "BASE_MODEL: no such revision"
    assert lab.keys("made/") == []


def test_continuous_output(lab):
    """A continuous output is in S3 before the job ends."""
    image = lab.image(
        '(root / "processing" / "output" / "early").write_text("1"); time.sleep(60)',
    )
    lab.process(
        image, ProcessingOutputConfig=s3_output("s3://runs/made", "/opt/ml/processing/output", "Continuous")
    )
    lab.until(lambda: lab.keys("made/") == ["early"])
    assert lab.describe("Processing", "job")["ProcessingJobStatus"] == "InProgress"


@pytest.mark.parametrize("by", ["stop", "time"])
def test_stopped(lab, by):
    """A stop call and the time limit both end the job Stopped."""
    seconds = 1 if by == "time" else 60
    lab.process(
        lab.image("print('ready', flush=True); time.sleep(60)"),
        StoppingCondition={"MaxRuntimeInSeconds": seconds},
    )
    if by == "stop":
        lab.sm.stop_processing_job(ProcessingJobName="job")
    assert lab.ended("Processing")["ProcessingJobStatus"] == "Stopped"


def test_isolated(lab):
    """NetworkConfig's isolation withholds the credentials."""
    image = lab.image('(root / "output" / "message").write_text(str("AWS_ACCESS_KEY_ID" in os.environ))')
    lab.process(image, "open")
    lab.process(image, "closed", NetworkConfig={"EnableNetworkIsolation": True})
    assert lab.ended("Processing", "open")["ExitMessage"] == "True"
    assert lab.ended("Processing", "closed")["ExitMessage"] == "False"


def test_local_path(lab):
    """A folder outside /opt/ml/processing is refused, as SageMaker refuses it."""
    with pytest.raises(ClientError, match="must begin with /opt/ml/processing/"):
        lab.process(lab.image("pass"), ProcessingInputs=[s3_input("s3://runs/raw/", "/etc")])
