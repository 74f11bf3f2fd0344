"""Caps over runs: what a model and the whole stack may spend in a day and in a month, and what of it is taken.

A run reserves the most that it may spend before it spends anything, in every account at once or in none. When it
has ended, what it really cost takes the place of the reservation. Money is counted in millionths of a US dollar,
as integers: sums of floats drift, and a cap is a promise.
"""

from datetime import datetime
from typing import Final, NamedTuple

from dropforge_core.model import Frozen
from dropforge_core.recipe import Recipe

MICRO: Final = 1_000_000
JUDGE_FIELD: Final = "judge_usd"
"""Of the run's item: what the recipe's judge has cost."""


class Caps(Frozen):
    """US dollars; 0 stands for no cap. Days and months are those of UTC."""

    model_day_usd: float = 0.0
    model_month_usd: float = 0.0
    stack_day_usd: float = 0.0
    stack_month_usd: float = 0.0


class Account(NamedTuple):
    """One sum that a run counts into."""

    name: str
    """Key of its item in the run table."""
    about: str
    """In words, for a refusal."""
    cap_micro: int
    """0 where it is only counted."""


class Reservation(Frozen):
    """What a run has taken of the accounts."""

    reserved_micro: int = 0
    """Taken now, for what is still to be spent."""
    spent_micro: int = 0
    """Settled so far, by earlier attempts at this run."""
    accounts: tuple[str, ...] = ()
    """Where the reservation was taken."""


class Change(NamedTuple):
    """A reservation, and what it moves its accounts by."""

    after: Reservation
    delta_micro: int


def accounts(model: str, at: datetime, caps: Caps) -> tuple[Account, ...]:
    """The four sums that a run of `model`, planned at that moment (UTC), counts into."""
    day, month = f"{at:%Y-%m-%d}", f"{at:%Y-%m}"
    return (
        Account(f"SPENT#model#{model}#{day}", f"daily cap of the model {model}", micro(caps.model_day_usd)),
        Account(
            f"SPENT#model#{model}#{month}", f"monthly cap of the model {model}", micro(caps.model_month_usd)
        ),
        Account(f"SPENT#stack#{day}", "daily cap of the stack", micro(caps.stack_day_usd)),
        Account(f"SPENT#stack#{month}", "monthly cap of the stack", micro(caps.stack_month_usd)),
    )


def micro(usd: float) -> int:
    """Millionths of a dollar, rounded."""
    return round(usd * MICRO)


def reserving(held: Reservation, limit_usd: float, names: tuple[str, ...]) -> Change:
    """Take what the run may spend in all, less what it has spent and what it holds already."""
    wanted = max(0, micro(limit_usd) - held.spent_micro)
    if held.reserved_micro:
        # Both must stand in the same accounts, or settling would take from one what was given to another.
        names = held.accounts
    more = max(0, wanted - held.reserved_micro)
    after = Reservation(
        reserved_micro=held.reserved_micro + more, spent_micro=held.spent_micro, accounts=names
    )
    return Change(after, more)


def settling(held: Reservation, cost_usd: float) -> Change:
    """What the run has cost in all takes the place of what it had reserved. Settled twice, nothing moves."""
    cost = max(held.spent_micro, micro(cost_usd))
    after = Reservation(reserved_micro=0, spent_micro=cost, accounts=held.accounts)
    return Change(after, cost - held.spent_micro - held.reserved_micro)


def refusal(account: Account, taken_micro: int, limit_usd: float) -> str:
    """Why a run may not start, in one sentence."""
    left = max(0, account.cap_micro - taken_micro) / MICRO
    return (
        f"This run may cost up to ${limit_usd:.2f}, and of the {account.about}, ${account.cap_micro / MICRO:.2f}, "
        f"${left:.2f} are left"
    )


def judge_refused(recipe: Recipe, allowed: str) -> str:
    """Why the recipe's judge may not be asked in this stack; empty where it may, or there is none.

    Args:
        recipe: of the run.
        allowed: the model that the stack's role may ask, with or without an inference profile before it; empty for none.
    """
    judge = recipe.evaluation.judge
    if judge is None or (allowed and (judge.model == allowed or judge.model.endswith(f".{allowed}"))):
        return ""
    may = f"may ask {allowed} only" if allowed else "may ask no model to judge"
    return (
        f"The recipe's evaluation.judge is {judge.model}, and this stack {may}. Set the stack's parameter JudgeModelId to "
        "it, or take evaluation.judge out of the recipe."
    )


def type_names(text: str) -> tuple[str, ...]:
    """The stack's parameter AllowedInstanceTypes as names; none where every type is allowed."""
    return tuple(name for name in (part.strip() for part in text.split(",")) if name)


def allowed_only(recipe: Recipe, allowed: tuple[str, ...]) -> tuple[Recipe, str]:
    """The recipe without instance types that the stack does not allow, and why there can be no run of it, if so.

    `allowed` is empty where every type is.
    """
    if not allowed:
        return recipe, ""
    compute = recipe.compute
    training = tuple(name for name in compute.instance_types if name in allowed)
    evaluation = tuple(name for name in compute.evaluation_instance_types if name in allowed)
    for asked, left, field in (
        (compute.instance_types, training, "compute.instance_types"),
        (compute.evaluation_instance_types, evaluation, "compute.evaluation_instance_types"),
    ):
        if not left:
            return recipe, (
                f"None of the recipe's {field} ({', '.join(asked)}) is allowed in this stack, which takes "
                f"{', '.join(allowed)}. Name one of those in the recipe, or allow more in the stack's parameter "
                "AllowedInstanceTypes."
            )
    limited = compute.model_copy(update={"instance_types": training, "evaluation_instance_types": evaluation})
    return recipe.model_copy(update={"compute": limited}), ""
