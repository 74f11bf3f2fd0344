"""State changes that AWS tells of on the default event bus, read whatever shape they come in.

Shapes differ by service: epoch milliseconds as text or number, ISO 8601, upper-case enums. What can't
be read, or is not ours, is None; nothing here raises.
"""

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal

from dropforge_core.identity import JOB_NAME_MAX
from dropforge_core.ledger import Status
from dropforge_core.model import Frozen

JobKind = Literal["TrainingJob", "TransformJob", "ProcessingJob"]

JOB_NAME: Final = re.compile(r"[a-z0-9-]+-(?P<run>[a-z2-7]{26})-[teb][0-9]{1,3}(?:r(?P<redrive>[0-9]{1,3}))?")
_DETAIL_TYPES: Final[Mapping[str, JobKind]] = {
    "SageMaker Training Job State Change": "TrainingJob",
    "SageMaker Transform Job State Change": "TransformJob",
    "SageMaker Processing Job State Change": "ProcessingJob",
}
_RUN_ID: Final = re.compile(r"[a-z2-7]{26}")
_ENDINGS: Final[Mapping[str, Status]] = {
    "ABORTED": Status.CANCELLED,
    "FAILED": Status.FAILED_INTERNAL,
    "TIMED_OUT": Status.FAILED_INTERNAL,
}


class JobChange(Frozen):
    """A job of some run entered a state."""

    kind: JobKind
    name: str
    run_id: str
    status: str
    secondary: str
    """A training job's finer state; for others the status again."""
    since: str
    """When it entered that state, ISO 8601; empty where the event does not say."""
    reason: str

    @property
    def claim(self) -> str:
        """The same for every delivery of one change, and different when a state is entered again."""
        return f"EVENT#{self.name}#{self.secondary}#{self.since}"


class PackageChange(Frozen):
    """A model package was made, or its approval changed."""

    arn: str
    group: str
    version: str
    status: str
    approval: str
    run_id: str
    """From the package's metadata; empty where the event has none."""

    @property
    def claim(self) -> str:
        return f"EVENT#{self.arn}#{self.approval}"


class ExecutionEnd(Frozen):
    """A state machine's execution ended."""

    run_id: str
    status: str
    redrive: int
    cause: str

    @property
    def final_status(self) -> Status | None:
        """What the run ended as, where the state machine could not say so itself; None where it succeeded."""
        return _ENDINGS.get(self.status)

    @property
    def was_cut_off(self) -> bool:
        """It ended from outside, between any two states."""
        return self.status in {"ABORTED", "TIMED_OUT"}


Happening = JobChange | PackageChange | ExecutionEnd


def run_of_job(name: str) -> tuple[str, int] | None:
    """The run and the redrive that a job's name carries, or None where it is no name of ours."""
    found = JOB_NAME.fullmatch(name) if len(name) <= JOB_NAME_MAX else None
    return (found["run"], int(found["redrive"] or 0)) if found else None


def read(event: Mapping[str, Any]) -> Happening | None:
    """What an event tells, or None where it is of no concern."""
    detail = event.get("detail")
    kind = event.get("detail-type")
    if not isinstance(detail, Mapping) or not isinstance(kind, str):
        return None
    if kind in _DETAIL_TYPES:
        return _job(_DETAIL_TYPES[kind], detail)
    if kind == "SageMaker Model Package State Change":
        return _package(detail)
    if kind == "Step Functions Execution Status Change":
        return _execution(detail)
    return None


def moment(value: Any) -> str:
    """A time in any of the shapes as ISO 8601 in UTC, to the millisecond; empty where it is none."""
    try:
        if isinstance(value, str) and not re.fullmatch(r"\s*-?[0-9]+(\.[0-9]+)?\s*", value):
            parsed = datetime.fromisoformat(value.strip())
            return (
                (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC))
                .astimezone(UTC)
                .isoformat(timespec="milliseconds")
            )
        number = float(value)
        if isinstance(value, bool) or not math.isfinite(number):
            return ""
        # Seconds since 1970 stay below 10^11 until the year 5138; milliseconds passed it in 1973.
        seconds = number / 1000 if abs(number) >= 1e11 else number
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    except (TypeError, ValueError, OverflowError, OSError):
        return ""


def _job(kind: JobKind, detail: Mapping[str, Any]) -> JobChange | None:
    name = _text(detail, f"{kind}Name")
    ours = run_of_job(name)
    status = _text(detail, f"{kind}Status")
    if ours is None or not status:
        return None
    transitions = detail.get("SecondaryStatusTransitions")
    last = transitions[-1] if isinstance(transitions, list) and transitions else {}
    since = last.get("StartTime") if isinstance(last, Mapping) else None
    return JobChange(
        kind=kind,
        name=name,
        run_id=ours[0],
        status=status,
        secondary=_text(detail, "SecondaryStatus") or status,
        since=moment(since),
        reason=_text(detail, "FailureReason"),
    )


def _package(detail: Mapping[str, Any]) -> PackageChange | None:
    arn, approval = _text(detail, "ModelPackageArn"), _text(detail, "ModelApprovalStatus")
    group = _text(detail, "ModelPackageGroupName")
    if not arn or not approval or not group:
        return None
    metadata = detail.get("CustomerMetadataProperties")
    run_id = _text(metadata, "run_id") if isinstance(metadata, Mapping) else ""
    return PackageChange(
        arn=arn,
        group=group.rsplit("/", 1)[-1],
        version=arn.rsplit("/", 1)[-1],
        status=_text(detail, "ModelPackageStatus"),
        approval=approval,
        run_id=run_id if _RUN_ID.fullmatch(run_id) else "",
    )


def _execution(detail: Mapping[str, Any]) -> ExecutionEnd | None:
    status = _text(detail, "status")
    given = _input(detail)
    run_id = _text(given, "run_id") or _text(detail, "name")
    if status not in {*_ENDINGS, "SUCCEEDED"} or _RUN_ID.fullmatch(run_id) is None:
        return None
    return ExecutionEnd(
        run_id=run_id,
        status=status,
        redrive=_count(given.get("redrive")) + _count(detail.get("redriveCount")),
        cause=_text(detail, "cause") or _text(detail, "error"),
    )


def _input(detail: Mapping[str, Any]) -> Mapping[str, Any]:
    """The execution's input, which the event carries as text where it is not too large."""
    try:
        parsed = json.loads(_text(detail, "input") or "{}")
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1000 else 0


def _text(detail: Mapping[str, Any], name: str) -> str:
    value = detail.get(name)
    return value if isinstance(value, str) else ""
