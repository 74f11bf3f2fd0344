"""What the registry is told: CustomerMetadataProperties within the bounds that CreateModelPackage enforces."""

import unicodedata
from collections.abc import Mapping
from typing import Final

from dropforge_core.gate.documents import GateReport, MetricsReport

ENTRIES_AT_MOST: Final = 50
KEY_AT_MOST: Final = 128
VALUE_AT_MOST: Final = 256
_ALLOWED: Final = frozenset("_.:/=+-@")


def sanitised(text: str, at_most: int = VALUE_AT_MOST) -> str:
    r"""Text within `[\p{L}\p{Z}\p{N}_.:/=+\-@]{1,at_most}`: other characters become '-', nothing becomes 'none'.

    Characters beyond the basic plane become '-' too: Java's reading of the pattern counts them twice.
    """
    spaced = " ".join(text.split())
    clean = "".join(c if _fits(c) else "-" for c in spaced)[:at_most].strip()
    return clean or "none"


def registration_metadata(gate: GateReport, metrics: MetricsReport, gate_digest: str) -> dict[str, str]:
    """At most 50 entries: what was judged, by whom it can be found again, and the metrics before and after."""
    about = gate.provenance
    facts: dict[str, str] = {
        "run_id": gate.run_id,
        "gate_verdict": gate.verdict,
        "gate_digest": gate_digest,
        "dataset_digest": about.dataset_digest,
        "recipe_digest": about.recipe_digest,
        "base_model": about.base_model,
        "base_model_prefix": about.base_model_prefix,
        "quantization": about.quantization,
        "training_job": about.training_job_name,
        "training": "stopped at its cap" if gate.partial_training else "whole",
        "champion": about.champion_package_arn or "none",
        "metrics_digest": gate.metrics_digest,
        "primary_metric": gate.policy.primary,
        "held_out_rows": str(max((e.n for m in metrics.metrics for e in m.estimates), default=0)),
    }
    for metric in metrics.metrics:
        for found in metric.estimates:
            if found.mean is not None:
                facts[f"{found.variant}.{metric.name}"] = f"{found.mean:.6g}"
    return _bounded(facts)


def _bounded(facts: Mapping[str, str]) -> dict[str, str]:
    first = list(facts.items())[:ENTRIES_AT_MOST]
    return {sanitised(key, KEY_AT_MOST): sanitised(value) for key, value in first}


def _fits(character: str) -> bool:
    return ord(character) <= 0xFFFF and (
        character in _ALLOWED or unicodedata.category(character)[0] in {"L", "N", "Z"}
    )
