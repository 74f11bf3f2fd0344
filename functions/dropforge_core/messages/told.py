"""Which events say the same thing: what has been told is not told again."""

from dropforge_core.events import DetailType, RunEvent
from dropforge_core.messages.card import text


def told_as(kind: DetailType, event: RunEvent, event_id: str, redrive: int) -> str:
    """The name under which the ledger remembers that this was told.

    EventBridge delivers at least once, and SageMaker sends several events for one change of state. Only a
    diagnosis may say the same words twice and mean two things; it counts by its event's own id. A redriven
    run tells everything anew.
    """
    if kind == "RunDiagnosed":
        what = event_id
    elif kind == "TrainingProgressed":
        what = f"{text(event.data, 'job_name')}#{text(event.data, 'secondary_status')}"
    elif kind == "ModelRegistered":  # a person's approval in the registry is news of its own
        what = f"{text(event.data, 'package_arn')}#{text(event.data, 'approval_status')}"
    else:
        what = event.status
    return f"TOLD#{event.run_id}#{redrive}#{kind}#{what}"
