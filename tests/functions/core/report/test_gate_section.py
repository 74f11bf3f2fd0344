"""What the report shows of a decision: parts on one scale, thresholds on the right side, ids of what went wrong."""

import re
from dataclasses import replace

import pytest

from dropforge_core.gate.checks import Canaries, CanaryFailure
from dropforge_core.gate.evidence import Comparison
from dropforge_core.gate.general import Forgetting
from dropforge_core.gate.slices import SliceResult
from dropforge_core.metrics.given import JudgeFacts
from dropforge_core.report import render
from dropforge_core.report.charts import Measured, difference_chart, span_of
from dropforge_core.report.spending import actual_cost


def compared(difference, lower, upper, n=150, against="champion"):
    return Comparison(
        metric="field_f1", against=against, n=n, clusters=n, difference=difference, lower=lower, upper=upper,
        method="t", better=20, worse=10, deviation=0.2, n_needed=400,
    )  # fmt: skip


def with_gate(run, **changes):
    """The run's page with another gate.json."""
    return render(replace(run, gate=run.gate.model_copy(update=changes)))


def x_of(svg, css):
    """Where, in percent, the first shape of a class lies."""
    shape = re.search(rf'<(?:line|rect)[^>]*class="{css}"[^>]*>', svg).group()
    return float(re.search(r'x1?="([-\d.]+)%"', shape).group(1))


def test_parts_are_plotted_on_one_scale(registered):
    """Each part has its interval drawn; the line of harm stands at the same place in all of them."""
    slices = tuple(
        SliceResult(
            field="state", value=name, comparison=compared(gain, gain - 0.1, gain + 0.1), powered=powered,
            p_harm=p, harmed=harmed,
        )
        for name, gain, powered, p, harmed in (
            ("TX", 0.3, True, 0.9, False), ("OH", -0.4, True, 0.0004, True), ("NV", 0.0, False, None, False)
        )
    )  # fmt: skip
    page = with_gate(registered, slices=slices)
    part = page[page.index("Parts of the hold-out") :]
    part = part[: part.index("</table>")]
    charts = re.findall(r"<svg.*?</svg>", part, re.DOTALL)
    assert len(charts) == 3
    assert len({x_of(chart, "margin") for chart in charts}) == 1
    assert [word in part for word in ("harmed", "no harm shown", "too small to judge")] == [True] * 3
    assert "state = OH" in part


def test_a_judge_is_told_by_what_it_preferred_and_how_sure_it_was(registered):
    """Wins, losses, what it took back when the places changed, and its price; no level before and after is made of it."""
    facts = JudgeFacts(
        model="amazon.nova-pro-v1:0", rows=100, comparisons=200, missing=0, won=88, lost=40, tied=72, disagreed=31,
        unreadable=2, first_place=149, asked=360, input_tokens=300_000, output_tokens=900, cost_usd=0.31,
        verdicts_digest="sha256:" + "a" * 64,
    )  # fmt: skip
    page = with_gate(registered, judge=facts)
    part = page[page.index("A judge preferred the new model in 88 of 200 comparisons, the other in 40") :]
    part = part[: part.index("</details>")]
    assert all(told in part for told in ("amazon.nova-pro-v1:0", ">31<", "149 of 360", "$0.31"))
    assert "A judge preferred" not in with_gate(registered)
    whole = replace(registered, gate=registered.gate.model_copy(update={"judge": facts}))
    assert actual_cost(whole) == pytest.approx(actual_cost(registered) + 0.31)


def test_a_fetched_base_model_without_a_price_hides_no_cost(registered):
    """The job that fetches a base model has no price in the table that ships; the other jobs' cost is told all the same."""
    fetched = registered.jobs[0].model_copy(update={"kind": "caching", "usd_hour": None})
    whole = replace(registered, jobs=(fetched, *registered.jobs))
    assert actual_cost(whole) == actual_cost(registered)
    unpriced = registered.jobs[0].model_copy(update={"usd_hour": None})
    assert actual_cost(replace(registered, jobs=(unpriced, *registered.jobs))) is None


def test_failed_canaries_are_listed(registered):
    """Row, reason, and whether it was wrong before: without the answer's text."""
    canaries = Canaries(
        asked=9,
        failed=(CanaryFailure(id="00000000000000aa", why="the answer lacks what it must contain"),),
        failed_before=("00000000000000aa",),
        upper=None,
    )
    page = with_gate(registered, canaries=canaries)
    assert "1 canary not answered right" in page
    assert "00000000000000aa" in page
    assert "the answer lacks what it must contain" in page


def test_forgotten_questions_are_listed(registered):
    """Right before and right after, the interval, and the ids that turned wrong."""
    forgetting = Forgetting(
        questions=160, questions_digest="sha256:00", base_right=120, candidate_right=90,
        forgotten=("general-004", "general-077"), learned=(), comparison=compared(-0.19, -0.25, -0.12, 160, "base"),
        delta=None,
    )  # fmt: skip
    page = with_gate(registered, forgetting=forgetting)
    assert "general-004, general-077" in page
    assert "decides nothing" in page
    assert re.search(r"base <strong>120</strong>, new <strong>90</strong>", page)


@pytest.mark.parametrize("at_most", [False, True])
def test_the_forbidden_side_is_the_one_beyond_the_threshold(at_most):
    """Where lower is better the right side is marked, otherwise the left one; the dot lies where its number is."""
    found = Measured(0.6, 0.5, 0.7, 0.4, at_most)
    svg = str(difference_chart(found, "told in words", (0.0, 1.0)))
    assert x_of(svg, "forbidden") == (40.0 if at_most else 0.0)
    assert x_of(svg, "margin") == 40.0
    assert 'cx="60.0%"' in svg


def test_a_span_holds_all_that_is_drawn():
    """Every number and the threshold lie within it, also where a bound is unknown or all are the same."""
    low, high = span_of([Measured(0.2, None, 0.9, -0.1), Measured(0.0, -0.4, None, -0.1)])
    assert low < -0.4
    assert high > 0.9
    assert span_of([Measured(0.0, 0.0, 0.0, 0.0)]) == (-0.1, 0.1)
