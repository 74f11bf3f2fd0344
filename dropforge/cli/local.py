"""The local AWS in the foreground, and a whole run in one command."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.parser import BytesParser
from email.policy import default
from pathlib import Path
from typing import Any, Final

from botocore.utils import get_environ_proxies
from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeElapsedColumn

from dropforge.cli.console import OK, RUN_FAILED, CommandFailed, Terminal
from dropforge.cli.files import DataFiles
from dropforge.cli.follow import follow
from dropforge.cli.interrupt import interruptible
from dropforge.cli.model import fetch_model
from dropforge.cli.stack import DEFAULT_NAME, Stack
from dropforge.cli.summary import RunSummary, download_report, read_summary
from dropforge.cli.upload import plan_upload, upload
from dropforge.cli.watch import wait_for_run
from dropforge_core import aws
from dropforge_core.model import Frozen

REPOSITORY: Final = Path(__file__).parents[2]
LOOPBACK: Final = "127.0.0.1"
ASTRAY: Final = (
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_SESSION_TOKEN",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
)
"""Settings meant for real accounts that would lead requests away from the local AWS, or end them."""
ENDPOINTS: Final = "AWS_ENDPOINT_URL"
"""Also the beginning of the names that send single services elsewhere."""
PROXY: Final = ("NO_PROXY", "no_proxy")


class Ready(Frozen):
    """The one line on stdout when the local AWS is up."""

    endpoint: str
    region: str
    buckets: Mapping[str, str]
    state_machine: str
    table: str
    bus: str
    topic: str

    @classmethod
    def of(cls, stack: Stack, endpoint: str, region: str) -> "Ready":
        found = stack.resources
        return cls(
            endpoint=endpoint,
            region=region,
            buckets={"datasets": found.dataset_bucket, "runs": found.run_bucket},
            state_machine=found.state_machine_arn,
            table=found.run_table,
            bus=found.event_bus,
            topic=found.topic_arn,
        )


@contextmanager
def speaking_to(env: Mapping[str, str | None]) -> Iterator[None]:
    """Point the AWS clients of this process and its children at another place, and back again; None takes a name away."""
    before = {name: os.environ.get(name) for name in env}
    _set(env)
    aws.client.cache_clear()
    try:
        yield
    finally:
        _set(before)
        aws.client.cache_clear()


def _set(env: Mapping[str, str | None]) -> None:
    for name, value in env.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def undisturbed(environ: Mapping[str, str]) -> dict[str, str | None]:
    """What to change of an environment so that nothing comes between a client and the local AWS.

    Not a profile, a service's own endpoint or a proxy, and no file of `~/.aws`.
    """
    astray = [name for name in environ if name in ASTRAY or name.startswith(ENDPOINTS)]
    files = dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
    around = {name: ",".join(filter(None, (environ.get(name), LOOPBACK))) for name in PROXY}
    return {**dict.fromkeys(astray), **files, **around}


@contextmanager
def local_stack(*, port: int | None, fast: bool, terminal: Terminal, mlflow_uri: str = "") -> Iterator[Any]:
    """The local AWS with the template deployed, for as long as the block lasts.

    The first SIGINT or SIGTERM leaves the block in order; a second one is Python's own, immediate.
    """
    if not (REPOSITORY / "template.yaml").is_file():
        raise CommandFailed(
            "The local AWS deploys template.yaml and needs the whole repository: clone it and run `make setup` there."
        )
    # Imported here: the engine takes seconds, and no other command needs it.
    from dropforge.local.base_models import PreparationFailed  # noqa: PLC0415
    from dropforge.local.deploy import DeploymentFailed  # noqa: PLC0415
    from dropforge.local.engine import CannotListen  # noqa: PLC0415
    from dropforge.local.stack import LocalStackFailed, start  # noqa: PLC0415

    with interruptible(), speaking_to(undisturbed(os.environ)):
        try:
            with _starting(terminal) as tell:
                running = start(port=port, fast=fast, on_progress=tell, mlflow_uri=mlflow_uri)
        except CannotListen as error:
            raise CommandFailed(str(error)) from error
        except (LocalStackFailed, DeploymentFailed, PreparationFailed) as error:
            raise CommandFailed(str(error), RUN_FAILED) from error
        try:
            with speaking_to(running.env()):
                yield running
        finally:
            terminal.note("stopping the local AWS …", "dim")
            running.close()


@contextmanager
def _starting(terminal: Terminal) -> Iterator[Callable[[str, float], None]]:
    """A bar, or a line for each new thing that is being done."""
    if not terminal.is_live:
        told: list[str] = []

        def line(what: str, _share: float) -> None:
            if what not in told:
                told.append(what)
                terminal.note(what, "dim")

        yield line
        return
    columns = ("{task.description}", BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=terminal.err, transient=True) as bar:
        task = bar.add_task("starting the local AWS", total=1.0)
        yield lambda what, share: bar.update(task, description=what, completed=share)


def up(*, port: int, fast: bool, mlflow_uri: str, terminal: Terminal) -> int:
    """Serve until ^C or SIGTERM, then stop everything."""
    elsewhere = _elsewhere(os.environ)
    try:
        with local_stack(port=port or None, fast=fast, terminal=terminal, mlflow_uri=mlflow_uri) as running:
            stack = Stack.find(DEFAULT_NAME)
            env = running.env()
            ready = Ready.of(stack, env["AWS_ENDPOINT_URL"], env["AWS_DEFAULT_REGION"])
            Terminal(as_json=True).result(ready)
            _hints(ready, {**env, **elsewhere}, running.state_dir, terminal)
            while True:
                signal.pause()
    except KeyboardInterrupt:
        return OK


def _elsewhere(environ: Mapping[str, str]) -> dict[str, str]:
    """What a shell has to set beside the AWS_ variables, because this one is set up for something else."""
    told: dict[str, str] = {}
    if environ.get("DROPFORGE_STACK", DEFAULT_NAME) != DEFAULT_NAME:
        told["DROPFORGE_STACK"] = DEFAULT_NAME
    if get_environ_proxies(f"http://{LOOPBACK}"):
        told["NO_PROXY"] = LOOPBACK
    return told


def _hints(ready: Ready, env: Mapping[str, str], state: Path, terminal: Terminal) -> None:
    exports = " ".join(f"{name}={value}" for name, value in sorted(env.items()))
    bucket = ready.buckets["datasets"]
    for line in (
        "",
        "The local AWS is up. In another shell:",
        f"  export {exports}",
        f"  aws s3 cp data.jsonl s3://{bucket}/datasets/my-model/",
        "  dropforge runs",
        f"  aws stepfunctions list-executions --state-machine-arn {ready.state_machine}",
        "  aws sagemaker list-model-packages --model-package-group-name my-model",
        f"  aws dynamodb scan --table-name {ready.table}",
        f"E-mails, logs and jobs lie in {state} until it stops.",
        "^C stops it.",
    ):
        terminal.note(line)


def run(found: DataFiles, *, model: str, fast: bool, terminal: Terminal) -> RunSummary:
    """Up, push, follow, report, down.

    Raises:
        CommandFailed: when the upload can't be made, or the run never started.
    """
    plan = plan_upload(found, model, None)
    with local_stack(port=None, fast=fast, terminal=terminal) as running:
        stack = Stack.find(DEFAULT_NAME)
        pushed = upload(plan, stack.resources.dataset_bucket, model=model)
        terminal.note(f"uploaded to s3://{pushed.bucket}/{plan.starter}", "dim")
        started = wait_for_run(stack, pushed)
        last = follow(stack, started.run_id, terminal)
        summary = read_summary(stack, last.run)
        report = download_report(stack, last.run)
        # What was judged is whole; a run that failed may have left anything.
        fetched = fetch_model(stack, last.run) if summary.gate else None
        return summary.model_copy(
            update={
                "report_path": str(report) if report else None,
                "model_path": fetched.path if fetched else None,
                "is_over": True,
                "emails": tuple(subjects(running.outbox)),
                "cause": last.cause if last.is_lost else "",
            }
        )


def subjects(outbox: Path) -> list[str]:
    """The subjects of the e-mails that the local AWS kept as `.eml` files instead of sending, oldest first."""
    return [
        str(BytesParser(policy=default).parsebytes(mail.read_bytes())["Subject"])
        for mail in sorted(outbox.glob("*.eml"))
    ]
