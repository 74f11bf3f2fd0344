"""What `examples/` shows works as it lies there."""

import datetime as dt
import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
DATASETS = sorted(recipe.parent for recipe in EXAMPLES.glob("*/recipe.yaml"))


@pytest.mark.parametrize("folder", DATASETS, ids=lambda folder: folder.name)
def test_every_example_is_valid_under_its_own_recipe(folder, dropforge):
    """No row has an error, and the recipe has none."""
    said = dropforge("validate", str(folder), "--json")
    assert said.code == 0
    assert said.document["valid"]
    assert said.document["rows"] > 500


def test_the_dates_are_dates_each_once():
    """Every answer is a date of the calendar, and no question comes twice."""
    rows = [json.loads(line) for line in (EXAMPLES / "dates" / "dates.jsonl").open(encoding="utf-8")]
    for row in rows:
        dt.date.fromisoformat(row["messages"][-1]["content"])
    assert len({row["messages"][1]["content"] for row in rows}) == len(rows)
