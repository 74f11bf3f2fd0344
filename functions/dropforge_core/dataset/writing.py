"""The second pass: valid rows, as they were examined, into immutable shards."""

import hashlib
from collections.abc import Iterator
from typing import Final, Protocol

from dropforge_core.contracts import DatasetManifest, ShardEntry
from dropforge_core.dataset.codes import CODES, Severity
from dropforge_core.dataset.likeness.holdout import EVAL, TRAIN
from dropforge_core.dataset.problems import Problems
from dropforge_core.dataset.rows.stream import RowReader
from dropforge_core.dataset.validation import Examination

SHARD_BYTES: Final = 32 << 20
"""Uncompressed JSON Lines in one shard; also the memory that one side's writer needs."""

ID_LENGTH: Final = 16
"""Hex digits of a row's id, of the SHA-256 of its canonical messages."""


class DatasetChanged(Exception):
    """A file gave other rows the second time. Upload again; nothing was trained."""


class RowSink(Protocol):
    """Where shards go."""

    def put(self, side: str, name: str, body: bytes) -> str:
        """Store one shard of `train` or `eval`; answers the key to put into the manifest."""
        ...


class _Shards:
    """Gathers the lines of one side, and hands them on when they are many."""

    def __init__(self, side: str, sink: RowSink) -> None:
        self._side, self._sink = side, sink
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
        key = self._sink.put(self._side, f"part-{len(self.entries):05d}.jsonl", body)
        self.entries.append(
            ShardEntry(
                key=key, sha256=hashlib.sha256(body).hexdigest(), bytes=len(body), rows=len(self._lines)
            )
        )
        self._lines, self._size = [], 0


def write(examined: Examination, sink: RowSink) -> DatasetManifest:
    """Write both sides of a valid dataset, in the order of the files.

    Raises:
        ValueError: when the dataset is not valid.
        DatasetChanged: when the files do not give the rows that were examined.
    """
    if examined.facts is None:
        raise ValueError("only a valid dataset can be written")
    sides = {TRAIN: _Shards("train", sink), EVAL: _Shards("eval", sink)}
    rows = 0
    for side, line in canonical_lines(examined):
        rows += 1
        if side in sides:
            sides[side].add(line)
    if rows != len(examined.digests):
        raise DatasetChanged(f"{len(examined.digests)} rows were examined, {rows} came the second time")
    for shards in sides.values():
        shards.flush()
    return DatasetManifest(
        digest=examined.facts.digest,
        train=tuple(sides[TRAIN].entries),
        holdout=tuple(sides[EVAL].entries),
        holdout_source="given" if examined.cut.basis == "given" else "cut",
    )


def canonical_lines(examined: Examination) -> Iterator[tuple[int, bytes]]:
    """(side, canonical line without line break) of every valid row.

    Raises:
        DatasetChanged: at the first row that differs from the examined one.
    """
    # What the first pass let pass is not judged again, least of all without the base model's tokenizer.
    lenient: dict[str, Severity] = {
        code: "off" if kind.adjustable else kind.severity for code, kind in CODES.items()
    }
    reader = RowReader(Problems(lenient), special_tokens=frozenset())
    row, total = 0, len(examined.digests)
    for file in examined.files:
        for valid in reader.read(file):
            # Rows that a later check refused the first time are read again, and passed over again.
            if row == total or examined.index.place(row) != (file.name, valid.line):
                continue
            digest = hashlib.sha256(valid.encoded).digest()
            if int.from_bytes(digest[:8], "big") != examined.digests[row]:
                raise DatasetChanged(f"line {valid.line} of {file.name} is not the row that was examined")
            copy = examined.copies.get(row)
            ident = digest.hex()[:ID_LENGTH] + (f"-{copy}" if copy else "")
            yield examined.cut.sides[row], valid.row.encode(ident)
            row += 1
