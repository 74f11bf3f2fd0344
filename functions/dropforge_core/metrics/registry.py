"""Every metric by its name: what it measures, which way is better, and what it needs. How, is in `catalogue.py`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Final, Literal

Direction = Literal["higher", "lower"]
Kind = Literal["binary", "continuous"]
Need = Literal["generation", "likelihood", "preference", "given"]
"""Where a row's score comes from: the generated text, the reference's likelihood, the likelihoods of a chosen and a
rejected answer, or somebody else who measured it (a model that judges)."""


JUDGE_PREFERENCE: Final = "judge_preference"
"""Measured only where the recipe has a judge."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One number a held-out row, for one variant."""

    name: str
    label: str
    """What people read."""
    direction: Direction
    kind: Kind
    """binary: 0 or 1 a row, judged as a proportion; continuous: judged by its mean."""
    needs: Need
    description: str
    worst: float = 0.0
    """The score of a generation that failed."""

    def better(self, candidate: float, reference: float) -> float:
        """By how much the candidate is better: positive is better, whatever the metric's direction."""
        return candidate - reference if self.direction == "higher" else reference - candidate


def nll_per_byte(nll: float, reference_bytes: int) -> float:
    """Negative log likelihood of the reference in nats a UTF-8 byte: comparable between tokenizers.

    Raises:
        ValueError: when the likelihood is no finite number >= 0 or the reference is empty.
    """
    # A log likelihood of discrete tokens is never above 0; a little above is a float sum's rounding.
    if not math.isfinite(nll) or nll < -1e-3:
        raise ValueError(f"a negative log likelihood of {nll}: a finite number >= 0 was expected")
    if reference_bytes <= 0:
        raise ValueError("the reference is empty: its likelihood a byte is not defined")
    return max(nll, 0.0) / reference_bytes


def _share(name: str, label: str, description: str) -> Metric:
    return Metric(name, label, "higher", "binary", "generation", description)


def _score(name: str, label: str, description: str) -> Metric:
    return Metric(name, label, "higher", "continuous", "generation", description)


_ALL: Final = (
    Metric(
        name="nll_per_byte",
        label="Held-out loss",
        direction="lower",
        kind="continuous",
        needs="likelihood",
        description=(
            "Negative log likelihood of the reference answer in nats a UTF-8 byte: how surprised the model is "
            "by the right answer. Comparable between tokenizers; needs no generation."
        ),
        worst=math.inf,
    ),
    Metric(
        name="preference_accuracy",
        label="Preference accuracy",
        direction="higher",
        kind="binary",
        needs="preference",
        description=(
            "1 where the chosen answer is likelier than the rejected one, by likelihood a byte: an answer is not "
            "preferred for being short. Equal is 0."
        ),
    ),
    _share("exact_match", "Exact match", "1 where the texts are equal, white space at the ends aside."),
    _share(
        "normalised_match",
        "Normalised match",
        "1 where the texts are equal after NFKC, case folding, and without punctuation at the ends: '**Yes.**' is 'yes'.",
    ),
    _score(
        "token_f1",
        "Token F1",
        "Harmonic mean of precision and recall over the bag of words, as SQuAD scores (arXiv 1606.05250).",
    ),
    _share(
        "json_valid",
        "Valid JSON",
        "1 where the answer parses as JSON (RFC 8259) and is an object or a list where the reference is one.",
    ),
    _share(
        "json_schema_valid",
        "Fits the schema",
        "1 where the answer is JSON that fits the recipe's JSON schema, or else the one that all references share.",
    ),
    _score(
        "field_f1",
        "Field F1",
        "F1 over the (path, value) pairs of two JSON values, nested objects and lists flattened to their leaves.",
    ),
    _share(
        "regex_match",
        "Fits the pattern",
        "1 where the recipe's pattern fits the whole answer, white space at the ends aside.",
    ),
    _share(
        "numeric_match",
        "Right number",
        "1 where the answer's number is the reference's within the recipe's tolerance; of several numbers in a text "
        "the one behind '####' or the last counts.",
    ),
    _share(
        "choice_match",
        "Right choice",
        "1 where the answer names the reference's letter of a multiple choice: 'B', '(b)', 'B. Paris', 'The answer is B.'",
    ),
    _score(
        "rouge_l",
        "ROUGE-L",
        "F1 of the longest common subsequence of words (Lin 2004, beta = 1), without stemming.",
    ),
    _score(
        "chrf",
        "chrF",
        "chrF2 (Popovi\u0107 2015) as sacreBLEU computes it: character n-grams of 1 to 6, recall weighted twice, in 0-1.",
    ),
    _score(
        "bleu",
        "BLEU",
        "Sentence BLEU as sacreBLEU computes it (13a tokens, exponential smoothing, effective order), in 0-1. The "
        "mean over rows is not corpus BLEU, which metrics.json has beside it.",
    ),
    _score(
        "length_ratio",
        "Length ratio",
        "Shorter over longer, in characters: 1 is the same length, near 0 is much too short or much too long.",
    ),
    Metric(
        name="refusal",
        label="Refusals",
        direction="lower",
        kind="binary",
        needs="generation",
        description="1 where the answer opens with an English refusal and the reference does not.",
        worst=1.0,
    ),
    Metric(
        name=JUDGE_PREFERENCE,
        label="Judge's preference",
        direction="higher",
        kind="continuous",
        needs="given",
        description=(
            "How a model that judges rated this variant's answer beside the candidate's: 1 preferred, 0.5 a tie, 0 not "
            "preferred; the candidate's own is 0.5. Both orders are asked, and where they disagree it is a tie."
        ),
    ),
)

REGISTRY: Final[Mapping[str, Metric]] = MappingProxyType({metric.name: metric for metric in _ALL})
"""Name to metric. Names are part of recipes and never change."""

ENTRY_POINTS: Final = "dropforge.metrics"
"""Group of Python entry points by which a team's own package adds metrics: docs/evaluation.md."""


@lru_cache(maxsize=1)
def installed_names() -> frozenset[str]:
    """Names of the metrics of installed packages; none of them is loaded."""
    return frozenset(entry_points(group=ENTRY_POINTS).names)
