"""Several instance types in one request: which of them may stand beside the chosen one."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from dropforge_core.planning.explain import Judged

MOST: Final = 5
"""Of CreateTrainingJob's `InstancePreferences`."""


def alternatives(
    chosen: Judged, others: Iterable[Judged], runtime_s: Callable[[Judged], int]
) -> tuple[Judged, ...]:
    """Of other types those for which the same request is right.

    One request has one run time and one set of hyperparameters. So GPUs share the work in the same way and
    recompute activations or not as on the chosen type; and the run time that the cap pays on the dearest type
    is enough for each.

    Args:
        chosen: what comes first.
        others: that fit and have a price, in order.
        runtime_s: what the cap pays on a type, in seconds.
    """
    together = [chosen]
    for one in others:
        if len(together) == MOST:
            break
        asked = [*together, one]
        if _alike(chosen, one) and _enough(asked, min(map(runtime_s, asked))):
            together.append(one)
    return tuple(together[1:])


def micro_batch_of(together: Sequence[Judged]) -> int:
    """What fits on each."""
    return min(one.micro_batch_tokens for one in together)


def _alike(chosen: Judged, other: Judged) -> bool:
    return (chosen.checkpointing, chosen.option.parallelism) == (
        other.checkpointing,
        other.option.parallelism,
    )


def _enough(together: Sequence[Judged], runtime_s: int) -> bool:
    return all(one.training_s is not None and one.training_s.high <= runtime_s for one in together)
