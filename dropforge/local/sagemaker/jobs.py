"""The records of training, processing and transform jobs, and the threads that bring them to their end."""

import copy
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from dropforge.local.sagemaker import listing
from dropforge.local.sagemaker.constraints import service_model
from dropforge.local.sagemaker.errors import ApiError, JobFailed
from dropforge.local.sagemaker.process import Control, Halt

_log = logging.getLogger(__name__)

Status = Literal["InProgress", "Completed", "Failed", "Stopping", "Stopped"]
_TERMINAL: Final = frozenset({"Completed", "Failed", "Stopped"})


class JobHalted(Exception):
    """The job was ended before its time; the worker turns the reason into its last status."""

    def __init__(self, reason: Halt) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True)
class Kind:
    """What differs between the three kinds of job in names and texts."""

    word: Literal["Training", "Processing", "Transform"]
    taken: str
    """ResourceInUse, `{arn}` filled in."""
    missing: str
    """ValidationException, `{name}` filled in."""
    lists_descending: bool = False

    @property
    def arn_part(self) -> str:
        return f"{self.word.lower()}-job"

    @property
    def log_group(self) -> str:
        return f"/aws/sagemaker/{self.word}Jobs"

    def member(self, suffix: str) -> str:
        """`TrainingJobName` for `Name`."""
        return f"{self.word}Job{suffix}"


TRAINING: Final = Kind(
    "Training",
    taken=(
        "Training job names must be unique within an AWS account and region, "
        "and a training job with this name already exists ({arn})"
    ),
    missing="Requested resource not found.",
)
PROCESSING: Final = Kind(
    "Processing",
    taken=(
        "Job name must be unique within an AWS account and region, "
        "and a job with this name already exists ({arn})"
    ),
    missing="Could not find requested job with name: {name}",
)
TRANSFORM: Final = Kind(
    "Transform",
    taken=(
        "Transform job name must be unique within an AWS account and region, "
        "and a Transform job with this name already exists ({arn})"
    ),
    missing="Could not find requested job with name: {name}",
    lists_descending=True,
)


def instances_of(request: Mapping[str, Any]) -> int:
    """That a job's request asks for; of several types in one request each asks for as many."""
    cluster = request.get("ProcessingResources", {}).get("ClusterConfig")
    resources = cluster or request.get("ResourceConfig") or request.get("TransformResources") or {}
    asked = next(iter(resources.get("InstancePreferences", ())), resources)
    return int(asked.get("InstanceCount", 1))


class Job:
    """One job: its request, what became of it, and the lever that ends it. Safe to use from any thread."""

    def __init__(  # noqa: PLR0913  # the parts of a record, each by name
        self,
        *,
        kind: Kind,
        arn: str,
        request: Mapping[str, Any],
        facts: Mapping[str, Any],
        clock: Callable[[], float],
        on_change: Callable[["Job"], None],
    ) -> None:
        self.kind, self.arn, self.request = kind, arn, request
        self.name: str = request[kind.member("Name")]
        self.control = Control()
        self._clock, self._on_change = clock, on_change
        self._lock = threading.RLock()
        self._created = self._modified = clock()
        self._status: Status = "InProgress"
        self._facts: dict[str, Any] = dict(facts)

    @property
    def status(self) -> Status:
        return self._status

    @property
    def ended(self) -> bool:
        return self._status in _TERMINAL

    def move(
        self, status: Status | None = None, secondary: str | None = None, message: str = "", **facts: Any
    ) -> None:
        """Note a change and tell of it. A job that has ended stays as it is.

        `secondary` is for training jobs, which keep a history of it; `message` says more about it.
        `facts` are members of the Describe response.
        """
        with self._lock:
            if self.ended:
                return
            now = self._modified = self._clock()
            self._facts.update(facts)
            if secondary is not None:
                self._enter(secondary, message, now)
            if status is not None:
                self._status = status
            if self.ended:
                self._settle(now)
            self._on_change(self)

    def halt_if_asked(self) -> None:
        """Raises JobHalted where the job must end now."""
        reason = self.control.reason()
        if reason is not None:
            raise JobHalted(reason)

    def note(self, **facts: Any) -> None:
        """Set members of the Describe response without telling anybody."""
        with self._lock:
            self._facts.update(facts)

    def describe(self) -> dict[str, Any]:
        """The Describe response; times are seconds since the epoch."""
        shape: Any = service_model().operation_model(f"Describe{self.kind.word}Job").output_shape
        with self._lock:
            members = {
                **{name: self.request[name] for name in shape.members if name in self.request},
                "CreationTime": self._created,
                "LastModifiedTime": self._modified,
                self.kind.member("Name"): self.name,
                self.kind.member("Arn"): self.arn,
                self.kind.member("Status"): self._status,
                **self._facts,
            }
            return {name: copy.deepcopy(members[name]) for name in shape.members if name in members}

    def summary(self) -> dict[str, Any]:
        """One entry of the List response."""
        model = service_model()
        shape: Any = model.shape_for(f"{self.kind.word}JobSummary")
        described = {"LastModifiedTime": self._modified, **self.describe()}
        return {name: described[name] for name in shape.members if name in described}

    def _enter(self, secondary: str, message: str, now: float) -> None:
        transitions: list[dict[str, Any]] = self._facts.setdefault("SecondaryStatusTransitions", [])
        if transitions and "EndTime" not in transitions[-1]:
            transitions[-1]["EndTime"] = now
        transitions.append({"Status": secondary, "StartTime": now, "StatusMessage": message})
        self._facts["SecondaryStatus"] = secondary

    def _settle(self, now: float) -> None:
        self._facts[f"{self.kind.word}EndTime"] = now
        for transition in self._facts.get("SecondaryStatusTransitions", [])[-1:]:
            transition["EndTime"] = now
        if "TrainingStartTime" in self._facts:
            seconds = max(1, round(now - self._facts["TrainingStartTime"]))
            # Spot's discount is the provider's to give: here every second is billed.
            self._facts |= {"TrainingTimeInSeconds": seconds, "BillableTimeInSeconds": seconds}


