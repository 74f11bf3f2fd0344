"""Training jobs over HTTP: every way in which they end, and what they leave behind."""

import json
import os
from datetime import datetime
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

CHECKPOINTS = {"S3Uri": "s3://runs/ckpt/"}


def channel(name, uri):
    return {
        "ChannelName": name,
        "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": uri}},
    }


def statuses(described):
    return [transition["Status"] for transition in described["SecondaryStatusTransitions"]]


def test_completed(lab):
    """A job sees SageMaker's tree, and its model, output, metrics, log and statuses come out."""
    lab.put("data/train/part-0.jsonl", "one\n")
    lab.put("data/train/deep/part-1.jsonl", "two\n")
    image = lab.image(
        """
        config = root / "input" / "config"
        seen = {
            "verb": verb,
            "hyperparameters": json.loads((config / "hyperparameters.json").read_text()),
            "channels": json.loads((config / "inputdataconfig.json").read_text()),
            "resources": json.loads((config / "resourceconfig.json").read_text()),
            "files": sorted(str(p.relative_to(root)) for p in (root / "input/data").rglob("*.jsonl")),
            "environment": dict(os.environ),
        }
        (root / "model" / "seen.json").write_text(json.dumps(seen))
        (root / "output" / "data" / "summary.json").write_text("{}")
        print("step=1 loss=2.5000", flush=True)
        print("step=2 loss=nan", file=sys.stderr, flush=True)
        print("step=3 loss=1.25")
        """
    )
    lab.train(
        image,
        InputDataConfig=[{**channel("train", "s3://runs/data/train/"), "InputMode": "FastFile"}],
        HyperParameters={"attempt": "1"},
        Environment={"SOME": "value"},
        Tags=[{"Key": "run_id", "Value": "abc"}],
        algorithm={"MetricDefinitions": [{"Name": "loss", "Regex": r"(?:^|\s)loss=([-+0-9.eEna]+)"}]},
    )
    described = lab.ended("Training")

    assert described["TrainingJobStatus"] == described["SecondaryStatus"] == "Completed"
    assert statuses(described) == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert described["BillableTimeInSeconds"] == described["TrainingTimeInSeconds"] >= 1
    assert isinstance(described["CreationTime"], datetime)
    (metric,) = described["FinalMetricDataList"]
    assert (metric["MetricName"], metric["Value"]) == ("loss", 1.25)
    artifact = described["ModelArtifacts"]["S3ModelArtifacts"]
    assert artifact == "s3://runs/out/job/output/model.tar.gz"
    seen = json.loads(lab.unpacked(artifact)["seen.json"])
    assert seen["verb"] == "train"
    assert seen["hyperparameters"] == {"attempt": "1"}
    assert seen["channels"]["train"]["TrainingInputMode"] == "FastFile"
    assert seen["resources"]["current_host"] == "algo-1"
    assert seen["resources"]["current_instance_type"] == "ml.g5.xlarge"
    assert seen["files"] == ["input/data/train/deep/part-1.jsonl", "input/data/train/part-0.jsonl"]
    assert seen["environment"]["TRAINING_JOB_NAME"] == "job"
    assert seen["environment"]["TRAINING_JOB_ARN"] == described["TrainingJobArn"]
    assert seen["environment"]["SOME"] == "value"
    assert seen["environment"]["AWS_ENDPOINT_URL"] == lab.aws
    assert lab.unpacked("s3://runs/out/job/output/output.tar.gz") == {"summary.json": b"{}"}
    assert lab.log_lines("/aws/sagemaker/TrainingJobs", "job") == [
        "step=1 loss=2.5000",
        "step=2 loss=nan",
        "step=3 loss=1.25",
    ]
    assert not list((lab.root / "sagemaker" / "jobs").iterdir())


def test_events(lab):
    """Every change of a job is told, in order, in SageMaker's shape: tags and epoch milliseconds as text."""
    lab.train(lab.image("pass"), Tags=[{"Key": "run_id", "Value": "abc"}])
    described = lab.ended("Training")
    lab.services[0].close()
    details = [detail for kind, _, detail in lab.events if kind == "SageMaker Training Job State Change"]
    assert [detail["SecondaryStatus"] for detail in details] == statuses(described)
    assert {arn for _, arn, _ in lab.events} == {described["TrainingJobArn"]}
    assert all(detail["Tags"] == {"run_id": "abc"} for detail in details)
    last = details[-1]
    assert last["TrainingJobStatus"] == "Completed"
    assert last["CreationTime"] == str(round(described["CreationTime"].timestamp() * 1000))
    assert last["SecondaryStatusTransitions"][0]["StartTime"].isdigit()


def test_failure_file(lab):
    """A container's own words and exit code become the FailureReason; no model is stored."""
    image = lab.image(
        """
        (root / "model" / "half").write_text("x")
        (root / "output" / "failure").write_text("NAN_LOSS: at step 3 " + "x" * 2000)
        sys.exit(7)
        """
    )
    lab.train(image)
    described = lab.ended("Training")
    assert (described["TrainingJobStatus"], described["SecondaryStatus"]) == ("Failed", "Failed")
    assert described["FailureReason"].startswith("AlgorithmError: NAN_LOSS: at step 3 xxx")
    assert described["FailureReason"].endswith(", exit code: 7")
    assert len(described["FailureReason"]) == 1024
    assert lab.keys("out/") == []


