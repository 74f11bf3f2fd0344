"""A recipe, or its faults told like a dataset's."""

from dropforge_core.contracts import Problem
from dropforge_core.dataset.faults import Fault
from dropforge_core.dataset.problems import make_problem
from dropforge_core.recipe import Recipe, RecipeInvalid, parse_recipe


def read_recipe(
    text: str | None, default: str | None = None, file: str = "recipe.yaml"
) -> tuple[Recipe | None, tuple[Problem, ...]]:
    """The recipe, or None and every fault of it, so that they are told together with the data's."""
    try:
        return parse_recipe(text, default), ()
    except RecipeInvalid as invalid:
        return None, tuple(
            make_problem(file, fault.line, Fault(fault.code, fault.path, fault.found, fault.expected))
            for fault in invalid.faults
        )
