"""Choose the instance, the micro-batch and the caps of a run, and say what it will cost."""

import math
from collections.abc import Iterable, Iterator
from typing import Final, Literal

from dropforge_core.contracts import (
    BaseModelPlan,
    ComputeChoice,
    DatasetFacts,
    Forecast,
    InstanceOption,
    Interval,
    Plan,
)
from dropforge_core.gate.sampling import sampling_notes
from dropforge_core.identity import job_name
from dropforge_core.planning.advice import advice
from dropforge_core.planning.base import BaseSource
from dropforge_core.planning.calibration import Speed, learn
from dropforge_core.planning.catalogue import Catalogue, load_catalogue
from dropforge_core.planning.duration import (
    STOP_S,
    Workload,
    caching_seconds,
    cost_usd,
    evaluation_seconds,
    flop_per_token,
    judge_usd,
    scaled,
    steps_and_tokens,
    tokens_per_second,
    total,
    training_seconds,
)
from dropforge_core.planning.explain import (
    NOTHING_EARLIER,
    Caching,
    Earlier,
    Evaluation,
    Judged,
    Standing,
    compared,
    duration,
    passed_over,
    reason,
)
from dropforge_core.planning.memory import (
    ADAPTER_BYTES,
    MARGIN,
    adapter_parameters,
    evaluation_memory,
    shortest_micro_batch,
    training_memory,
)
from dropforge_core.planning.parallel import efficiency, share
from dropforge_core.planning.preferences import alternatives, micro_batch_of
from dropforge_core.planning.shape import ModelShape
from dropforge_core.recipe import Recipe

LONGEST_JOB_S: Final = 28 * 24 * 3600
"""CreateTrainingJob: the most that MaxRuntimeInSeconds and MaxWaitTimeInSeconds take."""
SPOT_PATIENCE_S: Final = 2 * 3600
"""How long a job may wait for spot capacity beside its run time, before the ladder takes another step."""
BOUNDED_SPREAD: Final = 1.5
"""By how much a token's work may differ from a Llama's of the same size: a plain feed-forward has two matrices where
a gated one has three."""
NOTHING: Final = Interval(low=0.0, expected=0.0, high=0.0)
NOTES: Final = ("S3, Step Functions, Lambda and CloudWatch are not included; they come to cents.",)


