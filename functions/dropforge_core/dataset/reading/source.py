"""The files of a dataset, wherever they lie: a name, a size, and streams of bytes from any offset."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final, Literal

READ_BYTES: Final = 1 << 19
"""Size of the pieces in which text is handed on; bounds memory."""

Side = Literal["train", "eval"]

_EVAL_NAMES: Final = ("eval", "test", "valid", "holdout")
_EVAL_WORDS: Final = ("val", "dev")
"""Words of their own, unlike `value` and `device`."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a dataset. It is read several times, from several places: to check, and to write what was checked."""

    name: str
    """Shown in problems; its suffix tells how to read it and its stem which side it is on."""
    open: Callable[[int], Iterable[bytes]]
    """A new stream of byte chunks from this offset (in bytes) to the end, at each call."""
    size: int
    """Bytes as stored."""
    only: bool = False
    """Whether it is the whole dataset: its rows are for training then, whatever its name."""

    @property
    def side(self) -> Side:
        """`eval*`, `test*`, `valid*`, `holdout*`, `val.*` and `dev.*` are for evaluation, all else for training."""
        stem = PurePosixPath(self.name).name.lower()
        held_out = stem.startswith(_EVAL_NAMES) or re.split(r"[._-]", stem)[0] in _EVAL_WORDS
        return "eval" if held_out and not self.only else "train"

    @property
    def kind(self) -> str:
        """The suffix without compression: `jsonl`, `json`, `csv`, `tsv`, `parquet` or another."""
        name = self.name.lower().removesuffix(".gz").removesuffix(".zst")
        return PurePosixPath(name).suffix.lstrip(".")

    @property
    def alone(self) -> "SourceFile":
        """The same file as the whole dataset."""
        return replace(self, only=True)


def local_file(path: Path, name: str | None = None, *, only: bool = False) -> SourceFile:
    """A file on this machine's disk, read in pieces. It can be pickled."""
    return SourceFile(name or path.name, partial(_from_disk, path), path.stat().st_size, only=only)


def _from_disk(path: Path, start: int) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while chunk := file.read(READ_BYTES):
            yield chunk


@contextmanager
def opened(file: SourceFile, start: int = 0) -> Iterator[Iterator[bytes]]:
    """The file's bytes from an offset on; the stream is closed also where it was not read to its end."""
    chunks = file.open(start)
    try:
        yield iter(chunks)
    finally:
        # A response of S3 that is dropped half read holds its connection until it is collected.
        if close := getattr(chunks, "close", None):
            close()
