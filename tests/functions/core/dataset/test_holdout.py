"""The cut: likeness stays together, sides are kept, sizes are bounded."""

import difflib
import json
import re
from pathlib import Path

import pytest
from dataset_cases import as_lines, chat, in_memory, question

from dropforge_core.dataset.likeness.columns import EVAL, TRAIN
from dropforge_core.dataset.reading.source import local_file
from dropforge_core.dataset.validation import examine
from dropforge_core.dataset.writing import canonical_lines
from dropforge_core.recipe import Recipe

ADDRESSES = Path(__file__).parents[4] / "examples" / "us-addresses" / "addresses.jsonl"


def sides_of(rows, recipe=None):
    recipe = recipe or Recipe.model_validate({"base_model": "a/b", "dataset": {"min_rows": 1}})
    return examine([in_memory(as_lines(*rows))], recipe).cut


@pytest.fixture(scope="module")
def addresses():
    return examine([local_file(ADDRESSES)], Recipe.model_validate({"base_model": "a/b"}))


def folded(content):
    return re.sub(r"\d+", "0", re.sub(r"[^\w\s]", " ", content.lower())).split()


def test_the_shipped_example_holds_out_about_a_tenth(addresses):
    """782 addresses give a hold-out of about 78, cut by similarity."""
    assert addresses.cut.basis == "similarity"
    assert 66 <= addresses.cut.count(EVAL) <= 90
    assert addresses.cut.count(EVAL) + addresses.cut.count(TRAIN) == 782


def test_no_near_duplicate_straddles_the_cut_by_another_measure(addresses):
    """By difflib's ratio of folded words, which the cut does not use, no held-out address has a twin in training.

    The same street with another number has ratio 1; one word in eight changed has 0.875.
    """
    split = {TRAIN: [], EVAL: []}
    (part,) = addresses.parts
    for side, line in canonical_lines(
        part, [local_file(ADDRESSES)], addresses.outline, addresses.decision(part)
    ):
        split[side].append(folded(json.loads(line)["messages"][1]["content"]))
    twins = []
    for held in split[EVAL]:
        matcher = difflib.SequenceMatcher(b=held, autojunk=False)
        for trained in split[TRAIN]:
            matcher.set_seq1(trained)
            if matcher.real_quick_ratio() > 0.87 and matcher.quick_ratio() > 0.87 and matcher.ratio() > 0.87:
                twins.append((held, trained))
    assert twins == []


def test_rows_keep_their_side_when_a_dataset_grows():
    """Adding unlike rows moves no row from one side to the other, but for what the size's bounds ask."""
    rows = [chat(question(n)) for n in range(700)]
    small, large = sides_of(rows[:600]), sides_of(rows)
    moved = sum(a != b for a, b in zip(small.sides, large.sides[:600], strict=True))
    assert moved == 0


def test_rows_keep_their_side_in_another_order():
    """Where in the file a row stands says nothing about its side."""
    rows = [chat(question(n)) for n in range(400)]
    forward, backward = sides_of(rows).sides, sides_of(rows[::-1]).sides
    assert forward.tolist() == backward[::-1].tolist()


def test_like_prompts_fall_on_one_side():
    """A street with fifty numbers is on one side, and so is each of a hundred others."""
    rows = [
        chat(f"{number} {question(street)} street near the {question(street + 350)}")
        for street in range(100)
        for number in range(1, 6)
    ]
    sides = sides_of(rows).sides
    assert all(len(set(sides[street * 5 : street * 5 + 5])) == 1 for street in range(100))
    assert EVAL in sides


@pytest.mark.parametrize(
    ("rows", "evaluation", "fewest", "most"),
    [
        (10, {}, 5, 5),
        (60, {}, 30, 30),
        (200, {}, 50, 60),
        (700, {"max_holdout": 20, "min_holdout": 10}, 10, 20),
        (700, {"holdout_fraction": 0.3}, 170, 250),
    ],
)
def test_the_size_follows_the_recipe_within_half_of_all_rows(rows, evaluation, fewest, most):
    """The share asked for, no fewer than min, no more than max, never more than half."""
    recipe = Recipe.model_validate(
        {
            "base_model": "a/b",
            "dataset": {"min_rows": 1},
            "evaluation": evaluation,
            "gate": {"min_examples": 5},
        }
    )
    found = sides_of([chat(question(n)) for n in range(rows)], recipe).count(EVAL)
    assert fewest <= found <= most


def test_where_all_rows_are_alike_the_cut_is_by_row_and_says_so():
    """Arithmetic differs in numbers only: there is a hold-out all the same, and a warning."""
    rows = [chat(f"What is {n} + {n * 7}?", str(n)) for n in range(200)]
    recipe = Recipe.model_validate({"base_model": "a/b"})
    found = examine([in_memory(as_lines(*rows))], recipe)
    assert found.cut.count(EVAL) >= 50
    assert "HOLDOUT_BY_ROW" in {problem.code for problem in found.report.warnings}


def test_a_fixed_instruction_makes_no_rows_alike():
    """What every row shares is no sign of likeness."""
    intro = "Extract every field of the following record as compact JSON and leave out what is absent, in this order: "
    plain = sides_of([chat(intro + question(n)) for n in range(400)])
    assert plain.basis == "similarity"
    assert 50 <= plain.count(EVAL) <= 70
