"""Choose the instance, the micro-batch and the caps of a run, and say what it will cost."""

import math
from typing import Final

from dropforge_core.contracts import (
    BaseModelPlan,
    ComputeChoice,
    DatasetFacts,
    InstanceOption,
    Interval,
    Plan,
)
from dropforge_core.identity import job_name
from dropforge_core.planning.base import BaseSource
from dropforge_core.planning.catalogue import Catalogue, load_catalogue
from dropforge_core.planning.duration import (
    Workload,
    cost_usd,
    evaluation_seconds,
    scaled,
    steps_and_tokens,
    total,
    training_seconds,
)
from dropforge_core.planning.explain import Evaluation, Judged, Standing, reason
from dropforge_core.planning.memory import (
    ADAPTER_BYTES,
    MARGIN,
    adapter_parameters,
    evaluation_memory,
    largest_micro_batch,
    shortest_micro_batch,
    training_memory,
)
from dropforge_core.planning.shape import ModelShape
from dropforge_core.recipe import Recipe

LONGEST_JOB_S: Final = 28 * 24 * 3600
"""CreateTrainingJob: the most that MaxRuntimeInSeconds and MaxWaitTimeInSeconds take."""
SPOT_PATIENCE_S: Final = 2 * 3600
"""How long a job may wait for spot capacity beside its run time, before the ladder takes another step."""
NOTES: Final = (
    "The evaluation is priced at the training rate of its instance type.",
    "Fetching the base model the first time (a processing job on a CPU instance) has no price here.",
    "S3, Step Functions, Lambda and CloudWatch are not included; they come to cents.",
)


def plan(  # noqa: PLR0913  # by name only; each is a different document of the run
    *,
    recipe: Recipe,
    dataset: DatasetFacts,
    shape: ModelShape,
    base: BaseSource,
    run_id: str,
    model: str,
    catalogue: Catalogue | None = None,
) -> Plan:
    """The plan of a run.

    The first type of `compute.instance_types` that fits and stays within the caps is taken; where
    none does, the first that fits; where none fits, `fits` is False and `reason` says what is missing.
    `max_runtime_s` is what the cap buys at the on-demand price, so that no spot price can break it.

    Raises:
        BaseModelUnsuitable: when adapter.targets names no layer of this model.
    """
    table = catalogue or load_catalogue()
    work = Workload(recipe=recipe, dataset=dataset, shape=shape)
    evaluation = _evaluation(work, table)
    judged = [_judge(name, work, table, evaluation) for name in recipe.compute.instance_types]
    fitting = [one for one in judged if one.option.fits and evaluation.fits]
    priced = [one for one in fitting if one.option.cost_usd is not None]
    affordable = [one for one in priced if _is_within(one, recipe, evaluation)]
    chosen = next(iter(affordable or priced or fitting or judged))
    after = judged[judged.index(chosen) + 1 :]
    within = chosen in affordable
    asks = recipe.approval.spend
    needs_approval = chosen in priced and (asks == "always" or (asks == "over_cap" and not within))
    limit, hours = recipe.compute.max_cost_usd, recipe.compute.max_hours
    if needs_approval and not within and chosen.option.cost_usd and chosen.training_s:
        limit = math.ceil(max(limit, chosen.option.cost_usd.high) * 100) / 100
        hours = max(hours, chosen.training_s.high / 3600)
    runtime = affordable_seconds(limit - evaluation.cost.high, hours, chosen.option.price_usd_hour)
    spot = recipe.compute.spot
    steps, tokens = steps_and_tokens(recipe, dataset)
    return Plan(
        run_id=run_id,
        fits=chosen in fitting,
        within_budget=within,
        needs_approval=needs_approval,
        reason=reason(work, chosen, evaluation, Standing(chosen in fitting, chosen in priced, within)),
        base_model=BaseModelPlan(
            name=base.name,
            source=base.source,
            cached=base.cached,
            prefix=base.prefix,
            parameters=shape.parameters,
            cache_job_name=job_name(model, run_id, 1, "b"),
        ),
        compute=ComputeChoice(
            attempt=1,
            job_name=job_name(model, run_id, 1),
            instance_type=chosen.option.instance_type,
            spot=spot,
            max_runtime_s=runtime,
            max_wait_s=wait_seconds(runtime, spot=spot),
            volume_gb=_volume_gb(recipe, dataset, shape),
            micro_batch_tokens=chosen.micro_batch_tokens,
            remaining_types=tuple(one.option.instance_type for one in after if one in priced),
        ),
        evaluation_instance_type=evaluation.instance_type,
        gradient_checkpointing=chosen.checkpointing,
        steps=steps,
        tokens_total=tokens,
        cost_usd=chosen.option.cost_usd,
        hours=chosen.option.hours,
        max_cost_usd=recipe.compute.max_cost_usd,
        spend_limit_usd=limit,
        evaluation_reserve_usd=evaluation.cost.high,
        approval_expires_s=round(recipe.approval.expires_hours * 3600),
        notes=NOTES,
        options=tuple(one.option for one in judged),
    )


