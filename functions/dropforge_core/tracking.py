"""A finished run as an MLflow server takes it: parameters, tags, curves, figures, in batches that it accepts.

Nothing of a dataset is in it: settings, digests, numbers and where the report lies.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from dropforge_core.gate.documents import GateReport, MetricsReport
from dropforge_core.gate.rules import combine
from dropforge_core.ledger import Status
from dropforge_core.model import Tolerant
from dropforge_core.recipe import Recipe
from dropforge_core.report.documents import RunDocuments, TrainingSummary

METRICS_AT_MOST: Final = 1000
PARAMS_AT_MOST: Final = 100
TAGS_AT_MOST: Final = 100
"""Of one request (MLflow REST API, "Log Batch": "Request Limits")."""
PARAM_CHARS: Final = 500
"""Of a parameter's value: what every version of MLflow takes."""
TAG_CHARS: Final = 5000
"""Of a tag's value (MLflow REST API, "Set Tag")."""
POINTS_AT_MOST: Final = 10_000
"""Of one curve; a longer one is thinned evenly, so that no run takes minutes to tell."""
INT64: Final = 1 << 63

RUN_TAG: Final = "dropforge.run_id"
"""By this a run is found again; the training job tags its run with the same name."""
_NO_METRIC_NAME: Final = re.compile(r"[^\w .\-/]", re.ASCII)

MlflowStatus = Literal["FINISHED", "FAILED", "KILLED"]
Item = TypeVar("Item")


class _Number(Tolerant):
    key: str
    value: float
    step: int = 0


class _Named(Tolerant):
    key: str


class _Info(Tolerant):
    run_id: str


class _Data(Tolerant):
    metrics: tuple[_Number, ...] = ()
    params: tuple[_Named, ...] = ()


class FoundRun(Tolerant):
    """A run as MLflow's `runs/search` and `runs/create` answer it: of each metric the newest value."""

    info: _Info
    data: _Data = _Data()


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a curve."""

    key: str
    step: int
    value: float


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What is told of a run."""

    name: str
    status: MlflowStatus
    started_ms: int
    ended_ms: int
    """Milliseconds since 1970, UTC."""
    params: Mapping[str, str]
    tags: Mapping[str, str]
    curves: tuple[Point, ...]
    """By ascending step, so that what a server has of them is always a beginning."""
    figures: Mapping[str, float]
    """Numbers of the whole run; they have no step."""


def mlflow_status(status: str) -> MlflowStatus | None:
    """MLflow's word for how a run ended; None for one that ended before it could train."""
    if status in {Status.REGISTERED, Status.GATE_FAILED, Status.INCONCLUSIVE}:
        return "FINISHED"
    if status == Status.CANCELLED:
        return "KILLED"
    return "FAILED" if status.startswith("FAILED_") else None


def record(
    found: RunDocuments, status: MlflowStatus, *, ended_ms: int, report_uri: str, cost_usd: float | None
) -> RunRecord:
    """What the run's documents say of it; parts that are not there are left out.

    Args:
        found: as the report reads them.
        status: how it ended.
        ended_ms: when, in milliseconds since 1970; the same for every delivery of one end.
        report_uri: where the page for people lies; empty where there is none.
        cost_usd: what its jobs cost, where it is known.
    """
    seconds = found.training.seconds if found.training else 0.0
    cost = {} if cost_usd is None else {"cost_usd": cost_usd}
    return RunRecord(
        name=f"{found.model}-{found.run_id}",
        status=status,
        started_ms=ended_ms - (round(seconds * 1000) if math.isfinite(seconds) else 0),
        ended_ms=ended_ms,
        params=_params(found.recipe) if found.recipe else {},
        tags=_tags(found, report_uri),
        curves=_curves(found.training) if found.training else (),
        figures={
            _NO_METRIC_NAME.sub("_", key)[:250]: float(value)
            for key, value in {**_training(found.training), **_gate(found.metrics), **cost}.items()
            if math.isfinite(value)
        },
    )


