"""How many rows the gate needs before anything is measured, and how many are answered by generation for it."""

import math
from typing import Final

from dropforge_core.gate.statistics import sample_size
from dropforge_core.metrics.registry import REGISTRY
from dropforge_core.recipe import SHOWN_ANSWERS, Gate, Recipe

POWER: Final = 0.8
"""Chance with which an effect of delta is to be shown where a sample counts as large enough."""
DISCORDANCE: Final = 0.15
"""Share of rows that a candidate and its reference answer differently, as one is right and the other wrong."""


_ANSWERED: Final = frozenset({"generation", "given"})
"""What a metric needs that rests on a generated text."""


def rows_needed(gate: Gate) -> float:
    """Rows at which the gate shows, with a power of 0.8, that a candidate is not worse by more than `gate.delta`.

    (z_alpha + z_beta)^2 variance / delta^2 with a variance of `DISCORDANCE` for paired answers that are right or
    wrong: 2,319 at a delta of 0.02, 1,031 at 0.03, 371 at 0.05 (alpha 0.05). Infinite for a delta of 0.
    """
    return sample_size(math.sqrt(DISCORDANCE), gate.delta, gate.alpha, POWER)


def decided_by_answers(gate: Gate) -> tuple[str, ...]:
    """Metrics that the gate decides by and that need generated answers, each once."""
    deciding = dict.fromkeys((gate.primary, *gate.guarded, *gate.minimum))
    return tuple(name for name in deciding if name in REGISTRY and REGISTRY[name].needs in _ANSWERED)


def answers_wanted(recipe: Recipe) -> int:
    """Hold-out rows to answer by generation, however many there are."""
    asked = recipe.evaluation.generate_at_most
    if asked != "auto":
        return asked
    if not decided_by_answers(recipe.gate):
        return SHOWN_ANSWERS
    needed = rows_needed(recipe.gate)
    most = recipe.evaluation.max_holdout
    return max(SHOWN_ANSWERS, min(most, math.ceil(needed)) if math.isfinite(needed) else most)


def sampling_notes(recipe: Recipe, rows: int) -> tuple[str, ...]:
    """What the plan tells people before money is spent: what the gate needs, and what it will get.

    Args:
        recipe: the run's.
        rows: of the hold-out.
    """
    gate, names = recipe.gate, decided_by_answers(recipe.gate)
    needed = rows_needed(gate)
    least = (
        f"about {math.ceil(needed):,} rows (at a discordance of {DISCORDANCE:.0%}, with {POWER:.0%} power)"
        if math.isfinite(needed)
        else "more rows than can be told (with a delta of 0 no number is sure to be enough)"
    )
    answered = min(rows, answers_wanted(recipe))
    if not names:
        return (
            (
                f"The gate decides by the likelihood, measured on all {rows:,} held-out rows; "
                f"{answered:,} of them are answered by generation, for people to read."
            ),
        )
    told = (
        f"To show that {', '.join(names)} lost no more than {gate.delta:g} the gate needs {least}; "
        f"{answered:,} of {rows:,} held-out rows will be answered by generation, which the price has in it."
    )
    if answered >= needed:
        return (told,)
    mend = (
        f"add rows to the hold-out (it has {rows:,})"
        if answered == rows
        else "raise evaluation.generate_at_most"
    )
    return (
        told,
        (
            f"With fewer an honest verdict may be INCONCLUSIVE: {mend}, raise gate.delta, or guard nll_per_byte, "
            "which needs no generation."
        ),
    )
