"""The first screen: what happened, in ten seconds."""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from dropforge_core.gate.documents import MetricFacts
from dropforge_core.gate.evidence import Estimate
from dropforge_core.messages.wording import next_step
from dropforge_core.metrics.registry import JUDGE_PREFERENCE
from dropforge_core.report.documents import RunDocuments
from dropforge_core.report.figures import duration, money, number, percent, plural
from dropforge_core.report.markup import Markup, tag
from dropforge_core.report.spending import actual_cost, training_seconds


class Told(NamedTuple):
    """How a status is told."""

    tone: str
    """`good`, `open` or `bad`: colour and sign, never colour alone."""
    badge: str
    title: str


_TOLD: Final = {
    "REGISTERED": Told("good", "Registered", "The new model is better, and is registered"),
    "GATE_FAILED": Told("bad", "Not registered", "The new model did not pass"),
    "INCONCLUSIVE": Told("open", "Inconclusive", "There is not enough evidence to decide"),
    "DATASET_REJECTED": Told("bad", "Rejected", "The dataset was rejected"),
    "OVER_BUDGET": Told("open", "Over budget", "The run would cost more than its cap"),
    "APPROVAL_DENIED": Told("open", "Denied", "The spending was not approved"),
    "APPROVAL_EXPIRED": Told("open", "Expired", "Nobody approved the spending in time"),
    "CANCELLED": Told("open", "Cancelled", "The run was cancelled"),
    "DUPLICATE": Told("open", "Duplicate", "The same data was trained before"),
    "STALE": Told("open", "Stale", "A newer version of the dataset was there already"),
    "SUPERSEDED": Told("open", "Superseded", "The dataset was replaced before the run began"),
    "FAILED_CAPACITY": Told("bad", "Failed", "No machine was free"),
    "FAILED_QUOTA": Told("bad", "Failed", "The account's quota does not allow the machine"),
    "FAILED_DATA": Told("bad", "Failed", "Training stopped at the data"),
    "FAILED_CODE": Told("bad", "Failed", "The training code failed"),
    "FAILED_BASE_MODEL": Told("bad", "Failed", "The base model could not be used"),
    "FAILED_INTERNAL": Told("bad", "Failed", "The run failed inside"),
}
_SIGN: Final = {"good": "\u2713", "open": "?", "bad": "\u2715"}


def told(status: str) -> Told:
    """How the status is told; an unknown one by its own name."""
    return _TOLD.get(status) or Told(
        "bad" if status.startswith("FAILED") else "open", status, f"The run ended: {status}"
    )


def headline(run: RunDocuments) -> Markup:
    """Verdict, sentence and the numbers that a manager asks for."""
    how = told(run.status)
    return tag(
        "header",
        tag(
            "p",
            tag("span", "Dropforge", class_="brand"),
            tag("span", run.model, class_="model"),
            tag("span", run.run_id, class_="run-id"),
            class_="crumbs",
        ),
        tag(
            "div",
            tag(
                "p",
                tag("span", _SIGN[how.tone], aria_hidden="true", class_="sign"),
                how.badge,
                class_="badge",
            ),
            tag("h1", how.title),
            _lead(run.message or (run.gate.summary if run.gate else "")),
            _caution(run),
            _next(run),
            class_=f"hero {how.tone}",
        ),
        _tiles(run),
    )


def _lead(message: str) -> list[Markup]:
    """The first line as the sentence that it is; what follows, such as lines of a log, as it stands."""
    first, _, rest = message.strip().partition("\n")
    return [
        *([tag("p", first, class_="lead")] if first else []),
        *([tag("pre", rest.strip("\n"), class_="code")] if rest.strip() else []),
    ]


def _caution(run: RunDocuments) -> Markup | None:
    if run.gate and run.gate.partial_training:
        return tag(
            "p", "Training stopped at its cap; the best checkpoint up to then was judged.", class_="caution"
        )
    return None


def _next(run: RunDocuments) -> Markup | None:
    """What there is to do now, and for whom the run changes nothing."""
    told = _DECIDED[run.status](run) if run.status in _DECIDED else _step(run)
    return tag("p", tag("strong", "Next: "), told, class_="next") if told else None


def _step(run: RunDocuments) -> str:
    """As messages have it; a diagnosis that says itself how to go on is not told twice."""
    told = next_step(run.status, run.run_id)
    return "" if "redrive" in told and "redrive" in run.message else told


def _after_registration(run: RunDocuments) -> str:
    waits = run.recipe is None or run.recipe.gate.on_pass == "PendingManualApproval"  # noqa: S105  # no password
    if waits:
        return (
            f"look at the answers below, then approve {_version(run)} in the model registry. It waits there for a person"
            + ("; until then what serves today goes on serving." if _serves(run) else ".")
        )
    return f"nothing. {_version(run).capitalize()} is approved, and whoever deploys the newest approved version takes it."


def _after_refusal(run: RunDocuments) -> str:
    return (
        f"change the data or the recipe by what the rules below say, and upload again. {_unregistered(run)}"
    )


