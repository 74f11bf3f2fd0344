"""Starts the local AWS with Dropforge deployed in it, and takes it down again."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Final, Literal, Self

import boto3
import yaml
from botocore.config import Config

from dropforge.local import base_models
from dropforge.local.deploy import STACK, check, deploy
from dropforge.local.engine import (
    ACCESS_KEY,
    ACCOUNT,
    REGION,
    Settings,
    aws_variables,
    listen,
)

ROOT: Final = Path(__file__).parents[2]
IMAGE: Final = "dropforge-tuner:local"
EMAIL: Final = "you@example.com"
"""Subscribed to the topic; its mails lie in the outbox."""
RECIPES: Final = ROOT / "training_image" / "recipes"
SOURCES: Final = "sources/"
"""Prefix of the run bucket under which base models are seeded."""

START_LIMIT_S: Final = 60.0
CLOSE_LIMIT_S: Final = 20.0
_UPLOADS: Final = 4
_LINES_TOLD: Final = 30
"""Of the engine's log, where it fails."""

Progress = Callable[[str, float], None]
"""What is being done, and the share of it that is done, 0 to 1."""


class LocalStackFailed(RuntimeError):
    """The local AWS could not start. The message says why and where its log is."""


class Engine:
    """The engine's process. It ends when this object closes, when this process ends, however it ends."""

    def __init__(self, settings: Settings) -> None:
        """Start it and wait until it answers.

        Raises:
            LocalStackFailed: it ended, or did not answer in time.
        """
        self.state_dir = Path(settings.state_dir)
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self.log = self.state_dir / "engine.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(  # our own module
                [sys.executable, "-m", "dropforge.local.engine"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                # ^C in the terminal is for us; we then close the engine in order.
                start_new_session=True,
                cwd=ROOT,
            )
        try:
            self.endpoint = self._handshake(settings)
        except BaseException:
            self.close()
            raise

    def _handshake(self, settings: Settings) -> str:
        lifeline, report = self._pipes()
        try:
            lifeline.write(settings.line())
            lifeline.flush()
        except BrokenPipeError as error:
            raise LocalStackFailed(f"the local AWS ended at once:\n{self._tail()}") from error
        impatient = threading.Timer(START_LIMIT_S, self._process.kill)
        impatient.start()
        line = report.readline()
        impatient.cancel()
        told = json.loads(line) if line else {"error": f"no answer within {START_LIMIT_S:.0f} s"}
        if "error" in told:
            raise LocalStackFailed(
                f"the local AWS did not start: {told['error']}\nThe end of its log:\n{self._tail()}"
            )
        endpoint: str = told["endpoint"]
        return endpoint

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        if self._process.stdin is None or self._process.stdout is None:
            raise LocalStackFailed("the engine has no pipes")
        return self._process.stdin, self._process.stdout

    def _tail(self) -> str:
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-_LINES_TOLD:])

    @property
    def pid(self) -> int:
        return self._process.pid

    @cached_property
    def _session(self) -> boto3.Session:
        return boto3.Session(ACCESS_KEY, ACCESS_KEY, region_name=REGION)

    def client(self, service: str) -> Any:
        """A boto3 client that speaks to this engine."""
        config = Config(
            s3={"addressing_style": "path"},
            retries={"mode": "standard", "max_attempts": 3},
            # Over loopback the checksum of a model's 270 MB costs more time than its transfer.
            request_checksum_calculation="when_required",
        )
        return self._session.client(service, endpoint_url=self.endpoint, config=config)  # type: ignore[call-overload]

    def env(self) -> dict[str, str]:
        """Environment variables that send child commands here."""
        return aws_variables(self.endpoint)

    def close(self) -> None:
        """End the engine, its jobs and its functions."""
        lifeline, report = self._pipes()
        with contextlib.suppress(BrokenPipeError):
            lifeline.close()
        try:
            self._process.wait(CLOSE_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        report.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LocalStack:
    """A running local AWS with Dropforge in it."""

    def __init__(self, engine: Engine, outputs: Mapping[str, Any], *, temporary: bool) -> None:
        self._engine, self._temporary = engine, temporary
        self.outputs = dict(outputs)
        """endpoint, region, buckets {datasets, runs}, state_machine, table, bus, topic, decide_function."""

    @property
    def endpoint(self) -> str:
        return self._engine.endpoint

    @property
    def state_dir(self) -> Path:
        return self._engine.state_dir

    @property
    def outbox(self) -> Path:
        """Folder of the mails that SNS would have sent, `.eml`, named in the order of sending."""
        return self._engine.state_dir / "outbox"

    def client(self, service: str) -> Any:
        """A boto3 client that speaks to this stack."""
        return self._engine.client(service)

    def env(self) -> dict[str, str]:
        """AWS_ENDPOINT_URL, region and placeholder credentials, for child commands."""
        return self._engine.env()

    def close(self) -> None:
        """Take everything down. Safe to call twice."""
        self._engine.close()
        if self._temporary:
            shutil.rmtree(self._engine.state_dir, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start(  # noqa: PLR0913  # one setting of the engine or the stack each
    port: int | None = None,
    fast: bool = False,
    state_dir: Path | None = None,
    on_progress: Progress = lambda _what, _share: None,
    stopped_job: Literal["fails", "succeeds"] = "fails",
    *,
    mlflow_uri: str = "",
) -> LocalStack:
    """Start the engine, deploy template.yaml, seed the base model of the demo recipe.

    Args:
        port: of the endpoint on 127.0.0.1; any free one where None.
        fast: the tiny model is the default base instead of SmolLM2-135M-Instruct.
        state_dir: keeps logs, jobs and mails; a temporary folder, removed on close, where None.
        on_progress: told what goes on, from more than one thread.
        stopped_job: what Step Functions makes of a job that ended Stopped.
        mlflow_uri: the stack's `MlflowTrackingUri`; empty for none.

    Raises:
        CannotListen: the port is taken.
        LocalStackFailed: the engine did not start.
        DeploymentFailed: the template could not be deployed.
        PreparationFailed: the base model could not be made.
    """
    bucket = run_bucket()
    parameters = {
        "ImageUri": IMAGE,
        "DefaultRecipe": default_recipe(RECIPES / ("demo-fast.yaml" if fast else "demo.yaml"), bucket),
        "NotificationEmail": EMAIL,
        "MlflowTrackingUri": mlflow_uri,
    }
    check(ROOT / "template.yaml", parameters)
    # Before a model is downloaded for nothing.
    listen(port).close()
    temporary = state_dir is None
    folder = Path(tempfile.mkdtemp(prefix="dropforge-local-")) if state_dir is None else state_dir.resolve()
    settings = Settings(
        str(folder), str(ROOT / "training_image" / "Dockerfile"), port, stopped_job, temporary=temporary
    )
    engine: Engine | None = None
    try:
        with ThreadPoolExecutor(max_workers=1) as beside:
            model = beside.submit(base_models.prepare, fast, cache_dir(), on_progress)
            on_progress("starting the local AWS", 0.0)
            engine = Engine(settings)
            on_progress("deploying template.yaml", 0.3)
            outputs = described(engine.endpoint, deploy(ROOT / "template.yaml", parameters, engine.client))
            seed(engine.client("s3"), bucket, model.result(), on_progress)
    except BaseException:
        if engine is not None:
            engine.close()
        if temporary:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    on_progress("the local AWS is ready", 1.0)
    return LocalStack(engine, outputs, temporary=temporary)


def cache_dir() -> Path:
    """Where prepared base models are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dropforge" / "models"


def run_bucket() -> str:
    """The name that template.yaml gives the run bucket; the default recipe has to say it beforehand."""
    return f"{STACK}-runs-{ACCOUNT}-{REGION}"


def default_recipe(path: Path, bucket: str) -> str:
    """A recipe file as the DefaultRecipe parameter: JSON, which is YAML too and has no comments to carry.

    A base model that is `s3://RUN_BUCKET/...` gets the bucket's real name.
    """
    recipe = yaml.safe_load(path.read_text("utf-8"))
    return json.dumps(recipe, separators=(",", ":")).replace("s3://RUN_BUCKET/", f"s3://{bucket}/")


def seed(s3: Any, bucket: str, model: Path, on_progress: Progress) -> None:
    """Put a base model under `sources/<name>/` of the run bucket."""
    files = sorted(path for path in model.rglob("*") if path.is_file() and not path.name.startswith("."))
    total, done = sum(path.stat().st_size for path in files) or 1, 0

    def put(path: Path) -> int:
        key = f"{SOURCES}{model.name}/{path.relative_to(model).as_posix()}"
        with path.open("rb") as body:
            # One request: parts would each be copied once more in the engine.
            s3.put_object(Bucket=bucket, Key=key, Body=body)
        return path.stat().st_size

    with ThreadPoolExecutor(_UPLOADS) as uploads:
        for size in uploads.map(put, files):
            done += size
            on_progress(f"seeding {model.name}", done / total)


def described(endpoint: str, outputs: Mapping[str, str]) -> dict[str, Any]:
    """The stack's outputs under the names that the command line prints.

    Raises:
        LocalStackFailed: the run bucket has another name than the default recipe was given.
    """
    if outputs["RunBucketName"] != run_bucket():
        raise LocalStackFailed(
            f"template.yaml names the run bucket {outputs['RunBucketName']}, the recipe was given {run_bucket()}; "
            "adapt run_bucket() to the template"
        )
    return {
        "endpoint": endpoint,
        "region": REGION,
        "buckets": {"datasets": outputs["DatasetBucketName"], "runs": outputs["RunBucketName"]},
        "state_machine": outputs["StateMachineArn"],
        "table": outputs["RunTableName"],
        "bus": outputs["EventBusName"],
        "topic": outputs["NotificationTopicArn"],
        "decide_function": outputs["DecideApprovalFunctionName"],
    }
