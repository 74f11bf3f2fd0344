"""Events on the stack's own bus. Versioned; documented in docs/events.md; no secret and no training text."""

from collections.abc import Mapping
from typing import Any, Final, Literal

from dropforge_core.model import Tolerant

SOURCE: Final = "dropforge"

DetailType = Literal[
    "RunReceived",
    "DatasetRejected",
    "RunPlanned",
    "ApprovalRequested",
    "TrainingProgressed",
    "RunDiagnosed",
    "GateDecided",
    "ModelRegistered",
    "RunEnded",
]


class RunEvent(Tolerant):
    """The detail of every event."""

    version: Literal[1] = 1
    run_id: str
    model: str
    status: str
    message: str = ""
    """One paragraph for a person."""
    data: Mapping[str, Any] = {}
