"""The judge's price is part of the plan."""

import pytest

JUDGE = {
    "model": "amazon.nova-pro-v1:0",
    "rows": 100,
    "usd_per_million_input_tokens": 1.0,
    "usd_per_million_output_tokens": 4.0,
    "max_cost_usd": 2.0,
}


def test_the_judge_is_in_the_price_and_in_what_is_kept_back(make_plan):
    """The plan is dearer by the judge, at most by its cap, which is kept back from training; a note tells both."""
    without, judged = make_plan(held_out=200), make_plan({"evaluation": {"judge": JUDGE}}, held_out=200)
    assert judged.cost_usd.high - without.cost_usd.high == pytest.approx(2.0)
    assert judged.evaluation_reserve_usd - without.evaluation_reserve_usd == pytest.approx(2.0)
    assert 0 < judged.cost_usd.expected - without.cost_usd.expected < 2.0
    (note,) = [note for note in judged.notes if "amazon.nova-pro-v1:0" in note]
    assert "$2.00" in note


def test_twice_the_rows_cost_twice_as_much(make_plan):
    """As long as the cap is far and the hold-out has so many."""
    costs = [
        make_plan(
            {"evaluation": {"judge": {**JUDGE, "rows": rows, "max_cost_usd": 900.0}}}, held_out=400
        ).cost_usd.expected
        for rows in (100, 200)
    ]
    none = make_plan(held_out=400).cost_usd.expected
    assert costs[1] - none == pytest.approx(2 * (costs[0] - none))
