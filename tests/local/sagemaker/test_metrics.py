"""Metric definitions find the last number that was logged."""

import pytest

from dropforge.local.sagemaker.metrics import MetricScanner
from dropforge.local.sagemaker.requests import MetricDefinition


@pytest.mark.parametrize(
    ("pattern", "lines", "value"),
    [
        (r"(?:^|\s)loss=([-+0-9.eE]+)", ["eval_loss=9.0", "step=1 loss=2.5e-1"], 0.25),
        (r"loss=(\S+)", ["loss=1", "loss=nan", "loss=inf", "loss=word"], 1.0),
        (r"[0-9]+", ["5 then 6"], 5.0),
        (r"a(b)?([0-9])", ["a1"], None),
        (r"loss=(\S+)", ["nothing"], None),
    ],
)
def test_metrics(pattern, lines, value):
    """The last number that the first group finds is the metric; what is none is passed over."""
    scanner = MetricScanner([MetricDefinition.model_validate({"Name": "m", "Regex": pattern})])
    for at, line in enumerate(lines):
        scanner.line(line, float(at))
    assert [metric["Value"] for metric in scanner.final()] == ([] if value is None else [value])
