"""What goes wrong on purpose: a plan of faults that jobs meet, read from a file at every CreateTrainingJob and the like.

The file is `{"faults": [{"fault": "capacity", "job": "Training", "times": 1}, ...]}`. Without the file nothing
goes wrong. A job meets the first fault of the list that is for it and not used up; faults of output are watched for
all the time. What is refused or fails here says what SageMaker says, word for word as far as that is known.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from dropforge.local.sagemaker.errors import ApiError, JobFailed
from dropforge.local.sagemaker.jobs import Job, instances_of
from dropforge.local.sagemaker.process import Halt

Word = Literal["Training", "Processing", "Transform"]
NEVER_S: Final = 1e9
_POLL_S: Final = 0.05


class PlannedFault(BaseModel):
    """One kind of fault, how often it comes, and which jobs it is for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fault: Literal[
        "throttle",
        "quota",
        "capacity",
        "internal",
        "out_of_memory",
        "fail",
        "no_spot",
        "time_limit",
        "kill",
        "hang",
    ]
    """`throttle` and `quota` refuse the call; `capacity` and `internal` fail the job at its start; `out_of_memory`
    fails a training job that asks for larger micro-batches than `micro_batch_tokens`, and `fail` one with what the
    container would have said (`said`); `no_spot` stops a spot job that waited too long for its machine, and `time_limit`
    one at its time limit, before it saved anything; `kill` takes a spot machine away, without a word, when the trainer
    has told step `step`; `hang` starts nothing and never ends."""
    job: Word = "Training"
    name: str = ""
    """Part of the names of the jobs that it is for; empty for all."""
    times: int = Field(1, ge=1)
    """How many jobs meet it."""
    seconds: float | None = None
    """Of `quota`: how long it refuses, from its first refusal; then `times` does not count."""
    at_most: int | None = None
    """Of `quota`: instances that jobs of this kind may have together; then neither `times` nor `seconds` counts."""
    micro_batch_tokens: int = 0
    said: str = "CODE: as planned"
    """First line of the container's failure file."""
    step: int = 1


class FaultPlan:
    """The plan of one engine, and how far it has come. Safe to use from any thread."""

    def __init__(self, path: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._path, self._monotonic = path, monotonic
        self._lock = threading.Lock()
        self._text = ""
        self._faults: Sequence[PlannedFault] = ()
        self._met: dict[int, int] = {}
        self._since: dict[int, float] = {}

    def refuse(self, word: Word, request: Mapping[str, Any], in_progress: int) -> None:
        """Raises ApiError where this call is to be refused. `in_progress` counts the instances of jobs of that kind."""
        with self._lock:
            for index, fault in self._for(word, request):
                if fault.fault == "throttle" and self._use(index, fault):
                    raise ApiError("ThrottlingException", "Rate exceeded")
                if fault.fault == "quota" and self._is_full(
                    index, fault, in_progress + instances_of(request)
                ):
                    raise ApiError(
                        "ResourceLimitExceeded", _full(word, request, fault.at_most or in_progress)
                    )

    def at_start(self, word: Word, job: Job) -> None:
        """Raises JobFailed where the job is to fail, JobHalted where it hung until somebody ended it."""
        with self._lock:
            found = next(
                (
                    fault
                    for index, fault in self._for(word, job.request)
                    if self._fails(fault, job.request) and self._use(index, fault)
                ),
                None,
            )
        match found.fault if found else "":
            case "capacity":
                raise JobFailed(
                    "CapacityError: Unable to provision requested ML compute capacity. Please retry using a "
                    "different ML instance type."
                )
            case "internal":
                raise JobFailed("InternalServerError: We encountered an internal error. Please try again.")
            case "out_of_memory":
                raise JobFailed.algorithm("OOM_GPU: CUDA out of memory, as planned", 1)
            case "fail":
                raise JobFailed.algorithm(found.said if found else "", 1)
            case "no_spot":
                self._halt(job, Halt.MAX_WAIT)
            case "time_limit":
                self._halt(job, Halt.MAX_RUNTIME)
            case "hang":
                self._hang(word, job)

    def machines(self, name: str) -> tuple[float, ...]:
        """For each machine that the plan may take away from a spot job: the seconds after which time alone does."""
        with self._lock:
            return tuple(
                NEVER_S
                for index, fault in self._for("Training", {"TrainingJobName": name})
                if fault.fault == "kill"
                for _ in range(fault.times - self._met.get(index, 0))
            )

    def told(self, job: Job, line: str) -> None:
        """A line of a trainer's output: where it tells the step of a `kill`, its machine is gone."""
        with self._lock:
            for index, fault in self._for("Training", job.request):
                if (
                    fault.fault == "kill"
                    and line.startswith(f"step={fault.step}/")
                    and self._use(index, fault)
                ):
                    job.control.limit(Halt.INTERRUPTED, 0.0)
                    return

    @staticmethod
    def _halt(job: Job, reason: Halt) -> None:
        job.control.limit(reason, 0.0)
        job.halt_if_asked()

    def _hang(self, word: Word, job: Job) -> None:
        job.move(secondary="Training" if word == "Training" else None, message="Training in progress.")
        while job.control.wait(_POLL_S) is None:
            pass
        job.halt_if_asked()

    def _for(self, word: Word, request: Mapping[str, Any]) -> list[tuple[int, PlannedFault]]:
        self._read()
        name = str(request.get(f"{word}JobName", ""))
        return [
            (index, fault)
            for index, fault in enumerate(self._faults)
            if fault.job == word and fault.name in name
        ]

    def _read(self) -> None:
        text = self._path.read_text("utf-8") if self._path.exists() else ""
        if text != self._text:
            self._text, self._met, self._since = text, {}, {}
            self._faults = _Plan.model_validate_json(text).faults if text else ()

    def _use(self, index: int, fault: PlannedFault) -> bool:
        used = self._met.get(index, 0)
        if used >= fault.times:
            return False
        self._met[index] = used + 1
        return True

    def _is_full(self, index: int, fault: PlannedFault, together: int) -> bool:
        if fault.at_most is not None:
            return together > fault.at_most
        if fault.seconds is None:
            return self._use(index, fault)
        now = self._monotonic()
        return now - self._since.setdefault(index, now) < fault.seconds

    @staticmethod
    def _fails(fault: PlannedFault, request: Mapping[str, Any]) -> bool:
        if fault.fault == "out_of_memory":
            asked = int(request.get("HyperParameters", {}).get("micro_batch_tokens", 0))
            return asked > fault.micro_batch_tokens
        if fault.fault == "no_spot":
            return bool(request.get("EnableManagedSpotTraining"))
        return fault.fault in {"capacity", "internal", "fail", "time_limit", "hang"}


class _Plan(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    faults: tuple[PlannedFault, ...]


def _full(word: Word, request: Mapping[str, Any], used: int) -> str:
    resources = request.get("ResourceConfig") or request.get("TransformResources") or {}
    cluster = request.get("ProcessingResources", {}).get("ClusterConfig", {})
    instance = resources.get("InstanceType") or cluster.get("InstanceType", "")
    spot = "spot " if request.get("EnableManagedSpotTraining") else ""
    asked = instances_of(request)
    usage = f"{instance} for {spot}{word.lower()} job usage"
    return (
        f"The account-level service limit '{usage}' is {max(asked, used)} Instances, with current utilization of "
        f"{max(asked, used)} Instances and a request delta of {asked} Instances. Please use AWS Service Quotas to request an "
        "increase for this quota. If AWS Service Quotas is not available, contact AWS support to request an increase "
        "for this quota."
    )
