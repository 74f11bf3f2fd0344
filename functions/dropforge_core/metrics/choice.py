"""Which metrics fit a dataset, told from its reference answers."""

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Final

from dropforge_core.metrics.numbers import is_number
from dropforge_core.metrics.structured import is_json_object
from dropforge_core.metrics.text import choice_of, normalised
from dropforge_core.model import Frozen

JSON_SHARE: Final = 0.9
"""Share of references that must be JSON objects for the task to be extraction."""
NUMBER_SHARE: Final = 0.9
"""Share of references that must be numbers for the task to be calculation."""
LABEL_SHARE: Final = 0.2
"""Distinct references per row at which the task is labelling."""
LABELS_AT_MOST: Final = 50
SHORT_WORDS: Final = 12
"""Median words of a reference up to which an exact answer can be expected."""


class MetricChoice(Frozen):
    """The metrics of an evaluation, and why these."""

    names: tuple[str, ...]
    task: str
    """`json`, `choice`, `label`, `number`, `short`, `text`, or `chosen` where the recipe names the metrics."""
    reason: str
    unknown: tuple[str, ...] = ()
    """Names that the recipe asks for and no metric has."""


def choose(
    asked: tuple[str, ...],
    always: Sequence[str],
    references: Sequence[str],
    known: Iterable[str],
    *,
    preferences: bool = False,
) -> MetricChoice:
    """The metrics to compute.

    Args:
        asked: names from the recipe; empty chooses from the data.
        always: names that the gate needs in any case, and those that were measured already.
        references: the answers that generations are compared with; none where nothing is generated.
        known: names of all metrics that there are.
        preferences: whether rejected answers were measured too.
    """
    known = frozenset(known)
    if asked:
        task, names, reason = "chosen", list(asked), "The recipe names the metrics."
    elif not references:
        task, names, reason = "text", [], "Nothing was generated, so only the likelihood is measured."
    else:
        task, names, reason = _from_data(references)
    if preferences and not asked:
        names.append("preference_accuracy")
        reason += (
            " The rows are preference pairs: how often the chosen answer is the likelier one is measured too."
        )
    wanted = dict.fromkeys(["nll_per_byte", *always, *names])
    return MetricChoice(
        names=tuple(name for name in wanted if name in known),
        task=task,
        reason=reason,
        unknown=tuple(name for name in wanted if name not in known),
    )


def _from_data(references: Sequence[str]) -> tuple[str, list[str], str]:
    rows = len(references)
    objects = sum(map(is_json_object, references))
    if objects >= JSON_SHARE * rows:
        return (
            "json",
            ["exact_match", "field_f1", "json_schema_valid", "json_valid"],
            (
                f"{objects} of {rows} reference answers are JSON objects: fields are compared one by one, and the schema "
                "is checked."
            ),
        )
    labels = Counter(map(normalised, references))
    words = median(len(reference.split()) for reference in references)
    if words <= SHORT_WORDS and len(labels) <= min(LABELS_AT_MOST, LABEL_SHARE * rows):
        always_one = (
            f"always answering the most frequent one would match {max(labels.values()) / rows:.0%} of the rows, so "
            "compare with that."
        )
        if len(labels) > 1 and all(len(label) == 1 and choice_of(label) for label in labels):
            return (
                "choice",
                ["choice_match", "exact_match", "refusal"],
                (
                    f"The reference answers are the letters {', '.join(sorted(label.upper() for label in labels))} of a "
                    f"multiple choice; {always_one}"
                ),
            )
        return (
            "label",
            ["exact_match", "normalised_match", "refusal"],
            f"The reference answers are {len(labels)} labels, so they are classified; {always_one}",
        )
    numbers = sum(map(is_number, references))
    if numbers >= NUMBER_SHARE * rows:
        return (
            "number",
            ["numeric_match", "exact_match", "refusal"],
            f"{numbers} of {rows} reference answers are numbers: they are compared within a tolerance.",
        )
    if words <= SHORT_WORDS:
        return (
            "short",
            ["exact_match", "normalised_match", "token_f1", "refusal"],
            f"Half of the reference answers have at most {words:g} words: an exact answer can be expected.",
        )
    return (
        "text",
        ["token_f1", "rouge_l", "chrf", "length_ratio", "refusal"],
        (
            f"Half of the reference answers have {words:g} words or more: overlap with the reference and its likelihood "
            "are measured."
        ),
    )
