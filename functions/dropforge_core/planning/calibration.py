"""What finished runs teach the planner: the share of a GPU's peak that training really reaches.

Every run that ended leaves a `Measurement`. The throughput constant of an instance family at a model
size is learned from them by shrinkage in log space: without runs it is the prior, with many it is
their middle, and its interval narrows on the way. Pure: order does not matter, and one run, however
wrong, moves the constant by at most `PULL`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Final, NamedTuple

from pydantic import Field, TypeAdapter

from dropforge_core.contracts import Interval
from dropforge_core.model import Tolerant

PRIOR_MFU: Final = Interval(low=0.08, expected=0.25, high=0.6)
"""Share of one GPU's dense bf16 peak that training reaches, nine times in ten, where nothing is measured yet.

Published runs give 0.10-0.56 for QLoRA on A100, rising with the rows' length from 256 to 8192 tokens, and 0.42-0.44
for bf16 LoRA on H100 (benchmarks/plan.py, attention counted); none that can be trusted was found for A10G, L4 and
L40S, hence the width.
"""
RATE: Final = 0.9
"""Share of runs whose constant lies in the interval."""
_NORMAL_90: Final = 1.645
"""Standard deviations on either side of the middle that hold nine tenths of a normal distribution."""
PRIOR_MIDDLE: Final = math.sqrt(PRIOR_MFU.low * PRIOR_MFU.high)
PRIOR_SPREAD: Final = math.log(PRIOR_MFU.high / PRIOR_MFU.low) / (2 * _NORMAL_90)
"""Standard deviation of ln(constant) over all runs anywhere."""
RUN_SPREAD: Final = 0.2
"""Of ln(constant) between runs of one family and size: other row lengths, packing, neighbours on the host."""
RUN_SPREAD_WEIGHT: Final = 4.0
"""So many runs is the guess of `RUN_SPREAD` worth against what is measured."""
SIZE_SCALE: Final = math.log(2)
"""A model of twice or half the size counts for 0.61 of a run, one of four times the size for 0.14."""
PULL: Final = 1.2
"""How far one run may lie from the middle of all, in ln(constant): what is further counts as this far."""
MOST_PER_FAMILY: Final = 40
MOST: Final = 400
"""Speeds that are kept, the newest: they take less than half of a DynamoDB item's 400 KB."""


SPEEDS_NOTE: Final = "MEASURED#speeds"
"""Key of the run table's item that holds all speeds, in its field `speeds`."""


class Speed(Tolerant):
    """How fast one run trained: all that the planner learns from."""

    run_id: str
    ended_at: str
    """ISO 8601, UTC."""
    parameters: int = Field(gt=0)
    instance_type: str
    """On which the measured training job ran; after a step of the ladder it is not the plan's."""
    device: str
    """`cuda` or `cpu`, as the trainer found it. A run on a CPU says nothing of a GPU."""
    gpus: int = Field(1, ge=1)
    flop_per_token: float = Field(gt=0)
    peak_tflops: float = Field(gt=0)
    """Dense bf16 peak of the GPUs that were used, together."""
    tokens_per_s: float = Field(gt=0)
    """Of the training loop, padding not counted."""

    @property
    def mfu(self) -> float:
        """The constant that this run had."""
        return self.tokens_per_s * self.flop_per_token / (self.peak_tflops * 1e12)


class Measurement(Speed):
    """One finished run: what was foretold, and what it took."""

    base_model: str
    tokens: int = Field(ge=0)
    forecast_tokens_per_s: Interval
    """For the type that was used, by the constant of the plan."""
    peak_memory_gib: float
    forecast_memory_gib: float
    phase_s: Mapping[str, float] = {}
    """Seconds by phase: `loop`, and billed ones of `caching`, `training`, `evaluation`."""
    forecast_phase_s: Mapping[str, Interval] = {}
    cost_usd: float | None = None
    """Billed seconds of all jobs at the on-demand price."""
    forecast_cost_usd: Interval | None = None


class Learned(NamedTuple):
    """The throughput constant of a family at a size."""

    mfu: Interval
    runs: float
    """How many runs of just this size the evidence is worth; 0 is the prior alone."""


def family_of(instance_type: str) -> str:
    """`ml.g6e.2xlarge` to `g6e`: types of one family have the same GPU."""
    return instance_type.removeprefix("ml.").split(".", 1)[0]


