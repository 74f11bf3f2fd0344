"""A recipe, or its faults told like a dataset's."""

from dropforge_core.contracts import Problem
from dropforge_core.dataset.chat_template import ChatTemplate
from dropforge_core.dataset.faults import Fault
from dropforge_core.dataset.problems import make_problem
from dropforge_core.recipe import Recipe, RecipeInvalid, parse_recipe
from dropforge_core.recipe_yaml import RecipeFault, load_yaml


def read_recipe(
    text: str | None, default: str | None = None, file: str = "recipe.yaml"
) -> tuple[Recipe | None, tuple[Problem, ...]]:
    """The recipe, or None and every fault of it, so that they are told together with the data's."""
    try:
        recipe = parse_recipe(text, default)
        _ensure_template(recipe, text)
    except RecipeInvalid as invalid:
        return None, tuple(
            make_problem(file, fault.line, Fault(fault.code, fault.path, fault.found, fault.expected))
            for fault in invalid.faults
        )
    return recipe, ()


def _ensure_template(recipe: Recipe, text: str | None) -> None:
    """Read the recipe's own chat template here: rows are rendered by it where the base model is, on the GPU.

    Raises:
        RecipeInvalid: where it is no template.
    """
    if recipe.chat_template is None:
        return
    try:
        ChatTemplate(recipe.chat_template, {})
    except ValueError as error:
        line = load_yaml(text)[1].get("chat_template") if text else None
        raise RecipeInvalid(
            [
                RecipeFault(
                    path="chat_template",
                    line=line,
                    found=ascii(" ".join(str(error).split()))[1:-1][:160],
                    expected="a Jinja template, as tokenizer_config.json and chat_template.jinja have it",
                )
            ]
        ) from None
