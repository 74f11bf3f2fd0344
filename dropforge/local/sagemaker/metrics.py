"""Metric definitions applied to a training job's output, line by line."""

import math
import re
import threading
from collections.abc import Sequence
from typing import Any

from dropforge.local.sagemaker.requests import MetricDefinition


class MetricScanner:
    """Keeps the last value of each metric, as FinalMetricDataList reports it."""

    def __init__(self, definitions: Sequence[MetricDefinition]) -> None:
        self._patterns = [(definition.name, re.compile(definition.regex)) for definition in definitions]
        self._last: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def line(self, text: str, at: float) -> None:
        """Look through one line. The value is the first group, or the whole match where there is no group.

        NaN and infinities are skipped, as what is no number is: JSON can't carry them.
        """
        for name, pattern in self._patterns:
            match = pattern.search(text)
            if match is None:
                continue
            try:
                value = float(match.group(1) if pattern.groups else match.group())
            except (TypeError, ValueError):
                continue
            if math.isfinite(value):
                with self._lock:
                    self._last[name] = (value, at)

    def final(self) -> list[dict[str, Any]]:
        """FinalMetricDataList; timestamps in seconds since the epoch."""
        with self._lock:
            return [
                {"MetricName": name, "Value": value, "Timestamp": at}
                for name, (value, at) in self._last.items()
            ]
