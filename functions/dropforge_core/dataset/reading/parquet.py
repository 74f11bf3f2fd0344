"""Parquet: its rows as JSON objects, row group by row group, in little memory however it was written.

A row group is read in batches of about 1 MiB; it is in memory as a whole only where it is small.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

from dropforge_core.dataset.faults import Fault, FileFault
from dropforge_core.dataset.reading.parquet_guard import (
    GroupBroken,
    PageGuard,
    allowed,
    broken,
    too_dense,
)
from dropforge_core.dataset.reading.parquet_thrift import RowGroup, ThriftBroken, footer
from dropforge_core.dataset.reading.parquet_values import RowEncoder, ValueBroken, unpacked_bytes
from dropforge_core.dataset.reading.ranges import RangedFile
from dropforge_core.dataset.reading.shapes import Block, Report, blocks, too_long
from dropforge_core.dataset.reading.source import READ_BYTES, SourceFile

MAGIC: Final = b"PAR1"
ENCRYPTED: Final = b"PARE"

MAX_FOOTER_BYTES: Final = 16 << 20
"""A row group's column takes some hundred bytes there."""
MAX_VALUES: Final = 1 << 26
"""Most values of one column in one row group, nulls and those in lists counted."""

_QUOTED: Final = re.compile(r"'[^']*'|\"[^\"]*\"")
_TAIL_BYTES: Final = 8
"""Length of the footer and the magic, at the file's end."""
_STRETCH_BYTES: Final = 16 << 20
"""A row group up to this size is fetched at once; of a larger one, stretches of all columns together this long."""
_BATCH_ROWS: Final = 1024
_REPEATED_BYTES: Final = 64 << 20
"""Most that the values of a batch may come to where a few bytes stand for many equal values."""
_PIECE_BYTES: Final = 8 << 20
_ROW_BYTES: Final = 64 << 20
"""A row that takes more in Arrow's layout is too long as JSON, whatever is in it."""


def row_groups(file: SourceFile) -> int:
    """How many row groups a file has.

    Raises:
        FileFault: PARQUET_BROKEN, PARQUET_COLUMNS, FILE_EMPTY, or what the file's stream raises.
    """
    groups = _Table(file).groups
    if not any(group.rows for group in groups):
        raise FileFault(Fault("FILE_EMPTY", "", "no row"))
    return len(groups)


class ParquetReader:
    """The rows of some row groups, each as a JSON object.

    A row group that can't be read is told with the number of the first row that is missing, and passed over.

    Args:
        file: where they lie.
        report: told of rows that can't be JSON and of row groups that can't be read.
        start: the first row group, from 0.
        end: the one behind the last.

    Raises:
        FileFault: PARQUET_BROKEN, PARQUET_COLUMNS, or what the file's stream raises.
    """

    def __init__(self, file: SourceFile, report: Report, start: int, end: int) -> None:
        self.lines = 0
        """Rows of the row groups so far, those that could not be read too."""
        self.share = 0.0
        """How much was read, from 0 to 1."""
        self._file = file
        self._report = report
        self._groups = range(start, end)

    def __iter__(self) -> Iterator[Block]:
        table = _Table(self._file)
        for done, index in enumerate(self._groups):
            group = table.groups[index]
            read = text = 0
            try:
                for batch in table.batches(index):
                    if read + batch.num_rows > group.rows:
                        raise broken("a row group with more rows than its footer tells")
                    for block in self._blocks(table, batch, self.lines + read + 1):
                        text += len(block.text)
                        yield block
                    read += batch.num_rows
                    self.share = (done + read / group.rows) / len(self._groups)
                    if text > allowed(group.stored):
                        raise too_dense(allowed(group.stored))
                if read < group.rows:
                    raise broken(
                        f"a row group with {read:,} of the {group.rows:,} rows that its footer tells"
                    )
            except GroupBroken as wrong:
                self._report(self.lines + min(read + 1, group.rows), wrong.fault)
            self.lines += group.rows
            self.share = (done + 1) / len(self._groups)

    def _blocks(self, table: "_Table", batch: Any, first: int) -> Iterator[Block]:
        """The rows of a batch whose first one has the number `first`."""
        count, size = batch.num_rows, unpacked_bytes(batch)
        if count == 1 and size > _ROW_BYTES:
            self._report(*too_long(first))
            return
        if count == 1 or size <= _PIECE_BYTES:
            try:
                yield from blocks(range(first, first + count), table.encoded(batch), self._report)
            except ValueBroken as wrong:
                if count == 1:
                    self._report(first, Fault("PARQUET_VALUE", wrong.path, wrong.found))
                    return
            else:
                return
        half = count // 2
        yield from self._blocks(table, batch.slice(0, half), first)
        yield from self._blocks(table, batch.slice(half), first + half)


