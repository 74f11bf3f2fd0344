"""What finished runs teach the planner, whatever they are and in whatever order they come."""

import math
import random
import runpy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import planned

from dropforge_core.contracts import Interval
from dropforge_core.planning.calibration import (
    MOST,
    MOST_PER_FAMILY,
    PRIOR_MFU,
    PRIOR_MIDDLE,
    PRIOR_SPREAD,
    PULL,
    RATE,
    RUN_SPREAD,
    Measurement,
    kept,
    learn,
    read_speeds,
    write_speeds,
)

SIZE = 8_000_000_000
HERE = "ml.g6.xlarge"


def run(number: int, mfu: float, *, size: int = SIZE, instance_type: str = HERE, **changed) -> Measurement:
    """A run that reached that share of a 100 TFLOP/s GPU's peak."""
    return Measurement.model_validate(
        {
            "run_id": f"run{number}",
            "ended_at": f"2026-11-01T00:00:{number % 60:02d}.{number:06d}Z",
            "base_model": "org/model",
            "parameters": size,
            "instance_type": instance_type,
            "device": "cuda",
            "flop_per_token": 6.0 * size,
            "peak_tflops": 100.0,
            "tokens": 100_000,
            "tokens_per_s": mfu * 1e14 / (6.0 * size),
            "forecast_tokens_per_s": Interval(low=1.0, expected=2.0, high=3.0),
            "peak_memory_gib": 10.0,
            "forecast_memory_gib": 12.0,
            **changed,
        }
    )


def width(of: Interval) -> float:
    return math.log(of.high / of.low)


SHARES = st.lists(st.floats(1e-6, 50), max_size=12)


@given(SHARES, st.randoms(use_true_random=False))
def test_the_order_in_which_runs_ended_does_not_matter(shares, order):
    """Shuffled, and told twice, the same runs teach the same."""
    runs = [run(number, share) for number, share in enumerate(shares)]
    shuffled = [*runs, *runs[:3]]
    order.shuffle(shuffled)
    assert learn(shuffled, HERE, SIZE) == learn(runs, HERE, SIZE)


@given(st.floats(0.02, 0.9), st.integers(0, 40))
def test_every_run_that_agrees_narrows_the_interval(share, count):
    """Among runs that reached the same share, one more is a narrower interval and a planned value no further off."""
    fewer, more = (learn([run(i, share) for i in range(n)], HERE, SIZE) for n in (count, count + 1))
    assert width(more.mfu) < width(fewer.mfu) <= width(PRIOR_MFU) + 1e-12
    assert abs(math.log(more.mfu.expected / share)) <= abs(math.log(fewer.mfu.expected / share)) + 1e-12


@given(st.lists(st.floats(0.05, 0.6), min_size=3, max_size=12), st.floats(1e-9, 1e6))
def test_one_run_however_wrong_moves_little(shares, wrong):
    """A measurement from a broken clock shifts what is planned by a bounded factor that shrinks with the other runs."""
    runs = [run(number, share) for number, share in enumerate(shares)]
    before, after = learn(runs, HERE, SIZE), learn([*runs, run(99, wrong)], HERE, SIZE)
    spread = math.log(max(*shares, PRIOR_MFU.expected) / min(*shares, PRIOR_MFU.expected))
    moved = abs(math.log(after.mfu.expected / before.mfu.expected))
    assert moved <= 2 * (PULL + spread) / math.sqrt(len(shares) + 1)


@given(st.floats(1e-9, 1e6))
def test_a_first_run_moves_at_most_its_pull(wrong):
    """One run alone can't carry the plan further than PULL from the prior."""
    found = learn([run(0, wrong)], HERE, SIZE).mfu
    assert abs(math.log(found.expected / PRIOR_MFU.expected)) <= PULL
    assert found.low <= found.expected <= found.high


@pytest.mark.parametrize("count", [0, 1, 3, 10])
def test_the_interval_holds_the_next_run_as_often_as_it_says(count):
    """Families and runs drawn as the model assumes: the next run lies inside nine times in ten, within the draw's error."""
    draw, trials, inside = random.Random(count), 600, 0
    between = math.sqrt(PRIOR_SPREAD**2 - RUN_SPREAD**2)
    ended = [run(number, 0.3) for number in range(count)]
    for _ in range(trials):
        family = PRIOR_MIDDLE * math.exp(draw.gauss(0, between))
        following, *shares = (family * math.exp(draw.gauss(0, RUN_SPREAD)) for _ in range(count + 1))
        runs = [
            m.model_copy(update={"flop_per_token": m.flop_per_token * s / 0.3})
            for m, s in zip(ended, shares, strict=True)
        ]
        found = learn(runs, HERE, SIZE).mfu
        inside += found.low <= following <= found.high
    assert inside / trials >= RATE - 0.03


