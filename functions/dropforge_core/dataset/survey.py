"""Everything that can be told of one part of a dataset by itself."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
import xxhash

from dropforge_core.dataset import languages, tokens
from dropforge_core.dataset.allocation import many_rows
from dropforge_core.dataset.balance import Balance
from dropforge_core.dataset.codes import Severity
from dropforge_core.dataset.findings import Column, Findings, Tallies
from dropforge_core.dataset.languages import LanguageMix
from dropforge_core.dataset.likeness.sketch import Sketcher
from dropforge_core.dataset.outline import Outline
from dropforge_core.dataset.problems import Notes, severities
from dropforge_core.dataset.reading.blocks import PartReader
from dropforge_core.dataset.reading.parts import Part
from dropforge_core.dataset.reading.source import SourceFile
from dropforge_core.dataset.rows.reader import WELL_KNOWN_TOKENS, Form, RowBlock, RowReader
from dropforge_core.dataset.sampling import bound_for
from dropforge_core.dataset.tokens import PiecesDisagree, TokenCounter, TokenTally
from dropforge_core.recipe import DatasetRules, Recipe

Progress = Callable[[int], None]
"""Told the bytes read since the last time."""


def survey(  # noqa: PLR0913  # options by name
    part: Part,
    files: Sequence[SourceFile],
    outline: Outline,
    recipe: Recipe | None = None,
    *,
    tokenizer: TokenCounter | None = None,
    progress: Progress | None = None,
) -> Findings:
    """Check every row of one part, and note of each valid one what is compared with the rows of other parts.

    Args:
        part: one of `outline.parts()`.
        files: as they were given to `outline`.
        outline: of the whole dataset.
        recipe: its rules and length limit; None checks by the defaults, without a length limit.
        tokenizer: the base model's; without it lengths are estimated, and said to be.
        progress: see `Progress`.
    """
    try:
        return _Surveyor(part, files, outline, recipe, tokenizer).run(progress or (lambda _: None))
    except PiecesDisagree:
        # Counting by pieces was wrong for a row, so it may have been for others: all again, each as a whole.
        plain = tokenizer.plain() if tokenizer else None
        return _Surveyor(part, files, outline, recipe, plain).run(lambda _: None)


class _Surveyor:
    def __init__(
        self,
        part: Part,
        files: Sequence[SourceFile],
        outline: Outline,
        recipe: Recipe | None,
        tokenizer: TokenCounter | None,
    ) -> None:
        rules = recipe.dataset if recipe else DatasetRules()
        severity = severities(rules)
        head = outline.files[part.file]
        self._part = part
        self._notes = Notes(severity, head.name)
        special = tokenizer.special if tokenizer else WELL_KNOWN_TOKENS
        form = Form(outline.form, outline.first_seen_from(part.file))
        self._reader = RowReader(self._notes, form, special)
        self._blocks = PartReader(outline.source(part.file, files), head, part, self._reader.below)
        limit = recipe.training.max_seq_len if recipe else None
        sampled = bound_for(outline.rows, tokens.SAMPLE)
        self._tokens = TokenTally(
            limit,
            tokenizer,
            count_all=outline.small,
            bound=sampled,
            keeps_long=severity["OVER_LENGTH"] != "error",
        )
        self._balance = Balance()
        # The model that tells languages takes half a second to load, and a millisecond for a row: not for a handful
        # of rows, and not for many more than the sample has when all parts are merged.
        told = severity["LANGUAGE_MIX"] != "off" and outline.rows >= languages.FEWEST_ROWS
        self._languages = LanguageMix(bound_for(outline.rows, languages.SAMPLE)) if told else None
        self._columns = _Columns(outline, severity)

    def run(self, progress: Progress) -> Findings:
        read = 0
        for block in self._blocks:
            with many_rows():
                self._take(self._reader.read(block))
            progress(self._blocks.bytes - read)
            read = self._blocks.bytes
        progress(self._blocks.bytes - read)
        return Findings(
            part=self._part,
            lines=self._blocks.lines,
            rows=self._reader.rows,
            faulty=self._reader.faulty,
            bytes=self._blocks.bytes,
            problems=self._notes.tally,
            tallies=Tallies(
                private=self._reader.private,
                tokens=self._tokens.state(),
                balance=self._balance.state(),
                languages=self._languages.state() if self._languages else None,
            ),
            columns=self._columns.arrays(),
        )

    def _take(self, rows: RowBlock) -> None:
        whole = np.fromiter(map(xxhash.xxh3_64_intdigest, rows.encoded), np.uint64, len(rows))
        refused = self._refused(rows, whole)
        if refused:
            rows = rows.without(refused)
            whole = np.delete(whole, sorted(refused))
        self._columns.add(rows, whole)
        self._balance.add(rows)
        if self._languages:
            self._languages.add(rows, whole)

    def _refused(self, rows: RowBlock, whole: Column) -> set[int]:
        """Rows that are longer than the model may see, where that is an error."""
        too_long = self._tokens.check(rows, whole)
        return {index for index, fault in too_long if self._reader.reject(rows.lines[index], fault)}


class _Columns:
    """Gathers the columns of all blocks; which there are depends on the outline and the rules alone."""

    def __init__(self, outline: Outline, severity: Mapping[str, Severity]) -> None:
        leaks = "eval" in outline.sides and severity["LEAKAGE_EXACT"] != "off"
        # What is the same is not told to be alike, also where its own check is off.
        self._prompts = leaks or severity["CONFLICTING_ANSWERS"] != "off" or outline.compares
        self._sketcher = Sketcher(outline.common_features) if outline.compares else None
        self._pieces: dict[str, list[Column]] = {}

    def add(self, rows: RowBlock, whole: Column) -> None:
        count = len(rows)
        columns: dict[str, Column] = {
            # What is above the lines is of elements that share them.
            "line": np.fromiter(rows.lines, np.uint64, count).astype(np.uint32),
            "whole": whole,
            "content": _content(rows, whole),
            "size": rows.sizes().astype(np.uint32),
        }
        if self._prompts:
            digests = np.fromiter(map(xxhash.xxh3_64_intdigest, prompts := rows.prompts()), np.uint64, count)
            empty = np.fromiter(map(len, prompts), np.uint32, count) == 0
            columns["prompt"] = np.where(empty, np.uint64(0), _with_tools(digests, rows))
        if self._sketcher:
            columns |= self._sketcher.sketch(rows.asked())
        for name, values in columns.items():
            self._pieces.setdefault(name, []).append(values)

    def arrays(self) -> dict[str, Column]:
        if not self._pieces:
            # The names and types must be there for a part without rows, too.
            self.add(RowBlock.of(()), np.empty(0, np.uint64))
        return {name: np.concatenate(pieces) for name, pieces in self._pieces.items()}


class _Offered(msgspec.Struct):
    """Of a row's other fields, the tools that its prompt offers."""

    tools: msgspec.Raw = msgspec.Raw(b"")


_offered: Final = msgspec.json.Decoder(_Offered).decode


def _with_tools(digests: Column, rows: RowBlock) -> Column:
    """Digests of prompts with the tools that they offer: with others another answer is right."""
    if rows.others is None:
        return digests
    tools = [
        xxhash.xxh3_64_intdigest(_offered(meta).tools) if b'"tools":' in meta else 0 for meta in rows.others
    ]
    offered = np.array(tools, np.uint64)
    return np.where(offered == 0, digests, digests * np.uint64(0x9E3779B97F4A7C15) ^ offered)


def _content(rows: RowBlock, whole: Column) -> Column:
    """Digests of rows with all they carry; those of rows without meta are `whole`."""
    if rows.others is None or not any(metas := rows.others):
        return whole
    carried = np.fromiter(map(xxhash.xxh3_64_intdigest, metas), np.uint64, len(metas))
    bare = np.fromiter(map(len, metas), np.uint32, len(metas)) == 0
    return np.where(bare, whole, whole * np.uint64(0x9E3779B97F4A7C15) ^ carried)
