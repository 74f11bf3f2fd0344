"""Which metrics fit a dataset, told from its reference answers."""

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Final

from dropforge_core.metrics.registry import REGISTRY
from dropforge_core.metrics.structured import is_json_object
from dropforge_core.metrics.text import normalised
from dropforge_core.model import Frozen

JSON_SHARE: Final = 0.9
"""Share of references that must be JSON objects for the task to be extraction."""
LABEL_SHARE: Final = 0.2
"""Distinct references per row at which the task is labelling."""
LABELS_AT_MOST: Final = 50
SHORT_WORDS: Final = 12
"""Median words of a reference up to which an exact answer can be expected."""


class MetricChoice(Frozen):
    """The metrics of an evaluation, and why these."""

    names: tuple[str, ...]
    task: str
    """`json`, `label`, `short`, `text`, or `chosen` where the recipe names the metrics."""
    reason: str
    unknown: tuple[str, ...] = ()
    """Names that the recipe asks for and no metric has."""


def choose(
    asked: tuple[str, ...], always: Sequence[str], references: Sequence[str], *, generated: bool
) -> MetricChoice:
    """The metrics to compute.

    Args:
        asked: names from the recipe; empty chooses from the data.
        always: names that the gate needs in any case.
        references: the answers that generations are compared with.
        generated: whether there are generations at all.
    """
    if asked:
        task, names, reason = "chosen", list(asked), "The recipe names the metrics."
    elif not generated or not references:
        task, names, reason = "text", [], "Nothing was generated, so only the likelihood is measured."
    else:
        task, names, reason = _from_data(references)
    wanted = dict.fromkeys(["nll_per_byte", *always, *names])
    return MetricChoice(
        names=tuple(name for name in wanted if name in REGISTRY),
        task=task,
        reason=reason,
        unknown=tuple(name for name in wanted if name not in REGISTRY),
    )


def _from_data(references: Sequence[str]) -> tuple[str, list[str], str]:
    rows = len(references)
    objects = sum(map(is_json_object, references))
    if objects >= JSON_SHARE * rows:
        return (
            "json",
            ["exact_match", "field_f1", "json_valid"],
            f"{objects} of {rows} reference answers are JSON objects: fields are compared one by one.",
        )
    labels = Counter(map(normalised, references))
    words = median(len(reference.split()) for reference in references)
    if words <= SHORT_WORDS and len(labels) <= min(LABELS_AT_MOST, LABEL_SHARE * rows):
        count = max(labels.values())
        return (
            "label",
            ["exact_match", "normalised_match", "refusal"],
            (
                f"The reference answers are {len(labels)} labels; always answering the most frequent one would "
                f"match {count / rows:.0%} of the rows, so compare with that."
            ),
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
        f"Half of the reference answers have {words:g} words or more: overlap with the reference is measured.",
    )