def plan(  # noqa: PLR0913  # by name only; each is a different document of the run
    *,
    recipe: Recipe,
    dataset: DatasetFacts,
    shape: ModelShape,
    base: BaseSource,
    run_id: str,
    model: str,
    catalogue: Catalogue | None = None,
    measured: Iterable[Speed] = (),
    cache_instance_type: str = "",
    mlflow_uri: str | None = None,
    earlier: Earlier = NOTHING_EARLIER,
) -> Plan:
    """The plan of a run.

    The first type of `compute.instance_types` that fits and stays within the caps is taken; where
    none does, the first that fits; where none fits, `fits` is False and `reason` says what is missing.
    `max_runtime_s` is what the cap buys at the on-demand price, so that no spot price can break it.

    Args:
        recipe: as it was resolved.
        dataset: what validation found.
        shape: of the base model.
        base: where the base model lies.
        run_id: names the jobs.
        model: names the jobs.
        catalogue: GPUs and prices; None takes the table of this version.
        measured: finished runs, from which the speed of a type is learned.
        cache_instance_type: of the job that fetches a base model that is not cached yet.
        mlflow_uri: the only server that the stack tells of runs; empty for none, None where it is not known.
        earlier: what this very run did before it was started again.

    Raises:
        BaseModelUnsuitable: when adapter.targets names no layer of this model.
    """
    table = catalogue or load_catalogue()
    work = Workload(recipe=recipe, dataset=dataset, shape=shape)
    runs = tuple(measured)
    caching = _caching(shape, table, "" if base.cached else cache_instance_type)
    evaluation = _evaluation(work, table, runs)
    judged = [
        _judge(name, work, table, (evaluation, caching), runs) for name in recipe.compute.instance_types
    ]
    fitting = [one for one in judged if one.option.fits and evaluation.fits]
    priced = [one for one in fitting if one.option.cost_usd is not None]
    reserve = evaluation.cost.high + caching.cost.high
    affordable = [one for one in priced if _is_within(one, recipe, reserve, earlier)]
    chosen = next(iter(affordable or priced or fitting or judged))
    after = judged[judged.index(chosen) + 1 :]
    within = chosen in affordable
    asks = recipe.approval.spend
    needs_approval = chosen in priced and (asks == "always" or (asks == "over_cap" and not within))
    limit, hours = recipe.compute.max_cost_usd, recipe.compute.max_hours
    if needs_approval and not within and chosen.option.cost_usd and chosen.training_s:
        limit = math.ceil(max(limit, earlier.spent_usd + chosen.option.cost_usd.high) * 100) / 100
        hours = max(hours, chosen.training_s.high / 3600)

    def pays(one: Judged) -> int:
        # The warm instances after it are billed like the job itself.
        warm = warm_usd(recipe.compute.keep_alive_s, one.option.price_usd_hour)
        left = limit - earlier.spent_usd - reserve - warm
        return affordable_seconds(left, hours, one.option.price_usd_hour)

    untried = [one for one in after if one in priced]
    preferred = alternatives(chosen, untried, pays) if recipe.compute.instance_preferences else ()
    together = (chosen, *preferred)
    runtime = min(map(pays, together))
    cheapest, fastest = _best(fitting, "cost_usd"), _best(fitting, "hours")
    too_new = tuple(one.option.instance_type for one in judged if one.too_new)
    standing = Standing(chosen in fitting, chosen in priced, within, reserve, too_new, earlier)
    why = reason(work, chosen, evaluation, standing) + ("" if fitting else advice(work, table))
    spot = recipe.compute.spot
    steps, tokens = steps_and_tokens(recipe, dataset)
    return Plan(
        run_id=run_id,
        fits=chosen in fitting,
        within_budget=within,
        needs_approval=needs_approval,
        reason=why + (compared(chosen.option, cheapest, fastest) if within else ""),
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
            micro_batch_tokens=micro_batch_of(together),
            remaining_types=tuple(one.option.instance_type for one in untried if one not in preferred),
            preferences=tuple(one.option.instance_type for one in preferred),
            instance_count=recipe.compute.instance_count,
            input_mode=recipe.compute.input_mode,
            keep_alive_s=recipe.compute.keep_alive_s,
        ),
        evaluation_instance_type=evaluation.instance_type,
        gradient_checkpointing=chosen.checkpointing,
        steps=steps,
        tokens_total=tokens,
        cost_usd=chosen.option.cost_usd,
        hours=chosen.option.hours,
        max_cost_usd=recipe.compute.max_cost_usd,
        spend_limit_usd=limit,
        evaluation_reserve_usd=reserve,
        approval_expires_s=round(recipe.approval.expires_hours * 3600),
        notes=(
            *_notes(work, evaluation, caching, chosen),
            *([passed_over(too_new)] if too_new and standing.fits else ()),
            *_tracking_notes(recipe, mlflow_uri),
            *_earlier_notes(earlier),
            *NOTES,
        ),
        options=tuple(one.option for one in judged),
        cheapest=cheapest.instance_type if cheapest else None,
        fastest=fastest.instance_type if fastest else None,
        forecast=chosen.forecast if chosen in fitting else None,
    )


def affordable_seconds(usd: float, max_hours: float, usd_hour: float | None) -> int:
    """Run time of a job that `usd` pays at that price with its stop, at most `max_hours`; 0 where it pays none."""
    if not usd_hour or usd <= 0:
        return 0
    return int(max(0.0, min(max_hours * 3600, usd / usd_hour * 3600 - STOP_S, LONGEST_JOB_S)))


def warm_usd(keep_alive_s: int, usd_hour: float | None) -> float:
    """What instances cost that stay warm after their job."""
    return keep_alive_s / 3600 * (usd_hour or 0.0)


def wait_seconds(runtime_s: int, *, spot: bool) -> int:
    """MaxWaitTimeInSeconds: run time and waiting for spot capacity together."""
    return min(runtime_s + SPOT_PATIENCE_S, LONGEST_JOB_S) if spot else runtime_s


