"""What a JSON answer is worth, and which metrics a dataset gets."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge_core.metrics import REGISTRY
from dropforge_core.metrics.choice import choose
from dropforge_core.metrics.structured import field_f1, field_scores, json_valid, leaves, parse_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_spelling_of_json_makes_no_difference(value):
    """Key order, indentation and a code fence around it leave the field score at 1."""
    reference = json.dumps(value)
    answer = f"```json\n{json.dumps(value, indent=2, sort_keys=True)}\n```"
    assert field_f1(reference, answer) == 1.0
    assert json_valid(reference, answer) == 1.0


def test_fields_are_counted_one_by_one():
    """One of two fields right and one invented is half of precision and half of recall."""
    assert field_f1('{"city": "x", "zip": "1"}', '{"city": "x", "zip": "2"}') == 0.5
    assert field_f1('{"city": "x"}', "city is x") == 0.0
    assert field_f1('{"n": 1}', '{"n": 1.0}') == 1.0
    assert field_f1('{"n": 1}', '{"n": "1"}') == 0.0
    assert field_f1('{"n": [1, 2]}', '{"n": [2, 1, 1]}') == 0.8


@pytest.mark.parametrize("answer", ["", "NaN", '{"a": 1', "[1]", '{"a": 1e999}', "[" * 100_000, '{"a":1} ok'])
def test_what_is_no_json_object_is_not_valid(answer):
    """Prose, cut text, other kinds of value, NaN, infinities and endless nesting are not the object asked for."""
    assert json_valid('{"a": 1}', answer) == 0.0
    assert field_f1('{"a": 1}', answer) == 0.0


def test_leaves_have_paths():
    """Nested values are told by their path."""
    assert list(leaves(parse_json('{"a": {"b": [1, " x "]}}'))) == [("a.b[]", "1"), ("a.b[]", '"x"')]


def test_scores_by_field():
    """Fields are ranked by how often the references have them; invented fields count as given."""
    found = field_scores([('{"a": "1", "b": "2"}', '{"a": "1"}'), ('{"a": "3"}', '{"a": "4", "c": "5"}')])
    assert [(one.field, one.expected, one.given, one.right, one.f1) for one in found] == [
        ("a", 2, 2, 1, 0.5),
        ("b", 1, 0, 0, 0.0),
    ]


@pytest.mark.parametrize(
    ("references", "task", "name"),
    [
        (['{"a": 1}'] * 20, "json", "json_schema_valid"),
        (["yes", "no"] * 20, "label", "normalised_match"),
        (["A", "b", "(C)"] * 20, "choice", "choice_match"),
        ([f"${i},000.50" for i in range(40)], "number", "numeric_match"),
        ([f"answer {i}" for i in range(40)], "short", "token_f1"),
        ([f"{i} " + "long answer " * 20 for i in range(20)], "text", "rouge_l"),
    ],
)
def test_metrics_follow_the_answers(references, task, name):
    """The shape of the reference answers chooses the metrics, the loss is always among them, and why is said."""
    choice = choose((), ("nll_per_byte",), references, REGISTRY)
    assert choice.task == task
    assert name in choice.names
    assert choice.names[0] == "nll_per_byte"
    assert choice.reason


def test_the_recipes_choice_is_kept_and_typos_are_named():
    """Asked metrics are computed, the gate's beside them, and a name that does not exist is reported."""
    choice = choose(("chrf", "blue"), ("exact_match",), ["x"], REGISTRY)
    assert choice.names == ("nll_per_byte", "exact_match", "chrf")
    assert choice.unknown == ("blue",)


def test_without_generation_only_the_likelihood_is_measured():
    """No generated answers, no metrics of them."""
    assert choose((), ("nll_per_byte",), [], REGISTRY).names == ("nll_per_byte",)
