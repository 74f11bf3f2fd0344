"""A SageMaker over HTTP beside a moto server for S3 and logs; containers are small scripts that the tests write."""

import io
import sys
import tarfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from dropforge.local.sagemaker import LocalSageMaker

ACCOUNT = "123456789012"
REGION = "eu-west-1"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/training"
BUCKET = "runs"
TERMINAL = {"Completed", "Failed", "Stopped"}


@cache
def client(service: str, endpoint: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=ACCOUNT,
        aws_secret_access_key="test",
        config=Config(retries={"max_attempts": 1}),
    )


class Host(ThreadingHTTPServer):
    """Hands every request to the service that was started last."""

    service: LocalSageMaker

    class Handler(BaseHTTPRequestHandler):
        server: "Host"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers, answer = self.server.service.handle("POST", dict(self.headers), body)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(answer))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass


class Lab:
    """Everything that a test touches."""

    def __init__(self, root: Path, aws: str, host: Host) -> None:
        self.root, self.aws, self.host = root, aws, host
        self.s3, self.logs = client("s3", aws), client("logs", aws)
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self.services: list[LocalSageMaker] = []
        self.sm = client("sagemaker", f"http://127.0.0.1:{host.server_port}")

    def start(self, **settings: Any) -> LocalSageMaker:
        """A service with quick settings, reachable as `lab.sm`."""
        settings = {"grace_s": 3.0, "mirror_every_s": 0.1, "ping_timeout_s": 20.0, "slots": 4, **settings}
        service = LocalSageMaker(
            self.aws,
            REGION,
            ACCOUNT,
            self.root / "sagemaker",
            lambda kind, arn, detail: self.events.append((kind, arn, detail)),
            self.entry_point,
            **settings,
        )

        self.services.append(service)
        self.host.service = service
        return service

    def close(self) -> None:
        for service in self.services:
            service.close()

    def entry_point(self, image: str) -> list[str]:
        script = self.root / image.rpartition("/")[2]
        if not script.exists():
            raise KeyError(image)
        return [sys.executable, "-u", str(script)]

    def image(self, script: str, name: str = "job.py") -> str:
        """An image whose container is this script. `verb` and `root` (a Path) are given to it."""
        prologue = """
            import json, os, pathlib, signal, sys, time
            verb, flag, root = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
            assert flag == "--root"
        """
        (self.root / name).write_text(textwrap.dedent(prologue) + textwrap.dedent(script), "utf-8")
        return f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/{name}"

    # --- S3 -----------------------------------------------------------------------------------------

    def put(self, key: str, body: bytes | str) -> str:
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=body)
        return f"s3://{BUCKET}/{key}"

    def read(self, uri: str) -> bytes:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        content: bytes = self.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        return content

    def keys(self, prefix: str) -> list[str]:
        found = self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return [entry["Key"].removeprefix(prefix) for entry in found]

    def put_model(self, key: str, files: dict[str, bytes]) -> str:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as tar:
            for name, body in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
        return self.put(key, out.getvalue())

    def unpacked(self, uri: str) -> dict[str, bytes]:
        with tarfile.open(fileobj=io.BytesIO(self.read(uri))) as tar:
            return {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]

    def log_lines(self, group: str, job: str) -> list[str]:
        streams = self.logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=f"{job}/")
        return [
            event["message"]
            for stream in streams["logStreams"]
            for event in self.logs.get_log_events(
                logGroupName=group, logStreamName=stream["logStreamName"], startFromHead=True
            )["events"]
        ]

    # --- jobs ---------------------------------------------------------------------------------------

    def train(self, image: str, name: str = "job", **members: Any) -> str:
        algorithm = {"TrainingImage": image, "TrainingInputMode": "File"} | members.pop("algorithm", {})
        self.sm.create_training_job(
            **{
                "TrainingJobName": name,
                "AlgorithmSpecification": algorithm,
                "RoleArn": ROLE,
                "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/out/"},
                "ResourceConfig": {
                    "InstanceType": "ml.g5.xlarge",
                    "InstanceCount": 1,
                    "VolumeSizeInGB": 30,
                },
                "StoppingCondition": {"MaxRuntimeInSeconds": 60},
                **members,
            }
        )
        return name

    def process(self, image: str, name: str = "job", **members: Any) -> str:
        app = {"ImageUri": image, "ContainerArguments": ["cache"]} | members.pop("app", {})
        self.sm.create_processing_job(
            **{
                "ProcessingJobName": name,
                "AppSpecification": app,
                "RoleArn": ROLE,
                "ProcessingResources": {
                    "ClusterConfig": {
                        "InstanceType": "ml.m5.large",
                        "InstanceCount": 1,
                        "VolumeSizeInGB": 10,
                    }
                },
                **members,
            }
        )
        return name

    def transform(self, model: str, name: str = "job", **members: Any) -> str:
        source = members.pop("source", f"s3://{BUCKET}/in/")
        given = {
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": source}},
            "ContentType": "application/jsonlines",
            "SplitType": "Line",
        } | members.pop("given", {})
        self.sm.create_transform_job(
            **{
                "TransformJobName": name,
                "ModelName": model,
                "TransformInput": given,
                "TransformOutput": {"S3OutputPath": f"s3://{BUCKET}/out/", "AssembleWith": "Line"},
                "TransformResources": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1},
                **members,
            }
        )
        return name

    def describe(self, kind: str, name: str) -> dict[str, Any]:
        call = getattr(self.sm, f"describe_{kind.lower()}_job")
        described: dict[str, Any] = call(**{f"{kind}JobName": name})
        return described

    def ended(self, kind: str, name: str = "job") -> dict[str, Any]:
        """The Describe response of a job that has come to its end."""
        return self.until(
            lambda: d if (d := self.describe(kind, name))[f"{kind}JobStatus"] in TERMINAL else None
        )

    @staticmethod
    def until(ask: Callable[[], Any], limit_s: float = 60.0) -> Any:
        """Ask until the answer is something; a test that would hang fails instead."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            if answer := ask():
                return answer
            time.sleep(0.05)
        raise AssertionError(f"nothing came of it in {limit_s} s")


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    server = Host(("127.0.0.1", 0), Host.Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def lab(tmp_path: Path, empty_aws: str, host: Host) -> Iterator[Lab]:
    bench = Lab(tmp_path, empty_aws, host)
    bench.s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    bench.start()
    try:
        yield bench
    finally:
        bench.close()
        for entry in bench.s3.list_objects_v2(Bucket=BUCKET).get("Contents", []):
            bench.s3.delete_object(Bucket=BUCKET, Key=entry["Key"])
        bench.s3.delete_bucket(Bucket=BUCKET)
        for group in bench.logs.describe_log_groups()["logGroups"]:
            bench.logs.delete_log_group(logGroupName=group["logGroupName"])