def _certain(value: float) -> Interval:
    return Interval(low=value, expected=value, high=value)


def _best(fitting: Iterable[Judged], by: Literal["cost_usd", "hours"]) -> InstanceOption | None:
    """The fitting option with the least expected cost or time; of equals the first."""
    known = [
        (value.expected, one.option) for one in fitting if (value := getattr(one.option, by)) is not None
    ]
    return min(known, key=lambda pair: pair[0])[1] if known else None


def _notes(work: Workload, evaluation: Evaluation, caching: Caching, chosen: Judged) -> Iterator[str]:
    if not evaluation.own_price:
        yield "The evaluation is priced at the training rate of its instance type."
    if caching.instance_type and not caching.priced:
        yield (
            f"Fetching the base model the first time, about {duration(caching.seconds.expected / 3600)} on "
            f"{caching.instance_type}, has no price here. `dropforge prices refresh` finds it."
        )
    if work.shape.origin == "bounded":
        yield (
            f"The architecture {work.shape.model_type[:60]} is not known to the planner, so memory and time are bounds. "
            "When the base model is cached its layers are counted, and later plans are exact."
        )
    if chosen.forecast and not chosen.forecast.measured_runs:
        yield (
            f"No finished run of this stack tells how fast {chosen.option.instance_type} trains a model of this "
            "size, so the interval is wide."
        )
    yield from sampling_notes(work.recipe, work.dataset.rows_eval)
    if judge := work.recipe.evaluation.judge:
        usd = judge_usd(work)
        yield (
            f"The judge {judge.model} costs about ${usd.expected:.2f} and at most ${usd.high:.2f} at the recipe's prices, "
            "which is in the price of the evaluation."
        )


def _earlier_notes(earlier: Earlier) -> Iterator[str]:
    if earlier.spent_usd:
        yield (
            f"This run was started before and has spent ${earlier.spent_usd:.2f} of its cap; it has "
            f"{earlier.done:.0%} of its training."
        )


def _tracking_notes(recipe: Recipe, allowed: str | None) -> Iterator[str]:
    """Who tells an MLflow server of the run. On SageMaker the job itself can't: it has no network."""
    if recipe.tracking.mlflow_uri is None:
        return
    if allowed is None:
        yield (
            "On SageMaker, MLflow is told of the run when it has ended, by the stack, if tracking.mlflow_uri is the "
            "server of the stack's parameter MlflowTrackingUri; the job itself has no network."
        )
    elif recipe.tracking.may_tell(allowed):
        yield (
            "The MLflow server of tracking.mlflow_uri is told of the run when it has ended, by the stack; on "
            "SageMaker the job itself has no network."
        )
    else:
        yield (
            "The stack tells the MLflow server of tracking.mlflow_uri nothing, as "
            + ("it is not the one" if allowed else "there is none")
            + " in the stack's parameter MlflowTrackingUri; on SageMaker the job itself has no network. "
            "tracking.tensorboard needs none."
        )


