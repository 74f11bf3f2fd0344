"""Words for every status: what people read in Slack, in e-mails and on the command line."""

from types import MappingProxyType
from typing import Final, Literal

from dropforge_core.ledger import Status

PHRASES: Final = MappingProxyType(
    {
        Status.RECEIVED: "received",
        Status.VALIDATING: "checking the data",
        Status.PLANNING: "planning",
        Status.AWAITING_APPROVAL: "waiting for approval",
        Status.CACHING_BASE: "caching the base model",
        Status.TRAINING: "training",
        Status.EVALUATING: "evaluating",
        Status.GATING: "deciding",
        Status.REGISTERING: "registering",
        Status.REGISTERED: "registered",
        Status.GATE_FAILED: "not good enough",
        Status.INCONCLUSIVE: "too close to call",
        Status.DATASET_REJECTED: "data rejected",
        Status.OVER_BUDGET: "over budget",
        Status.APPROVAL_DENIED: "approval denied",
        Status.APPROVAL_EXPIRED: "approval expired",
        Status.CANCELLED: "cancelled",
        Status.DUPLICATE: "trained before",
        Status.STALE: "replaced by a newer upload",
        Status.SUPERSEDED: "upload vanished",
        Status.FAILED_CAPACITY: "failed: no GPU to be had",
        Status.FAILED_QUOTA: "failed: quota",
        Status.FAILED_DATA: "failed: data",
        Status.FAILED_CODE: "failed: code",
        Status.FAILED_BASE_MODEL: "failed: base model",
        Status.FAILED_INTERNAL: "failed: internal",
    }
)


def known(status: str) -> Status | None:
    """The status of that name, or None for one that this version does not know."""
    return Status.__members__.get(status)


def phrase(status: str) -> str:
    """A few plain words; an unknown status speaks for itself."""
    found = known(status)
    return PHRASES[found] if found else status.lower().replace("_", " ")


_NEXT: Final = MappingProxyType(
    {
        Status.AWAITING_APPROVAL: "dropforge approve {run}   or   dropforge deny {run}",
        Status.DATASET_REJECTED: "Mend the data and upload it again. All faults: dropforge show {run}",
        Status.OVER_BUDGET: "Raise compute.max_cost_usd in recipe.yaml or train on less, and upload again.",
        Status.INCONCLUSIVE: "Hold out more examples, or look and decide yourself: dropforge report {run}",
        Status.REGISTERED: "dropforge report {run}",
        Status.GATE_FAILED: "dropforge report {run}",
        **dict.fromkeys(
            (Status.CANCELLED, Status.APPROVAL_DENIED, Status.APPROVAL_EXPIRED),
            "To start it again: dropforge redrive {run}",
        ),
    }
)


def next_step(status: str, run_id: str) -> str:
    """What the reader can do now, with the command; empty while there is nothing to do."""
    found = known(status)
    if found is None:
        return ""
    failed = "When it is mended: dropforge redrive {run}" if found.is_failure else ""
    return _NEXT.get(found, failed).format(run=run_id)


_DOUBTFUL: Final = frozenset(
    {Status.INCONCLUSIVE, Status.DUPLICATE, Status.STALE, Status.SUPERSEDED, Status.CANCELLED}
)


def tone(status: str) -> Literal["working", "waiting", "good", "doubtful", "bad"]:
    """For icons and colours."""
    found = known(status)
    if found is Status.AWAITING_APPROVAL:
        return "waiting"
    if found is None or not found.is_terminal:
        return "working"
    if found is Status.REGISTERED:
        return "good"
    return "doubtful" if found in _DOUBTFUL else "bad"
