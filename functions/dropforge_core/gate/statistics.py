"""The bounds that the gate decides by. Analytic, one-sided at `alpha`, independent of the order of the data.

Sums are `math.fsum`, which rounds once, so that the same rows give the same bits in any order.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Final, NamedTuple

_NORMAL = NormalDist()
ROWS_AT_MOST: Final = 1e12
"""More held-out rows than this nobody has."""


class Bounds(NamedTuple):
    """An estimate with its one-sided bounds; together they are a two-sided interval at 1 - 2 alpha."""

    estimate: float
    lower: float
    upper: float


class ClusteredMean(NamedTuple):
    """A mean with a standard error that lets rows of one cluster depend on each other."""

    mean: float
    standard_error: float
    clusters: int
    deviation: float
    """Standard deviation of single rows, scaled so that deviation / sqrt(n) is the standard error."""
    skewness: float
    """Of the clusters' totals, bias-corrected; 0 for fewer than three clusters."""


def confidence(alpha: float) -> str:
    """The level of a one-sided bound in words: 95%, or 99.9% where that is asked for."""
    return f"{100 * (1 - alpha):.6g}%"


def z_quantile(alpha: float) -> float:
    """The standard normal's upper `alpha` quantile: 1.645 at 0.05."""
    return _NORMAL.inv_cdf(1 - alpha)


def clustered_mean(values: Sequence[float], clusters: Sequence[Hashable]) -> ClusteredMean:
    """Mean with SE^2 = G/(G-1) n^-2 sum over clusters of (sum of deviations)^2 (Liang & Zeger 1986).

    With every row its own cluster this is the ordinary standard error.

    Args:
        values: one number a row, at least one.
        clusters: the row's cluster; as long as `values`.

    Raises:
        ValueError: for no rows, or lengths that differ.
    """
    n = len(values)
    if n == 0 or n != len(clusters):
        raise ValueError(
            f"{n} values and {len(clusters)} clusters: equal counts, at least one, were expected"
        )
    mean = math.fsum(values) / n
    sums: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums.setdefault(cluster, []).append(value - mean)
    groups = len(sums)
    if groups < 2:
        return ClusteredMean(mean, math.inf, groups, math.inf, 0.0)
    totals = [math.fsum(deviations) for deviations in sums.values()]
    squares = math.fsum(total**2 for total in totals)
    error = math.sqrt(squares * groups / (groups - 1)) / n
    return ClusteredMean(mean, error, groups, error * math.sqrt(n), _skewness(totals, squares))


def _skewness(totals: Sequence[float], squares: float) -> float:
    groups = len(totals)
    spread = math.sqrt(squares / (groups - 1))
    if groups < 3 or spread == 0:
        return 0.0
    third = math.fsum((total / spread) ** 3 for total in totals)
    return third * groups / ((groups - 1) * (groups - 2))


def t_bounds(found: ClusteredMean, alpha: float) -> Bounds:
    """Mean -+ reach standard errors; unbounded for fewer than two clusters.

    The reach is Student's t(alpha, clusters - 1), moved by Hall's correction for skewness (J. R. Stat. Soc. B 54
    (1992) 221-228): wholly where that widens it, by half where it narrows it. Without it a few rows with large losses
    would let twice as many bad candidates pass as alpha says, and a few with large gains half as many good ones;
    wholly on both sides would err by 7 % on differences that are mostly 0, whose skewness is mostly noise
    (benchmarks/gate.py).
    """
    if not math.isfinite(found.standard_error):
        return Bounds(found.mean, -math.inf, math.inf)
    t = t_quantile(alpha, found.clusters - 1)
    skew = found.skewness / math.sqrt(found.clusters)
    below, above = _reach(t, _hall(t, skew)), _reach(t, -_hall(-t, skew))
    return Bounds(
        found.mean, found.mean - below * found.standard_error, found.mean + above * found.standard_error
    )


def _reach(t: float, corrected: float) -> float:
    return corrected if corrected > t else (t + corrected) / 2


def _hall(t: float, skew: float) -> float:
    """The studentised mean whose transformed value is `t`: inverse of x + k x^2/3 + k^2 x^3/27 + k/6."""
    if abs(skew) < 1e-9:
        return t
    return 3 / skew * (math.cbrt(1 + skew * (t - skew / 6)) - 1)


def design_effect(found: ClusteredMean, variance: float, n: int) -> float:
    """By how much clusters widen the variance of a mean of `n` rows (Kish 1965): at least 1.

    Where nothing varies, and so nothing is known of how rows of a cluster depend on each other, they count as one.

    Args:
        found: of the rows.
        variance: of one row, were all independent.
        n: rows.
    """
    if found.clusters == n:
        return 1.0
    if variance > 0 and math.isfinite(found.standard_error):
        return min(float(n), max(1.0, found.standard_error**2 * n / variance))
    return n / found.clusters


