"""Which files on this machine make a dataset: from files, folders, patterns and standard input."""

import glob
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Final

from dropforge.cli.console import CommandFailed
from dropforge_core.identity import DATA_SUFFIXES, READY_MARKER, RECIPE_NAME, is_data_name
from dropforge_core.model import Frozen

STDIN: Final = Path("-")
"""The path that stands for standard input."""
_MAGIC: Final = frozenset("*?[")
_NAMES_TOLD: Final = 5
"""Names that a sentence lists."""


class Each(StrEnum):
    """What is a dataset of its own."""

    FILE = "file"
    FOLDER = "folder"


class DataFile(Frozen):
    """One file of a dataset."""

    path: Path
    """`STDIN` for standard input."""
    name: str
    """What it is called in reports and keys."""

    @property
    def size(self) -> int | None:
        """Bytes; None for standard input."""
        return None if self.path == STDIN else self.path.stat().st_size


class DataFiles(Frozen):
    """The files of one dataset, sorted by name; no two have the same name."""

    files: tuple[DataFile, ...]
    recipe: Path | None = None
    left_out: tuple[str, ...] = ()
    """Names beside the data that are neither data nor recipe."""
    is_folder: bool = False
    """Whether a folder was asked for: it stays a folder with one file in it."""

    @property
    def is_one_file(self) -> bool:
        """Whether the dataset is one file that was asked for by its name."""
        return len(self.files) == 1 and not self.is_folder

    @property
    def has_stdin(self) -> bool:
        """Whether standard input is among the files."""
        return any(file.path == STDIN for file in self.files)

    @property
    def size(self) -> int | None:
        """Bytes of all files; None where standard input is among them."""
        return None if self.has_stdin else sum(file.size or 0 for file in self.files)


def find(paths: Sequence[Path], *, recipe: Path | None = None, stdin_name: str | None = None) -> DataFiles:
    """The dataset that some paths make together.

    A folder stands for the data files directly in it, and for its `recipe.yaml`; a pattern for what fits it,
    as a shell would expand it; `-` for standard input. Of folders and patterns, what is no data is left out
    and told; a path that was named itself must be data.

    Args:
        paths: files, folders, patterns, or `STDIN`.
        recipe: the recipe that was named; it has precedence over a folder's own.
        stdin_name: a name for standard input; its suffix tells how it is read.

    Raises:
        CommandFailed: naming what is missing, unreadable, or twice there.
    """
    gathered = _Gathered()
    for path in paths:
        gathered.take(path)
    files = _distinct(gathered.files, stdin_name)
    if recipe is not None and not recipe.is_file():
        raise CommandFailed(f"The recipe {recipe} is not there.")
    if not files:
        raise CommandFailed(_nothing(paths, gathered))
    for file in files:
        _ensure_readable(file.path)
    return DataFiles(
        files=files,
        recipe=recipe or _only_recipe(gathered.recipes),
        left_out=tuple(sorted({_shown(path) for path in gathered.left_out})),
        is_folder=gathered.is_folder,
    )


def find_each(
    paths: Sequence[Path], each: Each, *, recipe: Path | None = None
) -> list[tuple[Path, DataFiles]]:
    """The datasets that some paths are part of, each with the path that stands for it, in the paths' order.

    With `Each.FILE` every data file is one. With `Each.FOLDER` a folder is one, with all of its data files and its
    recipe, as soon as one of its files is named; a folder without data is passed over.

    Raises:
        CommandFailed: as `find`.
    """
    if STDIN in paths:
        raise CommandFailed("--each is for files and folders: standard input is one dataset.")
    listed = [found for path in paths for found in _places(path)]
    if each is Each.FILE:
        files = dict.fromkeys(path for path in listed if path.name != RECIPE_NAME)
        return [(path, find([path], recipe=recipe)) for path in files]
    folders = dict.fromkeys(path.parent for path in listed)
    return [
        (folder, find([folder], recipe=recipe))
        for folder in folders
        if any(is_data_name(child.name) for child in folder.iterdir() if child.is_file())
    ]


def _places(path: Path) -> list[Path]:
    """Data files and recipes that a path stands for."""
    gathered = _Gathered()
    gathered.take(path)
    return [*gathered.files, *gathered.recipes]


