"""Codes and settings are documented, all of them, as they are."""

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from dropforge_core.dataset.codes import CODES
from dropforge_core.recipe import Recipe, parse_recipe

DOCS = Path(__file__).parents[4] / "docs"


def table(page):
    """First cell to the rest, of every row of every table of a page."""
    found = {}
    for line in (DOCS / page).read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and cells[0].startswith("`"):
            found[cells[0].strip("`")] = cells[1:]
    return found


def test_every_code_has_its_line():
    """The page has each code once, with the severity and words that a report uses, and no others."""
    page = table("error-codes.md")
    assert set(page) == set(CODES)
    for code, (severity, expected, mend) in page.items():
        kind = CODES[code]
        assert severity == kind.severity + (" *" if kind.adjustable else ""), code
        assert (expected.replace("\\|", "|"), mend.replace("\\|", "|")) == (kind.expected, kind.mend)


def fields(model, prefix=""):
    for name, field in model.model_fields.items():
        kinds = [*get_args(field.annotation), field.annotation]
        section = next(
            (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None
        )
        optional = section is not field.annotation
        if section is None or name == "base_model" or optional:
            yield f"{prefix}{name}"
        if section is not None and name != "base_model":
            yield from fields(section, f"{prefix}{name}.")


def test_every_field_of_a_recipe_has_its_line():
    """The page has each field that a recipe may have."""
    page = set(table("recipes.md"))
    assert set(fields(Recipe)) <= page
    assert not {name for name in page if re.fullmatch(r"[a-z_]+\.[a-z_.]+", name)} - set(fields(Recipe))


@pytest.mark.parametrize("page", ["recipes.md", "upload.md"])
def test_recipes_in_the_documentation_are_recipes(page):
    """What is shown works."""
    for text in re.findall(r"```yaml\n(.*?)```", (DOCS / page).read_text(), re.DOTALL):
        assert parse_recipe(text, "base_model: org/name").base_model.name