def log_batches(told: RunRecord, has: FoundRun) -> Iterator[dict[str, Any]]:
    """Bodies of `runs/log-batch`, without the run's id, for what the server does not have yet.

    Told again after a request that was lost, or of a run that a training job with a network told live, the
    rest follows and no value stands twice: a curve goes on behind the newest step that the server has.
    """
    newest = {number.key: number for number in has.data.metrics}
    params = {param.key for param in has.data.params}
    points = [
        *(
            Point(key, 0, value)
            for key, value in told.figures.items()
            if key not in newest or newest[key].value != value
        ),
        *(point for point in told.curves if point.key not in newest or point.step > newest[point.key].step),
    ]
    for some in _chunks([item for item in told.params.items() if item[0] not in params], PARAMS_AT_MOST):
        yield {"params": [{"key": key, "value": value[:PARAM_CHARS]} for key, value in some]}
    for some in _chunks(list(told.tags.items()), TAGS_AT_MOST):
        yield {"tags": tags_of(some)}
    for part in _chunks(points, METRICS_AT_MOST):
        yield {
            "metrics": [
                {"key": point.key, "value": point.value, "timestamp": told.ended_ms, "step": point.step}
                for point in part
            ]
        }


def tags_of(items: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Tags in MLflow's form, cut to its limit."""
    return [{"key": key, "value": value[:TAG_CHARS]} for key, value in items]


def _params(recipe: Recipe) -> dict[str, str]:
    # The names and the form of values are those that a training job with a network tells.
    inner = recipe.training.model_dump(mode="json") | recipe.adapter.model_dump(mode="json")
    outer = {
        "base_model": recipe.base_model.name,
        "method": recipe.method,
        "quantization": recipe.quantization,
    }
    return {key: str(value) for key, value in {**inner, **outer}.items()}


def _tags(found: RunDocuments, report_uri: str) -> dict[str, str]:
    plan, recipe, gate = found.plan, found.recipe, found.gate
    known: dict[str, str | None] = {
        RUN_TAG: found.run_id,
        "dropforge.model": found.model,
        "dropforge.status": found.status,
        "dropforge.recipe_digest": recipe.digest if recipe else None,
        "dropforge.dataset_digest": found.manifest.digest if found.manifest else None,
        "dropforge.base_model": _base(plan.base_model.name, plan.base_model.prefix) if plan else None,
        "dropforge.report": report_uri,
        "dropforge.package_arn": found.package_arn,
        **_verdicts(gate),
    }
    return {key: value for key, value in known.items() if value}


def _base(name: str, prefix: str) -> str:
    return f"{name}@{prefix.rstrip('/').rsplit('/', 1)[-1]}"


def _verdicts(gate: GateReport | None) -> dict[str, str | None]:
    if gate is None:
        return {}
    names = {rule.name for rule in gate.rules}
    return {
        "dropforge.verdict": gate.verdict,
        **{
            f"dropforge.rule.{name}": combine(tuple(rule for rule in gate.rules if rule.name == name))
            for name in sorted(names)
        },
    }


def _curves(training: TrainingSummary) -> tuple[Point, ...]:
    points = [
        Point(key, step, value)
        for key, curve in (("loss", training.loss_curve), ("eval_loss", training.eval_curve))
        for step, value in _thinned(curve)
        if math.isfinite(value) and 0 <= step < INT64
    ]
    return tuple(sorted(points, key=lambda point: point.step))


def _thinned(curve: Sequence[tuple[int, float]]) -> Iterator[tuple[int, float]]:
    last, most = len(curve) - 1, POINTS_AT_MOST - 1
    if last <= most:
        yield from curve
    else:
        for index in range(POINTS_AT_MOST):
            yield curve[index * last // most]


def _training(training: TrainingSummary | None) -> dict[str, float]:
    if training is None:
        return {}
    names = (
        *("steps", "epochs", "tokens", "seconds", "tokens_per_s", "peak_memory_gib"),
        *("best_step", "best_eval_loss", "first_eval_loss"),
    )
    values = {name: getattr(training, name) for name in names}
    return {f"training.{name}": value for name, value in values.items() if value is not None}


def _gate(metrics: MetricsReport | None) -> dict[str, float]:
    """Each metric of each variant, and the candidate's gain over each reference with its bounds."""
    if metrics is None:
        return {}
    numbers: dict[str, float | None] = {
        f"gate.{one.metric}.{one.variant}": one.mean for facts in metrics.metrics for one in facts.estimates
    }
    for pair in metrics.comparisons:
        name = f"gate.{pair.metric}.gain_over_{pair.against}"
        numbers |= {name: pair.difference, f"{name}.lower": pair.lower, f"{name}.upper": pair.upper}
    return {key: value for key, value in numbers.items() if value is not None}


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
