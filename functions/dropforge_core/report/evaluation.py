"""Before and after, the gate's reasons, and the answers themselves."""

from collections.abc import Sequence
from typing import Final

from dropforge_core.gate.documents import GateReport, MetricFacts, MetricsReport
from dropforge_core.gate.examples import Answer, Example, ExampleAnswers
from dropforge_core.gate.rules import Rule
from dropforge_core.metrics import REGISTRY
from dropforge_core.metrics.registry import JUDGE_PREFERENCE
from dropforge_core.metrics.structured import FieldScore
from dropforge_core.report.charts import Mark, Measured, difference_chart, interval_chart, span_of
from dropforge_core.report.documents import RunDocuments
from dropforge_core.report.figures import DASH, money, number, percent, plural
from dropforge_core.report.headline import is_share, value_of
from dropforge_core.report.markup import Markup, tag
from dropforge_core.report.section import missing, section, table

WHO: Final = {"base": "Base model", "champion": "Champion", "candidate": "New model"}
_RULES: Final = {
    "validity": "Every answer is there",
    "known_metrics": "The metrics exist",
    "sample_size": "Enough held-out rows",
    "minimum": "Good enough in itself",
    "better_than_base": "Better than the base model",
    "not_worse_than_champion": "Not worse than the champion",
    "champion_comparable": "Comparable with the champion",
    "slices": "No part is harmed",
    "canaries": "What must be right is right",
    "not_forgotten": "General knowledge is kept",
    "holdout_reuse": "The hold-out is fresh enough",
}
_DRAWN: Final = frozenset({"minimum", "better_than_base", "not_worse_than_champion", "not_forgotten"})
_SIGN: Final = {"PASS": "\u2713", "FAIL": "\u2715", "INCONCLUSIVE": "?"}
_TONE: Final = {"PASS": "good", "FAIL": "bad", "INCONCLUSIVE": "open"}
_CHANGE: Final = {
    "fixed": ("good", "Fixed"),
    "better": ("good", "Better"),
    "broken": ("bad", "Broken"),
    "worse": ("bad", "Worse"),
    "right": ("same", "Right before and after"),
    "wrong": ("same", "Wrong before and after"),
    "same": ("same", "About the same"),
}


def metrics_section(run: RunDocuments) -> Markup:
    """Every metric of every variant, with its interval drawn."""
    if run.metrics is None:
        return missing("metrics", "Before and after", "evaluation/metrics.json")
    found = run.metrics
    level = percent(1 - 2 * found.alpha)
    legend = tag(
        "ul",
        [tag("li", tag("i", class_=f"key {who}"), WHO.get(who, who)) for who in found.variants],
        tag("li", tag("i", class_="key bar"), f"{level} interval"),
        class_="legend",
    )
    return section(
        "metrics",
        "Before and after",
        legend,
        # A judge compares: its scores are no level before and after. It has a place in the decision.
        tag(
            "div",
            [_metric(metric, level) for metric in found.metrics if metric.name != JUDGE_PREFERENCE],
            class_="metrics",
        ),
        _fields(found),
        tag("p", found.reason, class_="muted"),
    )


def _metric(metric: MetricFacts, level: str) -> Markup:
    shown = value_of(metric)
    measured = [one for one in metric.estimates if one.mean is not None]
    marks = [
        Mark(WHO.get(one.variant, one.variant), one.variant, one.mean or 0.0, one.lower, one.upper)
        for one in measured
    ]
    told = f"{metric.label}: " + "; ".join(
        f"{WHO.get(one.variant, one.variant)} {shown(one.mean)}, {level} interval "
        f"{shown(one.lower)} to {shown(one.upper)}"
        for one in measured
    )
    low, high = 0.0, 1.0
    if marks and not is_share(metric):
        ends = [end for mark in marks for end in (mark.value, mark.lower, mark.upper) if end is not None]
        low, high = min(0.0, 1.1 * min(ends)), max(0.0, 1.1 * max(ends))
    values = [
        tag(
            "li",
            tag("span", WHO.get(one.variant, one.variant), class_="who"),
            tag("span", shown(one.mean), class_=f"mean {one.variant}"),
            tag("span", f"{shown(one.lower)} {DASH} {shown(one.upper)}", class_="range"),
        )
        for one in measured
    ]
    rows = max((one.n for one in measured), default=0)
    way = "Lower is better" if metric.direction == "lower" else "Higher is better"
    return tag(
        "article",
        tag("h3", metric.label, tag("small", f"{way} \u00b7 {plural(rows, 'row')}")),
        tag(
            "div",
            interval_chart(marks, low, high if high > low else low + 1.0, told) if marks else None,
            class_="drawn",
        ),
        tag("ul", values, class_="values"),
        tag("p", metric.description, class_="about"),
        class_="metric",
    )


