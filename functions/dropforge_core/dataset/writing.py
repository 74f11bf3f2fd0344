"""The second pass: valid rows, as they were surveyed, into immutable shards."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Final, Literal, Protocol

import msgspec
import numpy as np
import xxhash

from dropforge_core.contracts import DatasetFacts, DatasetManifest, ShardEntry
from dropforge_core.dataset.allocation import many_rows
from dropforge_core.dataset.codes import CODES, Severity
from dropforge_core.dataset.likeness.columns import EVAL, TRAIN
from dropforge_core.dataset.outline import Outline
from dropforge_core.dataset.problems import Notes
from dropforge_core.dataset.reading.blocks import PartReader
from dropforge_core.dataset.reading.parts import Part
from dropforge_core.dataset.reading.shapes import line_of
from dropforge_core.dataset.reading.source import SourceFile
from dropforge_core.dataset.reduction import Decision, Examination
from dropforge_core.dataset.rows.reader import Form, RowReader
from dropforge_core.model import Frozen

SHARD_BYTES: Final = 32 << 20
"""Uncompressed JSON Lines in one shard; also the memory that one side's writer needs."""


class DatasetChanged(Exception):
    """A file gave other rows the second time. Upload again; nothing was trained."""


class RowSink(Protocol):
    """Where shards go."""

    def put(self, side: str, name: str, body: bytes) -> str:
        """Store one shard of `train` or `eval`; answers the key to put into the manifest."""
        ...


class PartShards(Frozen):
    """What was written of one part, in order."""

    train: tuple[ShardEntry, ...]
    holdout: tuple[ShardEntry, ...]


class _Shards:
    """Gathers the lines of one side, and hands them on when they are many."""

    def __init__(self, part: int, side: str, sink: RowSink) -> None:
        self._part, self._side, self._sink = part, side, sink
        self._lines: list[bytes] = []
        self._size = 0
        self.entries: list[ShardEntry] = []

    def add(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line) + 1
        if self._size >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self._lines:
            return
        body = b"\n".join([*self._lines, b""])
        name = f"part-{self._part:05d}-{len(self.entries):03d}.jsonl"
        key = self._sink.put(self._side, name, body)
        self.entries.append(
            ShardEntry(
                key=key, sha256=hashlib.sha256(body).hexdigest(), bytes=len(body), rows=len(self._lines)
            )
        )
        self._lines, self._size = [], 0


def write(examined: Examination, files: Sequence[SourceFile], sink: RowSink) -> DatasetManifest:
    """Write both sides of a valid dataset, in the order of the files.

    Args:
        examined: what the first pass found; its folder must still be there.
        files: as they were given to it.
        sink: where the shards go.

    Raises:
        ValueError: when the dataset is not valid.
        DatasetChanged: when the files do not give the rows that were surveyed.
    """
    if examined.facts is None:
        raise ValueError("only a valid dataset can be written")
    shards = [
        write_part(part, files, examined.outline, examined.decision(part), sink) for part in examined.parts
    ]
    return manifest(examined.facts, "given" if examined.cut.basis == "given" else "cut", shards)


def manifest(
    facts: DatasetFacts, holdout_source: Literal["given", "cut"], shards: Sequence[PartShards]
) -> DatasetManifest:
    """What was written of all parts, in their order, as one dataset."""
    return DatasetManifest(
        digest=facts.digest,
        train=tuple(entry for part in shards for entry in part.train),
        holdout=tuple(entry for part in shards for entry in part.holdout),
        holdout_source=holdout_source,
    )


def write_part(
    part: Part, files: Sequence[SourceFile], outline: Outline, decision: bytes, sink: RowSink
) -> PartShards:
    """Write the rows of one part to the side that was decided for each.

    Args:
        part: one that was surveyed.
        files: as they were given to `outline`.
        outline: of the whole dataset.
        decision: `Examination.decision` of this part.
        sink: where the shards go.

    Raises:
        DatasetChanged: when the part does not give the rows that were surveyed.
    """
    train, holdout = _Shards(part.index, "train", sink), _Shards(part.index, "eval", sink)
    writers = {TRAIN: train, EVAL: holdout}
    for side, line in canonical_lines(part, files, outline, decision):
        if side in writers:
            writers[side].add(line)
    train.flush()
    holdout.flush()
    return PartShards(train=tuple(train.entries), holdout=tuple(holdout.entries))


def canonical_lines(
    part: Part, files: Sequence[SourceFile], outline: Outline, decision: bytes
) -> Iterator[tuple[int, bytes]]:
    """(side, canonical line without line break) of every valid row of a part. Arguments as of `write_part`.

    A row's id is the 64-bit digest of its canonical messages, with `-2`, `-3`, ... for its repetitions.
    """
    decided = msgspec.msgpack.decode(decision, type=Decision)
    lines = np.frombuffer(decided.lines, "<u4").tolist()
    digests = np.frombuffer(decided.digests, "<u8").tolist()
    # What the first pass let pass is not judged again, least of all without the base model's tokenizer.
    lenient: dict[str, Severity] = {
        code: "off" if kind.adjustable else kind.severity for code, kind in CODES.items()
    }
    head = outline.files[part.file]
    source = outline.source(part.file, files)
    reader = RowReader(Notes(lenient, head.name), Form(outline.form, ""), frozenset())
    row, total = 0, len(lines)
    for block in PartReader(source, head, part, lambda _line, _fault: None):
        with many_rows():
            rows = reader.read(block)
        found = list(map(xxhash.xxh3_64_intdigest, rows.encoded))
        # Rows that a later check refused the first time come again, and are passed over again.
        kept: list[int] = []
        idents: list[str] = []
        for index, (line, digest) in enumerate(zip(rows.lines, found, strict=True)):
            at = row + len(kept)
            if at < total and lines[at] == line_of(line) and digests[at] == digest:
                copy = decided.copies.get(at)
                kept.append(index)
                idents.append(f"{digest:016x}-{copy}" if copy else f"{digest:016x}")
        chosen = rows.without(set(range(len(rows))).difference(kept)) if len(kept) < len(rows) else rows
        yield from zip(decided.sides[row : row + len(kept)], chosen.lines_of(idents), strict=True)
        row += len(kept)
    if row != total:
        raise DatasetChanged(
            f"{head.name} is not what was checked: of {total:,} rows, the one behind row {row:,} is another"
        )
