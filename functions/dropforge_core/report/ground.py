"""What the model was made of: training, dataset, plan and lineage."""

from collections.abc import Mapping, Sequence
from typing import Final

from dropforge_core.contracts import Forecast, Interval, Problem
from dropforge_core.planning.duration import scaled
from dropforge_core.report.charts import loss_chart
from dropforge_core.report.documents import JobFacts, RunDocuments
from dropforge_core.report.faults import problems_table
from dropforge_core.report.figures import DASH, duration, money, number, plural, size
from dropforge_core.report.markup import Markup, tag
from dropforge_core.report.section import facts, missing, section, table
from dropforge_core.report.spending import actual_cost, job_cost, training_seconds

_STOPPED: Final = {
    "end": "trained to its end",
    "early_stopping": "stopped early: the held-out loss rose",
    "time_limit": "stopped at the time limit",
}
_PHASES: Final = {
    "caching": "Fetching the base model",
    "training": "Training job",
    "loop": "Training steps alone",
    "evaluation": "Evaluation job",
}
_BASIS: Final = {
    "given": "given with the dataset",
    "similarity": "cut by similarity: rows alike stay on one side",
    "prompt": "cut by prompt: equal prompts stay on one side",
    "row": "cut row by row",
}


def training_section(run: RunDocuments) -> Markup:
    """The loss curve and how training went."""
    if run.training is None:
        return missing("training", "Training", "training_summary.json in the artifact")
    done = run.training
    best = next((point for point in done.eval_curve if point[0] == done.best_step), None)
    chart = None
    if done.loss_curve or done.eval_curve:
        legend = tag(
            "ul",
            tag("li", tag("i", class_="key train"), "Training loss"),
            tag("li", tag("i", class_="key held-out"), "Held-out loss"),
            tag("li", tag("i", class_="key best"), "Checkpoint kept") if best else None,
            class_="legend",
        )
        chart = tag(
            "figure",
            legend,
            loss_chart(done.loss_curve, done.eval_curve, best),
            tag("figcaption", "Loss in nats a token, over optimiser steps"),
        )
    return section(
        "training",
        "Training",
        chart,
        facts(
            [
                ("Held-out loss", _from_to(done.first_eval_loss, done.best_eval_loss)),
                ("Steps", f"{number(done.steps)} ({number(done.epochs)} epochs)"),
                ("Best step", number(done.best_step) if done.best_eval_loss is not None else None),
                ("Tokens", number(done.tokens)),
                ("Speed", f"{number(done.tokens_per_s)} tokens/s"),
                ("Peak memory", f"{number(done.peak_memory_gib)} GiB"),
                ("Ended", _STOPPED.get(done.stopped_by, done.stopped_by)),
            ]
        ),
    )


def dataset_section(run: RunDocuments) -> Markup:
    """What validation found."""
    if run.validation is None:
        return missing("dataset", "Dataset", "validation.json")
    found = run.validation
    held = found.holdout
    tokens = found.tokens.get("total")
    return section(
        "dataset",
        "Dataset",
        facts(
            [
                ("Files", _files(run)),
                ("Format", found.format),
                ("Rows", number(found.rows)),
                ("Size", size(found.bytes)),
                ("Training rows", number(held.get("train")) if "train" in held else None),
                ("Held-out rows", number(held.get("eval")) if "eval" in held else None),
                ("Hold-out", _BASIS.get(str(held.get("basis")), held.get("basis"))),
                (
                    "Left out",
                    plural(int(held["left_out"]), "copy", "copies") if held.get("left_out") else None,
                ),
                ("Tokens", _tokens(tokens, exact=bool(found.tokens.get("exact")))),
                ("Longest row", _longest(found.tokens.get("longest"), found.tokens.get("limit"))),
                ("Exact duplicates", _count(found.duplicates.get("exact"))),
                ("Near duplicates", _count(found.duplicates.get("near"))),
                ("Leaks into the hold-out", _count(found.leakage.get("exact"))),
                ("Private data", _private(found.pii.get("rows"))),
            ]
        ),
        _warnings(found.warnings),
    )


def _warnings(problems: Sequence[Problem]) -> Markup | None:
    if not problems:
        return None
    count = sum(problem.count for problem in problems)
    return tag(
        "details",
        tag("summary", f"Warnings ({number(count)})"),
        problems_table(problems),
        open=len(problems) <= 5,
    )


def plan_section(run: RunDocuments) -> Markup:
    """What was forecast, and what it took."""
    if run.plan is None:
        return missing("cost", "Time and cost", "plan.json")
    plan = run.plan
    rows = [
        *_phases(run),
        (
            "Speed",
            _speed(plan.forecast),
            f"{number(run.training.tokens_per_s)} tokens/s" if run.training else DASH,
        ),
        ("Cost of the run", _interval(plan.cost_usd), money(actual_cost(run))),
        ("Steps", number(plan.steps), number(run.training.steps) if run.training else DASH),
        ("Tokens", number(plan.tokens_total), number(run.training.tokens) if run.training else DASH),
        (
            "Peak memory",
            _memory(run),
            f"{number(run.training.peak_memory_gib)} GiB" if run.training else DASH,
        ),
    ]
    jobs = [
        (job.kind, tag("code", job.name), _machines(job), duration(job.billable_s), money(job_cost(job)))
        for job in run.jobs
    ]
    options = [
        (
            option.instance_type,
            option.gpu,
            f"{number(option.predicted_memory_gib)} of {number(option.gpu_memory_gib)} GiB",
            "fits" if option.fits else "too small",
            money(option.price_usd_hour),
            _hours(option.hours),
            _interval(option.cost_usd),
        )
        for option in plan.options
    ]
    return section(
        "cost",
        "Time and cost",
        tag("p", plan.reason),
        table(("", "Forecast", "Measured"), rows, numeric=(1, 2)),
        tag("h3", "Jobs") if jobs else None,
        table(("Job", "Name", "Instance", "Billed", "Cost"), jobs, numeric=(3, 4)) if jobs else None,
        tag(
            "details",
            tag("summary", f"Instances that were considered ({len(options)})"),
            table(
                ("Instance", "GPU", "Memory", "", "$ an hour", "Time", "Cost"), options, numeric=(2, 4, 5, 6)
            ),
        )
        if options
        else None,
        tag(
            "p",
            f"The cap of this run is {money(plan.max_cost_usd)}. Billed seconds are charged at the on-demand price of "
            "the instance; what spot capacity saves is in the seconds. ",
            " ".join(plan.notes),
            class_="muted",
        ),
    )


