"""Metrics as they are computed: bounds, invariances, and the values that papers and other tools give."""

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from dropforge_core.metrics import REGISTRY
from dropforge_core.metrics.catalogue import (
    Installed,
    NotMeasurable,
    bleu,
    catalogue,
    chrf,
    corpus_scores,
    installed,
)
from dropforge_core.metrics.numbers import is_number, number_in, within
from dropforge_core.metrics.options import MetricOptions, schema_fault
from dropforge_core.metrics.registry import installed_names
from dropforge_core.metrics.schema import SchemaCheck
from dropforge_core.metrics.structured import shared_schema
from dropforge_core.metrics.summaries import classification_report, lengths, likelihood
from dropforge_core.metrics.text import choice_match, choice_of

TEXT = st.text(max_size=40)
WORDS = st.lists(st.sampled_from(["yes", "no", "maybe", "The", "cat"]), min_size=1, max_size=8).map(" ".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
PLAIN = catalogue(MetricOptions(regex="(?s).*"), [])
OF_ANY_TEXT = sorted(
    PLAIN.compare.keys() - {"json_valid", "json_schema_valid", "field_f1", "numeric_match", "choice_match"}
)


def test_every_metric_of_generated_text_can_be_computed():
    """With a pattern given, no metric of generated text lacks its function, and no other metric has one."""
    assert set(PLAIN.compare) == {name for name, metric in REGISTRY.items() if metric.needs == "generation"}


@given(TEXT, TEXT)
def test_every_score_is_bounded(reference, answer):
    """Every generation metric stays within 0 and 1 for any two texts; a binary one is 0 or 1."""
    for name, compare in PLAIN.compare.items():
        score = compare(reference, answer)
        assert 0 <= score <= 1, name
        assert REGISTRY[name].kind == "continuous" or score in {0, 1}, name


@given(st.one_of(TEXT, WORDS))
def test_the_reference_itself_is_the_best_answer(reference):
    """Answering the reference gets the best score of every metric that texts of any kind can have."""
    for name in OF_ANY_TEXT:
        best = 1.0 if REGISTRY[name].direction == "higher" else 0.0
        assert PLAIN.compare[name](reference, reference) == pytest.approx(best), name


def test_known_values_of_bleu_and_chrf():
    """The scores that the definitions give by hand: modified precisions of n-grams, and their means."""
    # 1-grams 5 of 6, 2-grams 3 of 5, 3-grams 2 of 4, 4-grams 1 of 3, equal lengths (Papineni 2002).
    expected = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert bleu("the cat sat on the mat", "the cat sat on a mat") == pytest.approx(expected)
    # 1-grams 2 of 3 and 2 of 3, 2-grams 1 of 2 and 1 of 2, 3-grams none (Popovic 2015).
    assert chrf("abc", "abd") == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert bleu("a b c d", "") == 0.0


def test_corpus_bleu_is_of_all_answers_together():
    """N-grams are summed over rows before the ratio is taken, and the order of rows makes no difference."""
    pairs = [("the cat sat on the mat", "the cat sat on a mat"), ("a b c d e", "a b c d e")]
    found = corpus_scores(pairs)
    precisions = (10 / 11, 7 / 9, 5 / 7, 3 / 5)
    assert found.bleu == pytest.approx(100 * math.prod(precisions) ** 0.25)
    assert corpus_scores(pairs[::-1]) == found
    assert any("smooth:exp" in signature for signature in found.signatures)
    assert corpus_scores([]) is None


@given(st.lists(st.tuples(st.one_of(WORDS, TEXT), st.one_of(WORDS, TEXT)), min_size=1, max_size=8))
def test_scores_are_those_that_sacrebleu_gives(pairs):
    """Of each row and of all rows together, whatever the texts: n-grams that are counted once give the same numbers."""
    answers, references = [answer for _, answer in pairs], [reference for reference, _ in pairs]
    found = corpus_scores(pairs)
    assert found.bleu == pytest.approx(BLEU().corpus_score(answers, [references]).score)
    assert found.chrf == pytest.approx(CHRF().corpus_score(answers, [references]).score)
    assert all("nrefs:1" in signature for signature in found.signatures)
    for reference, answer in pairs:
        if reference.strip() != answer.strip():
            alone = BLEU(effective_order=True).sentence_score(answer, [reference]).score
            assert bleu(reference, answer) == pytest.approx(min(alone / 100, 1))
            assert chrf(reference, answer) == pytest.approx(
                min(CHRF().sentence_score(answer, [reference]).score / 100, 1)
            )


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42),
        ("The total is $1,234.50.", 1234.5),
        ("3 apples and 4 pears make 7.", 7),
        ("18 - 4 = 14\n#### 14\n", 14),
        ("7 eggs\n#### 1,000\nThat is 5 days.", 1000),
        ("1e3 m", 1000),
        ("\u22125 degrees", -5),
        ("-.5", -0.5),
        ("CO2", None),
        ("12,34", 12),
        ("", None),
        ("no number", None),
        ("9" * 400, None),
    ],
)
def test_the_number_of_an_answer(text, number):
    """The last number counts, or the one behind ####; thousands have commas; a number in a word is none."""
    assert number_in(text) == number