def _fields(found: MetricsReport) -> Markup | None:
    before, after = (
        {one.field: one for one in found.fields.get(variant, ())} for variant in ("base", "candidate")
    )
    if not after:
        return None
    rows = [(name, number(one.expected), _f1(before.get(name)), _f1(one)) for name, one in after.items()]
    return tag(
        "details",
        tag("summary", f"Field by field ({len(rows)})"),
        table(("Field", "Values expected", "F1 of base", "F1 of new"), rows[:100], numeric=(1, 2, 3)),
        open=len(rows) <= 12,
    )


def _f1(found: FieldScore | None) -> str:
    return percent(found.f1 if found else 0.0)


def gate_section(run: RunDocuments) -> Markup:
    """Each rule with its number, its bounds and its threshold."""
    if run.gate is None:
        return missing("gate", "The decision", "gate.json")
    gate = run.gate
    return section(
        "gate",
        "The decision",
        tag("ol", [_rule(rule) for rule in gate.rules], class_="rules"),
        _flips(gate),
        _slices(gate),
        _canaries(gate),
        _forgetting(gate),
        _judge(gate),
        [tag("p", note, class_="muted") for note in gate.notes[1:]],
        tag(
            "p",
            f"All rules must pass. Bounds are one-sided at {percent(gate.policy.alpha)}; proportions by Wilson, "
            "paired proportions by Tango, means by Student\u2019s t over independent groups of rows, corrected for "
            "skew; harm to parts by Holm. Nothing is drawn at random: the same answers give the same decision.",
            class_="muted",
        ),
    )


def _rule(rule: Rule) -> Markup:
    metric = _label(rule.metric)
    drawn = None
    if rule.name in _DRAWN and rule.value is not None and rule.threshold is not None:
        what = "value" if rule.name == "minimum" else "gain"
        at_most = rule.name == "minimum" and _lower_is_better(rule.metric)
        found = Measured(rule.value, rule.lower, rule.upper, rule.threshold, at_most)
        sure, way = (rule.upper, "at most") if at_most else (rule.lower, "at least")
        asked = "above" if rule.name == "better_than_base" else way
        told = (
            f"{what} {number(rule.value)}, bounds {number(rule.lower)} to {number(rule.upper)}, "
            f"threshold {number(rule.threshold)}"
        )
        drawn = tag(
            "figure",
            difference_chart(found, told, span_of([found], () if rule.name == "minimum" else (0.0,))),
            tag(
                "figcaption",
                f"{what} {number(rule.value)}, {way} {number(sure)}; must be {asked} {number(rule.threshold)}",
                f"; {plural(rule.n_needed, 'row')} would decide"
                if rule.verdict == "INCONCLUSIVE" and rule.n_needed
                else None,
            ),
        )
    return tag(
        "li",
        tag(
            "span",
            tag("span", _SIGN[rule.verdict], aria_hidden="true"),
            _pill(rule),
            class_=f"pill {_TONE[rule.verdict]}",
        ),
        tag(
            "div",
            tag("h3", _RULES.get(rule.name, rule.name), tag("small", metric) if metric else None),
            tag("p", rule.reason),
            drawn,
        ),
    )


def _label(metric: str | None) -> str | None:
    return REGISTRY[metric].label if metric and metric in REGISTRY else metric


