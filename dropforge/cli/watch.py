"""Watch a run: the ledger, its execution, and the log of whichever job is at work. Polling, so nothing hangs."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from dropforge.cli.console import RUN_FAILED, CommandFailed
from dropforge.cli.progress import JobProgress
from dropforge.cli.stack import RunRecord, Stack
from dropforge.cli.upload import Pushed
from dropforge_core import aws
from dropforge_core.contracts import Plan
from dropforge_core.layout import RunLayout
from dropforge_core.ledger import Status
from dropforge_core.messages.wording import known
from dropforge_core.model import Frozen

GROUPS: Final = {
    Status.CACHING_BASE: "/aws/sagemaker/ProcessingJobs",
    Status.TRAINING: "/aws/sagemaker/TrainingJobs",
    Status.EVALUATING: "/aws/sagemaker/TransformJobs",
}
SETTLE_S: Final = 45.0
"""How long an execution may have ended before the ledger must say so, and the other way round."""
PATIENCE: Final = 10
"""Polls in a row that may fail before the watch gives up."""
_DIGITS: Final = "0123456789"
"""Attempts are numbered at the end of a job's name; without the number it is what all of them share."""
APPEAR_S: Final = 180.0
"""How long S3's event may take; AWS says seconds, sometimes a minute or more."""


class Snapshot(Frozen):
    """A run at one moment."""

    run: RunRecord
    execution: str = ""
    """RUNNING, SUCCEEDED, FAILED, TIMED_OUT, ABORTED; empty where there is none."""
    cause: str = ""
    """Why the execution ended, where Step Functions knows more than the ledger."""
    progress: JobProgress = JobProgress()
    ended: bool = False
    elapsed_s: float = 0.0
    """Since the upload was received."""
    spent_usd: float | None = None
    """Estimate: the training instance's price for the time it has trained so far."""

    @property
    def is_lost(self) -> bool:
        """The execution is over but the ledger never heard of an end."""
        status = known(self.run.status)
        return self.ended and (status is None or not status.is_terminal)


class LogTail:
    """New lines of a job's streams; the streams begin with the job's name."""

    def __init__(self, group: str, job: str) -> None:
        self._group, self._job = group, job
        self._tokens: dict[str, str] = {}

    def lines(self) -> Iterator[str]:
        """Lines since the last call; none while the job has no log yet."""
        logs: Any = aws.client("logs")
        try:
            streams = logs.describe_log_streams(logGroupName=self._group, logStreamNamePrefix=self._job)
        except ClientError as error:
            if aws.error_code(error) == "ResourceNotFoundException":
                return
            raise
        for stream in streams["logStreams"]:
            yield from self._new(logs, stream["logStreamName"])

    def _new(self, logs: Any, stream: str) -> Iterator[str]:
        while True:
            token = self._tokens.get(stream)
            page = logs.get_log_events(
                logGroupName=self._group,
                logStreamName=stream,
                startFromHead=True,
                **({"nextToken": token} if token else {}),
            )
            self._tokens[stream] = page["nextForwardToken"]
            yield from (event["message"] for event in page["events"])
            if not page["events"] or page["nextForwardToken"] == token:
                return


