"""Lambda workers: AWS's runtime client and the one that stands in for it behave alike."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dropforge.local import lambda_runtime
from dropforge.local.lambda_runtime import worker
from dropforge.local.lambda_runtime.api import Invocation
from dropforge.local.lambda_runtime.pool import CodeStore, WorkerPool
from dropforge.local.lambda_runtime.worker import FunctionSpec, Result

CODE = """
import os, sys, time

class DatasetInvalid(Exception):
    pass

def handler(event, context):
    print("does", event)
    if event == "raise":
        raise DatasetInvalid("rows")
    if event == "sleep":
        time.sleep(30)
    if event == "exit":
        os._exit(7)
    if event == "unserialisable":
        return {1, 2}
    return {"event": event, "left_ms": context.get_remaining_time_in_millis(), "arn": context.invoked_function_arn,
            "pid": os.getpid(), "secret": os.environ.get("HOST_SECRET"), "own": os.environ["OWN"]}
"""


def archive(**files: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name, text in files.items():
            target.writestr(name.replace("__", "."), text)
    return buffer.getvalue()


@pytest.fixture(params=["awslambdaric", "bootstrap"])
def runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "bootstrap":
        stand_in = str(lambda_runtime.bootstrap_path())
        monkeypatch.setattr(worker, "_runtime", lambda spec: [stand_in, spec.handler])
    return str(request.param)


@pytest.fixture
def pool(tmp_path: Path, runtime: str) -> Iterator[WorkerPool]:
    made = WorkerPool(tmp_path / "logs", {"AWS_REGION": "us-east-1"})
    yield made
    made.close()


def spec_of(tmp_path: Path, handler: str = "mod.handler") -> FunctionSpec:
    code = CodeStore(tmp_path / "code").folder(archive(mod__py=CODE))
    return FunctionSpec("f", handler, code, (("OWN", "yes"),), 2.0, 128, "/aws/lambda/f")


def call(pool: WorkerPool, spec: FunctionSpec, event: object) -> Result:
    return pool.invoke(spec, Invocation("request-1", json.dumps(event).encode(), "arn:f", spec.timeout_s))


def test_a_function_answers_and_stays_warm(
    pool: WorkerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler sees event, context and its own environment, not the host's; the second call meets the same process."""
    monkeypatch.setenv("HOST_SECRET", "not for functions")
    spec = spec_of(tmp_path)
    first, second = (call(pool, spec, {"n": n}) for n in range(2))
    answer = json.loads(first.payload)
    assert (answer["event"], answer["arn"], answer["own"]) == ({"n": 0}, "arn:f", "yes")
    assert answer["secret"] is None
    assert 0 < answer["left_ms"] <= 2000
    assert json.loads(second.payload)["pid"] == answer["pid"]
    assert second.log == "does {'n': 1}\n"


@pytest.mark.parametrize(
    ("event", "error", "alive"),
    [
        ("raise", "DatasetInvalid", True),
        ("sleep", "Sandbox.Timedout", False),
        ("exit", "Runtime.ExitError", False),
        ("unserialisable", "Runtime.MarshalError", True),
    ],
)
def test_each_way_to_fail_has_its_name(
    pool: WorkerPool, tmp_path: Path, event: str, error: str, alive: bool
) -> None:
    """ErrorType is what Step Functions would match, the log has what was printed, and the next call works."""
    spec = spec_of(tmp_path)
    result = call(pool, spec, event)
    assert result.failed
    assert json.loads(result.payload)["errorType"] == error
    assert f"does {event}" in result.log
    assert result.alive is alive
    assert not call(pool, spec, "again").failed


def test_a_module_that_cannot_be_imported_is_said(pool: WorkerPool, tmp_path: Path) -> None:
    """An initialisation that fails answers the invocation with Runtime.ImportModuleError."""
    result = call(pool, spec_of(tmp_path, "absent.handler"), {})
    assert json.loads(result.payload)["errorType"] == "Runtime.ImportModuleError"


def test_a_package_that_leads_out_is_refused(tmp_path: Path) -> None:
    """A deployment package whose names climb out of its folder is not unpacked."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        target.writestr("../escaped.py", "")
    with pytest.raises(ValueError, match="outside of itself"):
        CodeStore(tmp_path / "code").folder(buffer.getvalue())
    assert not (tmp_path / "escaped.py").exists()