def _judge(
    name: str,
    work: Workload,
    table: Catalogue,
    others: tuple[Evaluation, Caching],
    measured: tuple[Speed, ...],
) -> Judged:
    evaluation, caching = others
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
    count = recipe.compute.instance_count
    memory, price = instance.gpu.memory_gib, instance.usd_hour and instance.usd_hour * count
    sharing = share(shape, recipe, instance)
    residency, checkpointing, micro_batch = sharing.layout
    predicted = sharing.memory
    mfu, runs = learn(measured, name, shape.parameters, gpus=sharing.ranks)
    if not runs:
        together = efficiency(work, sharing)
        mfu = Interval(
            low=mfu.low * together.low,
            expected=mfu.expected * together.expected,
            high=mfu.high * together.high,
        )
    if shape.origin == "bounded":
        mfu = Interval(
            low=mfu.low / BOUNDED_SPREAD, expected=mfu.expected, high=min(1.0, mfu.high * BOUNDED_SPREAD)
        )
    gpus = instance.gpu.model_copy(update={"bf16_tflops": instance.gpu.bf16_tflops * sharing.ranks})
    seconds = training_seconds(work, gpus, checkpointing=checkpointing, mfu=mfu)
    speed = tokens_per_second(work, gpus, checkpointing=checkpointing, mfu=mfu)
    fits = micro_batch is not None and instance.gpu.runs_image
    option = InstanceOption(
        instance_type=name,
        gpu=instance.gpu_name,
        gpu_memory_gib=memory,
        predicted_memory_gib=predicted.gib,
        residency=residency,
        ranks=sharing.ranks,
        parallelism=sharing.parallelism,
        fits=fits,
        price_usd_hour=price,
        hours=scaled(total(caching.seconds, seconds, evaluation.seconds), 1 / 3600) if fits else None,
        cost_usd=total(
            caching.cost,
            cost_usd(seconds, price, spot=recipe.compute.spot),
            _certain(warm_usd(recipe.compute.keep_alive_s, price)),
            evaluation.cost,
        )
        if fits and price
        else None,
    )
    _, tokens = steps_and_tokens(recipe, work.dataset)
    forecast = Forecast(
        flop_per_token=flop_per_token(work, checkpointing=checkpointing),
        mfu=mfu,
        measured_runs=runs,
        tokens_per_s=speed,
        memory_gib=predicted.gib,
        phase_s={
            "loop": Interval(
                low=tokens / speed.high, expected=tokens / speed.expected, high=tokens / speed.low
            ),
            "training": seconds,
            "evaluation": evaluation.seconds,
            **({"caching": caching.seconds} if caching.instance_type else {}),
        },
    )
    return Judged(
        option=option,
        micro_batch_tokens=micro_batch or 0,
        checkpointing=checkpointing,
        training_s=seconds,
        forecast=forecast if fits else None,
        too_new=not instance.gpu.runs_image,
    )


def _is_within(one: Judged, recipe: Recipe, reserve_usd: float, earlier: Earlier) -> bool:
    compute, price = recipe.compute, one.option.price_usd_hour
    left = compute.max_cost_usd - earlier.spent_usd - reserve_usd - warm_usd(compute.keep_alive_s, price)
    runtime = affordable_seconds(left, compute.max_hours, price)
    return (
        one.training_s is not None
        and one.option.cost_usd is not None
        and earlier.needed_s(one.training_s.expected) <= runtime
        and one.option.cost_usd.expected <= compute.max_cost_usd
    )


def _evaluation(work: Workload, table: Catalogue, measured: tuple[Speed, ...]) -> Evaluation:
    need = evaluation_memory(work.shape, work.recipe).gib
    allowed = work.recipe.compute.evaluation_instance_types
    for name in allowed:
        found = table.find(name)
        if found is None or not found.transform:
            continue
        price = found.transform_usd_hour or found.usd_hour
        if price is not None and need <= MARGIN * found.gpu.memory_gib:
            mfu, _ = learn(measured, name, work.shape.parameters)
            seconds = evaluation_seconds(work, found.gpu, mfu=mfu)
            return Evaluation(
                instance_type=name,
                fits=True,
                seconds=seconds,
                cost=total(cost_usd(seconds, price, spot=False), judge_usd(work)),
                own_price=found.transform_usd_hour is not None,
            )
    return Evaluation(
        instance_type=allowed[0] if allowed else "none", fits=False, seconds=NOTHING, cost=NOTHING
    )


def _caching(shape: ModelShape, table: Catalogue, instance_type: str) -> Caching:
    if not instance_type:
        return Caching(instance_type="", priced=False, seconds=NOTHING, cost=NOTHING)
    seconds, price = caching_seconds(shape), table.processing_price(instance_type)
    return Caching(
        instance_type=instance_type,
        priced=price is not None,
        seconds=seconds,
        cost=cost_usd(seconds, price, spot=False) if price is not None else NOTHING,
    )


def _volume_gb(recipe: Recipe, dataset: DatasetFacts, shape: ModelShape) -> int:
    """Disk of the training job, 10^9 bytes: base model, dataset and its tokens, three checkpoints, room."""
    checkpoints = 3 * adapter_parameters(shape, recipe) * ADAPTER_BYTES
    return 30 + math.ceil((shape.parameters * 4 + dataset.bytes_train * 3 + checkpoints) / 1e9)