def learn(measured: Iterable[Speed], instance_type: str, parameters: int, *, gpus: int = 1) -> Learned:
    """The constant that runs of this family and about this size had.

    With weights w of the runs and x = ln(constant / prior), clipped to `PULL` around their median:
    mean = sum(w x) / (sum(w) + s^2 / t^2), where s is the spread between runs and t that of families;
    the next run's variance is s^2 + 1 / (1 / t^2 + sum(w) / s^2) (the normal model with known variances;
    s is itself estimated, `RUN_SPREAD` being worth `RUN_SPREAD_WEIGHT` runs).

    Args:
        measured: finished runs, in any order.
        instance_type: of which the family counts.
        parameters: of the base model.
        gpus: runs on another number of GPUs are left out.
    """
    family = family_of(instance_type)
    # One run counts once, however often it was written; sorted, so that sums round alike in any order.
    alike = sorted(
        {
            m.run_id: (math.log(m.mfu / PRIOR_MFU.expected), _likeness(m.parameters, parameters))
            for m in sorted(measured, key=lambda m: (m.ended_at, m.mfu, m.parameters))
            if m.device == "cuda" and m.gpus == gpus and family_of(m.instance_type) == family
        }.values()
    )
    if not alike:
        return Learned(PRIOR_MFU, 0.0)
    centre = _median_from_prior(alike)
    clipped = [(min(centre + PULL, max(centre - PULL, x)), w) for x, w in alike]
    weight = math.fsum(w for _, w in clipped)
    between = PRIOR_SPREAD**2 - RUN_SPREAD**2
    plain = math.fsum(w * x for x, w in clipped) / weight
    spread = math.fsum(w * (x - plain) ** 2 for x, w in clipped)
    # One run lies at its own mean and tells nothing of the spread.
    freedom = RUN_SPREAD_WEIGHT + max(0.0, weight - 1)
    within = (RUN_SPREAD_WEIGHT * RUN_SPREAD**2 + spread) / freedom
    mean = math.fsum(w * x for x, w in clipped) / (weight + within / between)
    variance = within + 1 / (1 / between + weight / within)
    # Student's t to the first order of 1 / freedom, because the spread is estimated (Abramowitz & Stegun 26.7.5).
    quantile = _NORMAL_90 + (_NORMAL_90**3 + _NORMAL_90) / (4 * freedom)
    half = quantile * math.sqrt(variance)
    expected = PRIOR_MFU.expected * math.exp(mean)
    # What is planned without runs lies above the prior's middle; runs take that away with the rest of the prior.
    prior_share = (within / between) / (weight + within / between)
    middle = expected * (PRIOR_MIDDLE / PRIOR_MFU.expected) ** prior_share
    return Learned(
        Interval(low=middle * math.exp(-half), expected=expected, high=middle * math.exp(half)), weight
    )


def kept(measured: Iterable[Speed]) -> tuple[Speed, ...]:
    """The newest measurement of each run, the newest of each family, `MOST` at most; oldest first.

    Keeping what is kept together with more is the same as keeping all of it, so runs may be added
    one by one, in any order.
    """
    newest = {m.run_id: m for m in sorted(measured, key=_age)}
    by_family = sorted(newest.values(), key=lambda m: (family_of(m.instance_type), _age(m)))
    chosen: list[Speed] = []
    for _, group in groupby(by_family, key=lambda m: family_of(m.instance_type)):
        chosen += list(group)[-MOST_PER_FAMILY:]
    return tuple(sorted(chosen, key=_age)[-MOST:])


def _age(m: Speed) -> tuple[str, str, float]:
    return m.ended_at, m.run_id, m.mfu


def _likeness(size: int, other: int) -> float:
    return math.exp(-0.5 * (math.log(size / other) / SIZE_SCALE) ** 2)


def _median_from_prior(sorted_points: Sequence[tuple[float, float]]) -> float:
    """Weighted median of ln(constant / prior) and of the prior, 0, as one more run; of two middles the one nearer 0."""
    points = sorted([*sorted_points, (0.0, 1.0)])
    half = math.fsum(w for _, w in points) / 2
    lower = upper = 0.0
    passed = 0.0
    for x, w in points:
        passed += w
        if passed >= half:
            lower = x
            break
    passed = 0.0
    for x, w in reversed(points):
        passed += w
        if passed >= half:
            upper = x
            break
    return min(max(0.0, lower), upper)


SPEEDS: Final = TypeAdapter(tuple[Speed, ...])


def read_speeds(text: str) -> tuple[Speed, ...]:
    """Speeds from JSON; none from an empty text.

    Raises:
        pydantic.ValidationError: when it is something else.
    """
    return SPEEDS.validate_json(text) if text else ()


def write_speeds(speeds: Iterable[Speed]) -> str:
    """JSON of what is kept, without the rest of a measurement."""
    plain = [Speed.model_validate(s.model_dump()) for s in kept(speeds)]
    return SPEEDS.dump_json(tuple(plain)).decode()