def _machines(job: JobFacts) -> str:
    return job.instance_type if job.instances == 1 else f"{job.instances} {job.instance_type}"


def _phases(run: RunDocuments) -> list[tuple[str, str, str]]:
    """Seconds by phase, foretold and measured; before runs had a forecast, the whole run's hours stand for it."""
    took = {"loop": training_seconds(run)}
    for kind in ("caching", "training", "evaluation"):
        billed = [job.billable_s for job in run.jobs if job.kind == kind]
        took[kind] = sum(billed) if billed else None
    forecast = run.plan.forecast if run.plan else None
    if forecast is None:
        return [("Training time", _hours(run.plan.hours if run.plan else None), duration(took["loop"]))]
    return [
        (_PHASES[phase], _hours(scaled(forecast.phase_s[phase], 1 / 3600)), duration(took[phase]))
        for phase in _PHASES
        if phase in forecast.phase_s
    ]


def _speed(forecast: Forecast | None) -> str:
    if forecast is None:
        return DASH
    speed = forecast.tokens_per_s
    return f"{number(round(speed.expected))} ({number(round(speed.low))} {DASH} {number(round(speed.high))}) tokens/s"


def lineage_section(run: RunDocuments) -> Markup:
    """Everything by which this model can be found again, and made again."""
    gate, setup, base = run.gate, run.setup, run.base_manifest
    digest = run.manifest.digest if run.manifest else (gate.provenance.dataset_digest if gate else None)
    code = [
        ("Run", run.run_id),
        ("Package", run.package_arn),
        ("Artifact", setup.model_data if setup else None),
        ("Dataset", digest),
        ("Recipe", run.recipe.digest if run.recipe else None),
        ("Base model", (run.plan.base_model.source if run.plan else None)),
        ("Base revision", base.revision if base else _revision(run)),
        ("Base licence", base.licence if base else None),
        (
            "Training job",
            setup.training_job_name if setup else (run.plan.compute.job_name if run.plan else None),
        ),
        ("Evaluation job", setup.job_name if setup else None),
        ("Champion", (setup.champion_package_arn or "none") if setup else None),
        ("Prompts", gate.provenance.prompts_digest if gate else None),
        ("Predictions", gate.provenance.predictions_digest if gate else None),
        ("Gate", f"sha256:{run.gate_sha256}" if run.gate_sha256 else None),
        ("Uploaded by", run.request.requester if run.request else None),
        ("Uploaded at", run.request.received_at if run.request else None),
    ]
    recipe = (
        tag(
            "details",
            tag("summary", "The recipe as it was resolved"),
            tag("pre", run.recipe.model_dump_json(indent=2), class_="code"),
        )
        if run.recipe
        else None
    )
    return section(
        "lineage",
        "Lineage",
        facts([(term, tag("code", value) if value else None) for term, value in code]),
        recipe,
        tag("p", "Documents that could not be read: ", tag("code", ", ".join(run.unreadable)), class_="muted")
        if run.unreadable
        else None,
    )


def _revision(run: RunDocuments) -> str | None:
    return run.plan.base_model.prefix.rstrip("/").rsplit("/", 1)[-1] if run.plan else None


def _from_to(first: float | None, last: float | None) -> str | None:
    if last is None:
        return None
    return number(last) if first is None else f"{number(first)} \u2192 {number(last)}"


def _files(run: RunDocuments) -> str | None:
    if run.request is None:
        return None
    names = [one.key.rsplit("/", 1)[-1] for one in run.request.objects]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _tokens(total: int | None, *, exact: bool) -> str | None:
    return None if total is None else number(total) if exact else f"about {number(total)}"


def _longest(longest: int | None, limit: int | None) -> str | None:
    if longest is None:
        return None
    return f"{plural(longest, 'token')}" + (f" of {number(limit)} allowed" if limit else "")


def _count(value: int | None) -> str | None:
    return None if value is None else number(value)


def _private(rows: Mapping[str, int] | None) -> str | None:
    if rows is None:
        return None
    return ", ".join(f"{kind} in {plural(count, 'row')}" for kind, count in rows.items()) or "none found"


def _hours(value: Interval | None) -> str:
    if value is None:
        return DASH
    low, high = duration(value.low * 3600), duration(value.high * 3600)
    return f"{duration(value.expected * 3600)} ({low} {DASH} {high})"


def _interval(value: Interval | None) -> str:
    if value is None:
        return DASH
    return f"{money(value.expected)} ({money(value.low)} {DASH} {money(value.high)})"


def _memory(run: RunDocuments) -> str:
    if run.plan is None:
        return DASH
    if run.plan.forecast:
        return f"{number(run.plan.forecast.memory_gib)} GiB"
    chosen = [o for o in run.plan.options if o.instance_type == run.plan.compute.instance_type]
    return f"{number(chosen[0].predicted_memory_gib)} GiB" if chosen else DASH