def test_numbers_are_compared_within_the_tolerance():
    """The larger of the absolute and the relative tolerance is allowed, and no number is never right."""
    assert within(0, 0)("0.30", "0.3") == 1.0
    assert within(0, 1e-6)("1,000,000", "1000001") == 1.0
    assert within(0, 1e-6)("1,000,000", "1000002") == 0.0
    assert within(0.5, 0)("10", "about 10.5") == 1.0
    assert within(1e9, 0)("10", "ten") == 0.0
    assert is_number("$5")
    assert not is_number("5 of the twelve apples")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("**B.** Paris", "B"),
        ("B) Paris", "B"),
        ("The correct answer is (C).", "C"),
        ("First I thought option A, but the answer is D", "D"),
        ("A cat sat.", None),
        ("I do not know.", None),
        ("Paris", None),
        ("", None),
    ],
)
def test_the_letter_of_a_choice(text, letter):
    """A letter counts where it opens the answer or is named as the answer; a word of one letter does not."""
    assert choice_of(text) == letter
    assert choice_match("B", text) == float(letter == "B")


def test_a_pattern_must_fit_the_whole_answer():
    """White space at the ends is left aside, and a part that fits is not enough."""
    match = catalogue(MetricOptions(regex=r"\d{5}"), []).compare["regex_match"]
    assert match("", " 12345\n") == 1.0
    assert match("", "zip 12345") == 0.0


def test_a_pattern_without_end_is_given_up():
    """Nested repetition ends the metric with a sentence on how to write it, not the function's time."""
    match = catalogue(MetricOptions(regex=r"(?:a|a|aa)+b"), []).compare["regex_match"]
    with pytest.raises(NotMeasurable, match="nested repetition"):
        match("", "a" * 60)


def test_a_pattern_that_only_the_standard_library_reads_is_told():
    """The recipe's check is by another library: what the one that matches refuses is a note, and ends nothing."""
    found = catalogue(MetricOptions.model_construct(regex="[[:alpha:]"), [])
    assert "regex_match" not in found.compare
    assert "can't be read" in found.notes["regex_match"]


def test_without_a_pattern_the_metric_says_what_is_missing():
    """No function, and a note that names the recipe's field."""
    found = catalogue(MetricOptions(), [])
    assert "regex_match" not in found.compare
    assert "evaluation.metric_options.regex" in found.notes["regex_match"]


@given(st.lists(JSON, min_size=1, max_size=6))
def test_references_fit_the_schema_that_they_share(values):
    """Whatever the references are, each fits the schema made of them all, which itself is a schema."""
    references = [json.dumps(value) for value in values]
    schema = shared_schema(references)
    assert schema_fault(schema) is None
    check = SchemaCheck(schema)
    assert all(check("", reference) == 1.0 for reference in references)


def test_the_shared_schema_knows_types_and_required_fields():
    """A field that no reference lacks is required, one of another type is refused, an unknown one is allowed."""
    check = SchemaCheck(shared_schema(['{"city": "x", "zip": 1}', '{"city": "y", "zip": 2, "note": null}']))
    assert check("", '```json\n{"city": "z", "zip": 3}\n```') == 1.0
    assert check("", '{"city": "z"}') == 0.0
    assert check("", '{"city": "z", "zip": "3"}') == 0.0
    assert check("", '{"city": "z", "zip": 3, "more": []}') == 1.0
    assert check("", "city z") == 0.0


def test_a_given_schema_is_used_and_nothing_is_fetched():
    """The recipe's schema counts instead of the references'; one that points elsewhere, or is none, is refused."""
    schema = {
        "type": "object",
        "properties": {"n": {"$ref": "#/$defs/small"}},
        "$defs": {"small": {"maximum": 3}},
    }
    assert schema_fault(schema) is None
    check = catalogue(MetricOptions(json_schema=schema), ['{"n": 9}']).compare["json_schema_valid"]
    assert (check("", '{"n": 3}'), check("", '{"n": 9}')) == (1.0, 0.0)
    assert "lies outside" in schema_fault({"$ref": "https://example.org/schema.json"})
    assert "JSON schema" in schema_fault({"type": "text"})


def test_a_reference_that_leads_nowhere_is_refused_and_never_ends_a_decision():
    """The recipe's check names it; one that the check could not see leaves the metric unmeasured, with the reason."""
    dangling = {"properties": {"n": {"$ref": "#/$defs/smal"}}, "$defs": {"small": {"maximum": 3}}}
    assert "leads nowhere" in schema_fault(dangling)
    anchored = {"$id": "urn:x:y", "$ref": "#it", "$defs": {"a": {"$anchor": "it", "type": "object"}}}
    assert schema_fault(anchored) is None
    for schema in (dangling, {"$ref": "#"}):
        check = catalogue(MetricOptions(json_schema=schema), []).compare["json_schema_valid"]
        with pytest.raises(NotMeasurable, match="leads nowhere, or to itself"):
            check("", '{"n": 3}')


