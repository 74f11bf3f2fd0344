"""A recipe's YAML: plain values only, every key once, and the line of each."""

from collections.abc import Sequence
from typing import Any, Final

import yaml

from dropforge_core.model import Frozen


class RecipeFault(Frozen):
    """One thing that is wrong with a recipe."""

    path: str
    line: int | None
    found: str
    expected: str
    code: str = "RECIPE_VALUE"
    """A code of docs/error-codes.md."""


class RecipeInvalid(ValueError):
    """Every fault of a recipe at once."""

    def __init__(self, faults: Sequence[RecipeFault]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(f"{f.path or 'recipe'}: {f.expected} (found {f.found})" for f in faults))


MAX_RECIPE_BYTES: Final = 65_536
MAX_DEPTH: Final = 16


def load_yaml(text: str) -> tuple[dict[str, Any], dict[str, int]]:
    """The mapping that the text is, and the line of each dotted path in it.

    Raises:
        RecipeInvalid: RECIPE_YAML for what is no mapping, has aliases, or a key twice.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_RECIPE_BYTES:
        raise _no_yaml(f"{len(text)} characters", "at most 64 KiB of YAML")
    try:
        _refuse_bombs(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        loaded = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, RecipeInvalid):
            raise
        mark = getattr(error, "problem_mark", None)
        said = str(getattr(error, "problem", None) or type(error).__name__)
        raise _no_yaml(ascii(said)[1:-1][:120], "YAML", mark.line + 1 if mark else None) from None
    if loaded is None:
        return {}, {}
    if not isinstance(loaded, dict):
        raise _no_yaml(f"a {type(loaded).__name__}", "keys and values at the top level", 1)
    lines: dict[str, int] = {}
    twice: list[RecipeFault] = []
    _collect_lines(node, "", lines, twice)
    if twice:
        raise RecipeInvalid(twice)
    return loaded, lines


def _refuse_bombs(text: str) -> None:
    """Look at the text before anything is built of it.

    A few lines of aliases of aliases grow to gigabytes, and the scanner's time is quadratic in the depth.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else None
        if isinstance(event, yaml.AliasEvent):
            raise _no_yaml("an alias (*)", "every value written out", line)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise _no_yaml(f"more than {MAX_DEPTH} levels", "a flat recipe", line)


def _no_yaml(found: str, expected: str, line: int | None = None) -> RecipeInvalid:
    return RecipeInvalid(
        [RecipeFault(path="", line=line, found=found, expected=expected, code="RECIPE_YAML")]
    )


def _collect_lines(
    node: yaml.Node | None, path: str, lines: dict[str, int], twice: list[RecipeFault]
) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = f"{path}.{key.value}" if path else str(key.value)
            line = key.start_mark.line + 1
            if here in lines:
                twice.append(
                    RecipeFault(
                        path=here,
                        line=line,
                        found=f"the key a second time, after line {lines[here]}",
                        expected="each key once",
                        code="RECIPE_YAML",
                    )
                )
            lines[here] = line
            _collect_lines(value, here, lines, twice)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            here = f"{path}.{index}"
            lines[here] = value.start_mark.line + 1
            _collect_lines(value, here, lines, twice)
