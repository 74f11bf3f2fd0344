"""The states of a run and the order in which it may pass through them."""

from enum import StrEnum
from typing import Final


class Status(StrEnum):
    RECEIVED = "RECEIVED"
    VALIDATING = "VALIDATING"
    PLANNING = "PLANNING"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    CACHING_BASE = "CACHING_BASE"
    TRAINING = "TRAINING"
    EVALUATING = "EVALUATING"
    GATING = "GATING"
    REGISTERING = "REGISTERING"
    # terminal
    REGISTERED = "REGISTERED"
    GATE_FAILED = "GATE_FAILED"
    INCONCLUSIVE = "INCONCLUSIVE"
    DATASET_REJECTED = "DATASET_REJECTED"
    OVER_BUDGET = "OVER_BUDGET"
    APPROVAL_DENIED = "APPROVAL_DENIED"
    APPROVAL_EXPIRED = "APPROVAL_EXPIRED"
    CANCELLED = "CANCELLED"
    DUPLICATE = "DUPLICATE"
    STALE = "STALE"
    SUPERSEDED = "SUPERSEDED"
    FAILED_CAPACITY = "FAILED_CAPACITY"
    FAILED_QUOTA = "FAILED_QUOTA"
    FAILED_DATA = "FAILED_DATA"
    FAILED_CODE = "FAILED_CODE"
    FAILED_BASE_MODEL = "FAILED_BASE_MODEL"
    FAILED_INTERNAL = "FAILED_INTERNAL"

    @property
    def is_terminal(self) -> bool:
        return self not in PHASES

    @property
    def is_failure(self) -> bool:
        return self.value.startswith("FAILED_")


PHASES: Final = (
    Status.RECEIVED,
    Status.VALIDATING,
    Status.PLANNING,
    Status.AWAITING_APPROVAL,
    Status.CACHING_BASE,
    Status.TRAINING,
    Status.EVALUATING,
    Status.GATING,
    Status.REGISTERING,
)
TERMINAL_RANK: Final = 90
REDRIVE_STEP: Final = 100

KEEPS_CONTENT_CLAIM: Final = frozenset({Status.REGISTERED, Status.GATE_FAILED, Status.INCONCLUSIVE, *PHASES})
"""A run in one of these states makes the same content, uploaded again, a DUPLICATE. One that failed does not."""


def rank(status: Status, redrive: int = 0) -> int:
    """The number that a ledger item's `rank` must only ever climb.

    A redrive (Step Functions RedriveRun, `$states.context.Execution.RedriveCount`) starts a new climb
    above everything that came before it.
    """
    base = TERMINAL_RANK if status.is_terminal else 10 * PHASES.index(status)
    return redrive * REDRIVE_STEP + base
