"""Whole files with planted faults: exactly these are told, at exactly their places."""

import json

import pytest
from dataset_cases import ENGLISH, GERMAN, effort, in_memory, spoken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planted.containers import Layout, compress, holds
from planted.datasets import (
    COPIES,
    LEAKS,
    REFUSED,
    TOO_LONG,
    WHOLE,
    Entry,
    FilePlan,
    Plan,
    RowPlan,
    applicable,
    plans,
    realise,
)
from planted.faults import PLANTS, SECRETS
from planted.files import FILE_PLANTS
from planted.rows import FORMS, Seed, good
from planted.texts import MARK

from dropforge_core.dataset.codes import CODES
from dropforge_core.dataset.validation import validate
from dropforge_core.recipe import Recipe

CONTAINERS = ("jsonl", "array", "csv", "parquet")
USUAL = {
    "checks": {},
    "min_rows": 1,
    "max_rows": 1000,
    "on_invalid": "reject",
    "max_dropped_share": 0.02,
    "method": "sft",
}

ELSEWHERE = {
    "FILE_LATE": "a file is late or not, whatever is in it: tests/functions/test_intake.py",
    "KEY_REFUSED": "a key is judged before its file is read: tests/functions/test_intake.py",
    "FILE_VANISHED": "the file is gone: tests/functions/test_validate_dataset.py",
    "RECIPE_YAML": "of a recipe, not of a file: tests/functions/core/test_recipe.py",
    "RECIPE_FIELD_UNKNOWN": "of a recipe",
    "RECIPE_MISSING": "of a recipe",
    "RECIPE_VALUE": "of a recipe",
    "RECIPE_CONFLICT": "of a recipe",
}
"""Codes that no file can be given, and where they are tried."""


def told(problems):
    return [Entry(p.file, p.line, p.path, p.code, p.lines, p.count) for p in problems]


def agrees(plan):
    """Examine a plan's dataset and compare all of the report with what must be told."""
    dataset = realise(plan)
    report = validate(dataset.files, dataset.recipe, tokenizer=dataset.tokenizer)
    expected = dataset.expected
    assert told(report.errors) == expected.entries("error")
    assert told(report.warnings) == expected.entries("warning")
    assert report.error_count == expected.error_count
    assert report.rows == expected.rows
    assert report.format == expected.form
    assert report.valid == (not expected.error_count)
    leaking = {code: len(rows) for code, rows in expected.leaking.items()}
    assert report.leakage == {
        "exact": leaking.get("LEAKAGE_EXACT", 0),
        "near": leaking.get("LEAKAGE_NEAR", 0),
    }
    return report


@settings(max_examples=effort(150), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans(containers=CONTAINERS))
def test_exactly_what_is_planted_is_told(plan):
    """Every planted fault is told once, with its file, line and path; nothing else is; counts are true."""
    said = agrees(plan).model_dump_json()
    assert MARK not in said


@pytest.mark.parametrize(
    ("form", "container"), [(form, c) for form in FORMS for c in CONTAINERS if holds(c, form)]
)
def test_each_way_of_doing_one_thing_wrong_is_told_for_what_it_is(form, container):
    """All plants of a format in one file, good rows between them: each is told at its line, none hides another."""
    plants = applicable(form, container)
    layout = Layout(container, indent=1 if container == "array" else None, row_group=20)
    for style in range(effort(2)):
        rows = [RowPlan("good", style)]
        for place, plant in enumerate(plants):
            rows += [RowPlan(plant, 7 * style + place), RowPlan("good", 7 * style + place)]
        agrees(Plan(form, (FilePlan("train", "train", layout, tuple(rows)),), USUAL))


@pytest.mark.parametrize("form", FORMS)
def test_each_file_that_can_not_be_read_is_told_for_what_it_is(form):
    """All broken files of one dataset together: each is told, and costs no row of another."""
    layout = Layout("jsonl")
    plants = [plant for plant in FILE_PLANTS if plant.forms is None or form in plant.forms]
    for style in range(effort(3)):
        files = [FilePlan("train", "whole", layout, (RowPlan("good", 0), RowPlan("good", 1)))]
        for place, plant in enumerate(plants):
            row = RowPlan("good", style + place)
            files.append(FilePlan("train", f"file-{place}", layout, (row,), plant))
        agrees(Plan(form, tuple(files), USUAL))


def usual_recipe(**sections):
    return Recipe.model_validate(
        {
            "base_model": "org/name",
            "dataset": {"min_rows": 1},
            "training": {"max_seq_len": 131_072},
            **sections,
        }
    )


def lines(*rows):
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


def several(count, start=0):
    return [good("prompt_completion", Seed(start + number)) for number in range(count)]


def codes_at(report, *left_out):
    """(code, line) of everything that is told."""
    return sorted(
        (p.code, line)
        for p in (*report.errors, *report.warnings)
        if p.code not in left_out
        for line in p.lines or (None,)
    )