class _Gathered:
    def __init__(self) -> None:
        self.files: list[Path] = []
        self.recipes: list[Path] = []
        self.left_out: list[Path] = []
        self.is_folder = False

    def take(self, path: Path) -> None:
        if path == STDIN:
            self.files.append(path)
        elif path.is_dir():
            self.is_folder = True
            for child in sorted(path.iterdir()):
                self._sort_out(child)
        elif path.exists() or path.is_symlink():
            self._named(path)
        elif _MAGIC & set(str(path)):
            for fitting in _expanded(path):
                if fitting.is_dir():
                    self.take(fitting)
                else:
                    self._sort_out(fitting)
        else:
            raise CommandFailed(f"{path} is not there.")

    def _named(self, path: Path) -> None:
        if path.name == RECIPE_NAME:
            self.recipes.append(path)
        elif not is_data_name(path.name):
            raise CommandFailed(
                f"{path.name} is no data file. Expected a name that ends in {', '.join(DATA_SUFFIXES)}."
            )
        elif path.exists() and not path.is_file():
            raise CommandFailed(
                f"{path} is no regular file. Pipe it in instead: dropforge ... - --name train.jsonl"
            )
        else:
            self.files.append(path)

    def _sort_out(self, path: Path) -> None:
        """A file of a folder. Hidden files are no data: editors and macOS leave `._train.jsonl` and the like."""
        if path.name.startswith(".") or path.name == READY_MARKER:
            return
        if path.is_dir() or not (is_data_name(path.name) or _is_recipe(path)):
            self.left_out.append(path)
        elif path.name == RECIPE_NAME:
            self.recipes.append(path)
        elif _is_recipe(path):
            raise CommandFailed(f"{path} would not be used: a recipe is called {RECIPE_NAME}. Rename it.")
        else:
            self.files.append(path)


def _is_recipe(path: Path) -> bool:
    return path.name.lower() in (RECIPE_NAME, "recipe.yml")


def _expanded(pattern: Path) -> list[Path]:
    # Path.glob takes no absolute pattern.
    found = [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207
    if not found:
        raise CommandFailed(f"No file fits '{pattern}'.")
    return found


def _distinct(paths: Sequence[Path], stdin_name: str | None) -> tuple[DataFile, ...]:
    by_name: dict[str, Path] = {}
    for path in paths:
        name = _stdin(stdin_name) if path == STDIN else path.name
        other = by_name.setdefault(name, path)
        if other != path and (STDIN in (path, other) or other.resolve() != path.resolve()):
            raise CommandFailed(
                f"Two files have the name {name}: {other} and {path}. Rename one: in a dataset each name is once there."
            )
    if stdin_name is not None and STDIN not in by_name.values():
        raise CommandFailed("--name is for standard input: give - as the path.")
    return tuple(DataFile(path=by_name[name], name=name) for name in sorted(by_name))


def _stdin(name: str | None) -> str:
    if name is None:
        raise CommandFailed("Standard input needs a name whose suffix tells what it is: --name train.jsonl")
    if sys.stdin.isatty():
        raise CommandFailed("Standard input is the keyboard. Pipe the data in, or name a file.")
    if not is_data_name(name) or "/" in name:
        raise CommandFailed(f"--name {name}: expected a file's name that ends in {', '.join(DATA_SUFFIXES)}.")
    return name


def _only_recipe(found: Sequence[Path]) -> Path | None:
    if len({path.resolve() for path in found}) > 1:
        names = " and ".join(str(path) for path in found)
        raise CommandFailed(f"There is more than one recipe: {names}. Name the one to use with --recipe.")
    return found[0] if found else None


def _nothing(paths: Sequence[Path], gathered: _Gathered) -> str:
    where = ", ".join(str(path) for path in paths)
    said = f"{where} holds no data file. Expected names that end in {', '.join(DATA_SUFFIXES)}."
    for folder in (path for path in gathered.left_out if path.is_dir()):
        if any(is_data_name(child.name) for child in folder.iterdir()):
            return f"{said} Those of the folder {folder} don't count: a dataset's files lie in one folder."
    return said


def _ensure_readable(path: Path) -> None:
    if path == STDIN:
        return
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise CommandFailed(f"{path} can't be read: {error.strerror or error}.") from error


def _shown(path: Path) -> str:
    return f"{path.name}/" if path.is_dir() else path.name


@contextmanager
def spooled(found: DataFiles) -> Iterator[DataFiles]:
    """The same dataset with standard input in a file, for as long as the block lasts: checks read it in parts."""
    if not found.has_stdin:
        yield found
        return
    with tempfile.TemporaryDirectory(prefix="dropforge-") as folder:
        kept = Path(folder) / "stdin"
        with kept.open("wb") as out:
            shutil.copyfileobj(sys.stdin.buffer, out, 1 << 20)
        files = (DataFile(path=kept, name=f.name) if f.path == STDIN else f for f in found.files)
        yield found.model_copy(update={"files": tuple(files)})


def told_left_out(found: DataFiles) -> str | None:
    """A sentence about what was left out, or None where nothing was."""
    names = found.left_out
    if not names:
        return None
    more = f" and {len(names) - _NAMES_TOLD:,} more" if len(names) > _NAMES_TOLD else ""
    return f"left out, being no data: {', '.join(names[:_NAMES_TOLD])}{more}"
