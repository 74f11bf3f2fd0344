"""Caps over runs: never passed, whatever runs do in whatever order; nothing stays taken by runs that ended."""

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from dropforge_core.budget import (
    MICRO,
    Account,
    Caps,
    Reservation,
    accounts,
    micro,
    refusal,
    reserving,
    settling,
)

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
CAPS = Caps(model_day_usd=5, model_month_usd=20, stack_day_usd=8, stack_month_usd=30)


def test_a_run_counts_into_its_model_and_the_stack_by_day_and_month():
    """Days and months are UTC's; another model has other accounts, and shares the stack's."""
    mine, other = accounts("a", NOON, CAPS), accounts("b", NOON, CAPS)
    assert [one.name for one in mine] == [
        "SPENT#model#a#2026-03-01",
        "SPENT#model#a#2026-03",
        "SPENT#stack#2026-03-01",
        "SPENT#stack#2026-03",
    ]
    assert [one.cap_micro for one in mine] == [5 * MICRO, 20 * MICRO, 8 * MICRO, 30 * MICRO]
    assert {one.name for one in mine} & {one.name for one in other} == {one.name for one in mine[2:]}
    assert accounts("a", NOON + timedelta(days=31), CAPS)[3].name == "SPENT#stack#2026-04"


def test_the_refusal_says_which_cap_and_what_is_left():
    """A person sees what was asked, what the cap is, and what remains of it."""
    said = refusal(Account("x", "daily cap of the stack", 8 * MICRO), 7 * MICRO, 2.5)
    assert said == "This run may cost up to $2.50, and of the daily cap of the stack, $8.00, $1.00 are left"


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "reserve", "settle"]),
        st.integers(0, 4),
        st.sampled_from("ab"),
        st.floats(0, 6, allow_nan=False),
        st.integers(0, 40),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_no_cap_is_passed_and_nothing_leaks(steps):
    """Runs reserve, end at any cost up to their limit, and are started again, in any order, over days and months."""
    taken: dict[str, int] = {}
    held: dict[int, Reservation] = {}
    limits: dict[int, float] = {}
    caps: dict[str, int] = {}
    for step, run, model, usd, day in steps:
        before = held.get(run, Reservation())
        if step == "reserve":
            limit = max(usd, limits.get(run, 0.0))
            named = accounts(model, NOON + timedelta(days=day), CAPS)
            change = reserving(before, limit, tuple(one.name for one in named))
            caps |= {one.name: one.cap_micro for one in named}
            if any(
                taken.get(name, 0) + change.delta_micro > caps[name]
                for name in change.after.accounts
                if name in caps
            ):
                continue
            limits[run] = limit
        else:
            cost = before.spent_micro / MICRO + usd / 6 * before.reserved_micro / MICRO
            change = settling(before, cost)
            again = settling(change.after, cost)
            assert (again.delta_micro, again.after) == (0, change.after)
        held[run] = change.after
        for name in change.after.accounts:
            taken[name] = taken.get(name, 0) + change.delta_micro
        assert all(value <= caps[name] for name, value in taken.items())
    for reservation in held.values():
        for name in reservation.accounts:
            taken[name] += settling(reservation, 0.0).delta_micro
    # What is left in every account is what its runs spent, to the millionth.
    for scale in ("-03-", "stack#2026-03-"):
        assert all(value >= 0 for name, value in taken.items() if scale in name)
    months = sum(
        value for name, value in taken.items() if name.startswith("SPENT#stack#") and len(name) == 19
    )
    assert months == sum(reservation.spent_micro for reservation in held.values())


def test_a_run_that_goes_on_reserves_only_what_it_has_left():
    """What it spent before stays where it was spent; its limit is for the whole run."""
    first = reserving(Reservation(), 10.0, ("march",)).after
    spent = settling(first, 4.0)
    assert spent.delta_micro == micro(-6.0)
    second = reserving(spent.after, 10.0, ("april",))
    assert (second.delta_micro, second.after.accounts) == (micro(6.0), ("april",))
    assert settling(second.after, 7.0).delta_micro == micro(-3.0)


def test_asking_twice_takes_once():
    """A planning that is tried again after a crash finds its own reservation."""
    first = reserving(Reservation(), 10.0, ("march",)).after
    again = reserving(first, 10.0, ("april",))
    assert (again.delta_micro, again.after) == (0, first)