def wilson(successes: float, n: float, alpha: float) -> Bounds:
    """Score bounds of a proportion (Wilson 1927). `n` may be an effective sample size, hence a float."""
    if n <= 0:
        return Bounds(math.nan, 0.0, 1.0)
    z = z_quantile(alpha)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the bound is the end; a float's rounding there would differ between machines.
    return Bounds(
        p,
        0.0 if successes <= 0 else max(0.0, centre - reach),
        1.0 if successes >= n else min(1.0, centre + reach),
    )


def constant_bounds(value: float, least: float, most: float, clusters: int, alpha: float) -> Bounds:
    """Bounds of a mean of which every cluster has the same value.

    A standard error of 0 would say that all rows are like those that were seen. Here a share of rows that none of the
    clusters shows, at most Wilson's upper bound of none, may lie anywhere from `least` to `most`. For answers that are
    right or wrong this is what `wilson` and `tango` say of none and of all.
    """
    unseen = wilson(0, clusters, alpha).upper
    return Bounds(value, value - unseen * (value - least), value + unseen * (most - value))


def tango_score(gains: float, losses: float, n: float, difference: float) -> float:
    """Tango's score statistic of paired proportions under H0: p_candidate - p_reference = `difference`.

    Statistics in Medicine 17 (1998) 891-908. `gains`: rows that only the candidate has right; `losses`:
    rows that only the reference has right. Large values speak for a greater difference. Floats, since `n` may be an
    effective sample size.
    """
    a = 2.0 * n
    b = -gains - losses + (2 * n - gains + losses) * difference
    c = -losses * difference * (1 - difference)
    q = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = n * (2 * q + difference * (1 - difference))
    distance = gains - losses - n * difference
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def tango(gains: float, losses: float, n: float, alpha: float) -> Bounds:
    """Bounds of the difference of paired proportions: the roots of `tango_score` = +-z.

    Raises:
        ValueError: when the counts are no table of n pairs.
    """
    if n < 1 or gains < 0 or losses < 0 or gains + losses > n * (1 + 1e-12):
        raise ValueError(f"{gains} gains and {losses} losses are no table of {n} pairs")
    z = z_quantile(alpha)
    estimate = (gains - losses) / n
    lower = _root(lambda d: tango_score(gains, losses, n, d) - z, -1.0, estimate)
    upper = _root(lambda d: tango_score(gains, losses, n, d) + z, estimate, 1.0)
    return Bounds(estimate, lower, upper)


def sample_size(deviation: float, effect: float, alpha: float, power: float) -> float:
    """Rows at which an effect is shown with the given power: (z_alpha + z_beta)^2 deviation^2 / effect^2.

    Infinite for no effect, and where it is beyond `ROWS_AT_MOST`.
    """
    if effect <= 0:
        return math.inf
    ratio = (z_quantile(alpha) + z_quantile(1 - power)) * (deviation / effect)
    rows = ratio * ratio
    return rows if rows <= ROWS_AT_MOST else math.inf


def holm(p_values: Sequence[float], alpha: float) -> tuple[bool, ...]:
    """Which hypotheses are rejected with the family-wise error held at `alpha` (Holm 1979)."""
    rejected = [False] * len(p_values)
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[index] > alpha / (len(p_values) - rank):
            break
        rejected[index] = True
    return tuple(rejected)


def normal_cdf(x: float) -> float:
    return _NORMAL.cdf(x) if math.isfinite(x) else float(x > 0)


def t_cdf(x: float, df: int) -> float:
    """Student's distribution function, by the regularised incomplete beta function."""
    if not math.isfinite(x):
        return float(x > 0)
    tail = 0.5 * _incomplete_beta(df / 2, 0.5, df / (df + x * x))
    return 1 - tail if x > 0 else tail


@lru_cache(maxsize=1024)
def t_quantile(alpha: float, df: int) -> float:
    """Student's upper `alpha` quantile: 2.015 at 0.05 and 5 degrees of freedom.

    Raises:
        ValueError: for alpha outside (0, 0.5] or fewer than one degree of freedom.
    """
    if not 0 < alpha <= 0.5 or df < 1:
        raise ValueError(f"alpha {alpha} with {df} degrees of freedom: 0 < alpha <= 0.5 and df >= 1 expected")
    high = 1.0
    while 1 - t_cdf(high, df) > alpha:
        high *= 2
    return _root(lambda x: 1 - t_cdf(x, df) - alpha, 0.0, high)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Zero of a decreasing function by bisection, to the last bit that a float of order one has."""
    for _ in range(80):
        middle = (low + high) / 2
        if function(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised I_x(a, b) by Lentz's continued fraction (DLMF 8.17.22)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    if x > (a + 1) / (a + b + 2):
        return 1 - front * _fraction(b, a, 1 - x) / b
    return front * _fraction(a, b, x) / a


def _fraction(a: float, b: float, x: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1), tiny)
    value = d
    for m in range(1, 400):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_zero(1 + term * d, tiny)
            c = _away_from_zero(1 + term / c, tiny)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


def _away_from_zero(value: float, tiny: float) -> float:
    return tiny if abs(value) < tiny else value