def _after_doubt(run: RunDocuments) -> str:
    rules = run.gate.rules if run.gate else ()
    open_ones = [one for one in rules if one.verdict == "INCONCLUSIVE" and one.name in _DECIDED_BY_ROWS]
    needed = [one.n_needed for one in open_ones if one.n_needed]
    more = (
        f"hold out about {number(max(needed))} rows and upload again"
        if needed and len(needed) == len(open_ones)
        else "mend what the rules below leave open and upload again"
    )
    if run.package_arn is None:
        return f"{more}. {_unregistered(run)}"
    return (
        f"{more}, or look at the answers below and decide yourself: {_version(run)} waits for a person in the model registry."
        + (" Until then what serves today goes on serving." if _serves(run) else "")
    )


def _serves(run: RunDocuments) -> bool:
    """Whether a version was approved before this run."""
    return run.setup is not None and run.setup.champion_package_arn is not None


def _unregistered(run: RunDocuments) -> str:
    return "Nothing was registered" + ("; what serves today goes on serving." if _serves(run) else ".")


def _version(run: RunDocuments) -> str:
    number_of = (run.package_arn or "").rpartition("/")[2]
    return f"version {number_of}" if number_of.isdigit() else "this version"


_DECIDED: Final[Mapping[str, Callable[[RunDocuments], str]]] = {
    "REGISTERED": _after_registration,
    "GATE_FAILED": _after_refusal,
    "INCONCLUSIVE": _after_doubt,
}
_DECIDED_BY_ROWS: Final = frozenset({"sample_size", "minimum", "better_than_base", "not_worse_than_champion"})
"""Rules that more held-out rows decide."""


def _tiles(run: RunDocuments) -> Markup | None:
    tiles = [
        tile for tile in (*_metric_tiles(run), _rows_tile(run), _time_tile(run), _cost_tile(run)) if tile
    ]
    return tag("ul", tiles, class_="tiles") if tiles else None


def _tile(label: str, value: object, note: object = None) -> Markup:
    return tag(
        "li",
        tag("span", label, class_="label"),
        tag("span", value, class_="value"),
        tag("span", note, class_="note") if note else None,
    )


def _metric_tiles(run: RunDocuments) -> list[Markup]:
    if run.metrics is None:
        return []
    primary = run.gate.policy.primary if run.gate else "nll_per_byte"
    levels = (metric for metric in run.metrics.metrics if metric.name != JUDGE_PREFERENCE)
    ordered = sorted(levels, key=lambda metric: metric.name != primary)
    return [tile for tile in map(_metric_tile, ordered[:3]) if tile]


def _metric_tile(metric: MetricFacts) -> Markup | None:
    before, after = (_mean(metric, variant) for variant in ("base", "candidate"))
    if before is None or after is None:
        return None
    shown = value_of(metric)
    value = (
        shown(before),
        tag("span", " \u2192 ", class_="arrow", aria_label="to"),
        tag("strong", shown(after)),
    )
    way = "lower is better" if metric.direction == "lower" else "higher is better"
    champion = _mean(metric, "champion")
    beside = "" if champion is None else f"; champion {shown(champion)}"
    return _tile(metric.label, value, f"base \u2192 new{beside}; {way}")


def value_of(metric: MetricFacts) -> Callable[[float | None], str]:
    """How the metric's values are written: shares as percent, losses and what is beyond 0 to 1 as numbers."""
    return percent if is_share(metric) else number


def is_share(metric: MetricFacts) -> bool:
    """Whether all that was measured lies in 0 to 1, as a metric of a team's own need not."""
    means = [one.mean for one in metric.estimates if one.mean is not None]
    return metric.name != "nll_per_byte" and all(0 <= mean <= 1 for mean in means)


def _mean(metric: MetricFacts, variant: str) -> float | None:
    found: Estimate | None = next((one for one in metric.estimates if one.variant == variant), None)
    return found.mean if found else None


def _rows_tile(run: RunDocuments) -> Markup | None:
    if run.validation is None:
        return None
    held = run.validation.holdout.get("eval")
    faults = run.validation.error_count
    if faults:
        return _tile("Dataset", number(run.validation.rows), f"rows read, {plural(faults, 'fault')}")
    trained = run.validation.holdout.get("train", run.validation.rows)
    return _tile("Training rows", number(trained), f"{number(held)} held out" if held is not None else None)


def _time_tile(run: RunDocuments) -> Markup | None:
    seconds = training_seconds(run)
    note = f"{plural(run.training.steps, 'step')}" if run.training else None
    return _tile("Training time", duration(seconds), note) if seconds is not None else None


def _cost_tile(run: RunDocuments) -> Markup | None:
    cost = actual_cost(run)
    if cost is not None:
        forecast = run.plan.cost_usd if run.plan else None
        return _tile("Cost on AWS", money(cost), f"forecast {money(forecast.expected)}" if forecast else None)
    if run.plan and run.plan.cost_usd:
        return _tile(
            "Forecast cost", money(run.plan.cost_usd.expected), f"cap {money(run.plan.max_cost_usd)}"
        )
    return None
