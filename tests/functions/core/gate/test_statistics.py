"""The bounds against published values, and the properties that a gate rests on."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge_core.gate.statistics import (
    clustered_mean,
    confidence,
    constant_bounds,
    design_effect,
    holm,
    sample_size,
    t_bounds,
    t_cdf,
    t_quantile,
    tango,
    tango_score,
    wilson,
    z_quantile,
)

TABLES = st.integers(1, 300).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(0, n)).flatmap(
        lambda t: st.tuples(st.just(t[0]), st.just(t[1]), st.integers(0, t[0] - t[1]))
    )
)


@pytest.mark.parametrize(
    ("alpha", "df", "value"),
    [(0.05, 1, 6.3138), (0.05, 5, 2.0150), (0.025, 30, 2.0423), (0.01, 10, 2.7638), (0.05, 100_000, 1.6449)],
)
def test_students_quantiles(alpha, df, value):
    """The quantiles are those of the printed tables."""
    assert t_quantile(alpha, df) == pytest.approx(value, abs=6e-5)


@pytest.mark.parametrize(("alpha", "told"), [(0.05, "95%"), (0.025, "97.5%"), (0.001, "99.9%")])
def test_no_bound_claims_to_be_certain(alpha, told):
    """A level is told with the digits that it has, never rounded up to 100 %."""
    assert confidence(alpha) == told


@given(st.floats(-30, 30), st.integers(1, 2000))
def test_students_distribution_is_symmetric(x, df):
    """F(-x) = 1 - F(x), within 0 and 1."""
    assert t_cdf(x, df) + t_cdf(-x, df) == pytest.approx(1, abs=1e-12)
    assert 0 <= t_cdf(x, df) <= 1


def test_wilson_published():
    """Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662, 0 of 20 gives 0 to 0.1611 at 95 %."""
    assert wilson(81, 263, 0.025)[1:] == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20, 0.025)[1:] == pytest.approx((0.0, 0.1611), abs=5e-5)


@given(st.integers(1, 5000), st.sampled_from([0.01, 0.05, 0.1]))
def test_wilsons_bounds_end_exactly_where_shares_end(n, alpha):
    """None is at least 0 and all is at most 1, to the last bit: a bound is the same on every machine."""
    assert wilson(0, n, alpha).lower == 0
    assert wilson(n, n, alpha).upper == 1


def test_tango_in_closed_form():
    """Without a discordant pair the bound is -z^2 / (n + z^2); swapping the sides mirrors the interval."""
    z = z_quantile(0.05)
    assert tango(0, 0, 133, 0.05).lower == pytest.approx(-(z * z) / (133 + z * z), abs=1e-12)
    assert tango(0, 1, 50, 0.025).upper == pytest.approx(-tango(1, 0, 50, 0.025).lower, abs=1e-12)


@pytest.mark.parametrize(("gains", "losses", "n"), [(5, 2, 50), (1, 9, 40), (30, 30, 100)])
@pytest.mark.parametrize("difference", [-0.2, -0.02, 0.1])
def test_tangos_nuisance_parameter_is_the_constrained_maximum(gains, losses, n, difference):
    """The score's variance uses the discordance that maximises the likelihood under the hypothesis."""

    def likelihood(q):
        return (
            gains * math.log(q + difference)
            + losses * math.log(q)
            + (n - gains - losses) * math.log(1 - 2 * q - difference)
        )

    low, high = max(0.0, -difference) + 1e-9, (1 - difference) / 2 - 1e-9
    for _ in range(200):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (a, high) if likelihood(a) < likelihood(b) else (low, b)
    variance = n * (2 * low + difference * (1 - difference))
    score = (gains - losses - n * difference) / math.sqrt(variance)
    assert tango_score(gains, losses, n, difference) == pytest.approx(score, rel=1e-5)


@given(TABLES, st.sampled_from([0.01, 0.025, 0.05, 0.1]))
def test_tango_bounds_are_the_roots_of_its_score(table, alpha):
    """The bounds enclose the estimate, stay within -1 and 1, and the score there is the quantile."""
    n, gains, losses = table
    found = tango(gains, losses, n, alpha)
    assert -1 <= found.lower <= found.estimate <= found.upper <= 1
    if found.lower > -0.999:
        assert tango_score(gains, losses, n, found.lower) == pytest.approx(z_quantile(alpha), abs=1e-4)


