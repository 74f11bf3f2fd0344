"""A recipe to validate under."""

import pytest

from dropforge_core.recipe import Recipe


@pytest.fixture
def recipe():
    """A recipe with overrides by section."""

    def make(**sections):
        sections.setdefault("dataset", {}).setdefault("min_rows", 1)
        return Recipe.model_validate({"base_model": "org/name", **sections})

    return make
