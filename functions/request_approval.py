"""RequestSpendApproval: ask a person, and keep the token that their answer will carry on with."""

from datetime import UTC, datetime
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from announce import announce
from dropforge_core.approval import EXPIRES_FIELD, TOKEN_FIELD, ApprovalQuestion, expiry, question
from dropforge_core.aws import Bus, Ledger
from dropforge_core.events import RunEvent
from dropforge_core.ledger import Status
from runtime import Settings, instrumented


class Env(Settings):
    run_table: str
    event_bus: str


@instrumented
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Input `ApprovalQuestion`. The state waits for the token, so what is returned here goes nowhere."""
    env = Env.load()
    asked = ApprovalQuestion.model_validate(event)
    expires_at = expiry(datetime.now(UTC), asked.plan).replace(microsecond=0)
    ledger = Ledger(env.run_table)
    # The token first: an answer may come as soon as somebody hears of the question.
    ledger.annotate(
        asked.run_id,
        {TOKEN_FIELD: asked.task_token, EXPIRES_FIELD: expires_at.isoformat(), "approval": "asked"},
    )
    ledger.move(asked.run_id, Status.AWAITING_APPROVAL, redrive=asked.redrive)
    cost = asked.plan.cost_usd
    told = RunEvent(
        run_id=asked.run_id,
        model=asked.model,
        status=Status.AWAITING_APPROVAL,
        message=question(asked.plan, expires_at),
        data={
            "cost_expected": round(cost.expected, 4) if cost else None,
            "expires_at": expires_at.isoformat(),
        },
    )
    announce(Bus(env.event_bus), "ApprovalRequested", told)
    return {"asked": True}