def _pill(rule: Rule) -> str:
    return {"PASS": "Pass", "FAIL": "Fail", "INCONCLUSIVE": "Open"}[rule.verdict]


def _flips(gate: GateReport) -> Markup | None:
    if not gate.flips:
        return None
    parts = []
    for flips in gate.flips:
        label = _label(flips.metric)
        parts.append(
            tag(
                "details",
                tag(
                    "summary",
                    f"Against the {'base model' if flips.against == 'base' else 'champion'}, by {label}: ",
                    tag("strong", f"{number(len(flips.fixed))} fixed"),
                    ", ",
                    tag("strong", f"{number(len(flips.broken))} broken"),
                ),
                _ids("Turned wrong", flips.broken),
                _ids("Turned right", flips.fixed),
            )
        )
    return tag("div", parts, class_="flips")


def _ids(label: str, ids: Sequence[str]) -> Markup | None:
    if not ids:
        return None
    shown = ", ".join(ids[:200]) + (f" and {len(ids) - 200} more in gate.json" if len(ids) > 200 else "")
    return tag("p", tag("span", f"{label}: ", class_="label"), tag("code", shown))


def _slices(gate: GateReport) -> Markup | None:
    if not gate.slices:
        return None
    margin = -gate.policy.slice_delta
    drawn = {
        (one.field, one.value): Measured(
            one.comparison.difference, one.comparison.lower, one.comparison.upper, margin
        )
        for one in gate.slices
        if one.comparison.difference is not None
    }
    span = span_of(drawn.values())
    rows = [
        (
            f"{one.field} = {one.value}",
            number(one.comparison.n),
            number(one.comparison.difference),
            _slice_chart(drawn.get((one.field, one.value)), span),
            number(one.p_harm) if one.p_harm is not None else DASH,
            "harmed" if one.harmed else ("no harm shown" if one.powered else "too small to judge"),
        )
        for one in gate.slices
    ]
    reference = "champion" if gate.slices[0].comparison.against == "champion" else "base model"
    told = (
        f"Gain over the {reference} by part, {percent(1 - 2 * gate.policy.alpha)} intervals on one scale; left of "
        f"the line at {number(margin)} is harm. P-values are of harm, before Holm\u2019s correction."
    )
    return tag(
        "div",
        tag("h3", "Parts of the hold-out"),
        tag("p", told, class_="muted"),
        table(("Part", "Rows", "Gain", "Interval", "P", "Verdict"), rows, numeric=(1, 2, 4)),
        class_="slices",
    )


def _slice_chart(found: Measured | None, span: tuple[float, float]) -> Markup | str:
    if found is None:
        return DASH
    told = f"gain {number(found.value)}, bounds {number(found.lower)} to {number(found.upper)}"
    return difference_chart(found, told, span)


def _canaries(gate: GateReport) -> Markup | None:
    """Which rows that must be answered right are not, and why."""
    if gate.canaries is None or not gate.canaries.failed:
        return None
    before = set(gate.canaries.failed_before)
    rows = [(one.id, one.why, "yes" if one.id in before else "no") for one in gate.canaries.failed[:200]]
    return tag(
        "details",
        tag("summary", f"{plural(len(gate.canaries.failed), 'canary', 'canaries')} not answered right"),
        table(("Row", "What is wrong", "Wrong before, too"), rows),
        open=True,
    )


def _forgetting(gate: GateReport) -> Markup | None:
    """General questions before and after, with their interval and the margin."""
    found = gate.forgetting
    if found is None:
        return None
    seen = found.comparison
    drawn = None
    if seen.difference is not None and found.delta is None:
        measured = Measured(seen.difference, seen.lower, seen.upper, 0.0)
        drawn = difference_chart(
            measured,
            f"change {number(seen.difference)}, bounds {number(seen.lower)} to {number(seen.upper)}",
        )
    decides = (
        "It is told and decides nothing; gate.forgetting sets a margin."
        if found.delta is None
        else f"The recipe allows a drop of {percent(found.delta)}."
    )
    return tag(
        "details",
        tag(
            "summary",
            f"General questions, right of {number(found.questions)}: base ",
            tag("strong", number(found.base_right)),
            ", new ",
            tag("strong", number(found.candidate_right)),
        ),
        tag("p", decides, class_="muted"),
        drawn,
        _ids("Forgotten", found.forgotten),
        _ids("Learned", found.learned),
    )