def test_killed_from_outside(lab):
    """A container that dies of a signal fails with the shell's exit code, as one killed for memory does."""
    lab.train(lab.image("os.kill(os.getpid(), signal.SIGKILL)"))
    assert lab.ended("Training")["FailureReason"] == "AlgorithmError: , exit code: 137"


def test_no_objects(lab):
    """A channel whose prefix has no objects fails the job as the client's fault, before any container."""
    lab.train(lab.image("print('never')"), InputDataConfig=[channel("train", "s3://runs/nothing/")])
    described = lab.ended("Training")
    assert described["FailureReason"].startswith("ClientError: Data download failed: No S3 objects found")
    assert "Training" not in statuses(described)


def test_unknown_image(lab):
    """An image that the engine does not know fails the job as the client's fault."""
    lab.train("123456789012.dkr.ecr.eu-west-1.amazonaws.com/unknown.py")
    assert "Cannot find the image" in lab.ended("Training")["FailureReason"]


WAIT_FOR_TERM = """
    def end(*_):
        (root / "model" / "adapter").write_text("at the stop")
        (root / "checkpoints").mkdir(exist_ok=True)
        (root / "checkpoints" / "last").write_text("saved")
        sys.exit(143)
    signal.signal(signal.SIGTERM, end)
    print("ready", flush=True)
    time.sleep(60)
"""


def training(lab, name="job"):
    """Wait until the container has said its first word."""

    def lines():
        try:
            return lab.log_lines("/aws/sagemaker/TrainingJobs", name)
        except ClientError:
            return []

    lab.until(lines)


def test_stop(lab):
    """A stopped job gets SIGTERM, ends Stopped (not Completed), and its model and checkpoints are kept."""
    lab.train(lab.image(WAIT_FOR_TERM), CheckpointConfig=CHECKPOINTS)
    training(lab)
    lab.sm.stop_training_job(TrainingJobName="job")
    described = lab.ended("Training")
    assert (described["TrainingJobStatus"], described["SecondaryStatus"]) == ("Stopped", "Stopped")
    assert "FailureReason" not in described
    assert "Stopping" in statuses(described)
    assert lab.unpacked("s3://runs/out/job/output/model.tar.gz") == {"adapter": b"at the stop"}
    assert lab.read("s3://runs/ckpt/last") == b"saved"
    with pytest.raises(ClientError, match="in status Stopped"):
        lab.sm.stop_training_job(TrainingJobName="job")


def test_stop_ignored(lab):
    """A container that ignores SIGTERM is killed when its grace is over."""
    lab.start(grace_s=0.3)
    lab.train(
        lab.image("signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)")
    )
    training(lab)
    lab.sm.stop_training_job(TrainingJobName="job")
    assert lab.ended("Training")["TrainingJobStatus"] == "Stopped"