class JobBook:
    """All jobs of one kind. `slots` bounds the jobs of all kinds that run at a time; the others wait."""

    def __init__(
        self,
        kind: Kind,
        arn_prefix: str,
        slots: threading.Semaphore,
        clock: Callable[[], float],
        on_change: Callable[[Job], None],
    ) -> None:
        self.kind = kind
        self._arn_prefix, self._slots, self._clock, self._on_change = arn_prefix, slots, clock, on_change
        self._jobs: dict[str, Job] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._lock = threading.Lock()

    def arn_of(self, name: str) -> str:
        return f"{self._arn_prefix}:{self.kind.arn_part}/{name}"

    def create(
        self,
        request: Mapping[str, Any],
        facts: Mapping[str, Any],
        before: Callable[[Job], None],
        body: Callable[[Job], None],
    ) -> Job:
        """Record the job, call `before`, tell of it, and run `body` on a thread.

        Raises:
            ApiError: ResourceInUse, where the name is taken.
        """
        name = request[self.kind.member("Name")]
        with self._lock:
            if name in self._jobs:
                raise ApiError.in_use(self.kind.taken.format(arn=self.arn_of(name)))
            job = Job(
                kind=self.kind,
                arn=self.arn_of(name),
                request=request,
                facts=facts,
                clock=self._clock,
                on_change=self._on_change,
            )
            self._jobs[name] = job
            thread = threading.Thread(target=self._work, args=(job, body), name=job.arn, daemon=True)
            self._threads[name] = thread
        before(job)
        job.move(secondary="Starting" if self.kind is TRAINING else None, message="Preparing the instances")
        thread.start()
        return job

    def in_progress(self) -> int:
        """Instances of the jobs that have not ended."""
        with self._lock:
            return sum(instances_of(job.request) for job in self._jobs.values() if not job.ended)

    def get(self, name: str) -> Job:
        """Raises ApiError (ValidationException, as SageMaker does) where there is none."""
        with self._lock:
            job = self._jobs.get(name)
        if job is None:
            raise ApiError.invalid(self.kind.missing.format(name=name))
        return job

    def stop(self, name: str) -> None:
        """Ask a job to end; returns at once.

        Raises:
            ApiError: ValidationException, where it is unknown or has ended.
        """
        job = self.get(name)
        if job.ended:
            raise ApiError.invalid(
                f"The request was rejected because the {self.kind.word.lower()} job is in status {job.status}."
            )
        if job.status != "Stopping":
            job.move(
                "Stopping",
                secondary="Stopping" if self.kind is TRAINING else None,
                message="Stopping the job",
            )
        job.control.ask(Halt.STOPPED)

    def delete(self, name: str) -> None:
        """Forget a job that has ended.

        Raises:
            ApiError: ValidationException where it is unknown, ResourceInUse where it still runs.
        """
        job = self.get(name)
        if not job.ended:
            raise ApiError.in_use(f"{job.arn} is in status {job.status} and can't be deleted.")
        with self._lock:
            del self._jobs[name]

    def list(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock:
            jobs = list(self._jobs.values())
        found = listing.page(
            [job.summary() for job in jobs],
            request,
            name=self.kind.member("Name"),
            status=self.kind.member("Status"),
            descending=self.kind.lists_descending,
        )
        return listing.answer(f"{self.kind.word}JobSummaries", found)

    def shut_down(self) -> None:
        """Kill every container, without grace."""
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            job.control.ask(Halt.SHUTDOWN)

    def join(self, timeout_s: float) -> None:
        """Wait for the jobs' threads, each at most so long."""
        with self._lock:
            threads = list(self._threads.values())
        for thread in threads:
            thread.join(timeout_s)

    def _work(self, job: Job, body: Callable[[Job], None]) -> None:
        try:
            while not self._slots.acquire(timeout=0.05):
                job.halt_if_asked()
            try:
                body(job)
            finally:
                self._slots.release()
        except JobHalted as halted:
            if halted.reason is not Halt.SHUTDOWN:
                job.move("Stopped", secondary=halted.reason.value if self.kind is TRAINING else None)
        except JobFailed as failed:
            self._fail(job, str(failed))
        except Exception:  # noqa: BLE001  # a fault of ours ends the job as a fault of SageMaker's would
            _log.exception("%s", job.arn)
            self._fail(job, "InternalServerError: We encountered an internal error. Please try again.")
        finally:
            with self._lock:
                self._threads.pop(job.name, None)

    def _fail(self, job: Job, reason: str) -> None:
        secondary = "Failed" if self.kind is TRAINING else None
        job.move("Failed", secondary=secondary, message="Training job failed", FailureReason=reason)
