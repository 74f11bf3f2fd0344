"""What must be known of a dataset before its parts are looked at, read from the heads of its files.

Everything that could depend on where a dataset is divided is settled here, once: the order of the files,
how each is read, the format of the rows, and what most prompts share.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final

import msgspec
import numpy as np

from dropforge_core.dataset.codes import Severity
from dropforge_core.dataset.likeness.sketch import learn_common
from dropforge_core.dataset.problems import Notes, severities
from dropforge_core.dataset.reading.blocks import Block, PartReader
from dropforge_core.dataset.reading.parts import FileOutline, Part, outline_file, split
from dropforge_core.dataset.reading.shapes import line_of
from dropforge_core.dataset.reading.source import SourceFile
from dropforge_core.dataset.rows.decoding import RowBroken, decode_row
from dropforge_core.dataset.rows.formats import infer
from dropforge_core.dataset.rows.reader import Form, RowReader
from dropforge_core.recipe import DatasetRules, Recipe

SAMPLE_ROWS: Final = 1_000
"""First valid rows from which is learnt what most prompts share."""

SAMPLE_BYTES: Final = 8 << 20
"""After so much text the sample is as large as it gets."""

SMALL_BYTES: Final = 8 << 20
"""A dataset up to this size is looked at row by row where a larger one is sampled: a second or two of tokenising."""

HEAD_BYTES: Final = 256 << 20
"""After so much text without a row of a known format none is expected any more."""

PART_BYTES: Final = 32 << 20
"""Of one part where the parts share a machine: small enough for even work, large enough for one file of findings each."""


class Outline(msgspec.Struct, frozen=True):
    """The frame in which all parts are surveyed."""

    order: tuple[int, ...]
    """Which of the given files is the first, the second, ... Evaluation comes before training."""
    files: tuple[FileOutline, ...]
    """In that order."""
    form: str | None
    """The format of the dataset: that of the first row that has one."""
    first: tuple[int, int] | None
    """File and line of that row."""
    shapeless: bool
    """Whether `HEAD_BYTES` went by without a row of a known format; the rest is not looked at."""
    compares: bool
    """Whether prompts are compared for likeness: a rule asks for it, or the hold-out is to be cut by it."""
    common: bytes
    """Features that most prompts share, little-endian 64-bit numbers; none where nothing is compared."""
    small: bool
    """Whether the tokens of every row are counted, not of a sample."""
    rows: int
    """About how many there are, by the length of the first; fewer than there are where files are compressed."""

    @property
    def common_features(self) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        return np.frombuffer(self.common, "<u8")

    @property
    def sides(self) -> tuple[str, ...]:
        return tuple(file.side for file in self.files)

    def source(self, file: int, given: Sequence[SourceFile]) -> SourceFile:
        """The source of one file; `given` as it was given to `outline`."""
        source = given[self.order[file]]
        return source.alone if len(given) == 1 else source

    def first_seen_from(self, file: int) -> str:
        """Where the format was first seen, for somebody who looks at a file."""
        if self.first is None:
            return ""
        there, line = self.first
        return f"line {line}" if there == file else f"line {line} of {self.files[there].name}"

    def parts(self, part_bytes: int = PART_BYTES) -> tuple[Part, ...]:
        """The dataset divided; any division gives the same report."""
        return () if self.shapeless else split(self.files, part_bytes)


def outline(files: Sequence[SourceFile], recipe: Recipe | None = None) -> Outline:
    """Read the heads of all files.

    Args:
        files: one alone is all for training; of several, those named `eval*`, `test*`, `valid*` or
            `holdout*` are for evaluation.
        recipe: its rules, or None for the defaults.
    """
    sources = [files[0].alone] if len(files) == 1 else list(files)
    # Evaluation first: where a prompt is on both sides, its evaluation row is the earlier one.
    order = sorted(range(len(sources)), key=lambda i: (sources[i].side, sources[i].name, i))
    heads = [(sources[i], outline_file(sources[i])) for i in order]
    severity = severities(recipe.dataset if recipe else DatasetRules())
    given = any(head.side == "eval" for _, head in heads)
    compares = not given or {severity["NEAR_DUPLICATE"], severity["LEAKAGE_NEAR"]} != {"off"}
    seen, shapeless = None, False
    try:
        seen = _first_recognised(heads)
    except _Shapeless:
        shapeless = True
    asked = _sample(heads, seen[0], severity) if seen and compares else []
    size = sum(file.size for file in sources)
    return Outline(
        order=tuple(order),
        files=tuple(head for _, head in heads),
        form=seen[0] if seen else None,
        first=seen[1:3] if seen else None,
        shapeless=shapeless,
        compares=compares,
        common=learn_common(asked).astype("<u8").tobytes(),
        small=size <= SMALL_BYTES,
        rows=round(size / _row_bytes(heads, seen)) if seen else 0,
    )


def _blocks(heads: Sequence[tuple[SourceFile, FileOutline]]) -> Iterator[tuple[int, Block]]:
    """(file, block) of all files, each as one part; whoever has enough stops."""
    outlined = [head for _, head in heads]
    for part in split(outlined, max((head.size for head in outlined), default=0) + 1):
        for block in PartReader(heads[part.file][0], outlined[part.file], part, lambda _line, _fault: None):
            yield part.file, block


class _Shapeless(Exception):
    pass


def _first_recognised(
    heads: Sequence[tuple[SourceFile, FileOutline]],
) -> tuple[str, int, int, float] | None:
    """Format, file and line of the first row that has a format, and the bytes of a row in its block.

    Raises:
        _Shapeless: when none of many rows has.
    """
    read = 0
    for file, block in _blocks(heads):
        read += len(block.text)
        if read > HEAD_BYTES:
            raise _Shapeless
        for line, raw in zip(block.lines, block.rows, strict=True):
            with suppress(RowBroken):
                if raw and not raw.isspace() and (form := infer(decode_row(raw, []))):
                    return form, file, line_of(line), len(block.text) / len(block.rows)
    return None


def _row_bytes(heads: Sequence[tuple[SourceFile, FileOutline]], seen: tuple[str, int, int, float]) -> float:
    """Bytes of a row in the largest file, which tells more of all rows than a few for evaluation."""
    largest = max(range(len(heads)), key=lambda file: heads[file][1].size)
    if largest != seen[1]:
        for _, block in _blocks([heads[largest]]):
            # One empty line is a block without text.
            if block.text:
                return len(block.text) / len(block.rows)
    return seen[3]


def _sample(
    heads: Sequence[tuple[SourceFile, FileOutline]], form: str, severity: Mapping[str, Severity]
) -> list[str]:
    """Prompts of the first valid rows."""
    reader = RowReader(Notes(severity, ""), Form(form, ""), frozenset())
    asked: list[str] = []
    size = 0
    for _, block in _blocks(heads):
        asked += reader.read(block).asked()[: SAMPLE_ROWS - len(asked)]
        size += len(block.text)
        if len(asked) >= SAMPLE_ROWS or size >= SAMPLE_BYTES:
            break
    return asked
