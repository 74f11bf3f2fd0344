"""DecideApproval: take a person's answer to RequestSpendApproval, once, and let the run go on."""

import json
from datetime import UTC, datetime
from typing import Any, Final

from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.exceptions import ClientError

from dropforge_core.approval import (
    EXPIRES_FIELD,
    LIMIT_FIELD,
    TOKEN_FIELD,
    ApprovalAnswer,
    claim_of,
    holder_of,
    rule,
)
from dropforge_core.aws import Ledger, Purse, client, error_code
from dropforge_core.budget import Caps
from dropforge_core.ledger import Status
from money import reserve, settle
from runtime import Settings, count, instrumented

_GONE: Final = frozenset({"TaskTimedOut", "TaskDoesNotExist", "InvalidToken"})


class Env(Settings):
    run_table: str


@instrumented
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Input `ApprovalAnswer`, output `{"accepted", "code", "message"}`.

    The waiting state gets `{"approved", "decided_by", "message"}`. Codes: accepted, unknown_run,
    nothing_asked, expired, decided_already, not_waiting.
    """
    answer = ApprovalAnswer.model_validate(event)
    env = Env.load()
    ledger = Ledger(env.run_table)
    run = ledger.run(answer.run_id)
    if run is None:
        return _said("unknown_run", "There is no run of this id.")
    token = run.get(TOKEN_FIELD, "")
    if run["status"] != Status.AWAITING_APPROVAL:
        return _said("not_waiting", f"This run waits for no answer: it is {run['status']}.")
    now = datetime.now(UTC)
    expires_at = run.get(EXPIRES_FIELD, "")
    # The token is cleared once it was used; the item then says who used it.
    holder = ledger.holder(claim_of(token)) if token else run.get("approval")
    is_first = holder is None
    ruling = rule(answer, token=token, expires_at=expires_at, now=now, holder=holder)
    if ruling.accepted and holder is None:
        holder = ledger.claim(claim_of(token), holder_of(answer))
        ruling = rule(answer, token=token, expires_at=expires_at, now=now, holder=holder)
    if not ruling.accepted:
        return _said(ruling.code, ruling.message)
    approved = answer.decision == "approve"
    purse = Purse(env.run_table)
    if approved:
        # A person may pass the caps over runs; what they allowed counts into them all the same.
        reserve(
            purse,
            run_id=answer.run_id,
            model=run["model"],
            limit_usd=float(run.get(LIMIT_FIELD, "0")),
            caps=Caps(),
            at=now,
            forced=True,
        )
    output = {
        "approved": approved,
        "decided_by": answer.decided_by,
        "message": f"The cost was {'approved' if approved else 'denied'} by {answer.decided_by}.",
    }
    try:
        client("stepfunctions").send_task_success(taskToken=token, output=json.dumps(output))
    except ClientError as error:
        if error_code(error) in _GONE:
            now_run = ledger.run(answer.run_id) or run
            if is_first or Status(now_run["status"]).is_terminal:
                # Repeated, the answer may have let the run go on before: then it spends what is reserved.
                settle(purse, run_id=answer.run_id, cost_usd=0.0)
            return _said(
                "not_waiting", "The run waits for no answer any more; it went on or ended meanwhile."
            )
        raise
    ledger.annotate(
        answer.run_id, {TOKEN_FIELD: "", "approval": holder_of(answer), "approval_at": now.isoformat()}
    )
    count("ApprovalGiven" if approved else "ApprovalDenied")
    return _said(ruling.code, ruling.message)


def _said(code: str, message: str) -> dict[str, Any]:
    return {"accepted": code == "accepted", "code": code, "message": message}