def _judge(gate: GateReport) -> Markup | None:
    """How a model that judges saw the answers, and how far it is to be believed."""
    found = gate.judge
    if found is None:
        return None
    rows = (
        ("New model preferred", number(found.won)),
        ("New model not preferred", number(found.lost)),
        ("Neither", number(found.tied)),
        ("of these it changed its mind when the answers were changed round", number(found.disagreed)),
        ("Verdicts that could not be read, each counted against the new model", number(found.unreadable)),
        ("Not judged", number(found.missing)),
        ("First place preferred, of all verdicts", f"{number(found.first_place)} of {number(found.asked)}"),
        ("Cost", money(found.cost_usd)),
    )
    return tag(
        "details",
        tag(
            "summary",
            f"A judge preferred the new model in {number(found.won)} of {plural(found.comparisons, 'comparison')}, "
            f"the other in {number(found.lost)}",
        ),
        tag("p", f"{found.model}, {plural(found.rows, 'row')}, both orders of each pair.", class_="muted"),
        table(("Verdicts", "Number"), rows, numeric=(1,)),
    )


def _lower_is_better(metric: str | None) -> bool:
    return metric is not None and metric in REGISTRY and REGISTRY[metric].direction == "lower"


def examples_section(run: RunDocuments) -> Markup:
    """A few questions with every answer, side by side."""
    if run.examples is None:
        return missing("examples", "Answers side by side", "evaluation/examples.json")
    found = run.examples
    return section(
        "examples",
        "Answers side by side",
        tag("p", _counts(found), class_="muted"),
        [_example(example, found.metric) for example in found.examples],
    )


def _counts(found: ExampleAnswers) -> str:
    told = ", ".join(
        f"{number(count)} {_CHANGE[change][1].lower()}"
        for change, count in found.counts.items()
        if change in _CHANGE
    )
    label = REGISTRY[found.metric].label.lower() if found.metric in REGISTRY else found.metric
    return f"By {label}, from the base model to the new one: {told}. Shown are some of each, chosen by hash."


def _example(example: Example, metric: str) -> Markup:
    binary = metric in REGISTRY and REGISTRY[metric].kind == "binary"
    tone, label = _CHANGE[example.change]
    return tag(
        "article",
        tag("p", tag("span", label, class_=f"pill {tone}"), tag("code", example.id), class_="tagline"),
        tag("div", tag("h4", "Asked"), _text(example.prompt), class_="asked"),
        tag(
            "div",
            _answer("Expected", example.reference, None, "reference"),
            [
                _answer(WHO.get(who, who), answer.text, _about(answer, binary=binary), who)
                for who, answer in example.answers.items()
            ],
            class_="answers",
        ),
        class_="example",
    )


def _about(answer: Answer, *, binary: bool) -> Markup:
    """Right or wrong where that can be said, and the likelihood."""
    mark = None
    if binary and answer.score is not None:
        good = answer.score == 1
        sign = "\u2713 right" if good else "\u2715 wrong"
        mark = (tag("span", sign, class_=f"mark {'good' if good else 'bad'}"), " \u00b7 ")
    cut = " \u00b7 cut off at the token limit" if answer.cut_off else None
    return tag("small", mark, f"loss {number(answer.nll_per_byte)}", cut)


def _answer(label: str, text: str | None, about: Markup | None, css: str) -> Markup:
    body = (
        _text(text)
        if text is not None
        else tag("p", "Not generated; only its likelihood was measured.", class_="muted")
    )
    return tag("div", tag("h4", label, about), body, class_=f"answer {css}")


def _text(text: str) -> Markup:
    return tag("pre", text) if text.strip() else tag("p", "(empty)", class_="muted")