@given(TABLES)
def test_more_losses_never_raise_the_bound(table):
    """Turning a draw into a loss lowers Tango's lower bound."""
    n, gains, losses = table
    if gains + losses < n:
        assert tango(gains, losses + 1, n, 0.05).lower <= tango(gains, losses, n, 0.05).lower + 1e-12


def test_tango_refuses_what_is_no_table():
    """Counts that do not fit the pairs are an error, not an interval."""
    with pytest.raises(ValueError):
        tango(3, 3, 5, 0.05)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40), st.randoms(use_true_random=False))
def test_order_changes_no_bit(values, shuffler):
    """Mean and standard error are the same bits in any order of rows."""
    rows = [(value, index % 7) for index, value in enumerate(values)]
    shuffled = rows[:]
    shuffler.shuffle(shuffled)
    assert clustered_mean(*zip(*rows, strict=True)) == clustered_mean(*zip(*shuffled, strict=True))


def test_copies_of_a_row_are_no_new_evidence():
    """Ten copies of each row in one cluster leave the interval of the mean as wide as it was."""
    values = [random.Random(5).gauss(0, 1) for _ in range(1)] + [0.3, -0.2, 1.1, 0.9]
    once = t_bounds(clustered_mean(values, range(5)), 0.05)
    tenfold = t_bounds(clustered_mean(values * 10, [i for _ in range(10) for i in range(5)]), 0.05)
    assert tenfold.lower == pytest.approx(once.lower)
    assert t_bounds(clustered_mean(values * 10, range(50)), 0.05).lower > once.lower


@pytest.mark.parametrize("n", [30, 50, 133, 1000])
def test_what_is_always_the_same_has_the_bounds_of_right_or_wrong(n):
    """No answer right, or all of them, and no pair that differs, or all: as Wilson and Tango have it."""
    for value in (0, 1):
        assert constant_bounds(value, 0, 1, n, 0.05)[1:] == pytest.approx(wilson(value * n, n, 0.05)[1:])
    for won, lost in ((0, 0), (n, 0), (0, n)):
        found = constant_bounds((won - lost) / n, -1, 1, n, 0.05)
        assert found[1:] == pytest.approx(tango(won, lost, n, 0.05)[1:], abs=1e-9)


@given(st.lists(st.tuples(st.integers(-1, 1), st.integers(0, 12)), min_size=1, max_size=60))
def test_clusters_never_add_evidence(rows):
    """The design effect lies between 1 and the number of rows; of rows that are all alone it is 1."""
    values, clusters = [float(value) for value, _ in rows], [cluster for _, cluster in rows]
    found = clustered_mean(values, clusters)
    variance = sum(value**2 for value in values) / len(values) - found.mean**2
    assert 1 <= design_effect(found, variance, len(rows)) <= len(rows)
    alone = clustered_mean(values, range(len(rows)))
    assert design_effect(alone, variance, len(rows)) == 1


def test_copies_in_clusters_have_the_effect_of_their_number():
    """Four copies of each row in one cluster count as one row."""
    values = [1.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0] * 6
    found = clustered_mean(values * 4, [i for _ in range(4) for i in range(len(values))])
    variance = sum(v * v for v in values) / len(values) - found.mean**2
    assert design_effect(found, variance, 4 * len(values)) == pytest.approx(4, rel=0.03)


def test_one_cluster_shows_nothing():
    """A single cluster has no bounds."""
    assert t_bounds(clustered_mean([1.0, 2.0], ["a", "a"]), 0.05)[1:] == (-math.inf, math.inf)


@pytest.mark.parametrize(("delta", "rows"), [(0.02, 2319), (0.03, 1031), (0.05, 371)])
def test_sample_sizes_at_fifteen_percent_discordance(delta, rows):
    """The planning numbers of the documentation follow from the formula."""
    assert math.ceil(sample_size(math.sqrt(0.15), delta, 0.05, 0.8)) == rows
    assert sample_size(1.0, 0.0, 0.05, 0.8) == math.inf


def test_holm_stops_at_the_first_that_is_not_rejected():
    """Holm's example: the smallest at alpha/3, the next at alpha/2, and nothing after a failure."""
    assert holm([0.04, 0.01, 0.02], 0.05) == (True, True, True)
    assert holm([0.04, 0.03, 0.001], 0.05) == (False, False, True)
    assert holm([], 0.05) == ()
