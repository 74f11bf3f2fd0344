"""AcquireTrainingSlot, AcquireEvaluationSlot: take a slot for a job, or wait for one's turn."""

from datetime import UTC, datetime
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from dropforge_core.aws import Ledger, client
from dropforge_core.contracts import SlotInput
from dropforge_core.ladder.slots import Ticket, pool_of
from runtime import Settings, instrumented, logger
from slot_desk import SlotDesk


class Env(Settings):
    run_table: str
    max_concurrent_jobs: int = 0


@instrumented
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Input `SlotInput`. The state waits for its token, so what is returned here goes nowhere.

    Raises:
        Contended: when too many asked at once; the state asks again.
    """
    env = Env.load()
    asked = SlotInput.model_validate(event)
    now = datetime.now(UTC).timestamp()
    desk = SlotDesk(Ledger(env.run_table), client("stepfunctions"), env.max_concurrent_jobs, now)
    ticket = Ticket(
        run_id=asked.run_id,
        model=asked.model,
        pool=pool_of(asked.stage, asked.instance_type, spot=asked.spot),
        since=_moment(asked.started_at, now),
        asked=now,
        hold_s=asked.hold_s,
        instances=asked.instances,
    )
    has_slot = desk.ask(ticket, asked.task_token)
    logger.info("has a slot" if has_slot else "waits for a slot", pool=ticket.pool)
    return {"has_slot": has_slot}


def _moment(text: str | None, now: float) -> float:
    """A run whose beginning is not known stands behind all others."""
    try:
        began = datetime.fromisoformat(text or "")
    except ValueError:
        return now
    return (began if began.tzinfo else began.replace(tzinfo=UTC)).timestamp()