def test_time_limit(lab):
    """A job that reaches MaxRuntimeInSeconds ends Stopped, saying MaxRuntimeExceeded, with its model."""
    lab.train(lab.image(WAIT_FOR_TERM), StoppingCondition={"MaxRuntimeInSeconds": 1})
    described = lab.ended("Training")
    assert (described["TrainingJobStatus"], described["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")
    assert lab.unpacked("s3://runs/out/job/output/model.tar.gz") == {"adapter": b"at the stop"}


def test_waits_for_a_slot(lab):
    """More jobs than slots wait in Starting, can be stopped there, and never start their container."""
    lab.start(slots=1)
    lab.train(lab.image(WAIT_FOR_TERM), name="first")
    training(lab, "first")
    lab.train(lab.image(WAIT_FOR_TERM), name="second")
    lab.sm.stop_training_job(TrainingJobName="second")
    assert statuses(lab.ended("Training", "second")) == ["Starting", "Stopping", "Stopped"]
    assert lab.describe("Training", "first")["TrainingJobStatus"] == "InProgress"


def test_checkpoints_while_running(lab):
    """Files of the checkpoint folder follow into S3 while the job runs, and so do deletions."""
    lab.put("ckpt/older/state", "from before")
    image = lab.image(
        """
        folder = root / "checkpoints"
        assert (folder / "older" / "state").read_text() == "from before"
        (folder / "new").write_text("1")
        while not (folder / "older" / "state").exists() or not (root / "go").exists():
            time.sleep(0.05)
        (folder / "older" / "state").unlink()
        (folder / "new").write_text("22")
        time.sleep(60)
        """
    )
    lab.train(image, CheckpointConfig=CHECKPOINTS)
    lab.until(lambda: "new" in lab.keys("ckpt/"))
    assert lab.describe("Training", "job")["TrainingJobStatus"] == "InProgress"
    (lab.root / "sagemaker" / "jobs" / "training-job" / "go").touch()
    lab.until(lambda: lab.keys("ckpt/") == ["new"] and lab.read("s3://runs/ckpt/new") == b"22")


def test_spot_interruption(lab):
    """A machine that is taken away loses all but its synced checkpoints; the next one goes on from them."""
    lab.start(interruptions=lambda _: (1.5,))
    image = lab.image(
        """
        folder = root / "checkpoints"
        signal.signal(signal.SIGTERM, lambda *_: (folder / "on-term").write_text("never on a kill"))
        done = int((folder / "step").read_text()) if (folder / "step").exists() else 0
        assert not (root / "model" / "scratch").exists()
        (root / "model" / "scratch").write_text("x")
        if done:
            (root / "model" / "resumed").write_text(str(done))
            sys.exit(0)
        (folder / "step").write_text("41")
        time.sleep(60)
        """
    )
    lab.train(
        image,
        CheckpointConfig=CHECKPOINTS,
        EnableManagedSpotTraining=True,
        StoppingCondition={"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 90},
    )
    described = lab.ended("Training")
    assert described["TrainingJobStatus"] == "Completed"
    assert statuses(described)[2:7] == ["Training", "Interrupted", "Starting", "Downloading", "Training"]
    assert lab.unpacked("s3://runs/out/job/output/model.tar.gz")["resumed"] == b"41"
    assert "on-term" not in lab.keys("ckpt/")


def test_isolated(lab):
    """With network isolation a container gets neither credentials nor an endpoint; the rest it gets."""
    image = lab.image('(root / "model" / "names").write_text(" ".join(os.environ))')
    lab.train(image, EnableNetworkIsolation=True)
    lab.ended("Training")
    names = lab.unpacked("s3://runs/out/job/output/model.tar.gz")["names"].decode().split()
    assert not {"AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} & set(names)
    assert {"AWS_REGION", "TRAINING_JOB_NAME"} <= set(names)


def test_engine_environment_stays_out(lab, monkeypatch):
    """What the engine has in its environment is not in a container's."""
    monkeypatch.setenv("SOMEBODYS_TOKEN", "secret")
    image = lab.image('(root / "model" / "names").write_text(" ".join(os.environ))')
    lab.train(image)
    lab.ended("Training")
    assert b"SOMEBODYS_TOKEN" not in lab.unpacked("s3://runs/out/job/output/model.tar.gz")["names"]


def test_uncompressed_output(lab):
    """CompressionType NONE stores the model's files as they are."""
    lab.train(
        lab.image('(root / "model" / "weights").write_text("w")'),
        OutputDataConfig={"S3OutputPath": "s3://runs/out", "CompressionType": "NONE"},
    )
    artifact = lab.ended("Training")["ModelArtifacts"]["S3ModelArtifacts"]
    assert lab.read(artifact + "weights") == b"w"


def test_large_inputs_are_shared(lab):
    """A large input is downloaded once; a job that writes into it does not change it for the next."""
    lab.put("base/weights", os.urandom(2 * 1024 * 1024))
    image = lab.image(
        """
        import hashlib
        path = root / "input/data/base/weights"
        print(hashlib.sha256(path.read_bytes()).hexdigest())
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.write(b"overwritten")
        """
    )
    for name in ("first", "second"):
        lab.train(image, name=name, InputDataConfig=[channel("base", "s3://runs/base/")])
        assert lab.ended("Training", name)["TrainingJobStatus"] == "Completed"
    lines = [lab.log_lines("/aws/sagemaker/TrainingJobs", name) for name in ("first", "second")]
    assert lines[0] == lines[1]


def test_nothing_is_left(lab):
    """When the service closes, no process of any job lives on, nor any that a job has started."""
    image = lab.image(
        """
        import subprocess
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
        print(os.getpid(), child.pid, flush=True)
        time.sleep(120)
        """
    )
    lab.train(image)
    training(lab)
    pids = lab.log_lines("/aws/sagemaker/TrainingJobs", "job")[0].split()
    assert all(Path("/proc", pid).exists() for pid in pids)
    lab.services[-1].close()
    # The orphan is a zombie until init has reaped it.
    lab.until(lambda: not any(alive(pid) for pid in pids))
    with pytest.raises(ClientError, match="shutting down"):
        lab.sm.list_training_jobs()


def alive(pid):
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_of_several_types_one_is_taken_and_told(lab):
    """Here every type has capacity: the first of the list is what the job sees, and what Describe names."""
    listed = [{"InstanceType": name, "InstanceCount": 1} for name in ("ml.g6.xlarge", "ml.g5.xlarge")]
    image = lab.image(
        """
        seen = json.loads((root / "input" / "config" / "resourceconfig.json").read_text())
        print("type=" + seen["current_instance_type"])
        """
    )
    lab.train(image, ResourceConfig={"InstancePreferences": listed, "VolumeSizeInGB": 30})
    resources = lab.ended("Training")["ResourceConfig"]
    assert resources["InstancePreferences"] == listed
    assert (resources["SelectedInstanceType"], resources["SelectedInstanceCount"]) == ("ml.g6.xlarge", 1)
    assert "type=ml.g6.xlarge" in "".join(lab.log_lines("/aws/sagemaker/TrainingJobs", "job"))
