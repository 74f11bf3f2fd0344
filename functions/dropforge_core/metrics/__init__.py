"""What an answer is worth: one number a held-out row and metric. Pure Python, no clock, no randomness."""

from dropforge_core.metrics.choice import MetricChoice, choose
from dropforge_core.metrics.registry import REGISTRY, Metric, nll_per_byte
from dropforge_core.metrics.structured import FieldScore, field_scores

__all__ = ("REGISTRY", "FieldScore", "Metric", "MetricChoice", "choose", "field_scores", "nll_per_byte")
