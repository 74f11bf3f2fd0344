"""The arithmetic of a plan, line by line: every number, how it was made, and where it came from."""

from collections.abc import Iterator
from typing import Final

from dropforge_core.contracts import DatasetFacts, InstanceOption, Interval, Plan
from dropforge_core.model import Frozen
from dropforge_core.planning.calibration import PRIOR_MFU, RATE
from dropforge_core.planning.catalogue import Catalogue, Instance
from dropforge_core.planning.duration import (
    EVALUATED_VARIANTS,
    MODEL_LOAD_GB_PER_S,
    SPOT_SHARE,
    START_SECONDS,
    STOP_S,
    cost_usd,
    load_seconds,
    steps_and_tokens,
    token_error,
)
from dropforge_core.planning.memory import GIB, MARGIN, adapter_parameters, training_memory
from dropforge_core.planning.parallel import sharded_memory, shards_of
from dropforge_core.planning.shape import ModelShape, Origin
from dropforge_core.recipe import Recipe

_ORIGINS: Final[dict[Origin, str]] = {
    "counted": "counted on the modules that transformers builds of the base model's config.json",
    "computed": "the base model's config.json by its family's block, and the sizes of its weights",
    "bounded": "a bound: the family is not known here; its weights' sizes, or a Llama of its config.json",
}


class Line(Frozen):
    """One number of the plan."""

    name: str
    value: str
    """With its unit; an interval as `low - expected - high`."""
    made_of: str
    """The formula with its numbers, or empty where it is read."""
    source: str
    """Where it, or what the formula adds to the lines above, comes from."""


def arithmetic(
    made: Plan, *, recipe: Recipe, dataset: DatasetFacts, shape: ModelShape, catalogue: Catalogue
) -> tuple[Line, ...]:
    """The lines of a plan, in the order in which each follows from those before it.

    Args:
        made: the plan that is explained.
        recipe: it was made of.
        dataset: it was made of.
        shape: of the base model.
        catalogue: by whose prices it was made.
    """
    lines = [*_work(recipe, dataset), *_size(recipe, shape)]
    instance = catalogue.find(made.compute.instance_type)
    option = next(o for o in made.options if o.instance_type == made.compute.instance_type)
    if instance is not None:
        lines += _memory(made, option, recipe, shape, instance)
        lines += _time(made, option.ranks, shape, instance, catalogue)
        lines += _money(made, recipe, instance, catalogue)
    return tuple(lines)


def _work(recipe: Recipe, dataset: DatasetFacts) -> Iterator[Line]:
    steps, tokens = steps_and_tokens(recipe, dataset)
    error = token_error(dataset)
    if dataset.tokens_exact:
        counted = "counted with the base model's tokenizer"
    elif dataset.tokens_error is None:
        counted = f"estimated from bytes, not counted: {error:.0%} is assumed either way"
    else:
        counted = f"counted in a sample with the base model's tokenizer, {error:.2%} either way at 95 %"
    least, most = (round(dataset.tokens_train * (1 + share)) for share in (-error, error))
    training = recipe.training
    yield Line(
        name="tokens of one epoch",
        value=f"{least:,} - {dataset.tokens_train:,} - {most:,}" if error else f"{dataset.tokens_train:,}",
        made_of=f"{dataset.rows_train:,} rows",
        source=f"validation, {counted}",
    )
    if training.steps is not None:
        made_of = f"{training.steps:,} steps * {training.effective_batch_tokens:,} tokens of a step"
    else:
        made_of = f"{training.epochs or 3.0:g} epochs * {dataset.tokens_train:,}"
    yield Line(name="tokens of the run", value=f"{tokens:,}", made_of=made_of, source="recipe, training")
    yield Line(
        name="optimiser steps",
        value=f"{steps:,}",
        made_of=f"{tokens:,} / {training.effective_batch_tokens:,} tokens of a step",
        source="recipe, training.effective_batch_tokens",
    )


def _size(recipe: Recipe, shape: ModelShape) -> Iterator[Line]:
    yield Line(
        name="parameters",
        value=f"{shape.parameters:,}",
        made_of=f"{shape.linear_parameters:,} in linear layers + {shape.parameters - shape.linear_parameters:,} others",
        source=f"{_ORIGINS[shape.origin]} ({shape.model_type})",
    )
    yield Line(
        name="adapter parameters",
        value=f"{adapter_parameters(shape, recipe):,}",
        made_of=f"sum over adapted layers of r * (inputs + outputs), r = {recipe.adapter.r}",
        source="recipe, adapter; layers from config.json",
    )