def affordable_seconds(usd: float, max_hours: float, usd_hour: float | None) -> int:
    """Run time of a training job that `usd` pays at that price, at most `max_hours`; 0 where it pays none."""
    if not usd_hour or usd <= 0:
        return 0
    return int(min(max_hours * 3600, usd / usd_hour * 3600, LONGEST_JOB_S))


def wait_seconds(runtime_s: int, *, spot: bool) -> int:
    """MaxWaitTimeInSeconds: run time and waiting for spot capacity together."""
    return min(runtime_s + SPOT_PATIENCE_S, LONGEST_JOB_S) if spot else runtime_s


def _judge(name: str, work: Workload, table: Catalogue, evaluation: Evaluation) -> Judged:
    shape, recipe = work.shape, work.recipe
    shortest = shortest_micro_batch(recipe)
    instance = table.find(name)
    if instance is None:
        least = training_memory(shape, recipe, micro_batch_tokens=shortest, checkpointing=True)
        option = InstanceOption(
            instance_type=name,
            gpu="unknown",
            gpu_memory_gib=0.0,
            predicted_memory_gib=least.gib,
            fits=False,
            price_usd_hour=None,
            hours=None,
            cost_usd=None,
        )
        return Judged(option=option)
    memory, price = instance.gpu.memory_gib, instance.usd_hour
    # Without recomputation a step takes a third less: it is given up only where memory asks for it.
    checkpointing = False
    micro_batch = largest_micro_batch(shape, recipe, memory_gib=memory, checkpointing=False)
    if micro_batch is None:
        checkpointing = True
        micro_batch = largest_micro_batch(shape, recipe, memory_gib=memory, checkpointing=True)
    predicted = training_memory(
        shape, recipe, micro_batch_tokens=micro_batch or shortest, checkpointing=checkpointing
    )
    seconds = training_seconds(work, instance.gpu, checkpointing=checkpointing)
    fits = micro_batch is not None
    option = InstanceOption(
        instance_type=name,
        gpu=instance.gpu_name,
        gpu_memory_gib=memory,
        predicted_memory_gib=predicted.gib,
        fits=fits,
        price_usd_hour=price,
        hours=scaled(total(seconds, evaluation.seconds), 1 / 3600) if fits else None,
        cost_usd=total(cost_usd(seconds, price, spot=recipe.compute.spot), evaluation.cost)
        if fits and price
        else None,
    )
    return Judged(
        option=option, micro_batch_tokens=micro_batch or 0, checkpointing=checkpointing, training_s=seconds
    )


def _is_within(one: Judged, recipe: Recipe, evaluation: Evaluation) -> bool:
    compute = recipe.compute
    runtime = affordable_seconds(
        compute.max_cost_usd - evaluation.cost.high, compute.max_hours, one.option.price_usd_hour
    )
    return (
        one.training_s is not None
        and one.option.cost_usd is not None
        and one.training_s.expected <= runtime
        and one.option.cost_usd.expected <= compute.max_cost_usd
    )


def _evaluation(work: Workload, table: Catalogue) -> Evaluation:
    need = evaluation_memory(work.shape, work.recipe).gib
    allowed = work.recipe.compute.evaluation_instance_types
    for name in allowed:
        found = table.find(name)
        if found is None or found.usd_hour is None or not found.transform:
            continue
        if need <= MARGIN * found.gpu.memory_gib:
            seconds = evaluation_seconds(work, found.gpu)
            cost = cost_usd(seconds, found.usd_hour, spot=False)
            return Evaluation(instance_type=name, fits=True, seconds=seconds, cost=cost)
    nothing = Interval(low=0.0, expected=0.0, high=0.0)
    return Evaluation(
        instance_type=allowed[0] if allowed else "none", fits=False, seconds=nothing, cost=nothing
    )


def _volume_gb(recipe: Recipe, dataset: DatasetFacts, shape: ModelShape) -> int:
    """Disk of the training job, 10^9 bytes: base model, dataset and its tokens, three checkpoints, room."""
    checkpoints = 3 * adapter_parameters(shape, recipe) * ADAPTER_BYTES
    return 30 + math.ceil((shape.parameters * 4 + dataset.bytes_train * 3 + checkpoints) / 1e9)