class _Table:
    """A Parquet file that was opened.

    Raises:
        FileFault: PARQUET_BROKEN, PARQUET_COLUMNS, or what the file's stream raises.
    """

    def __init__(self, file: SourceFile) -> None:
        # Only readers of Parquet need the library.
        import pyarrow as pa  # noqa: PLC0415
        from pyarrow import parquet  # noqa: PLC0415

        self._errors = (pa.ArrowException, OSError, ValueError, ArithmeticError, RuntimeError)
        self._size = file.size
        self._guard: PageGuard | None = None
        self._ranges = RangedFile(file, self._watch)
        self.groups = self._footer()
        try:
            self._file = parquet.ParquetFile(
                pa.PythonFile(self._ranges, mode="r"),
                # Reads columns in stretches, not row groups as wholes.
                pre_buffer=False,
                buffer_size=READ_BYTES,
                coerce_int96_timestamp_unit="us",
            )
            self._encoder = RowEncoder(self._file.schema_arrow)
        except self._errors as error:
            raise FileFault(self._fault(error)) from None

    def batches(self, index: int) -> Iterator[Any]:
        """The rows of a row group as `pyarrow.RecordBatch`es.

        Raises:
            GroupBroken: where they can't be read.
            FileFault: what the file's stream raises.
        """
        group = self.groups[index]
        if not group.rows:
            return
        for chunk in group.chunks:
            if not len(MAGIC) <= chunk.start < chunk.end <= self._size - _TAIL_BYTES:
                raise broken("a row group that lies outside the file")
            if chunk.values > MAX_VALUES:
                raise broken(f"more than {MAX_VALUES:,} values in a column of a row group")
        begin, end = min(chunk.start for chunk in group.chunks), max(chunk.end for chunk in group.chunks)
        whole = end - begin <= _STRETCH_BYTES
        self._ranges.zones([(begin, end)] if whole else [chunk[:2] for chunk in group.chunks], _STRETCH_BYTES)
        self._guard = PageGuard(self._ranges, group)
        size = self._batch_rows(self._guard, group)
        try:
            yield from self._file.iter_batches(batch_size=size, row_groups=[index], use_threads=False)
        except self._errors as error:
            raise GroupBroken(self._fault(error)) from None
        finally:
            self._guard = None

    def encoded(self, batch: Any) -> list[bytes]:
        """The rows of a batch as JSON.

        Raises:
            ValueBroken: at a value that JSON can't hold.
            GroupBroken: where the batch contradicts itself.
        """
        try:
            return self._encoder.encode(batch)
        except self._errors as error:
            raise GroupBroken(self._fault(error)) from None

    @staticmethod
    def _batch_rows(guard: PageGuard, group: RowGroup) -> int:
        """Rows that come to about 1 MiB, and to bounded memory where pages refer to values."""
        size = min(max(READ_BYTES * group.rows // max(group.unpacked, 1), 16), _BATCH_ROWS)
        for chunk in group.chunks:
            values = -(-chunk.values // group.rows)
            longest = guard.longest(chunk, _REPEATED_BYTES // (size * max(values, 1)))
            size = min(size, max(_REPEATED_BYTES // max(values * longest, 1), 1))
        return size

    def _watch(self, start: int, end: int) -> None:
        if self._guard is not None:
            self._guard.watch(start, end)

    def _footer(self) -> tuple[RowGroup, ...]:
        tail = self._ranges.at(max(self._size - _TAIL_BYTES, 0), _TAIL_BYTES)
        if tail.endswith(ENCRYPTED):
            raise _file_broken("an encrypted file", "a file without encryption")
        if self._size < len(MAGIC) + _TAIL_BYTES or not tail.endswith(MAGIC):
            raise _file_broken("a file without the footer at its end")
        size = int.from_bytes(tail[:4], "little")
        if size > min(self._size - len(MAGIC) - _TAIL_BYTES, MAX_FOOTER_BYTES):
            raise _file_broken(f"a footer of {size:,} bytes in a file of {self._size:,}")
        try:
            return footer(self._ranges.at(self._size - _TAIL_BYTES - size, size))
        except ThriftBroken as error:
            raise _file_broken(str(error)) from None

    def _fault(self, error: Exception) -> Fault:
        """What to tell of an error that came out of Arrow; one that came out of the file goes on."""
        if self._ranges.failure is not None:
            raise self._ranges.failure from None
        told = _QUOTED.sub("'...'", str(error).partition("\n")[0])
        return Fault("PARQUET_BROKEN", "", f"what can't be read ({ascii(told)[1:-1][:120]})")


def _file_broken(found: str, expected: str = "") -> FileFault:
    return FileFault(Fault("PARQUET_BROKEN", "", found, expected))
