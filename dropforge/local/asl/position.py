"""Where an execution stands, and how it ended."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["SUCCEEDED", "FAILED", "TIMED_OUT", "ABORTED"]


@dataclass(frozen=True)
class Outcome:
    """How an execution, or an iteration of a Map state, ended."""

    status: Status
    output: Any = None
    error: str | None = None
    cause: str | None = None


@dataclass
class Position:
    """Where an execution stands: all that a redrive needs to go on from there."""

    state: str
    input: Any
    variables: dict[str, Any] = field(default_factory=dict)
    iterations: "Iterations | None" = None
    """Of the Map state where it stands, once its items are known."""


@dataclass
class Child:
    """One iteration of a Map state. Of a Distributed Map it is an execution of its own, as `arn` and below tell."""

    index: int
    input: Any
    position: Position
    outcome: Outcome | None = None
    """None while it has not ended."""
    arn: str = ""
    name: str = ""
    started_at: float | None = None
    """Seconds since the epoch, as all times here."""
    stopped_at: float | None = None
    redrives: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def succeeded(self) -> bool:
        return self.outcome is not None and self.outcome.status == "SUCCEEDED"


@dataclass
class MapRun:
    """What Step Functions tells of a Distributed Map's children as a whole."""

    arn: str
    execution_arn: str
    """Of the execution that the Map state belongs to."""
    machine_arn: str
    """Of the children: the machine's own, with the Map's label."""
    children: Sequence[Child]
    max_concurrency: int
    tolerated_count: int
    tolerated_percentage: float
    started_at: float
    status: Literal["RUNNING", "SUCCEEDED", "FAILED", "ABORTED"] = "RUNNING"
    stopped_at: float | None = None
    redrives: int = 0


@dataclass
class Iterations:
    """One attempt at a Map state. A redrive goes on with the children that did not succeed."""

    children: Sequence[Child]
    max_concurrency: int
    """0: no bound."""
    tolerated_count: int = 0
    tolerated_percentage: float = 0.0
    run: MapRun | None = None
    """Where the Map is distributed."""

    @property
    def failures(self) -> list[Child]:
        """The children that failed, in the order of their items."""
        return [
            child
            for child in self.children
            if child.outcome is not None and child.outcome.status in {"FAILED", "TIMED_OUT"}
        ]

    @property
    def lost(self) -> bool:
        """Whether more failed than is tolerated. A tolerance of 0 is none set; of two, each must hold."""
        failed = len(self.failures)
        if not self.tolerated_count and not self.tolerated_percentage:
            return failed > 0
        too_many = self.tolerated_count > 0 and failed > self.tolerated_count
        share = 100 * failed / max(1, len(self.children))
        return too_many or (self.tolerated_percentage > 0 and share > self.tolerated_percentage)
