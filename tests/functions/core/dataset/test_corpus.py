"""Files of every kind of nastiness, each with exactly the problems that it must be told to have."""

import json
from pathlib import Path

import pytest
from dataset_cases import MADE, in_memory

from dropforge_core.dataset.codes import CODES
from dropforge_core.dataset.reading.source import local_file
from dropforge_core.dataset.validation import validate
from dropforge_core.recipe import Recipe

CORPUS = Path(__file__).parent / "corpus"
EXPECTED = json.loads((CORPUS / "expected.json").read_text())
RECIPE = Recipe.model_validate(
    {"base_model": "org/name", "dataset": {"min_rows": 1}, "training": {"max_seq_len": 131_072}}
)
CONSEQUENCES = {"ROWS_TOO_FEW", "TRAIN_EMPTY", "HOLDOUT_BY_ROW", "PREFERENCE_UNUSED"}
"""Follow where nothing valid, or little, is left; not what these files are about."""


def files_of(name):
    """A folder is a dataset of several files."""
    if name in MADE:
        return [in_memory(MADE[name](), name)]
    path = CORPUS / name
    return [local_file(file) for file in (sorted(path.iterdir()) if path.is_dir() else [path])]


def found_in(name):
    report = validate(files_of(name), RECIPE)
    problems = (*report.errors, *report.warnings)
    file = (lambda p: [p.file]) if name.endswith("/") else (lambda _: [])
    return report, [[p.code, line, p.path, *file(p)] for p in problems for line in p.lines or (p.line,)]


def generalised(rows):
    """Entries are grouped by path pattern; the lines after the first have the first one's path."""
    return sorted((code, line or 0, *file) for code, line, _, *file in rows)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_exactly_the_expected_problems_are_told(name):
    """No problem is missed, none is invented, each has its line, and the first of each kind its path."""
    report, rows = found_in(name)
    wanted = EXPECTED[name]
    ignored = CONSEQUENCES - {code for code, *_ in wanted}
    rows = [row for row in rows if row[0] not in ignored]
    assert generalised(rows) == generalised(wanted)
    assert {
        (p.code, p.line, p.path) for p in (*report.errors, *report.warnings) if p.code not in ignored
    } <= {tuple(row[:3]) for row in wanted}
    errors = [code for code, *_ in wanted if CODES[code].severity == "error"]
    assert report.valid == (not errors and not any(p.code in CONSEQUENCES for p in report.errors))


def test_every_file_of_the_corpus_has_an_expectation():
    """A file without an expectation would test nothing."""
    there = {path.name + "/" * path.is_dir() for path in CORPUS.iterdir()} - {"expected.json"}
    assert there | set(MADE) == set(EXPECTED)
    assert not there & set(MADE)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_no_message_quotes_what_people_wrote(name):
    """Messages speak of structure: no e-mail address, key or sentence of the data is in a report."""
    report, _ = found_in(name)
    said = report.model_dump_json()
    for secret in (
        "jane.roe",
        "4111",
        "1234567",
        "0532",
        "AKIA",
        "ghp_",
        "AIza",
        "AccountKey",
        "question red",
        "caf",
        "orchid",
        "bark",
        "7946",
        "1234 5678",
    ):
        assert secret not in said


def test_most_row_codes_have_a_file():
    """A check without a nasty file is a check that may stop working unseen."""
    shown = {code for rows in EXPECTED.values() for code, *_ in rows}
    of_files = {code for code, kind in CODES.items() if kind.scope in ("row", "file")}
    elsewhere = {
        "KEY_REFUSED",
        "FILE_VANISHED",
        "FILE_NONE",
        "FILE_LATE",
        "TEMPLATE_REFUSED",
        "OVER_LENGTH",
    }
    assert of_files - shown - elsewhere == set()
