"""The page: whole, safe, and honest about what is missing."""

import base64
import hashlib
import re
from dataclasses import fields, replace
from html.parser import HTMLParser

import pytest

from dropforge_core.contracts import Problem
from dropforge_core.gate.examples import Answer, Example, ExampleAnswers
from dropforge_core.ledger import Status
from dropforge_core.report import RunDocuments, render

OPTIONAL = [f.name for f in fields(RunDocuments) if f.default is None]
ATTACKS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><script>alert(1)</script>",
    "</pre></section><iframe src=//evil>",
    "{{7*7}}${7*7}<%= 7*7 %>",
    "\u202egnp.exe\x00\x1b[31m",
    "<!-- --><svg/onload=alert(1)>",
)
VOID = {"meta", "br", "hr", "input"}


class Page(HTMLParser):
    """What a browser would find: tags, attributes, links, text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.open, self.texts, self.unbalanced = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, name, attrs):
        self.tags.append(name)
        self.attributes += attrs
        if name not in VOID:
            self.open.append(name)

    def handle_startendtag(self, name, attrs):
        self.tags.append(name)
        self.attributes += attrs

    def handle_endtag(self, name):
        if not self.open or self.open.pop() != name:
            self.unbalanced.append(name)

    def handle_data(self, data):
        self.texts.append(data)


def checked(run):
    """The parsed page, after what must hold of every page."""
    written = render(run)
    page = Page(written)
    assert not page.unbalanced
    assert not page.open
    assert not {"iframe", "img", "link", "object", "form", "a"} & set(page.tags)
    # One script at most, the one that the policy names by its hash.
    scripts = re.findall(r"<script>(.*?)</script>", written, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts]
    (policy,) = (value for _, value in page.attributes if value and value.startswith("default-src 'none'"))
    assert [f"script-src 'sha256-{one}'" in policy for one in hashes] == [True] * page.tags.count("script")
    assert len(hashes) == policy.count("script-src") <= 1
    for name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in {"src", "href", "srcset", "action"}
        assert "url(" not in (value or "")
    idents = [value for name, value in page.attributes if name == "id"]
    assert len(idents) == len(set(idents))
    return page


def text_of(page):
    return " ".join(" ".join(page.texts).split())


def test_a_whole_run_is_told(registered):
    """Verdict, metrics, rules, answers, training, dataset, cost and lineage are on the page, in one h1 outline."""
    page = checked(registered)
    told = text_of(page)
    assert page.tags.count("h1") == 1
    assert "The new model is better, and is registered" in told
    for words in (
        "Before and after",
        "The decision",
        "Answers side by side",
        "Training",
        "Dataset",
        "Lineage",
    ):
        assert words in told
    assert registered.package_arn in told
    assert "sha256:" + "5ac1" * 16 in told
    assert "apache-2.0" in told
    assert "$0.24" in told
    assert "Not reached" not in told


def next_of(run):
    (found,) = re.findall(r'<p class="next">.*?</p>', checked(run) and render(run))
    return re.sub(r"<[^>]*>", "", found)


def test_the_first_screen_says_what_to_do_next(registered, rejected, failed):
    """Whether the run was registered, refused, left open, rejected or failed: one sentence says what there is to do."""
    assert "approve version 5 in the model registry" in next_of(registered)
    approved = registered.recipe.model_copy(
        update={"gate": registered.recipe.gate.model_copy(update={"on_pass": "Approved"})}
    )
    assert "Version 5 is approved" in next_of(replace(registered, recipe=approved))
    refused = replace(registered, status="GATE_FAILED", package_arn=None)
    assert "Nothing was registered; what serves today goes on serving." in next_of(refused)
    first = replace(refused, setup=refused.setup.model_copy(update={"champion_package_arn": None}))
    assert next_of(first).endswith("Nothing was registered.")
    assert "upload it again" in next_of(rejected)
    assert 'class="next"' not in render(failed)  # its diagnosis says so itself
    assert "dropforge redrive" in next_of(replace(failed, message="Something broke."))


@pytest.mark.parametrize("package", [None, "arn:aws:sagemaker:us-east-1:000000000000:model-package/m/6"])
def test_what_would_decide_an_open_verdict_is_on_the_first_screen(registered, package):
    """The rows that would decide are told where more rows do, and who may decide meanwhile."""
    rules = registered.gate.rules
    open_rule = rules[-1].model_copy(
        update={"name": "not_worse_than_champion", "verdict": "INCONCLUSIVE", "n_needed": 2319}
    )
    gate = registered.gate.model_copy(update={"verdict": "INCONCLUSIVE", "rules": (*rules, open_rule)})
    run = replace(registered, status="INCONCLUSIVE", gate=gate, package_arn=package)
    assert "hold out about 2\u202f319 rows" in next_of(run)
    assert ("version 6 waits for a person" in next_of(run)) == (package is not None)
    unplanned = replace(
        run,
        gate=gate.model_copy(
            update={"rules": (*gate.rules, open_rule.model_copy(update={"n_needed": None}))}
        ),
    )
    assert "hold out" not in next_of(unplanned)


def test_a_champion_is_told_beside_base_and_candidate(registered):
    """Each first figure names the champion's value, which the new model is to replace."""
    tiles = render(registered)
    tiles = tiles[tiles.index('<ul class="tiles">') :]
    assert tiles[: tiles.index("</ul>")].count("; champion ") == 3


