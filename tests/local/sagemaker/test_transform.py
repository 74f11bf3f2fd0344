"""Batch transform over HTTP: bodies, order, retries, bad records, and the archive that a model comes in."""

import io
import json
import tarfile

import pytest
from botocore.exceptions import ClientError

SERVER = """
    import http.server, threading
    SEEN = {"bodies": 0, "failures": {}, "now": 0, "most": 0}
    LOCK = threading.Lock()
    PARAMETERS = json.loads(os.environ.get("PARAMETERS", "null"))

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, status, body=b""):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            if self.path == "/ping":
                return self.answer(200 if os.environ.get("PING", "ok") == "ok" else 503)
            return self.answer(200, json.dumps(PARAMETERS).encode()) if PARAMETERS else self.answer(404)

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            records = [json.loads(line) for line in body.splitlines()]
            with LOCK:
                SEEN["bodies"] += 1
                SEEN["now"] += 1
                SEEN["most"] = max(SEEN["most"], SEEN["now"])
                number = SEEN["bodies"]
            try:
                for record in records:
                    time.sleep(record.get("sleep", 0))
                    if record.get("die"):
                        os._exit(3)
                    tries = SEEN["failures"].setdefault(record["id"], 0)
                    if tries < record.get("fail", 0):
                        SEEN["failures"][record["id"]] += 1
                        return self.answer(record.get("status", 500), b"no")
                model = sorted(p.name for p in (root / "model").iterdir())
                lines = [
                    json.dumps({"id": r["id"], "body": number, "model": model, "env": os.environ.get("WHO"),
                                "most": SEEN["most"], "key": "AWS_ACCESS_KEY_ID" in os.environ,
                                "batch": os.environ["SAGEMAKER_BATCH"], "type": self.headers["Content-Type"]})
                    for r in records
                ]
                self.answer(200, "\\n".join(lines).encode())
            finally:
                with LOCK:
                    SEEN["now"] -= 1

        def log_message(self, *_):
            pass

    assert verb == "serve"
    print("serving", flush=True)
    port = int(os.environ["SAGEMAKER_BIND_TO_PORT"])
    http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def model(lab, script=SERVER, name="model", **members):
    lab.sm.create_model(
        ModelName=name,
        ExecutionRoleArn="arn:aws:iam::123456789012:role/evaluation",
        PrimaryContainer={
            "Image": lab.image(script),
            "ModelDataUrl": members.pop("data", None) or lab.put_model("model.tar.gz", {"adapter": b"a"}),
            "Environment": members.pop("environment", {}),
        },
        **members,
    )
    return name


def records(*given):
    return "".join(json.dumps({"id": str(n), **extra}) + "\n" for n, extra in enumerate(given))


def predictions(lab, key):
    return [json.loads(line) for line in lab.read(f"s3://runs/out/{key}").decode().splitlines()]


def test_completed(lab):
    """Each input file has its `.out`, in the order of its records, whatever the concurrency."""
    lab.put("in/a.jsonl", records({"sleep": 0.3}, {}, {}, {}))
    lab.put("in/deep/b.jsonl", records({}, {}))
    name = model(lab, environment={"WHO": "model"})
    lab.transform(
        name,
        BatchStrategy="SingleRecord",
        MaxConcurrentTransforms=3,
        MaxPayloadInMB=1,
        Environment={"WHO": "job"},
    )
    described = lab.ended("Transform")
    assert described["TransformJobStatus"] == "Completed"
    assert sorted(lab.keys("out/")) == ["a.jsonl.out", "deep/b.jsonl.out"]
    answers = predictions(lab, "a.jsonl.out")
    assert [answer["id"] for answer in answers] == ["0", "1", "2", "3"]
    assert max(answer["most"] for answer in answers) <= 3
    assert {(a["env"], a["batch"], a["type"]) for a in answers} == {("job", "true", "application/jsonlines")}
    assert answers[0]["model"] == ["adapter"]
    assert "serving" in lab.log_lines("/aws/sagemaker/TransformJobs", "job")


@pytest.mark.parametrize(("strategy", "bodies"), [("SingleRecord", {1, 2, 3}), ("MultiRecord", {1})])
def test_strategy(lab, strategy, bodies):
    """SingleRecord sends a body for each line; MultiRecord fills bodies; blank lines are no records."""
    lab.put("in/a.jsonl", records({}, {}, {}).replace("\n", "\n\n", 1))
    lab.transform(model(lab), BatchStrategy=strategy, MaxPayloadInMB=1)
    assert lab.ended("Transform")["TransformJobStatus"] == "Completed"
    assert {answer["body"] for answer in predictions(lab, "a.jsonl.out")} == bodies


def test_execution_parameters(lab):
    """Where the request is silent, the container's /execution-parameters decide."""
    lab.put("in/a.jsonl", records({"sleep": 0.2}, {"sleep": 0.2}, {}))
    proposed = {"MaxConcurrentTransforms": 2, "BatchStrategy": "SINGLE_RECORD", "MaxPayloadInMB": 1}
    lab.transform(model(lab, environment={"PARAMETERS": json.dumps(proposed)}))
    assert lab.ended("Transform")["TransformJobStatus"] == "Completed"
    answers = predictions(lab, "a.jsonl.out")
    assert {answer["body"] for answer in answers} == {1, 2, 3}
    assert max(answer["most"] for answer in answers) == 2


