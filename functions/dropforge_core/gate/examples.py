"""A few rows with every variant's answer, for people: fixed, broken and unchanged ones side by side."""

import hashlib
from collections.abc import Mapping
from itertools import chain, zip_longest
from typing import Final, Literal

from dropforge_core.evaluation.join import Asked, Joined
from dropforge_core.gate.evidence import Scores, rounded
from dropforge_core.metrics.registry import nll_per_byte
from dropforge_core.model import Frozen

SHOWN: Final = 8
TEXT_AT_MOST: Final = 4_000
"""Characters of a prompt, reference or answer; the rest is in evaluation/output/."""
NOTICEABLE: Final = 0.05
"""Difference of a continuous score from which an answer counts as changed."""

Change = Literal["fixed", "broken", "better", "worse", "right", "wrong", "same"]
_ORDER: Final[tuple[tuple[Change, ...], ...]] = (
    ("fixed", "better"),
    ("broken", "worse"),
    ("wrong", "same"),
    ("right",),
)


class Answer(Frozen):
    text: str | None
    """None where nothing was generated for this row."""
    score: float | None
    nll_per_byte: float
    cut_off: bool


class Example(Frozen):
    id: str
    change: Change
    """From the base model to the candidate."""
    prompt: str
    reference: str
    answers: Mapping[str, Answer]
    """By variant."""


class ExampleAnswers(Frozen):
    """`evaluation/examples.json`."""

    schema_version: Literal[1] = 1
    metric: str
    """By which an answer is called better or worse."""
    counts: Mapping[str, int]
    """How many rows changed in which way."""
    examples: tuple[Example, ...]


def pick(joined: Joined, scores: Scores) -> ExampleAnswers:
    """Up to `SHOWN` examples, taken in turn from each kind of change; within a kind, by the hash of the id.

    Args:
        joined: the answers.
        scores: the metric that tells a change: a binary one where there is one.
    """
    base, candidate = scores.by_variant.get("base", {}), scores.by_variant.get("candidate", {})
    asked = {one.id: one for one in joined.asked}
    kinds: dict[Change, list[str]] = {}
    for row_id in sorted(base.keys() & candidate.keys(), key=_shuffled):
        change = _change(scores, base[row_id], candidate[row_id])
        kinds.setdefault(change, []).append(row_id)
    lanes = [[(c, row_id) for c in kind for row_id in kinds.get(c, [])] for kind in _ORDER]
    turns = [found for found in chain.from_iterable(zip_longest(*lanes)) if found is not None]
    shown = sorted(turns[:SHOWN], key=lambda item: [item[0] in kind for kind in _ORDER].index(True))
    return ExampleAnswers(
        metric=scores.metric.name,
        counts={change: len(ids) for change, ids in sorted(kinds.items())},
        examples=tuple(_example(joined, scores, asked[row_id], change) for change, row_id in shown),
    )


def _shuffled(row_id: str) -> bytes:
    return hashlib.sha256(row_id.encode()).digest()


def _change(scores: Scores, before: float, after: float) -> Change:
    gain = scores.metric.better(after, before)
    if scores.metric.kind == "binary":
        if gain:
            return "fixed" if gain > 0 else "broken"
        good = 1.0 if scores.metric.direction == "higher" else 0.0
        return "right" if after == good else "wrong"
    if abs(gain) < NOTICEABLE:
        return "same"
    return "better" if gain > 0 else "worse"


def _example(joined: Joined, scores: Scores, asked: Asked, change: Change) -> Example:
    answers: dict[str, Answer] = {}
    for variant in joined.variants:
        found = joined.answers[variant].get(asked.id)
        if found is None:
            continue
        score = scores.by_variant[variant].get(asked.id)
        answers[variant] = Answer(
            text=None if found.text is None or not asked.generate else found.text[:TEXT_AT_MOST],
            score=None if score is None else rounded(score),
            nll_per_byte=rounded(nll_per_byte(float(found.nll or 0), len(asked.reference.encode()))) or 0.0,
            cut_off=asked.generate and found.finish_reason == "length",
        )
    return Example(
        id=asked.id,
        change=change,
        prompt=asked.prompt[:TEXT_AT_MOST],
        reference=asked.reference[:TEXT_AT_MOST],
        answers=answers,
    )