def test_a_metric_beyond_zero_to_one_is_drawn_on_its_own_scale(registered):
    """A team's own metric may count words: it is no percentage, and every mark stays within the drawing."""
    first = registered.metrics.metrics[0]
    wordy = first.model_copy(
        update={
            "name": "words",
            "label": "Words",
            "estimates": tuple(
                one.model_copy(update={"mean": 30.0 + at, "lower": 20.0, "upper": 45.0})
                for at, one in enumerate(first.estimates)
            ),
        }
    )
    page = render(replace(registered, metrics=registered.metrics.model_copy(update={"metrics": (wordy,)})))
    part = page[page.index('<section id="metrics"') : page.index('<section id="gate"')]
    assert "%" not in re.search(r'<span class="mean candidate">(.*?)</span>', part).group(1)
    assert all(0 <= float(x) <= 100 for x in re.findall(r'(?:x1|x2|cx)="([-\d.]+)%"', part))


def test_every_chart_is_told_in_words(registered):
    """Each drawing that is not decoration has a label for people who do not see it."""
    page = render(registered)
    charts = re.findall(r"<svg [^>]*>", page)
    labelled = [chart for chart in charts if 'role="img"' in chart]
    assert len(labelled) >= 5
    assert all(re.search(r'aria-label="[^"]{20,}"', chart) for chart in labelled)


def test_a_rejected_dataset_shows_its_faults_first(rejected):
    """The table of faults is the first section, and what the run did not reach is said once."""
    page = checked(rejected)
    told = text_of(page)
    assert "The dataset was rejected" in told
    assert "UNKNOWN_ROLE" in told
    assert "Found 'bot'" in told
    assert told.index("UNKNOWN_ROLE") < told.index("Lineage")
    assert "The run ended before: plan, training, evaluation, answers, decision." in told


def problem(number, **fields):
    known = {"file": "train.jsonl", "line": number, "path": "", "code": f"CODE_{number}", "message": "m."}
    return Problem.model_validate(known | fields)


def with_faults(run, *problems):
    count = sum(one.count for one in problems)
    return replace(
        run, validation=run.validation.model_copy(update={"errors": problems, "error_count": count})
    )


def test_every_kind_of_fault_is_on_the_page_and_can_be_searched(rejected):
    """A thousand kinds are a thousand rows; a search comes with them, and not with a few."""
    many = checked(with_faults(rejected, *(problem(n) for n in range(1, 1001))))
    assert {f"CODE_{n}" for n in range(1, 1001)} <= set(many.texts)
    assert (many.tags.count("input"), many.tags.count("script")) == (1, 1)
    few = checked(with_faults(rejected, problem(1), problem(2)))
    assert (few.tags.count("input"), few.tags.count("script")) == (0, 0)


def test_lines_are_told_in_runs_and_the_page_stays_small(rejected):
    """Neighbouring lines are one run; what is left of very many says that there is more."""
    lines = (7, 9, 10, 11, 12, 20)
    told = text_of(checked(with_faults(rejected, problem(7, lines=lines, count=6))))
    assert "6 lines also 9\u201312, 20 " in told
    odd = tuple(range(1, 4_001, 2))
    pages = [
        len(render(with_faults(rejected, *(problem(n, lines=odd, count=90_000) for n in range(1, kinds)))))
        for kinds in (2, 1001)
    ]
    assert "90 000 lines" in text_of(checked(with_faults(rejected, problem(1, lines=odd, count=90_000))))
    assert pages[1] < 500_000