def _memory(
    made: Plan, option: InstanceOption, recipe: Recipe, shape: ModelShape, instance: Instance
) -> Iterator[Line]:
    tokens = made.compute.micro_batch_tokens
    if option.parallelism == "fsdp":
        parts = sharded_memory(
            shape,
            recipe,
            shards=shards_of(instance, recipe),
            micro_batch_tokens=tokens,
            checkpointing=made.gradient_checkpointing,
        )
    else:
        parts = training_memory(
            shape,
            recipe,
            micro_batch_tokens=tokens,
            checkpointing=made.gradient_checkpointing,
            residency=option.residency,
        )
    named = {
        "weights" + (" (sharded)" if option.parallelism == "fsdp" else ""): parts.weights,
        "adapter": parts.adapter,
        f"activations of {tokens:,} tokens": parts.activations,
        "one layer dequantised": parts.dequantised,
        "logits of a chunk": parts.logits,
        "attention mask": parts.mask,
        "context": parts.context,
    }
    yield Line(
        name="peak memory of one GPU",
        value=f"{option.predicted_memory_gib:.2f} GiB",
        made_of=" + ".join(f"{size / GIB:.2f} {what}" for what, size in named.items())
        + (", with recomputation" if made.gradient_checkpointing else ", without recomputation"),
        source="docs/planning.md, Memory (arXiv 2305.14314, 2205.05198)",
    )
    yield Line(
        name="memory that may be used",
        value=f"{MARGIN * option.gpu_memory_gib:.2f} GiB",
        made_of=f"{MARGIN:g} * {option.gpu_memory_gib:g} GiB of a {option.gpu}",
        source=instance.gpu.source,
    )


def _time(
    made: Plan, ranks: int, shape: ModelShape, instance: Instance, catalogue: Catalogue
) -> Iterator[Line]:
    told = made.forecast
    if told is None:
        return
    yield Line(
        name="share of the peak",
        value=_span(told.mfu, ".3f"),
        made_of=f"{told.measured_runs:.1f} finished runs of this family and about this size"
        if told.measured_runs
        else f"no finished run yet: {PRIOR_MFU.low:g} to {PRIOR_MFU.high:g} holds {RATE:.0%} of published runs",
        source="the stack's own runs"
        if told.measured_runs
        else "published runs on A100 and H100 (docs/planning.md)",
    )
    peak = instance.gpu.bf16_tflops
    dated = catalogue.sources.get(instance.gpu.source)
    yield Line(
        name="speed",
        value=f"{_span(told.tokens_per_s, ',.0f')} tokens/s",
        made_of=f"share * {f'{ranks} GPUs * ' if ranks > 1 else ''}{peak:g} TFLOP/s / {told.flop_per_token / 1e9:.2f} GFLOP a token",
        source=f"{instance.gpu.source}{f', {dated.as_of}' if dated else ''}; FLOP from arXiv 2001.08361",
    )
    yield Line(
        name="training job",
        value=f"{_span(told.phase_s['training'], ',.0f')} s",
        made_of=f"start {_three(START_SECONDS)} + loading {_three(tuple(load_seconds(shape, i) for i in range(3)))} "
        f"(at {_three(MODEL_LOAD_GB_PER_S, '.2g')} GB/s) + {made.tokens_total:,} tokens at that speed + held-out losses",
        source="assumed, to be replaced by measurements",
    )
    yield Line(
        name="evaluation job",
        value=f"{_span(told.phase_s['evaluation'], ',.0f')} s",
        made_of=f"{EVALUATED_VARIANTS} variants on {made.evaluation_instance_type}",
        source="recipe, evaluation; decoding speed assumed",
    )
    if "caching" in told.phase_s:
        yield Line(
            name="fetching the base model",
            value=f"{_span(told.phase_s['caching'], ',.0f')} s",
            made_of=f"start + {shape.parameters * 2 / 1e9:.1f} GB",
            source="assumed, to be replaced by measurements",
        )


def _money(made: Plan, recipe: Recipe, instance: Instance, catalogue: Catalogue) -> Iterator[Line]:
    told, price, count = made.forecast, instance.usd_hour, made.compute.instance_count
    if told is None or price is None or made.cost_usd is None:
        return
    usd = price * count
    row = next(row for row in catalogue.instances if row.type == instance.type)
    source = catalogue.sources[row.source or ""]
    training = cost_usd(told.phase_s["training"], usd, spot=recipe.compute.spot)
    share = f" * {_three(SPOT_SHARE, 'g')} on spot" if recipe.compute.spot else ""
    yield Line(
        name="price",
        value=f"${usd:g} an hour",
        made_of=f"{f'{count} * ' if count > 1 else ''}{instance.type} in {catalogue.region}",
        source=f"{row.source}, {source.as_of}: {source.what}",
    )
    yield Line(
        name="cost of training",
        value=f"${_span(training, '.2f')}",
        made_of=f"seconds / 3600 * {usd:g}{share}",
        source="spot's share assumed; it is in the billed seconds" if share else "on demand",
    )
    yield Line(
        name="cost of the run",
        value=f"${_span(made.cost_usd, '.2f')}",
        made_of=f"training + evaluation on {made.evaluation_instance_type}"
        + (" + fetching the base model" if "caching" in told.phase_s else ""),
        source="sums of lows, expected values and highs",
    )
    yield Line(
        name="longest run time",
        value=f"{made.compute.max_runtime_s:,} s",
        made_of=f"(cap ${made.spend_limit_usd:g} - ${made.evaluation_reserve_usd:.2f} kept back) / ${usd:g} an hour - {STOP_S} s "
        f"to save, at most {recipe.compute.max_hours:g} h",
        source="recipe, compute.max_cost_usd and compute.max_hours",
    )


def _span(of: Interval, form: str) -> str:
    return f"{of.low:{form}} - {of.expected:{form}} - {of.high:{form}}"


def _three(values: tuple[float, ...], form: str = ",.0f") -> str:
    return "/".join(f"{value:{form}}" for value in values)
