"""How often the gate's tests err: type I error at the boundary of H0, and power, by simulation.

    python benchmarks/gate.py [--quick] [--json]

Type I error is the chance to accept a candidate whose true difference lies exactly on the margin;
nominal is 5 %. The peers are what gates do elsewhere: 'not significantly worse' by McNemar, 'mean is not
lower', and the percentile bootstrap.
"""

import argparse
import json
import math
import os
import platform
import random
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "functions"))

from dropforge_core.gate.statistics import clustered_mean, t_bounds, t_quantile, tango_score, z_quantile

ALPHA = 0.05
SIZES = (50, 100, 200, 500, 1000, 2500)
DISCORDANCES = (0.05, 0.15, 0.30)
MARGINS = (0.02, 0.05)


class Case(NamedTuple):
    """One truth: n pairs of which `discordance` differ, the candidate better by `truth`, judged at `delta`."""

    n: int
    discordance: float
    truth: float
    delta: float

    def tables(self, runs: int) -> Counter[tuple[int, int]]:
        """(gains, losses) of simulated evaluations, counted: equal tables are judged once."""
        rng = random.Random(str(self))  # noqa: S311  # a simulation, seeded so that it repeats
        gains, losses = (self.discordance + self.truth) / 2, (self.discordance - self.truth) / 2
        found: Counter[tuple[int, int]] = Counter()
        for _ in range(runs):
            won = binomial(rng, self.n, gains)
            found[won, binomial(rng, self.n - won, losses / (1 - gains))] += 1
        return found


def binomial(rng: random.Random, n: int, p: float) -> int:
    """Successes of n trials by their geometric gaps: exact, in n p draws."""
    if p <= 0 or n == 0:
        return 0
    count, position, scale = 0, 0, math.log1p(-p)
    while True:
        position += int(math.log(1 - rng.random()) / scale) + 1
        if position > n:
            return count
        count += 1


def tango_accepts(gains: int, losses: int, n: int, delta: float) -> bool:
    return tango_score(gains, losses, n, -delta) >= z_quantile(ALPHA)


def mcnemar_accepts(gains: int, losses: int, n: int, delta: float) -> bool:
    """'Not significantly worse': accepted unless an exact-enough McNemar test shows harm."""
    del n, delta
    if gains + losses == 0:
        return True
    return NormalDist().cdf((gains - losses) / math.sqrt(gains + losses)) > ALPHA


def mean_accepts(gains: int, losses: int, n: int, delta: float) -> bool:
    """'The mean is not lower by more than delta', without any uncertainty."""
    return (gains - losses) / n >= -delta


RULES = {"tango": tango_accepts, "mcnemar_not_worse": mcnemar_accepts, "mean_not_lower": mean_accepts}


def rates(case: Case, runs: int) -> dict[str, float]:
    """Share of simulated evaluations that each rule accepts."""
    tables = case.tables(runs).items()
    return {
        name: sum(count for (gains, losses), count in tables if rule(gains, losses, case.n, case.delta))
        / runs
        for name, rule in RULES.items()
    }


def binary_errors(runs: int) -> Iterator[dict[str, Any]]:
    """The truth lies on the margin: accepting is the error that alpha bounds."""
    for n, discordance, delta in product(SIZES, DISCORDANCES, MARGINS):
        if discordance > delta:
            case = Case(n, discordance, -delta, delta)
            yield case._asdict() | rates(case, runs)


def power_table(runs: int) -> Iterator[dict[str, Any]]:
    """The candidate is as good as the champion, or better: accepting is right."""
    for n, truth in product(SIZES, (0.0, 0.02, 0.05)):
        case = Case(n, 0.15, truth, 0.02)
        yield case._asdict() | rates(case, runs)