def test_what_was_found_stands_apart_from_how_to_mend_it(rejected):
    """Path, finding and expectation are a sentence; the mend is another."""
    one = problem(3, path="messages[0].role", found="role 'usr'", expected="user", mend="Rename it.")
    assert "messages[0].role : found role 'usr', expected user. Rename it." in text_of(
        checked(with_faults(rejected, one))
    )


def test_a_failure_tells_its_diagnosis(failed):
    """The diagnosis is the lead of the page, line breaks kept."""
    told = text_of(checked(failed))
    assert "The training code failed" in told
    assert "mat1 and mat2 shapes" in told
    assert "dropforge redrive" in told


@pytest.mark.parametrize("missing", OPTIONAL)
def test_any_missing_document_leaves_a_page(registered, missing):
    """Whatever single document is gone, the page stands; a part that was reached says what is missing."""
    page = checked(replace(registered, **{missing: None}))
    named = {
        "validation": "validation.json", "plan": "plan.json", "training": "training_summary.json",
        "metrics": "evaluation/metrics.json", "examples": "evaluation/examples.json",
    }  # fmt: skip
    if missing in named:
        assert named[missing] in text_of(page)


def test_nothing_at_all_is_a_page():
    """A run of which nothing is left still has a page with its status."""
    for status in [*Status, "SOMETHING_NEW"]:
        page = checked(RunDocuments(run_id="r", model="m", status=str(status)))
        assert "Not reached" in text_of(page)


@pytest.mark.parametrize("attack", ATTACKS)
def test_text_stays_text(registered, attack):
    """What a person wrote, wherever it is shown, makes no tag and no attribute."""
    answer = Answer(text=attack, score=1.0, nll_per_byte=1.0, cut_off=True)
    example = Example(
        id=attack, change="fixed", prompt=attack, reference=attack, answers={"base": answer, attack: answer}
    )
    problem = registered.validation.warnings[0].model_copy(
        update={"file": attack, "path": attack, "message": attack}
    )
    upload = registered.request.objects[0].model_copy(update={"key": attack})
    gate = registered.gate
    rule = gate.rules[0].model_copy(update={"reason": attack, "metric": attack})
    flips = gate.flips[0].model_copy(update={"broken": (attack,)})
    run = replace(
        registered,
        model=attack,
        message=attack,
        package_arn=attack,
        bucket=attack,
        unreadable=(attack,),
        request=registered.request.model_copy(update={"objects": (upload,), "requester": attack}),
        validation=registered.validation.model_copy(update={"warnings": (problem,), "format": attack}),
        plan=registered.plan.model_copy(update={"reason": attack, "notes": (attack,)}),
        setup=registered.setup.model_copy(update={"model_data": attack}),
        gate=gate.model_copy(update={"rules": (rule,), "flips": (flips,), "notes": (attack, attack)}),
        metrics=registered.metrics.model_copy(update={"reason": attack}),
        examples=ExampleAnswers(metric=attack, counts={attack: 1}, examples=(example,)),
    )
    clean = checked(registered)
    page = checked(run)
    assert set(page.tags) <= set(clean.tags)
    assert {name for name, _ in page.attributes} <= {name for name, _ in clean.attributes} | {"open"}
    assert "\u202e" not in render(run)
    assert "\x00" not in render(run)


def test_the_page_is_the_same_every_time(registered):
    """Rendering draws nothing and reads no clock."""
    assert render(registered) == render(registered)


def test_colours_keep_their_contrast():
    """Text colours reach 4.5 to 1 against card and page, in light and in dark (WCAG 2.2, 1.4.3)."""
    page = render(RunDocuments(run_id="r", model="m", status="REGISTERED"))
    schemes = re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    light = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", schemes[0]))
    dark = {**light, **dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", schemes[1]))}
    for scheme in (light, dark):
        for ink in ("ink", "muted", "accent", "base", "champion", "good", "bad", "open"):
            for ground in ("card", "page"):
                assert contrast(scheme[ink], scheme[ground]) >= 4.5, (ink, ground)
        for tone in ("good", "bad", "open"):
            assert contrast(scheme[tone], scheme[f"{tone}-soft"]) >= 4.5, tone
        assert contrast(scheme["muted"], scheme["soft"]) >= 4.5


def contrast(one, other):
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
