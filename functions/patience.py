"""Try again what others were writing at the same moment."""

import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

from dropforge_core.aws import Contended

T = TypeVar("T")

TRIES: Final = 40
LONGEST_S: Final = 1.0


def patiently(attempt: Callable[[], T], pause: Callable[[float], None] = time.sleep) -> T:
    """What `attempt` gives, as soon as nobody comes between.

    Raises:
        Contended: when 40 tries, spread over some 20 seconds, met others each time.
    """
    for number in range(TRIES - 1):
        try:
            return attempt()
        except Contended:
            pause(random.uniform(0, min(LONGEST_S, 0.02 * 2**number)))  # noqa: S311  # spreads tries, guards nothing
    return attempt()
