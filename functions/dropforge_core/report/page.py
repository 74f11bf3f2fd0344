"""The page, put together. A pure function of a run's documents."""

from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import Final, NamedTuple

from dropforge_core.report.documents import RunDocuments
from dropforge_core.report.evaluation import examples_section, gate_section, metrics_section
from dropforge_core.report.faults import faults_section, is_rejected, is_searched
from dropforge_core.report.ground import dataset_section, lineage_section, plan_section, training_section
from dropforge_core.report.headline import headline, told
from dropforge_core.report.markup import Markup, document, script, script_source, stylesheet, tag
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
    """HTML of the report: no external resource, no script but the search of a long table of faults, every text escaped.

    Parts that the run did not reach are named together; a part whose document is gone although the run
    went on says so in its place.
    """
    how = told(run.status)
    searched = is_searched(run)
    allowed = f"; script-src {script_source(_search())}" if searched else ""
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
                    content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
                    + allowed,
                ),
                tag("title", f"{run.model}: {how.badge}"),
                stylesheet(_css()),
            ),
            tag(
                "body",
                tag("main", headline(run), _sections(run), _footer(run)),
                script(_search()) if searched else None,
            ),
            lang="en",
        )
    )


def _sections(run: RunDocuments) -> list[Markup]:
    """In the order in which people ask; stages behind the last one that left a document were not reached."""
    last = max((i for i, stage in enumerate(_STAGES) if getattr(run, stage.field) is not None), default=-1)
    made = {stage.name: stage.make(run) for stage in _STAGES[: last + 1]}
    order = _DATASET_FIRST if is_rejected(run) else _RESULTS_FIRST
    faults = faults_section(run)
    shown = [*([faults] if faults else []), *(made[name] for name in order if name in made)]
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


@cache
def _search() -> str:
    return resources.files(__package__).joinpath("search.js").read_text(encoding="utf-8")
