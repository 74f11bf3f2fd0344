"""The learning rate over a run."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.optimise import learning_rate_at


@given(st.integers(1, 500), st.floats(0, 0.9), st.sampled_from(["cosine", "linear", "constant"]))
def test_it_climbs_to_the_peak_then_never_rises(steps: int, warmup: float, schedule: Any) -> None:
    """Every step has a rate above 0 and at most the peak; after the warm-up it does not grow."""
    rates = [learning_rate_at(step, steps, 2e-4, warmup, schedule) for step in range(1, steps + 1)]
    assert all(0 < rate <= 2e-4 * (1 + 1e-9) for rate in rates)
    top = rates.index(max(rates))
    assert all(
        later <= sooner * (1 + 1e-9) for sooner, later in zip(rates[top:], rates[top + 1 :], strict=False)
    )


@pytest.mark.parametrize(("schedule", "half"), [("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)])
def test_half_way_values(schedule: Any, half: float) -> None:
    """Cosine and linear are at half the peak in the middle of the decay."""
    assert learning_rate_at(51, 100, 1.0, 0.0, schedule) == pytest.approx(half)