def test_labels_are_reported_as_scikit_learn_reports_them():
    """The example of scikit-learn's classification_report: precision 0.5, 0, 1; recall 1, 0, 2/3; macro F1 0.49."""
    names = ("class 0", "class 1", "class 2")
    pairs = [
        (names[truth], names[told]) for truth, told in zip((0, 1, 2, 2, 2), (0, 0, 2, 2, 1), strict=True)
    ]
    found = classification_report(pairs)
    rows = {one.label: (one.precision, one.recall, round(one.f1, 2), one.support) for one in found.labels}
    assert rows == {"class 0": (0.5, 1, 0.67, 1), "class 1": (0, 0, 0, 1), "class 2": (1, 2 / 3, 0.8, 3)}
    assert (found.accuracy, round(found.macro_f1, 2), round(found.weighted_f1, 2)) == (0.6, 0.49, 0.61)
    assert found.majority == 0.6
    assert found.confusion["class 2"] == {"class 1": 1, "class 2": 2}


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=12), st.randoms())
def test_the_order_of_rows_changes_no_summary(pairs, source):
    """Labels, lengths and perplexity are the same bits for any order of rows."""
    shuffled = list(pairs)
    source.shuffle(shuffled)
    assert classification_report(shuffled) == classification_report(pairs)

    def told(rows):
        return lengths([(a, b, len(b) > 9) for a, b in rows]), likelihood([(a, len(b) / 3) for a, b in rows])

    assert told(shuffled) == told(pairs)


def test_an_answer_that_is_no_label_is_counted_as_such():
    """It is wrong, and no label's precision suffers."""
    found = classification_report([("yes", "Yes."), ("no", "perhaps"), ("no", "no")])
    assert found.confusion["no"] == {"(no label)": 1, "no": 1}
    assert all(one.precision == 1.0 for one in found.labels)
    assert classification_report([("A", "the answer is A")], choices=True).accuracy == 1.0


def test_perplexity_follows_from_the_loss():
    """10 bytes at ln 2 nats each are 1 bit and a perplexity of 2 a byte; of 2 words it is 2 to the fifth."""
    found = likelihood([("four five!", 10 * math.log(2))])
    assert (found.rows, found.bytes, found.words) == (1, 10, 2)
    assert found.bits_per_byte == pytest.approx(1)
    assert found.byte_perplexity == pytest.approx(2)
    assert found.word_perplexity == pytest.approx(32)
    assert likelihood([("x", 1e6)]).word_perplexity is None
    assert likelihood([]) is None


def test_lengths_tell_of_answers_that_are_none():
    """Empty, cut off and refusing answers are shares of all."""
    found = lengths([("a b", "", False), ("a b", "I'm sorry, but I can't.", True), ("a b", "a b c", False)])
    assert found.empty == pytest.approx(1 / 3)
    assert found.cut_off == pytest.approx(1 / 3)
    assert found.refused == pytest.approx(1 / 3)
    assert (found.mean_words, found.reference_words) == (pytest.approx(8 / 3), 2)
    assert lengths([]) is None


PACKAGE = """
from dropforge_core.metrics.catalogue import Installed
from dropforge_core.metrics.registry import Metric
shouting = Installed(
    Metric("shouting", "Shouting", "lower", "binary", "generation", "1 where all is upper case.", 1.0),
    lambda reference, answer: float(answer.isupper()),
)
clash = Installed(Metric("bleu", "Another BLEU", "higher", "binary", "generation", "Takes a name."), lambda a, b: 0.0)
nothing = 3
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs a package whose entry points are given; what was found before is forgotten before and after."""
    name = f"team_metrics_{random.Random(str(tmp_path)).getrandbits(40)}"

    def build(*points):
        (tmp_path / f"{name}.py").write_text(PACKAGE)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = "\n".join(f"{point} = {name}:{attribute}" for point, attribute in points)
        (info / "entry_points.txt").write_text(f"[dropforge.metrics]\n{lines}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        for cached in (installed, installed_names):
            cached.cache_clear()

    yield build
    for cached in (installed, installed_names):
        cached.cache_clear()


def test_a_teams_package_adds_a_metric(package):
    """An entry point of the group becomes a metric like any other, declared as the package declares it."""
    package(("shouting", "shouting"))
    found = catalogue(MetricOptions(), [])
    assert isinstance(installed()[0], Installed)
    assert found.metrics["shouting"].direction == "lower"
    assert found.compare["shouting"]("x", "NO") == 1.0
    assert installed_names() == {"shouting"}


@pytest.mark.parametrize(
    ("point", "attribute", "told"),
    [
        ("nothing", "nothing", "Installed was expected"),
        ("other", "shouting", "metric's name"),
        ("bleu", "clash", "two metrics are called 'bleu'"),
    ],
)
def test_an_entry_point_that_is_no_metric_is_refused(package, point, attribute, told):
    """What is no metric, goes by another name, or takes a name that is taken ends in a sentence that says so."""
    package((point, attribute))
    with pytest.raises(ValueError, match=told):
        catalogue(MetricOptions(), [])
