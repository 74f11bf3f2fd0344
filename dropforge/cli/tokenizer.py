"""The base model's tokenizer on this machine, so that lengths can be counted and need not be estimated."""

import os
import re
from pathlib import Path
from typing import Final, NamedTuple

from dropforge.cli.base import STACK_DEFAULT
from dropforge.cli.console import CommandFailed
from dropforge_core.dataset.tokens import ChatTokenizer, load_tokenizer
from dropforge_core.recipe import BaseModelRef, Recipe

FILES: Final = ("tokenizer.json", "tokenizer_config.json")
TEMPLATE: Final = "chat_template.jinja"
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


class Lengths(NamedTuple):
    """How rows are measured, and a sentence that says so."""

    counter: ChatTokenizer | None
    said: str


def lengths(recipe: Recipe | None, given: Path | None) -> Lengths:
    """The tokenizer to count with. Rows are rendered by the recipe's chat template where it gives one, as in training.

    Args:
        recipe: None where it can't be read.
        given: a folder with tokenizer.json, tokenizer_config.json and, for newer models, chat_template.jinja;
            None looks for the base model in the hub's cache on this machine. Nothing is downloaded.

    Raises:
        CommandFailed: when the folder that was given has no usable tokenizer.
    """
    base, template = (recipe.base_model, recipe.chat_template) if recipe else (None, None)
    with_own = " and the recipe's chat template" if template else ""
    if given is not None:
        return Lengths(_load(given, template), f"counted with the tokenizer in {given}{with_own}")
    name = base.name if base and base.repo != STACK_DEFAULT else None
    folder = _in_hub_cache(base) if base and name else None
    if folder is not None:
        try:
            said = f"counted with the tokenizer of {name} in this machine's cache{with_own}"
            return Lengths(_load(folder, template), said)
        except CommandFailed as failed:
            return Lengths(None, f"estimated: {failed}")
    missing = f"the tokenizer of {name} is not on this machine" if name else "no base model is named"
    return Lengths(None, f"estimated, because {missing} (--tokenizer FOLDER counts them)")


def _load(folder: Path, template: str | None) -> ChatTokenizer:
    if absent := [name for name in FILES if not (folder / name).is_file()]:
        raise CommandFailed(f"{folder} has no {' and no '.join(absent)}.")
    own = folder / TEMPLATE
    try:
        if template is None and own.is_file():
            template = own.read_text(encoding="utf-8")
        loaded = load_tokenizer((folder / FILES[0]).read_bytes(), (folder / FILES[1]).read_bytes(), template)
    except (OSError, ValueError) as error:
        raise CommandFailed(f"The tokenizer in {folder} can't be used: {error}") from error
    if loaded is None:
        raise CommandFailed(
            f"The tokenizer in {folder} has no chat template, so that rows can't be counted. "
            "The recipe's chat_template can give one."
        )
    return loaded


def _in_hub_cache(base: BaseModelRef) -> Path | None:
    """The snapshot of a hub model that the usual tools keep (huggingface_hub, `cache-system`)."""
    if base.repo is None:
        return None
    model = _hub_cache() / f"models--{base.repo.replace('/', '--')}"
    commit = base.revision
    if not _COMMIT.fullmatch(commit):
        named = model / "refs" / base.revision
        commit = named.read_text(encoding="utf-8").strip() if named.is_file() else ""
    folder = model / "snapshots" / commit
    return folder if _COMMIT.fullmatch(commit) and all((folder / name).is_file() for name in FILES) else None


def _hub_cache() -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if found := os.environ.get(name):
            return Path(found).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "huggingface" / "hub"
