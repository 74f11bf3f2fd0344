"""The recipes that ship."""

import json
from pathlib import Path

import pytest

from dropforge_core.recipe import parse_recipe

RECIPES = sorted((Path(__file__).parents[2] / "training_image" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    """Each parses as it stands, once RUN_BUCKET is a bucket."""
    parse_recipe(path.read_text().replace("RUN_BUCKET", "some-bucket"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_instance_type_of_a_recipe_is_known_to_the_plan(path: Path) -> None:
    """No recipe names hardware that the plan has neither memory nor price for."""
    recipe = parse_recipe(path.read_text().replace("RUN_BUCKET", "some-bucket"))
    catalogue = RECIPES[0].parents[2] / "functions" / "dropforge_core" / "planning" / "instances.json"
    known = json.dumps(json.loads(catalogue.read_text()))
    assert all(f'"{name}"' in known for name in recipe.compute.instance_types)


def test_demo_recipes_name_the_models_that_local_up_seeds() -> None:
    """The folder names of the prepared base models and of the recipes are the same words."""
    from dropforge.local.base_models import SMOL, TINY  # noqa: PLC0415  # the local AWS is no part of the image

    for name, model in (("demo", SMOL), ("demo-fast", TINY)):
        text = (RECIPES[0].parent / f"{name}.yaml").read_text()
        assert f"base_model: s3://RUN_BUCKET/sources/{model}/\n" in text
