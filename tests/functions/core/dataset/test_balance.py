"""Lengths and answers that outweigh all others."""

import msgspec
import pytest
from dataset_cases import chat, question
from hypothesis import given
from hypothesis import strategies as st

from dropforge_core.dataset.balance import Balance, BalanceState
from dropforge_core.dataset.rows.columns import RowBlock
from dropforge_core.dataset.rows.formats import Canonical
from dropforge_core.recipe import DatasetRules


def block(answers):
    rows = [chat(question(n), answer) for n, answer in enumerate(answers)]
    return RowBlock.of((n, Canonical(row["messages"], {})) for n, row in enumerate(rows, 1))


def balance_of(*blocks):
    made = Balance()
    for one in blocks:
        made.add(one)
    return made


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        (["yes"] * 95 + ["no"] * 5, {"ANSWER_IMBALANCE": "one answer in 95% of the rows"}),
        (["yes"] * 60 + ["no"] * 40, {}),
        (["yes"] * 100, {}),
        ([str(n) for n in range(51)] + ["yes"] * 949, {}),
        (["b", "a"] * 100 + ["long " * 50_000], {"LENGTH_IMBALANCE": "1 row with 94% of all text"}),
        (["yes"] * 98 + ["no"], {}),
    ],
    ids=["one answer", "two answers", "no choice", "many answers", "one long row", "few rows"],
)
def test_what_is_out_of_balance_is_told(answers, found):
    """One answer in nine of ten rows, or half of all text in a hundredth of them; nothing below a hundred rows."""
    told = {fault.code: fault.found for fault in balance_of(block(answers)).faults(DatasetRules())}
    assert told == found


@given(
    st.lists(st.sampled_from(["yes", "no", "x" * 500, *map(str, range(60))]), max_size=80), st.integers(0, 80)
)
def test_any_division_gives_the_same_balance(answers, cut):
    """Two halves that are merged say what the whole says."""
    rows = block(answers)
    whole = balance_of(rows)
    places = {*range(len(rows))}
    first, second = (
        balance_of(rows.without(gone)) for gone in ({*range(cut, len(rows))}, places & {*range(cut)})
    )
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(second.state()), type=BalanceState)
    first.merge(Balance.from_state(state))
    assert first.state() == whole.state()
    assert list(first.faults(DatasetRules())) == list(whole.faults(DatasetRules()))
