"""Rows as bytes with exact line numbers, from any part of any file. Streaming: memory does not grow with the file."""

from collections.abc import Iterator
from typing import Protocol

from dropforge_core.dataset.faults import Fault, FileFault
from dropforge_core.dataset.reading.array import ArrayReader
from dropforge_core.dataset.reading.compression import resumed, split_head, text_of
from dropforge_core.dataset.reading.delimited import DelimitedReader
from dropforge_core.dataset.reading.lines import LineReader
from dropforge_core.dataset.reading.parquet import ParquetReader
from dropforge_core.dataset.reading.parts import BOM, FileOutline, Part
from dropforge_core.dataset.reading.shapes import MAX_ROW_BYTES, Block, Report
from dropforge_core.dataset.reading.source import SourceFile, opened

__all__ = ["MAX_ROW_BYTES", "Block", "PartReader", "Report"]


class _Reader(Protocol):
    @property
    def lines(self) -> int: ...

    def __iter__(self) -> Iterator[Block]: ...


class PartReader:
    """The rows of one part, once. What keeps the rest of the part from being read is reported too.

    Args:
        file: where the part lies.
        outline: how the file is read.
        part: of that file.
        report: told of everything that is wrong, with lines that count from the part's first one.
    """

    def __init__(self, file: SourceFile, outline: FileOutline, part: Part, report: Report) -> None:
        self.lines = 0
        """After the iteration: lines that begin in the part, or rows of Parquet."""
        self.bytes = 0
        """After the iteration: bytes of the part, decompressed; of Parquet as stored."""
        self._file = file
        self._outline = outline
        self._part = part
        self._report = report

    def __iter__(self) -> Iterator[Block]:
        try:
            yield from self._rows_of_table() if self._outline.reading == "parquet" else self._rows_of_text()
        except FileFault as fault:
            self._report(fault.line, fault.fault)

    def _rows_of_table(self) -> Iterator[Block]:
        part, outline = self._part, self._outline
        begin, end = (outline.size * at // outline.units for at in (part.start, part.end))
        reader = ParquetReader(self._file, self._report, part.start, part.end)
        try:
            for block in reader:
                self.bytes = int((end - begin) * reader.share)
                yield block
        finally:
            self.lines, self.bytes = reader.lines, end - begin

    def _rows_of_text(self) -> Iterator[Block]:
        part = self._part
        inside = part.start > 0
        with opened(self._file, part.start - inside) as stream:
            reader = self._reader(stream, inside=inside)
            try:
                yield from reader
            finally:
                self.lines = reader.lines
        self.bytes = max(self.bytes - inside, 0)
        if part.end < self._outline.units:
            self.bytes = min(self.bytes, part.end - part.start)

    def _reader(self, stream: Iterator[bytes], *, inside: bool) -> _Reader:
        text = self._counted(stream if self._outline.divisible else text_of(self._file, stream))
        marked = 0
        if not inside:
            head, text = split_head(text, len(BOM))
            if head == BOM:
                self._report(1, Fault("BOM", "", "a byte order mark before the first row"))
                marked, text = len(BOM), resumed(next(text)[len(BOM) :], text)
        match self._outline.reading:
            case "array":
                return ArrayReader(text, self._report)
            case "csv":
                return DelimitedReader(text, None, self._report)
            case "tsv":
                return DelimitedReader(text, "\t", self._report)
            case _:
                part = self._part
                # The last part reads to the end of the stream, whatever size was told. A mark is of the first line.
                last = part.end >= self._outline.units
                size = None if last else max(part.end - part.start - marked, 1)
                return LineReader(text, self._report, inside=inside, size=size)

    def _counted(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self.bytes += len(chunk)
            yield chunk