def test_runs_elsewhere_teach_nothing_here():
    """Another family, a CPU, another number of GPUs and a model a hundred times the size leave the prior."""
    strangers = [
        run(1, 0.5, instance_type="ml.g5.xlarge"),
        run(2, 0.5, device="cpu"),
        run(3, 0.5, gpus=4),
    ]
    assert learn(strangers, HERE, SIZE) == (PRIOR_MFU, 0.0)
    far = learn([run(4, 0.5, size=SIZE // 100)], HERE, SIZE)
    assert far.runs < 1e-6
    assert far.mfu.expected == pytest.approx(PRIOR_MFU.expected, rel=1e-4)
    assert learn([run(5, 0.5, instance_type="ml.g6.48xlarge")], HERE, SIZE).runs == 1.0


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.booleans()), unique=True, max_size=120), st.data())
def test_what_is_kept_does_not_depend_on_when_it_was_added(numbers, data):
    """Adding runs one batch after the other keeps the newest of each family, as adding all at once does."""
    runs = [run(n, 0.3, instance_type=f"ml.g{5 if old else 6}.xlarge") for n, old in numbers]
    runs = [m.model_copy(update={"run_id": f"{m.run_id}{m.instance_type}"}) for m in runs]
    cut = data.draw(st.integers(0, len(runs)))
    assert kept([*kept(runs[:cut]), *runs[cut:]]) == kept(runs)
    of_g5 = [m for m in kept(runs) if m.instance_type.startswith("ml.g5")]
    assert len(of_g5) <= MOST_PER_FAMILY
    assert {m.run_id for m in of_g5} == {
        m.run_id
        for m in sorted(
            (m for m in runs if m.instance_type.startswith("ml.g5")), key=lambda m: (m.ended_at, m.run_id)
        )[-MOST_PER_FAMILY:]
    }


def test_what_is_kept_fits_an_item_of_the_table():
    """The most that is ever kept takes less than half of DynamoDB's 400 KB, and comes back as it was."""
    fullest = [
        run(
            n,
            1 / 3,
            instance_type=f"ml.p{n % 20}en-b300.48xlarge",
            run_id=f"{n:026d}",
            tokens_per_s=n + 1 / 3,
        )
        for n in range(600)
    ]
    text = write_speeds(fullest)
    assert len(text) < 200_000
    assert len(read_speeds(text)) == MOST
    assert write_speeds(read_speeds(text)) == text
    assert learn(read_speeds(text), "ml.p3en-b300.48xlarge", SIZE) == learn(
        kept(fullest), "ml.p3en-b300.48xlarge", SIZE
    )
    assert read_speeds("") == ()


def test_a_measured_family_is_planned_by_its_measurements():
    """Runs at twice the assumed speed halve the planned training, narrow its interval, and the note goes away."""
    compute = {"compute": {"instance_types": [HERE]}}
    before = planned(compute, tokens=5_000_000)
    runs = [run(n, 0.5) for n in range(10)]
    after = planned(compute, tokens=5_000_000, measured=runs)
    assert after.forecast.phase_s["loop"].expected == pytest.approx(
        before.forecast.phase_s["loop"].expected / 2, rel=0.05
    )
    assert width(after.forecast.phase_s["loop"]) < 0.6 * width(before.forecast.phase_s["loop"])
    assert before.forecast.measured_runs == 0
    assert after.forecast.measured_runs == pytest.approx(10, abs=0.1)
    assert [n for n in before.notes if "so the interval is wide" in n]
    assert not [n for n in after.notes if "so the interval is wide" in n]


def test_published_runs_lie_where_the_planner_says():
    """Of the published runs nine in ten lie inside the prior, and the margin covers every published peak of memory."""
    rows = runpy.run_path(str(Path(__file__).parents[4] / "benchmarks/plan.py"))["published"]()
    assert sum(row["in_prior"] for row in rows) / len(rows) >= RATE
    peaks = [row for row in rows if "memory_gb" in row]
    assert peaks
    assert all(row["covered_by_margin"] for row in peaks)
