"""The plan in sentences: what was chosen and why, or what is missing and how to mend it."""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from dropforge_core.contracts import Forecast, InstanceOption, Interval, Plan
from dropforge_core.model import Frozen
from dropforge_core.planning.catalogue import NEWEST_CAPABILITY
from dropforge_core.planning.duration import LEAST_RUNTIME_S, STOP_S, Workload
from dropforge_core.planning.memory import (
    GIB,
    MARGIN,
    evaluation_memory,
    shortest_micro_batch,
    training_memory,
)


class Judged(Frozen):
    """One allowed training type, judged. `training_s` is None where the table does not have it."""

    option: InstanceOption
    micro_batch_tokens: int = 0
    checkpointing: bool = True
    training_s: Interval | None = None
    forecast: Forecast | None = None
    """None where it does not fit."""
    too_new: bool = False
    """The training image has no kernels for its GPU."""


class Evaluation(Frozen):
    """The evaluation's type, billed seconds and US dollars; zeros where no allowed type fits."""

    instance_type: str
    fits: bool
    seconds: Interval
    cost: Interval
    own_price: bool = False
    """A price of batch transform is known; else the type's training rate stands for it."""


class Caching(Frozen):
    """The job that fetches the base model; without a type where it is cached already."""

    instance_type: str
    priced: bool
    seconds: Interval
    cost: Interval


class Earlier(Frozen):
    """What a run did before it was started again: its cap is one, however often it is."""

    spent_usd: float = 0.0
    """By all its jobs, settled."""
    done: float = 0.0
    """Share of the training that its newest whole checkpoint has."""

    def needed_s(self, training_s: float) -> float:
        """Of a whole training's seconds those that are still to be paid."""
        return max(min(training_s, LEAST_RUNTIME_S), training_s * (1 - min(1.0, self.done)))


NOTHING_EARLIER: Final = Earlier()


class Standing(NamedTuple):
    """How far the chosen type comes."""

    fits: bool
    priced: bool
    within: bool
    reserve_usd: float
    """Kept back for the jobs beside training."""
    too_new: tuple[str, ...] = ()
    """Allowed types whose GPUs the training image has no kernels for."""
    earlier: Earlier = NOTHING_EARLIER


def headline(of: Plan) -> str:
    """The plan in one sentence, for people."""
    if not of.fits or of.cost_usd is None or of.hours is None:
        return f"No plan: {of.reason}"
    where = f"{of.compute.instance_type} {'on spot' if of.compute.spot else 'on demand'}"
    cost = f"${of.cost_usd.low:.2f} to ${of.cost_usd.high:.2f}"
    verdict = "" if of.within_budget else " That is over the cap."
    return f"Plan: {where}, about {duration(of.hours.expected)}, {cost} (cap ${of.max_cost_usd:g}).{verdict}"


def duration(hours: float) -> str:
    """`14 min` or `3.2 h`."""
    return f"{max(1, round(hours * 60))} min" if hours < 1.5 else f"{hours:.1f} h"


def compared(chosen: InstanceOption, cheapest: InstanceOption | None, fastest: InstanceOption | None) -> str:
    """How the chosen type stands to the cheapest and the fastest that fit; empty where it is the only one."""
    parts = []
    if cheapest and cheapest.cost_usd and chosen.cost_usd:
        parts.append(
            "it is also the cheapest"
            if cheapest == chosen
            else f"{cheapest.instance_type} would be cheaper, about ${cheapest.cost_usd.expected:.2f} instead of "
            f"${chosen.cost_usd.expected:.2f}"
        )
    if (
        fastest
        and fastest.hours
        and chosen.hours
        and (fastest == chosen or duration(fastest.hours.expected) != duration(chosen.hours.expected))
    ):
        parts.append(
            "it is the fastest"
            if fastest == chosen
            else f"{fastest.instance_type} would be faster, about {duration(fastest.hours.expected)} instead of "
            f"{duration(chosen.hours.expected)}"
        )
    said = " and ".join(parts)
    return f" {said[0].upper()}{said[1:]}." if said else ""


def passed_over(too_new: Sequence[str]) -> str:
    """Why types are not taken whose GPUs are newer than the image."""
    newest = ".".join(map(str, NEWEST_CAPABILITY))
    return (
        f"{', '.join(too_new)} can't be taken: the training image's CUDA has kernels for GPUs up to compute "
        f"capability {newest} (Hopper), and Blackwell is newer."
    )


def reason(work: Workload, chosen: Judged, evaluation: Evaluation, standing: Standing) -> str:
    """Why this type, or why none."""
    recipe, shape = work.recipe, work.shape
    option, compute = chosen.option, recipe.compute
    millions = shape.parameters / 1e6
    size = f"{millions / 1000:.2g} B parameters" if millions >= 100 else f"{millions:.2g} M parameters"
    if not evaluation.fits:
        need = evaluation_memory(shape, recipe).total / GIB / MARGIN
        return (
            f"none of compute.evaluation_instance_types ({', '.join(compute.evaluation_instance_types)}) can "
            f"evaluate {size}: a priced batch-transform type with {need:.0f} GiB of GPU memory is needed."
        )
    if not standing.fits:
        need = training_memory(
            shape, recipe, micro_batch_tokens=shortest_micro_batch(recipe), checkpointing=True
        ).gib
        return (
            f"none of compute.instance_types ({', '.join(compute.instance_types)}) can train {size} with rows of "
            f"{recipe.training.max_seq_len} tokens: {need / MARGIN:.0f} GiB of memory are needed on one GPU. Allow a "
            "larger type, or lower training.max_seq_len or adapter.r."
        ) + (f" {passed_over(standing.too_new)}" if standing.too_new else "")
    if not standing.priced:
        return (
            f"{option.instance_type} would hold {size}, but no price is known for it that can be believed (none is, or it "
            "is too old), so max_cost_usd can't be kept. Allow a type that has a price, or fetch those of today: "
            "`dropforge prices refresh`."
        )
    holds = (
        f"{option.instance_type} ({option.gpu}, {option.gpu_memory_gib:.0f} GiB) trains {size} in about "
        f"{option.predicted_memory_gib:.1f} GiB"
    )
    if standing.within:
        return f"{holds} and is the first allowed type that fits and stays within the cap."
    cost, seconds = option.cost_usd, chosen.training_s
    if cost is None or seconds is None:
        raise AssertionError("a priced type has a cost")
    earlier = standing.earlier
    hours = earlier.needed_s(seconds.expected) / 3600
    dollars = math.ceil(
        max(
            cost.expected,
            earlier.spent_usd + (hours + STOP_S / 3600) * (option.price_usd_hour or 0) + standing.reserve_usd,
        )
    )
    spent = f", of which ${earlier.spent_usd:.2f} are spent" if earlier.spent_usd else ""
    return (
        f"{holds}, but needs about {duration(hours)} of training, which the caps don't allow "
        f"(max_cost_usd {compute.max_cost_usd:g}{spent} at ${option.price_usd_hour:g} an hour on demand, max_hours "
        f"{compute.max_hours:g}). It would take max_cost_usd {dollars} and max_hours "
        f"{math.ceil(hours * 10) / 10:g}."
    )
