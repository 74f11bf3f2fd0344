"""The caps over runs: reserve before anything is spent, settle when all is done."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from dropforge_core.aws import Purse
from dropforge_core.budget import Caps, accounts, refusal, reserving, settling
from dropforge_core.contracts import Plan
from dropforge_core.ladder.cause import instance_of
from dropforge_core.planning.catalogue import Catalogue
from dropforge_core.recipe import Recipe
from jobs import KINDS, Jobs, Kind
from patience import patiently


def reserve(  # noqa: PLR0913  # each is another fact of the run
    purse: Purse, *, run_id: str, model: str, limit_usd: float, caps: Caps, at: datetime, forced: bool = False
) -> str:
    """Take what the run may spend out of today's and this month's caps. Returns why not; empty where it is taken.

    `forced`: a person has approved it, so that no cap refuses.

    Raises:
        Contended: when others wrote the same accounts at every try.
    """
    named = accounts(model, at, caps)

    def attempt() -> str:
        held = purse.held(run_id)
        change = reserving(held, limit_usd, tuple(account.name for account in named))
        if not change.delta_micro:
            return ""
        full = purse.exchange(run_id, held, change, () if forced else named)
        return refusal(full, purse.taken(full.name), limit_usd) if full else ""

    return patiently(attempt)


def settle(purse: Purse, *, run_id: str, cost_usd: float) -> None:
    """Put what the run has cost in all in the place of what it had reserved.

    Raises:
        Contended: when others wrote the same accounts at every try.
    """

    def attempt() -> None:
        held = purse.held(run_id)
        change = settling(held, cost_usd)
        if held.accounts and change.after != held:
            purse.exchange(run_id, held, change, ())

    patiently(attempt)


_WORD: Final = {"TrainingJob": "Training", "TransformJob": "Transform", "ProcessingJob": "Processing"}


def cost_of_run(
    jobs: Jobs,
    run_id: str,
    catalogue: Catalogue,
    *,
    kinds: Iterable[Kind] = tuple(KINDS),
    until: datetime | None = None,
) -> float:
    """US dollars of all jobs of the run, failed attempts too: billed seconds at the on-demand price.

    Billable seconds of training include spot's saving already. Transform and processing tell none, and are billed
    from start to end. A type without a known price counts nothing.

    Args:
        jobs: SageMaker's.
        run_id: whose.
        catalogue: prices.
        kinds: of jobs.
        until: counts a job that has not ended up to that moment (aware); None counts it with its end.
    """
    return sum(_costs(jobs, run_id, catalogue, kinds, until))


def left_for_evaluation(jobs: Jobs, plan: Plan, recipe: Recipe, catalogue: Catalogue, now: datetime) -> float:
    """US dollars of the run's limit that a transform job may still cost. `now` is aware."""
    judge = recipe.evaluation.judge
    spent = cost_of_run(jobs, plan.run_id, catalogue, until=now)
    return plan.spend_limit_usd - (judge.max_cost_usd if judge else 0.0) - spent


def _costs(
    jobs: Jobs, run_id: str, catalogue: Catalogue, kinds: Iterable[Kind], until: datetime | None
) -> Iterator[float]:
    for kind in kinds:
        for name in jobs.of_run(kind, run_id):
            told = jobs.describe(kind, name) or {}
            cluster = told.get("ProcessingResources", {}).get("ClusterConfig")
            resources = cluster or told.get("ResourceConfig") or told.get("TransformResources") or {}
            instance_type, count = instance_of(resources)
            price = _price(kind, instance_type, catalogue) or 0.0
            seconds = _seconds(told, _WORD[kind], until) + warm_seconds(told, resources)
            yield seconds / 3600 * price * count


def warm_seconds(told: Mapping[str, Any], resources: Mapping[str, Any]) -> float:
    """What a warm pool was billed; while SageMaker has not said, as long as it was asked for."""
    retained = told.get("WarmPoolStatus", {}).get("ResourceRetainedBillableTimeInSeconds")
    return float(resources.get("KeepAlivePeriodInSeconds", 0) if retained is None else retained)


def _price(kind: Kind, instance_type: str, catalogue: Catalogue) -> float | None:
    found = catalogue.find(instance_type)
    match kind:
        case "ProcessingJob":
            return catalogue.processing_price(instance_type)
        case "TransformJob":
            return (found.transform_usd_hour or found.usd_hour) if found else None
        case _:
            return found.usd_hour if found else None


def _seconds(told: Mapping[str, Any], word: str, until: datetime | None) -> float:
    billable = told.get("BillableTimeInSeconds", told.get("TrainingTimeInSeconds"))
    if billable is not None:
        return float(billable)
    began, ended = told.get(f"{word}StartTime"), told.get(f"{word}EndTime") or until
    return max(0.0, float((ended - began).total_seconds())) if began and ended else 0.0
