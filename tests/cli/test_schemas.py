"""The published schema is the contract's, real reports follow it, and the page tells every field."""

import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from dropforge.schemas import DOCUMENTS, page_with_table, table, text

DOCS = Path(__file__).parents[2] / "docs"
MAKE = "`make schemas` brings it up to date"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_published_schema_is_the_contract_s(name):
    """The file says what the code writes."""
    assert (DOCS / "schemas" / f"{name}.schema.json").read_text() == text(DOCUMENTS[name][0]), MAKE


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_page_tells_every_field(name):
    """The table is that of the schema, and no field goes without a word."""
    model, page = DOCUMENTS[name]
    written = (DOCS / page).read_text()
    assert page_with_table(written, model) == written, MAKE
    assert [row for row in table(model).splitlines() if row.endswith("|  |")] == []


def strict(part):
    """The schema refusing every field that it does not name."""
    if isinstance(part, dict):
        closed = {"additionalProperties": False} if "properties" in part else {}
        return {**{name: strict(value) for name, value in part.items()}, **closed}
    return [strict(value) for value in part] if isinstance(part, list) else part


@pytest.fixture(scope="module")
def validator():
    schema = json.loads((DOCS / "schemas" / "validation.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(strict(schema))


def datasets(folder: Path, rows: Path) -> Iterator[Path]:
    """Datasets whose reports use every part of the document."""
    text = rows.read_text()
    lines = text.splitlines()
    bodies = {
        "valid": {"rows.jsonl": text},
        "faults": {
            "train.jsonl": text + "{broken\n" * 3 + '{"messages": []}\n',
            "recipe.yaml": "adaptor: 1\n",
        },
        "sides": {"train.jsonl": text, "eval.jsonl": "\n".join(lines[:3]) + "\n"},
        "copies": {"train.jsonl": text + text},
        "private": {"train.jsonl": text.replace("It is", "Write to ada@example.org, it is")},
        "nothing": {"train.jsonl": "\n"},
        "binary": {"train.csv": "a\x00b\n1,2,3\n"},
    }
    for name, files in bodies.items():
        (folder / name).mkdir()
        for file, body in files.items():
            (folder / name / file).write_text(body)
        yield folder / name


def test_every_report_follows_the_schema(dropforge, rows, tmp_path, validator):
    """Valid or not, nothing that is written lacks a place in the schema, and the mapping's parts are all there."""
    seen = set()
    for folder in datasets(tmp_path, rows):
        document = dropforge("validate", folder, "--json").document
        validator.validate(document)
        seen |= {
            f"{name}.{field}" for name, part in document.items() if isinstance(part, dict) for field in part
        }
    schema = validator.schema
    named = {
        f"{name}.{field}"
        for name, part in schema["properties"].items()
        if "$ref" in part
        for field in schema["$defs"][part["$ref"].rsplit("/", 1)[-1]]["properties"]
    }
    assert seen == named
