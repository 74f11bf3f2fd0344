"""Everything that is looked at in a dataset, on one machine: survey every part, then put it together."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from dropforge_core.contracts import Problem, ValidationReport
from dropforge_core.dataset.outline import PART_BYTES, Outline, outline
from dropforge_core.dataset.reading.parts import Part
from dropforge_core.dataset.reading.source import SourceFile
from dropforge_core.dataset.reduction import Examination, reduce
from dropforge_core.dataset.survey import Progress, survey
from dropforge_core.dataset.tokens import TokenCounter
from dropforge_core.recipe import Recipe

Each = Callable[[Callable[[Part], int], Sequence[Part]], Iterable[int]]
"""Calls the function for each part, in any order and in any processes, and gives its results: bytes read."""


def validate(  # noqa: PLR0913  # options by name
    files: Sequence[SourceFile],
    recipe: Recipe | None = None,
    *,
    tokenizer: TokenCounter | None = None,
    recipe_problems: Sequence[Problem] = (),
    progress: Progress | None = None,
    each: Each = map,
    part_bytes: int = PART_BYTES,
) -> ValidationReport:
    """Every fault of a dataset, and its facts. Arguments as of `examine`."""
    return examine(
        files,
        recipe,
        tokenizer=tokenizer,
        recipe_problems=recipe_problems,
        progress=progress,
        each=each,
        part_bytes=part_bytes,
    ).report


def examine(  # noqa: PLR0913  # options by name
    files: Sequence[SourceFile],
    recipe: Recipe | None = None,
    *,
    folder: Path | None = None,
    tokenizer: TokenCounter | None = None,
    recipe_problems: Sequence[Problem] = (),
    progress: Progress | None = None,
    each: Each = map,
    part_bytes: int = PART_BYTES,
) -> Examination:
    """Check all rows of all files, and decide which of them are held out.

    Args:
        files: the data files. One alone is all for training; of several, those named `eval*`, `test*`,
            `valid*` or `holdout*` are for evaluation.
        recipe: its rules, length limit and hold-out; None checks by the defaults, without a length limit.
        folder: an empty folder for some 200 bytes a row, from which the examination reads; None makes one
            that goes when the examination does.
        tokenizer: the base model's; without it lengths are estimated, and said to be.
        recipe_problems: what is wrong with the recipe, told together with the data's faults.
        progress: see `Progress`; it goes where `each` calls.
        each: see `Each`; `map` works through the parts one after another.
        part_bytes: size of a part, which changes nothing in the report.
    """
    temporary = None
    if folder is None:
        temporary = TemporaryDirectory(prefix="dropforge-")
        folder = Path(temporary.name)
    outlined = outline(files, recipe)
    parts = outlined.parts(part_bytes)
    one = partial(
        _survey_into,
        folder=folder,
        files=files,
        outlined=outlined,
        recipe=recipe,
        tokenizer=tokenizer,
        progress=progress,
    )
    for _ in each(one, parts):
        pass
    return replace(reduce(outlined, parts, folder, recipe, recipe_problems), temporary=temporary)


def _survey_into(  # noqa: PLR0913  # bound by name, all but the part
    part: Part,
    *,
    folder: Path,
    files: Sequence[SourceFile],
    outlined: Outline,
    recipe: Recipe | None,
    tokenizer: TokenCounter | None,
    progress: Progress | None,
) -> int:
    found = survey(part, files, outlined, recipe, tokenizer=tokenizer, progress=progress)
    found.save(folder)
    return found.bytes
