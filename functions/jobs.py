"""SageMaker's jobs as a run sees them: describe, list, stop, and the last lines of a log."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from botocore.exceptions import ClientError

from dropforge_core.aws import client, error_code
from dropforge_core.happenings import JobKind
from runtime import logger

Kind = JobKind

KINDS: Final[Mapping[Kind, str]] = {
    "TrainingJob": "training_job",
    "TransformJob": "transform_job",
    "ProcessingJob": "processing_job",
}
_ABSENT: Final = frozenset({"ValidationException", "ResourceNotFound", "ResourceNotFoundException"})
LISTED: Final = 100


@dataclass(frozen=True)
class Jobs:
    """The jobs whose names carry a run's id."""

    sagemaker: Any

    @classmethod
    def connect(cls) -> "Jobs":
        return cls(client("sagemaker"))

    def describe(self, kind: Kind, name: str) -> Mapping[str, Any] | None:
        """The Describe answer, or None where there is no such job."""
        call = getattr(self.sagemaker, f"describe_{KINDS[kind]}")
        try:
            return dict(call(**{f"{kind}Name": name}))
        except ClientError as error:
            # The role may see jobs that carry the stack's tag, and a job that does not exist carries none.
            if error_code(error) in {*_ABSENT, "AccessDeniedException"}:
                return None
            raise

    def of_run(self, kind: Kind, run_id: str, status: str | None = None) -> Iterator[str]:
        """Names of the run's jobs of a kind, newest first, at most 100."""
        call = getattr(self.sagemaker, f"list_{KINDS[kind]}s")
        wanted = {"StatusEquals": status} if status else {}
        answer = call(
            NameContains=run_id, MaxResults=LISTED, SortBy="CreationTime", SortOrder="Descending", **wanted
        )
        for found in answer[f"{kind}Summaries"]:
            yield str(found[f"{kind}Name"])

    def run_still_has(self, run_id: str) -> bool:
        """Whether a job of the run has not ended."""
        return any(
            True
            for kind in KINDS
            for status in ("InProgress", "Stopping")
            for _ in self.of_run(kind, run_id, status)
        )

    def stop(self, kind: Kind, name: str) -> bool:
        """Ask the job to stop. False where it had ended already."""
        call = getattr(self.sagemaker, f"stop_{KINDS[kind]}")
        try:
            call(**{f"{kind}Name": name})
        except ClientError as error:
            if error_code(error) in _ABSENT:
                return False
            raise
        return True


def last_log_lines(logs: Any, kind: Kind, name: str, count: int = 20) -> tuple[str, ...]:
    """The newest lines of the job's newest log stream; none where there is no log or it can't be read."""
    group = f"/aws/sagemaker/{kind}s"
    try:
        streams = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=name + "/")["logStreams"]
        if not streams:
            return ()
        newest = max(streams, key=lambda stream: stream.get("lastEventTimestamp", 0))
        events = logs.get_log_events(
            logGroupName=group, logStreamName=newest["logStreamName"], limit=count, startFromHead=False
        )["events"]
    except ClientError as error:
        logger.info("the job's log can't be read", job_name=name, reason=error_code(error))
        return ()
    return tuple(str(event["message"]) for event in events)[-count:]