@settings(max_examples=effort(5), deadline=None)
@given(st.integers(0, 6), st.integers(1, 3_000), st.sampled_from([1 << 20, 65_536]))
def test_a_row_beyond_the_limit_is_told_and_passed_over(place, excess, chunk):
    """One row of a mebibyte and more costs itself and nothing else; one of exactly a mebibyte costs nothing."""
    rows = [lines(row) for row in several(8)]
    frame = len(rows[place]) - 1
    rows[place] = rows[place].replace(b'", "comp', b"x" * ((1 << 20) - frame) + b'", "comp')
    body = b"".join(rows)
    assert codes_at(validate([in_memory(body, chunk=chunk)], usual_recipe()), "OVER_LENGTH_ESTIMATED") == []
    rows[place] = rows[place].replace(b"xxx", b"x" * (3 + excess), 1)
    report = validate([in_memory(b"".join(rows), chunk=chunk)], usual_recipe())
    assert codes_at(report) == [("LINE_TOO_LONG", place + 1)]
    assert report.rows == 8


def test_no_file_is_told():
    """A dataset of nothing is never valid."""
    assert codes_at(validate([], usual_recipe())) == [("FILE_NONE", None), ("ROWS_TOO_FEW", None)]


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_compressed_repetition_is_told_before_it_is_all_there(kind):
    """Text of more than 200 times its compressed size is not read to its end."""
    body = lines(*several(3)) + b" " * (64 << 20)
    packed = compress(body, Layout("jsonl", compression=kind))
    report = validate([in_memory(packed, "train.jsonl")], usual_recipe())
    # A line of blanks without end is too long as well; and what came with the bomb may be lost with it.
    assert codes_at(report, "LINE_TOO_LONG", "ROWS_TOO_FEW") == [("COMPRESSION_RATIO", None)]
    assert report.bytes < 40 << 20


@settings(max_examples=effort(5), deadline=None)
@given(st.integers(0, 10_000))
def test_rows_of_one_prompt_are_held_out_one_by_one_and_said_to_be(start):
    """Where all prompts are alike, the hold-out is not cut by likeness, and that is told."""
    rows = [
        {"prompt": f"What is {start + n} times {n}?", "completion": str((start + n) * n)} for n in range(60)
    ]
    rules = {"min_rows": 1, "near_duplicates": "off", "checks": {"CONFLICTING_ANSWERS": "off"}}
    assert codes_at(validate([in_memory(lines(*rows))], usual_recipe(dataset=rules))) == [
        ("HOLDOUT_BY_ROW", None)
    ]


@settings(max_examples=effort(5), deadline=None)
@given(st.integers(0, 119), st.integers(0, 1000))
def test_a_row_that_outweighs_all_others_is_told(place, start):
    """One row with more text than all others together is an imbalance; without it there is none."""
    rows = several(120, start)
    assert codes_at(validate([in_memory(lines(*rows))], usual_recipe())) == []
    rows[place]["completion"] += " and so on" * 10_000
    assert codes_at(validate([in_memory(lines(*rows))], usual_recipe())) == [("LENGTH_IMBALANCE", None)]


@settings(max_examples=effort(5), deadline=None)
@given(st.integers(1, 11), st.integers(0, 1000))
def test_an_answer_that_nearly_all_rows_have_is_told(others, start):
    """More than nine of ten rows with one answer are an imbalance, nine of ten are none."""
    rows = several(120, start)
    for number, row in enumerate(rows):
        row["completion"] = "no" if number < others else "yes"
    assert codes_at(validate([in_memory(lines(*rows))], usual_recipe())) == [("ANSWER_IMBALANCE", None)]
    rows[-(12 - others) :] = [{**row, "completion": "no"} for row in rows[-(12 - others) :]]
    assert codes_at(validate([in_memory(lines(*rows))], usual_recipe())) == []


def test_two_languages_are_told_and_one_is_not():
    """A tenth of German among English is told; English alone is not."""
    rules = {"min_rows": 1, "near_duplicates": "off"}
    mixed = spoken(ENGLISH, 180) + spoken(GERMAN, 20)
    left_out = ("HOLDOUT_BY_ROW",)
    assert codes_at(validate([in_memory(lines(*mixed))], usual_recipe(dataset=rules)), *left_out) == [
        ("LANGUAGE_MIX", None)
    ]
    alone = spoken(ENGLISH, 200)
    assert codes_at(validate([in_memory(lines(*alone))], usual_recipe(dataset=rules)), *left_out) == []


def test_every_code_is_planted_here_or_named_with_a_reason():
    """A new check without a plant fails here."""
    planted = {plant.code for plant in (*PLANTS, *FILE_PLANTS)} | {*COPIES, *LEAKS, *WHOLE, TOO_LONG, REFUSED}
    own = {
        "OVER_LENGTH_ESTIMATED",
        "LINE_TOO_LONG",
        "COMPRESSION_RATIO",
        "HOLDOUT_BY_ROW",
        "LENGTH_IMBALANCE",
        "ANSWER_IMBALANCE",
        "LANGUAGE_MIX",
    }
    assert planted | own | set(ELSEWHERE) == set(CODES)
    assert not (planted | own) & set(ELSEWHERE)


def test_no_secret_is_in_what_is_said():
    """Plants of private data do not come back in any part of a report."""
    rows = [
        json.dumps({"text": f"{text} {secret}"})
        for secrets in SECRETS.values()
        for text, secret in zip("abcdef", secrets, strict=False)
    ]
    said = validate([in_memory("\n".join(rows).encode())], usual_recipe()).model_dump_json()
    for secrets in SECRETS.values():
        for secret in secrets:
            assert secret not in said
            assert secret[4:14] not in said
