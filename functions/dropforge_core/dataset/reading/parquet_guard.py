"""What reading a row group of Parquet will cost, told from its pages' headers before its pages are unpacked."""

import struct
from bisect import bisect_right
from typing import Final

from dropforge_core.dataset.faults import Fault
from dropforge_core.dataset.reading.compression import MAX_RATIO, RATIO_FREE_BYTES
from dropforge_core.dataset.reading.parquet_thrift import (
    DICTIONARY_PAGE,
    Chunk,
    Page,
    RowGroup,
    ThriftBroken,
    ThriftCut,
    page_header,
)
from dropforge_core.dataset.reading.ranges import RangedFile

MAX_PAGE_BYTES: Final = 128 << 20
"""Most bytes of a page, unpacked. Most writers make pages of 1 MiB; DuckDB of at most 100 MiB."""
_LENGTH: Final = struct.Struct("<I")
_MAX_ENTRIES: Final = 1 << 20
"""A dictionary with more is not looked through."""
_HEADER_BYTES: Final = 256
_MAX_HEADER_BYTES: Final = 1 << 20


class GroupBroken(Exception):
    """The rest of a row group can't be read."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"{fault.code}: {fault.found}")
        self.fault = fault


def broken(found: str, expected: str = "") -> GroupBroken:
    """A row group with PARQUET_BROKEN."""
    return GroupBroken(Fault("PARQUET_BROKEN", "", found, expected))


class PageGuard:
    """Looks at the headers of all pages of one row group as they are come to.

    Args:
        file: in which they lie.
        group: of which they are.
    """

    def __init__(self, file: RangedFile, group: RowGroup) -> None:
        self._file = file
        self._chunks = sorted(group.chunks)
        self._starts = [chunk.start for chunk in self._chunks]
        self._next = list(self._starts)
        """Of each column: where the next header lies."""
        self._values = [0] * len(self._chunks)
        self._unpacked = 0
        self._allowed = allowed(group.stored)

    def watch(self, start: int, end: int) -> None:
        """Look at all headers before `end` in the column that has the byte `start`.

        Raises:
            GroupBroken: where a page claims too much.
        """
        at = bisect_right(self._starts, start) - 1
        if at < 0:
            return
        chunk = self._chunks[at]
        while self._next[at] < min(end, chunk.end):
            header = self._header(self._next[at])
            self._next[at] += header.size + header.stored
            self._values[at] += header.values if header.kind != DICTIONARY_PAGE else 0
            self._unpacked += header.unpacked
            if header.unpacked > MAX_PAGE_BYTES:
                raise broken(
                    f"a page of {header.unpacked:,} bytes", f"pages of at most {MAX_PAGE_BYTES:,} bytes"
                )
            if self._values[at] > chunk.values:
                raise broken(f"a column with more than the {chunk.values:,} values that the footer tells")
            if self._unpacked > self._allowed:
                raise too_dense(self._allowed)

    def longest(self, chunk: Chunk, enough: int) -> int:
        """Most bytes of a value that the column's pages refer to instead of repeating it; 0 where none do.

        Args:
            chunk: the column.
            enough: not looked closer at where values can't be longer than this.

        Raises:
            GroupBroken: where the first page claims too much.
        """
        header = self._header(chunk.start)
        if header.kind != DICTIONARY_PAGE or not header.values:
            return 0
        self.watch(chunk.start, chunk.start + 1)
        if not chunk.text:
            return header.unpacked // header.values
        if header.unpacked <= enough or header.values > _MAX_ENTRIES:
            return header.unpacked
        page = self._file.at(chunk.start + header.size, header.stored)
        return _longest_of(_unpacked(page, header.unpacked, chunk.codec), header.values) or header.unpacked

    def _header(self, at: int) -> Page:
        size = _HEADER_BYTES
        while True:
            data = self._file.at(at, size)
            try:
                return page_header(data)
            except ThriftBroken as error:
                raise broken(f"a page without a header ({error})") from None
            except ThriftCut:
                if len(data) < size or size >= _MAX_HEADER_BYTES:
                    raise broken("a page without a header") from None
            size *= 16


def allowed(stored: int) -> int:
    """Bytes to which so many stored ones may be unpacked."""
    return max(RATIO_FREE_BYTES, MAX_RATIO * stored)


def too_dense(allowed_bytes: int) -> GroupBroken:
    """A row group that unpacks to more than it may."""
    found = f"a row group that unpacks to more than {allowed_bytes:,} bytes"
    return GroupBroken(Fault("COMPRESSION_RATIO", "", found))


def _unpacked(page: bytes, size: int, codec: str) -> bytes:
    """The page, or nothing where Arrow's reader will have to say what is wrong with it."""
    import pyarrow as pa  # noqa: PLC0415

    if not codec:
        return page
    try:
        return bytes(pa.decompress(page, size, codec, asbytes=True))
    except (pa.ArrowException, OSError, ValueError):
        return b""


def _longest_of(page: bytes, entries: int) -> int:
    """Bytes of the longest of some byte arrays in plain encoding: each its length in 4 bytes, then itself."""
    longest = at = 0
    for _ in range(entries):
        if at + 4 > len(page):
            return 0
        (length,) = _LENGTH.unpack_from(page, at)
        longest = max(longest, length)
        at += 4 + length
    return longest