def test_record_too_large(lab):
    """A record larger than MaxPayloadInMB fails its file; the reason is in the data log."""
    lab.put("in/a.jsonl", records({"pad": "x" * 1024 * 1024}))
    lab.put("in/b.jsonl", records({}))
    lab.transform(model(lab), MaxPayloadInMB=1)
    assert lab.ended("Transform")["TransformJobStatus"] == "Failed"
    assert lab.keys("out/") == ["b.jsonl.out"]
    assert any(
        "a.jsonl: record 1 has" in line for line in lab.log_lines("/aws/sagemaker/TransformJobs", "job")
    )


def test_retry(lab):
    """A server's fault is tried again, as often as was asked for."""
    lab.put("in/a.jsonl", records({"fail": 2}))
    lab.transform(
        model(lab), ModelClientConfig={"InvocationsMaxRetries": 2, "InvocationsTimeoutInSeconds": 10}
    )
    assert lab.ended("Transform")["TransformJobStatus"] == "Completed"
    assert [answer["body"] for answer in predictions(lab, "a.jsonl.out")] == [3]


def test_timeout(lab):
    """An answer that takes longer than InvocationsTimeoutInSeconds is a failure."""
    lab.put("in/a.jsonl", records({"sleep": 5}))
    lab.transform(
        model(lab), ModelClientConfig={"InvocationsMaxRetries": 0, "InvocationsTimeoutInSeconds": 1}
    )
    assert lab.ended("Transform")["TransformJobStatus"] == "Failed"


@pytest.mark.parametrize("status", [400, 500])
def test_bad_record(lab, status):
    """One answer without success fails its whole file and the job; the other files are stored."""
    lab.put("in/a.jsonl", records({}, {"fail": 99, "status": status}, {}))
    lab.put("in/b.jsonl", records({}))
    lab.transform(
        model(lab),
        BatchStrategy="SingleRecord",
        ModelClientConfig={"InvocationsMaxRetries": 1, "InvocationsTimeoutInSeconds": 10},
    )
    described = lab.ended("Transform")
    assert described["TransformJobStatus"] == "Failed"
    assert described["FailureReason"] == "AlgorithmError: See job logs for more information"
    assert lab.keys("out/") == ["b.jsonl.out"]
    assert any(
        f"algorithm: {status}" in line for line in lab.log_lines("/aws/sagemaker/TransformJobs", "job")
    )


def test_server_dies(lab):
    """A server that dies on the way fails the job at once, with its exit code."""
    lab.put("in/a.jsonl", records({"die": True}))
    lab.transform(model(lab))
    assert lab.ended("Transform")["FailureReason"].endswith("exit code: 3")


@pytest.mark.parametrize(
    ("script", "environment", "reason"),
    [
        ("sys.exit(4)", {}, "exited before it answered /ping, exit code: 4"),
        (SERVER, {"PING": "never"}, "did not pass the ping health check"),
    ],
)
def test_never_ready(lab, script, environment, reason):
    """A server that is never ready fails the job: at once where it has exited, else after the time allowed."""
    lab.start(ping_timeout_s=1.0)
    lab.put("in/a.jsonl", records({}))
    lab.transform(model(lab, script, environment=environment))
    assert reason in lab.ended("Transform")["FailureReason"]


def test_stop(lab):
    """A stopped job stores nothing."""
    lab.put("in/a.jsonl", records({}))
    lab.put("in/b.jsonl", records({"sleep": 60}))
    lab.transform(model(lab))
    lab.until(lambda: lab.keys("") and lab.describe("Transform", "job").get("TransformStartTime"))
    lab.sm.stop_transform_job(TransformJobName="job")
    assert lab.ended("Transform")["TransformJobStatus"] == "Stopped"
    assert lab.keys("out/") == []


def test_isolated(lab):
    """A model with network isolation is served without credentials."""
    lab.put("in/a.jsonl", records({}))
    lab.transform(model(lab, EnableNetworkIsolation=True))
    lab.ended("Transform")
    assert predictions(lab, "a.jsonl.out")[0]["key"] is False


def test_no_input(lab):
    """A prefix without objects fails the job as the client's fault."""
    lab.transform(model(lab))
    assert lab.ended("Transform")["FailureReason"].startswith("ClientError: Data download failed")


def link(target):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        member = tarfile.TarInfo("adapter")
        member.type, member.linkname = tarfile.SYMTYPE, target
        tar.addfile(member)
    return out.getvalue()


@pytest.mark.parametrize("archive", [link("/etc/passwd"), b"no archive at all"], ids=["link", "no archive"])
def test_archive_refused(lab, archive):
    """An archive that must not be unpacked fails the job before anything is served."""
    lab.put("in/a.jsonl", records({}))
    lab.transform(model(lab, data=lab.put("bad/model.tar.gz", archive)))
    assert "Failed to extract model data archive" in lab.ended("Transform")["FailureReason"]


def test_unknown_model(lab):
    """A transform of a model that does not exist is refused at once."""
    with pytest.raises(ClientError, match="Could not find model"):
        lab.transform("nobody")
