"""What is told of a whole evaluation beside the means of its metrics: labels, perplexity, lengths, corpus scores."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from dropforge_core.metrics.text import choice_of, normalised, refusal
from dropforge_core.model import Frozen

OTHER: Final = "(no label)"
"""What an answer counts as that is none of the references' labels."""


class LabelScore(Frozen):
    """One label, one against the rest."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    """References that have it."""


class ClassificationReport(Frozen):
    """How labels were told apart. A ratio of nothing is 0, as scikit-learn's `zero_division=0` has it."""

    labels: tuple[LabelScore, ...]
    """Most frequent first."""
    accuracy: float
    macro_f1: float
    """Mean over labels: a rare label counts as much as a frequent one."""
    weighted_f1: float
    """Mean weighted by support."""
    majority: float
    """Accuracy of always answering the most frequent label."""
    confusion: Mapping[str, Mapping[str, int]]
    """Reference's label to answer's label to rows; what is no label of any reference is `(no label)`."""


class Likelihood(Frozen):
    """The loss of the references as other tools write it. All follow from the summed negative log likelihood."""

    rows: int
    nats: float
    bytes: int
    words: int
    bits_per_byte: float
    byte_perplexity: float | None
    """exp(nats / bytes); None where that is beyond any float."""
    word_perplexity: float | None
    """exp(nats / words), words divided by white space."""


class Lengths(Frozen):
    """Lengths of generated answers, and how many are no answers."""

    rows: int
    mean_words: float
    reference_words: float
    empty: float
    """Share of answers without any text."""
    cut_off: float
    """Share of answers that ended at the token limit."""
    refused: float
    """Share of answers that open with an English refusal where the reference does not."""


class CorpusScores(Frozen):
    """Scores of all answers together, in 0-100, as papers print them."""

    bleu: float
    chrf: float
    signatures: tuple[str, ...]
    """What sacreBLEU says of how it computed them."""


def classification_report(pairs: Sequence[tuple[str, str]], *, choices: bool = False) -> ClassificationReport:
    """Labels of (reference, answer) pairs, compared as `normalised_match` compares, or by the letter of a choice.

    Raises:
        ValueError: for no pairs.
    """
    if not pairs:
        raise ValueError("no answers to classify")
    label_of = _letter if choices else normalised
    truth = [label_of(reference) for reference, _ in pairs]
    known = frozenset(truth)
    told = [label if (label := label_of(answer)) in known else OTHER for _, answer in pairs]
    support, given = Counter(truth), Counter(told)
    right = Counter(label for label, other in zip(truth, told, strict=True) if label == other)
    scores = tuple(
        LabelScore(
            label=label,
            precision=_ratio(right[label], given[label]),
            recall=right[label] / count,
            f1=2 * right[label] / (count + given[label]),
            support=count,
        )
        for label, count in sorted(support.items(), key=lambda item: (-item[1], item[0]))
    )
    confusion: dict[str, Counter[str]] = {one.label: Counter() for one in scores}
    for label, other in zip(truth, told, strict=True):
        confusion[label][other] += 1
    rows = len(pairs)
    return ClassificationReport(
        labels=scores,
        accuracy=right.total() / rows,
        macro_f1=math.fsum(one.f1 for one in scores) / len(scores),
        weighted_f1=math.fsum(one.f1 * one.support for one in scores) / rows,
        majority=scores[0].support / rows,
        confusion={label: dict(sorted(found.items())) for label, found in confusion.items()},
    )


def likelihood(rows: Sequence[tuple[str, float]]) -> Likelihood | None:
    """Of (reference, its negative log likelihood in nats); None for no rows."""
    if not rows:
        return None
    nats = math.fsum(max(nll, 0.0) for _, nll in rows)
    size = sum(len(reference.encode()) for reference, _ in rows)
    words = sum(len(reference.split()) for reference, _ in rows)
    return Likelihood(
        rows=len(rows),
        nats=_digits(nats),
        bytes=size,
        words=words,
        bits_per_byte=_digits(nats / size / math.log(2)),
        byte_perplexity=_perplexity(nats, size),
        word_perplexity=_perplexity(nats, words),
    )


def lengths(rows: Sequence[tuple[str, str, bool]]) -> Lengths | None:
    """Of (reference, answer, whether it was cut off); None for no rows."""
    if not rows:
        return None
    count = len(rows)
    return Lengths(
        rows=count,
        mean_words=_digits(sum(len(answer.split()) for _, answer, _ in rows) / count),
        reference_words=_digits(sum(len(reference.split()) for reference, _, _ in rows) / count),
        empty=_digits(sum(not answer.strip() for _, answer, _ in rows) / count),
        cut_off=_digits(sum(cut for _, _, cut in rows) / count),
        refused=_digits(sum(refusal(reference, answer) for reference, answer, _ in rows) / count),
    )


def _letter(text: str) -> str:
    return choice_of(text) or OTHER


def _perplexity(nats: float, units: int) -> float | None:
    return _digits(math.exp(nats / units)) if units and nats / units < 700 else None


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _digits(value: float) -> float:
    """Ten significant digits, as all numbers of the documents have."""
    return float(f"{value:.10g}")
