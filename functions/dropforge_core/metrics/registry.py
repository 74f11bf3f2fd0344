"""Every metric by its name: what it measures, which way is better, and what it needs."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from dropforge_core.metrics import structured, text

Direction = Literal["higher", "lower"]
Kind = Literal["binary", "continuous"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One number a held-out row, for one variant."""

    name: str
    label: str
    """What people read."""
    direction: Direction
    kind: Kind
    """binary: 0 or 1 a row, judged as a proportion; continuous: judged by its mean."""
    needs: Literal["generation", "likelihood"]
    description: str
    worst: float
    """The score of a generation that failed."""
    compare: Callable[[str, str], float] | None = None
    """(reference, answer) to score; None where the score comes from the likelihood."""

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


def _generation(
    name: str, label: str, kind: Kind, compare: Callable[[str, str], float], direction: Direction = "higher"
) -> Metric:
    description = " ".join((compare.__doc__ or "").split("\n\n")[0].split())
    worst = 0.0 if direction == "higher" else 1.0
    return Metric(name, label, direction, kind, "generation", description, worst, compare)


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
    _generation("exact_match", "Exact match", "binary", text.exact_match),
    _generation("normalised_match", "Normalised match", "binary", text.normalised_match),
    _generation("token_f1", "Token F1", "continuous", text.token_f1),
    _generation("json_valid", "Valid JSON", "binary", structured.json_valid),
    _generation("field_f1", "Field F1", "continuous", structured.field_f1),
    _generation("rouge_l", "ROUGE-L", "continuous", text.rouge_l),
    _generation("chrf", "chrF", "continuous", text.chrf),
    _generation("length_ratio", "Length ratio", "continuous", text.length_ratio),
    _generation("refusal", "Refusals", "binary", text.refusal, "lower"),
)

REGISTRY: Final[Mapping[str, Metric]] = MappingProxyType({metric.name: metric for metric in _ALL})
"""Name to metric. Names are part of recipes and never change."""
