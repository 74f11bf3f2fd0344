"""The page, put together. A pure function of a run's documents."""

from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import Final, NamedTuple

from dropforge_core.report.documents import RunDocuments
from dropforge_core.report.evaluation import examples_section, gate_section, metrics_section
from dropforge_core.report.ground import dataset_section, lineage_section, plan_section, training_section
from dropforge_core.report.headline import headline, told
from dropforge_core.report.markup import Markup, document, stylesheet, tag
from dropforge_core.report.section import section


class Stage(NamedTuple):
    """A part of the page, and the document without which it has nothing to show."""

    name: str
    field: str
    make: Callable[[RunDocuments], Markup]


_STAGES: Final = (
    Stage("dataset", "validation", dataset_section),
    Stage("plan", "plan", plan_section),
    Stage("training", "training", training_section),
    Stage("evaluation", "metrics", metrics_section),
    Stage("answers", "examples", examples_section),
    Stage("decision", "gate", gate_section),
)
"""In the order in which a run passes them."""
_RESULTS_FIRST: Final = ("evaluation", "decision", "answers", "training", "dataset", "plan")
_DATASET_FIRST: Final = ("dataset", "plan", "training", "evaluation", "decision", "answers")


def render(run: RunDocuments) -> str:
    """HTML of the report: no script, no external resource, every text escaped.

    Parts that the run did not reach are named together; a part whose document is gone although the run
    went on says so in its place.
    """
    how = told(run.status)
    return document(
        tag(
            "html",
            tag(
                "head",
                tag("meta", charset="utf-8"),
                tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
                tag("meta", name="color-scheme", content="light dark"),
                tag("meta", name="referrer", content="no-referrer"),
                tag(
                    "meta",
                    http_equiv="Content-Security-Policy",
                    content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
                ),
                tag("title", f"{run.model}: {how.badge}"),
                stylesheet(_css()),
            ),
            tag("body", tag("main", headline(run), _sections(run), _footer(run))),
            lang="en",
        )
    )


def _sections(run: RunDocuments) -> list[Markup]:
    """In the order in which people ask; stages behind the last one that left a document were not reached."""
    last = max((i for i, stage in enumerate(_STAGES) if getattr(run, stage.field) is not None), default=-1)
    made = {stage.name: stage.make(run) for stage in _STAGES[: last + 1]}
    rejected = run.validation is not None and not run.validation.valid
    order = _DATASET_FIRST if rejected else _RESULTS_FIRST
    shown = [made[name] for name in order if name in made]
    if skipped := ", ".join(stage.name for stage in _STAGES[last + 1 :]):
        note = tag("p", f"The run ended before: {skipped}.", class_="muted")
        shown.append(section("not-reached", "Not reached", note))
    return [*shown, lineage_section(run)]


def _footer(run: RunDocuments) -> Markup:
    where = f"s3://{run.bucket}/runs/{run.run_id}/" if run.bucket else f"runs/{run.run_id}/"
    return tag("footer", "Everything on this page comes from ", tag("code", where), ". Written by Dropforge.")


@cache
def _css() -> str:
    return resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
