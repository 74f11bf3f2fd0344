"""When a task that failed is tried again."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from dropforge.local.asl.failure import Failure, matches

MAX_ATTEMPTS: Final = 3
INTERVAL_S: Final = 1
BACKOFF: Final = 2.0
"""Step Functions' defaults for a retrier that does not say."""


class Retries:
    """The retriers of one visit to one state; each counts its own attempts."""

    def __init__(
        self, retriers: Sequence[Mapping[str, Any]], uniform: Callable[[float, float], float]
    ) -> None:
        self._retriers = retriers
        self._uniform = uniform
        self._used = [0] * len(retriers)

    @property
    def count(self) -> int:
        """`$states.context.State.RetryCount`."""
        return sum(self._used)

    def delay(self, failure: Failure) -> float | None:
        """Seconds to wait before the next attempt; None where there is none.

        The first retrier that matches decides: IntervalSeconds x BackoffRate^attempts, at most
        MaxDelaySeconds, and a uniform draw below that where JitterStrategy is FULL.
        """
        for index, retrier in enumerate(self._retriers):
            if not matches(retrier["ErrorEquals"], failure.error):
                continue
            attempts = self._used[index]
            if attempts >= retrier.get("MaxAttempts", MAX_ATTEMPTS):
                return None
            self._used[index] += 1
            delay = (
                float(retrier.get("IntervalSeconds", INTERVAL_S))
                * float(retrier.get("BackoffRate", BACKOFF)) ** attempts
            )
            delay = min(delay, float(retrier.get("MaxDelaySeconds", delay)))
            return self._uniform(0.0, delay) if retrier.get("JitterStrategy") == "FULL" else delay
        return None