class Watcher:
    """Takes snapshots of one run."""

    def __init__(self, stack: Stack, run_id: str, clock: Callable[[], float] = time.time) -> None:
        self._stack, self._run_id, self._clock = stack, run_id, clock
        self._layout = RunLayout(run_id=run_id)
        self._tail: tuple[str, LogTail] | None = None
        self._progress = JobProgress()
        self._plan: Plan | None = None
        self._odd_since: float | None = None
        self._training_since: float | None = None

    @property
    def plan(self) -> Plan | None:
        """The run's plan, once there is one."""
        if self._plan is None:
            found = self._stack.document(self._layout.plan)
            self._plan = Plan.model_validate(found) if found else None
        return self._plan

    def look(self) -> Snapshot:
        """The run now.

        Raises:
            CommandFailed: when the ledger does not know it.
        """
        run = self._stack.record(self._run_id)
        if run is None:
            raise CommandFailed(f"The ledger does not know the run '{self._run_id}'.", RUN_FAILED)
        execution, cause = self._execution(run)
        status = known(run.status)
        self._read_log(run, status)
        return Snapshot(
            run=run,
            execution=execution,
            cause=cause,
            progress=self._progress,
            ended=self._has_ended(status, execution),
            elapsed_s=max(0.0, self._clock() - _epoch(run.received_at, self._clock())),
            spent_usd=self._spent(run, status),
        )

    def _has_ended(self, status: Status | None, execution: str) -> bool:
        terminal = status is not None and status.is_terminal
        running = execution == "RUNNING"
        if terminal and not running:
            return True
        # Ledger and execution disagree: right after the end, or where one of them was lost.
        if terminal or (execution and not running):
            self._odd_since = self._odd_since if self._odd_since is not None else self._clock()
            return self._clock() - self._odd_since > SETTLE_S
        self._odd_since = None
        return False

    def _execution(self, run: RunRecord) -> tuple[str, str]:
        arn = run.execution_arn or (
            self._stack.resources.state_machine_arn.replace(":stateMachine:", ":execution:")
            + f":{run.run_id}"
        )
        try:
            found = aws.client("stepfunctions").describe_execution(executionArn=arn)
        except ClientError as error:
            if aws.error_code(error) in {"ExecutionDoesNotExist", "InvalidArn"}:
                return "", ""
            raise
        return str(found["status"]), ": ".join(
            filter(None, [str(found.get("error") or ""), str(found.get("cause") or "")])
        )

    def _read_log(self, run: RunRecord, status: Status | None) -> None:
        job = self._job(run, status)
        if job is None or status is None:
            return
        if self._tail is None or self._tail[0] != job:
            self._tail = (job, LogTail(GROUPS[status], job))
            self._progress = JobProgress()
        self._progress = self._progress.after(self._tail[1].lines())
        if status is Status.EVALUATING:
            prompts = self._prompts()
            done = min(self._progress.done, prompts)
            self._progress = self._progress.model_copy(update={"done": done, "total": prompts})

    def _prompts(self) -> int:
        """What the transform job is asked; 0 where that is not known."""
        setup = self._stack.document(self._layout.evaluation_setup) or {}
        return int(setup.get("prompts", 0))

    def _job(self, run: RunRecord, status: Status | None) -> str | None:
        """The name, or the beginning of the names, of the job that is at work."""
        if status is Status.TRAINING:
            return run.job_name or None
        if status is Status.CACHING_BASE and self.plan:
            return self.plan.base_model.cache_job_name.rstrip(_DIGITS)
        if status is Status.EVALUATING:
            setup = self._stack.document(self._layout.evaluation_setup)
            return str(setup["job_name"]).rstrip(_DIGITS) if setup else None
        return None

    def _spent(self, run: RunRecord, status: Status | None) -> float | None:
        if status is not Status.TRAINING or not run.job_name or not self.plan:
            return None
        if self._training_since is None:
            try:
                job = aws.client("sagemaker").describe_training_job(TrainingJobName=run.job_name)
            except ClientError:  # the estimate is a courtesy; the ledger may be a step ahead of the job
                return None
            if started := job.get("TrainingStartTime"):
                self._training_since = started.timestamp()
        kind = self.plan.compute.instance_type
        price = next((o.price_usd_hour for o in self.plan.options if o.instance_type == kind), None)
        if price is None or self._training_since is None:
            return None
        return max(0.0, self._clock() - self._training_since) / 3600 * price


def snapshots(
    watcher: Watcher, every_s: float, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Snapshot]:
    """Snapshots until the run has ended, the last of them included.

    Raises:
        CommandFailed: when AWS could not be asked `PATIENCE` times in a row.
    """
    failures = 0
    while True:
        try:
            taken = watcher.look()
        except (ClientError, BotoCoreError) as error:
            failures += 1
            if failures >= PATIENCE:
                raise CommandFailed(f"AWS does not answer any more: {error}", RUN_FAILED) from error
        else:
            failures = 0
            yield taken
            if taken.ended:
                return
        sleep(every_s)


def wait_for_run(
    stack: Stack,
    pushed: Pushed,
    *,
    before: frozenset[str] = frozenset(),
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> RunRecord:
    """The run that an upload started.

    It is found by the versions of its objects, which the request names, so nothing has to be guessed. An
    upload that was refused before it became a run has no request; it is the new item that ended at once.

    Args:
        stack: where to look.
        pushed: what was uploaded.
        before: ids of the runs that were there before the upload.
        clock: seconds.
        sleep: waits so many of them.

    Raises:
        CommandFailed: when none appeared in `APPEAR_S`.
    """
    wanted = set(pushed.version_ids)
    strangers = set(before)
    deadline = clock() + APPEAR_S
    while clock() < deadline:
        for run in stack.records(pushed.model):
            if run.run_id in strangers:
                continue
            request = stack.request(run.run_id)
            if request is None:
                status = known(run.status)
                if run.run_id not in before and status is not None and status.is_terminal:
                    return run
                continue
            if wanted & {uploaded.version_id for uploaded in request.objects}:
                return run
            strangers.add(run.run_id)
        sleep(0.5)
    raise CommandFailed(
        f"The upload is there, but no run started within {APPEAR_S:.0f} s. `dropforge doctor` checks the "
        "bucket's events; the intake function's log says more.",
        RUN_FAILED,
    )


def _epoch(text: str, otherwise: float) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return otherwise
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
