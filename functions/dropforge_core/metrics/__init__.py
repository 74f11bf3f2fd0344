"""What an answer is worth: one number a held-out row and metric. No clock, no randomness.

`registry` names the metrics, and every function may read it; `catalogue` computes them, with libraries that only the
function that scores answers has.
"""

from dropforge_core.metrics.registry import REGISTRY, Metric, nll_per_byte

__all__ = ("REGISTRY", "Metric", "nll_per_byte")
