"""A person's yes or no to a cost: single use, bound to one question, and only for a while."""

import hashlib
from datetime import datetime, timedelta
from typing import Final, Literal, NamedTuple

from dropforge_core.contracts import Plan, StateInput
from dropforge_core.model import Tolerant
from dropforge_core.planning.explain import duration

Decision = Literal["approve", "deny"]

TOKEN_FIELD: Final = "approval_token"  # noqa: S105  # the name of a field
EXPIRES_FIELD: Final = "approval_expires_at"
LIMIT_FIELD: Final = "spend_limit_usd"
"""What the run may spend: what a yes takes from the caps, whatever they have left."""


class ApprovalQuestion(StateInput):
    """Input of RequestSpendApproval's function."""

    task_token: str
    plan: Plan


class ApprovalAnswer(Tolerant):
    """Input of DecideApproval's function, which the command line invokes."""

    run_id: str
    decision: Decision
    decided_by: str


class Ruling(NamedTuple):
    """Whether an answer counts, and what is said of it."""

    accepted: bool
    code: Literal["accepted", "nothing_asked", "expired", "decided_already"]
    message: str


def expiry(asked_at: datetime, plan: Plan) -> datetime:
    """When the question lapses; the state's own time-out is the same span."""
    return asked_at + timedelta(seconds=plan.approval_expires_s)


def question(plan: Plan, expires_at: datetime) -> str:
    """The question in words, with the two commands that answer it."""
    cost, hours = plan.cost_usd, plan.hours
    size = f"about ${cost.expected:.2f}, at most ${plan.spend_limit_usd:.2f}" if cost else "an unknown sum"
    time = f" and about {duration(hours.expected)}" if hours else ""
    why = "" if plan.within_budget else f" {_over(plan)}{plan.reason}"
    return (
        f"May this run spend {size}{time} on {plan.compute.instance_type}?{why} "
        f"Answer by {expires_at:%Y-%m-%d %H:%M} UTC: dropforge approve {plan.run_id} or dropforge deny {plan.run_id}"
    )


def _over(plan: Plan) -> str:
    """Of the recipe's cap; where it is one over runs, the reason says so."""
    over = plan.spend_limit_usd > plan.max_cost_usd
    return f"That is over the recipe's cap of ${plan.max_cost_usd:g}: " if over else ""


def claim_of(token: str) -> str:
    """The claim that makes a question's answer single. The token itself is nowhere but in the run's item."""
    return f"APPROVAL#{hashlib.sha256(token.encode()).hexdigest()}"


def holder_of(answer: ApprovalAnswer) -> str:
    return f"{answer.decision} by {answer.decided_by}"


def rule(answer: ApprovalAnswer, *, token: str, expires_at: str, now: datetime, holder: str | None) -> Ruling:
    """Whether the answer counts. `holder` is who answered this question first, if anybody did.

    The same answer by the same person counts again: the first may have been lost on its way.
    """
    if not token and not holder:
        return Ruling(accepted=False, code="nothing_asked", message="This run asks for no approval.")
    if not token or holder not in {None, holder_of(answer)}:
        return Ruling(accepted=False, code="decided_already", message=f"This was decided already: {holder}.")
    if now >= _moment(expires_at, now):
        return Ruling(
            accepted=False,
            code="expired",
            message=f"The question lapsed at {expires_at}. Start the run again to be asked once more.",
        )
    done = "approved" if answer.decision == "approve" else "denied"
    return Ruling(accepted=True, code="accepted", message=f"The cost is {done}.")


def _moment(text: str, now: datetime) -> datetime:
    """A question whose expiry can't be read has lapsed."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return now
