"""Metrics as they are computed: each generation metric as a function of (reference, answer)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, Final

import regex
from referencing.exceptions import Unresolvable
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from dropforge_core.metrics import numbers, structured, text
from dropforge_core.metrics.options import MetricOptions
from dropforge_core.metrics.registry import ENTRY_POINTS, REGISTRY, Metric
from dropforge_core.metrics.schema import SchemaCheck
from dropforge_core.metrics.summaries import CorpusScores

Compare = Callable[[str, str], float]
"""(reference, answer) to score."""

PATTERN_SECONDS: Final = 1.0
"""A pattern that takes longer on one answer is given up, and its metric with it."""


class NotMeasurable(Exception):
    """A metric has no score for a row, and so none at all. The message says why, for people."""


@dataclass(frozen=True, slots=True)
class Installed:
    """A metric of a team's own package: what an entry point of the group `dropforge.metrics` must be."""

    metric: Metric
    compare: Compare


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Every metric that can be asked for, and how the generation metrics are computed."""

    metrics: Mapping[str, Metric]
    compare: Mapping[str, Compare]
    """By name; only metrics of generated text, and only those that the recipe's options suffice for."""
    notes: Mapping[str, str]
    """By name: why a metric can't be computed here, or what it was computed by."""


def catalogue(
    options: MetricOptions, references: Sequence[str], given: Sequence[Metric] = (), *, packages: bool = True
) -> Catalogue:
    """All metrics for one evaluation.

    Args:
        options: of the recipe.
        references: the answers that generations are compared with; a schema that is not given is theirs.
        given: metrics whose scores come from elsewhere.
        packages: whether the metrics of installed packages count.

    Raises:
        ValueError: when an installed metric is none, or takes the name of another.
    """
    compare: dict[str, Compare] = dict(_PLAIN)
    notes: dict[str, str] = {}
    schema = options.json_schema
    if schema is None:
        schema = structured.shared_schema(references)
        notes["json_schema_valid"] = (
            "The schema is what all reference answers share: types, and fields that none lacks."
        )
    compare["json_schema_valid"] = _fits(SchemaCheck(schema))
    compare["numeric_match"] = numbers.within(options.absolute_tolerance, options.relative_tolerance)
    if options.regex is None:
        notes["regex_match"] = "There is no pattern: set evaluation.metric_options.regex."
    else:
        try:
            compare["regex_match"] = _pattern(options.regex)
        except (
            regex.error
        ) as error:  # the recipe was checked by the standard library, which reads a little more
            notes["regex_match"] = f"The pattern can't be read: {error}."
    metrics = dict(REGISTRY)
    for found in installed() if packages else ():
        if found.metric.name in metrics:
            raise ValueError(
                f"two metrics are called {found.metric.name!r}: an installed package must rename its own"
            )
        metrics[found.metric.name] = found.metric
        compare[found.metric.name] = found.compare
    return Catalogue(metrics | {one.name: one for one in given}, MappingProxyType(compare), notes)


@lru_cache(maxsize=1)
def installed() -> tuple[Installed, ...]:
    """Metrics of installed packages, by name.

    Raises:
        ValueError: when an entry point is no `Installed`, or not of a kind that the gate can judge.
    """
    found: list[Installed] = []
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda one: (one.name, one.value)):
        loaded: Any = point.load()
        if not isinstance(loaded, Installed):
            raise ValueError(  # noqa: TRY004  # one error for all that is wrong with an entry point
                f"the entry point {point.name} = {point.value} is a {type(loaded).__name__}; "
                "a dropforge_core.metrics.catalogue.Installed was expected"
            )
        metric = loaded.metric
        if metric.name != point.name or metric.needs != "generation":
            raise ValueError(
                f"the entry point {point.name} = {point.value} must have its metric's name, and need "
                "'generation'"
            )
        found.append(loaded)
    return tuple(found)


def _fits(check: SchemaCheck) -> Compare:
    def json_schema_valid(reference: str, answer: str) -> float:
        try:
            return check(reference, answer)
        except (Unresolvable, RecursionError) as error:
            raise NotMeasurable(
                f"The JSON schema can't be applied ({type(error).__name__}): a $ref in it leads nowhere, or to itself."
            ) from None

    return json_schema_valid


def _pattern(source: str) -> Compare:
    compiled = regex.compile(source)

    def regex_match(_reference: str, answer: str) -> float:
        try:
            return float(compiled.fullmatch(answer.strip(), timeout=PATTERN_SECONDS) is not None)
        except TimeoutError:
            raise NotMeasurable(
                f"The pattern took more than {PATTERN_SECONDS:g} s on one answer. Write it without nested repetition."
            ) from None

    return regex_match


_BLEU: Final = BLEU(effective_order=True)
_CORPUS_BLEU: Final = BLEU()
_CHRF: Final = CHRF()
PAIRS_AT_MOST: Final = 65_536
"""Of which n-grams are counted once only: more than the answers of three variants to any hold-out."""


def chrf(reference: str, answer: str) -> float:
    """SacreBLEU's sentence chrF2 in 0-1."""
    return _share(_score(_CHRF, [_counts(_CHRF, reference, answer)]), reference, answer)


def bleu(reference: str, answer: str) -> float:
    """SacreBLEU's sentence BLEU in 0-1."""
    return _share(_score(_BLEU, [_counts(_CORPUS_BLEU, reference, answer)]), reference, answer)


@lru_cache(maxsize=PAIRS_AT_MOST)
def _counts(metric: BLEU | CHRF, reference: str, answer: str) -> Any:
    """What sacreBLEU counts of one pair: most of its time, which the score of a row and that of all rows share."""
    return metric._extract_corpus_statistics([answer], [[reference]])[0]  # noqa: SLF001  # its public calls count anew each time


def _score(metric: BLEU | CHRF, counts: list[Any]) -> float:
    return float(metric._aggregate_and_compute(counts).score)  # noqa: SLF001  # as above


def corpus_scores(pairs: Sequence[tuple[str, str]]) -> CorpusScores | None:
    """SacreBLEU's corpus BLEU and chrF2 of (reference, answer) pairs; None for no pairs."""
    if not pairs:
        return None
    whole, characters = (
        _score(metric, [_counts(metric, *pair) for pair in pairs]) for metric in (_CORPUS_BLEU, _CHRF)
    )
    return CorpusScores(
        bleu=float(f"{whole:.10g}"),
        chrf=float(f"{characters:.10g}"),
        signatures=(f"BLEU {_CORPUS_BLEU.get_signature()}", f"chrF2 {_CHRF.get_signature()}"),
    )


def _share(score: float, reference: str, answer: str) -> float:
    # Its tokenizer can leave nothing of a text, and its sums end a little above 100.
    return 1.0 if reference.strip() == answer.strip() else min(score / 100, 1.0)


_PLAIN: Final[Mapping[str, Compare]] = {
    "exact_match": text.exact_match,
    "normalised_match": text.normalised_match,
    "token_f1": text.token_f1,
    "json_valid": structured.json_valid,
    "field_f1": structured.field_f1,
    "choice_match": text.choice_match,
    "rouge_l": text.rouge_l,
    "chrf": chrf,
    "bleu": bleu,
    "length_ratio": text.length_ratio,
    "refusal": text.refusal,
}