def continuous_errors(trials: int, resamples: int) -> Iterator[dict[str, Any]]:
    """The clustered, skew-corrected t bound at H0: mean difference 0, beside plain t and the bootstrap."""
    for clusters in (30, 50, 100, 500):
        for shape in ("normal", "skewed", "mostly_equal"):
            for size in (1, 5):
                if clusters * size > 500:
                    continue
                rng = random.Random(f"{clusters}/{shape}/{size}")  # noqa: S311  # as above
                accepted: Counter[str] = Counter()
                booted = min(trials, 1000) if clusters == 50 else 0
                for trial in range(trials):
                    values, groups = clustered_sample(shape, rng, clusters * size, size)
                    found = clustered_mean(values, groups)
                    accepted["gate"] += t_bounds(found, ALPHA).lower > 0
                    accepted["plain_t"] += found.mean > t_quantile_of(clusters) * found.standard_error
                    if trial < booted:
                        accepted["bootstrap"] += bootstrap_lower(values, rng, resamples) > 0
                row: dict[str, Any] = {
                    "clusters": clusters,
                    "rows_per_cluster": size,
                    "shape": shape,
                    "trials": trials,
                }
                row |= {"gate": accepted["gate"] / trials, "plain_t": accepted["plain_t"] / trials}
                yield row | ({"percentile_bootstrap": accepted["bootstrap"] / booted} if booted else {})


def draw(shape: str, rng: random.Random) -> float:
    """One difference with mean 0, in the shapes that losses and F1 scores take."""
    if shape == "normal":
        return rng.gauss(0, 1)
    if shape == "skewed":
        return 1 - rng.expovariate(1)
    # Mostly equal, sometimes far apart, as the F1 of short answers is.
    return rng.choice((-1.0, 1.0)) if rng.random() < 0.15 else 0.0


def clustered_sample(shape: str, rng: random.Random, n: int, size: int) -> tuple[list[float], list[int]]:
    """Rows of one cluster share their value: the worst case of near-duplicates."""
    shared = [draw(shape, rng) for _ in range(n // size)]
    return [shared[i // size] for i in range(n)], [i // size for i in range(n)]


_quantiles: dict[int, float] = {}


def t_quantile_of(clusters: int) -> float:
    if clusters not in _quantiles:
        _quantiles[clusters] = t_quantile(ALPHA, clusters - 1)
    return _quantiles[clusters]


def bootstrap_lower(values: list[float], rng: random.Random, resamples: int) -> float:
    """The 5 % quantile of resampled means, rows drawn as if independent."""
    n = len(values)
    means = sorted(sum(rng.choices(values, k=n)) for _ in range(resamples))
    return means[int(ALPHA * resamples)] / n


def measure(*, quick: bool) -> dict[str, Any]:
    runs = 10_000 if quick else 100_000
    binary = list(binary_errors(runs))
    continuous = list(continuous_errors(3_000 if quick else 20_000, 200 if quick else 1_000))
    worst = max(row["tango"] for row in binary)
    worst_t = max(row["gate"] for row in continuous)
    naive = max(row["mcnemar_not_worse"] for row in binary)
    return {
        "name": "gate",
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "figures": {
            "alpha": ALPHA,
            "runs": runs,
            "type_1_binary": binary,
            "type_1_continuous": continuous,
            "power": list(power_table(runs)),
        },
        "ratios": {
            "worst_tango_type_1_over_nominal": {
                "value": round(worst / ALPHA, 3),
                "goal": 1.4,
                "met": worst / ALPHA <= 1.4,
                "peer": f"McNemar 'not significantly worse': {naive / ALPHA:.1f} times nominal",
            },
            "worst_clustered_t_type_1_over_nominal": {
                "value": round(worst_t / ALPHA, 3),
                "goal": 1.4,
                "met": worst_t / ALPHA <= 1.4,
                "peer": "percentile bootstrap that ignores clusters: "
                f"{max(row.get('percentile_bootstrap', 0) for row in continuous) / ALPHA:.1f} times nominal",
            },
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="within two minutes")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    asked = parser.parse_args()
    found = measure(quick=asked.quick)
    if asked.json:
        print(json.dumps(found))
        return
    for name in ("type_1_binary", "type_1_continuous", "power"):
        print(name)
        for row in found["figures"][name]:
            print(
                "  "
                + "  ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items())
            )
    for name, ratio in found["ratios"].items():
        print(f"{name}: {ratio['value']} (goal at most {ratio['goal']}); {ratio['peer']}")


if __name__ == "__main__":
    main()
