"""What a Parquet file says of itself: its footer, and the headers of its pages.

Both are structs in Thrift's compact protocol
(https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md), with the fields of
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift. Arrow's own readers of them end the
process where a footer is damaged, and hand on pages only when they are unpacked.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

_TRUE: Final = 1
_FALSE: Final = 2
_BYTE: Final = 3
_INTEGERS: Final = frozenset({4, 5, 6})
_DOUBLE: Final = 7
_BINARY: Final = 8
_LISTS: Final = frozenset({9, 10})
_STRUCT: Final = 12

_MAX_DEPTH: Final = 16
_MAX_INTEGER_BYTES: Final = 10

_Shape = dict[int, Any]
"""Numbers of the fields that are wanted: None for an integer, the shape of a struct, or in a tuple that of each in a
list."""

_COUNTED: Final[_Shape] = {1: None}
_PAGE: Final[_Shape] = {1: None, 2: None, 3: None, 5: _COUNTED, 7: _COUNTED, 8: _COUNTED}
_COLUMN: Final[_Shape] = {1: None, 4: None, 5: None, 7: None, 9: None, 11: None}
_ROW_GROUP: Final[_Shape] = {1: ({1: None, 3: _COLUMN},), 2: None, 3: None}
_FOOTER: Final[_Shape] = {3: None, 4: (_ROW_GROUP,)}

DICTIONARY_PAGE: Final = 2
"""`PageType.DICTIONARY_PAGE`."""

_BYTE_ARRAY: Final = 6
_CODECS: Final = ("", "snappy", "gzip", "lzo", "brotli", "lz4_hadoop", "zstd", "lz4_raw")
"""`CompressionCodec`, as Arrow calls them; the first one is none."""


class Page(NamedTuple):
    """What a page says of itself."""

    kind: int
    stored: int
    """Bytes behind the header."""
    unpacked: int
    """Bytes after decompression."""
    values: int
    """Values, nulls among them; entries of a dictionary."""
    size: int
    """Bytes of the header itself."""


class Chunk(NamedTuple):
    """One column of one row group."""

    start: int
    """Byte in the file at which its first page begins."""
    end: int
    values: int
    """Values, nulls and those in lists counted."""
    codec: str
    """As Arrow calls it; empty where there is none."""
    text: bool
    """Whether each value has a length of its own (`BYTE_ARRAY`)."""


class RowGroup(NamedTuple):
    """What a footer says of a row group."""

    rows: int
    unpacked: int
    """Bytes of its pages after decompression."""
    chunks: tuple[Chunk, ...]

    @property
    def stored(self) -> int:
        """Bytes in the file."""
        return sum(chunk.end - chunk.start for chunk in self.chunks)


class ThriftBroken(ValueError):
    """The bytes are not what they should be."""


class ThriftCut(Exception):
    """There is more behind the bytes that were given."""


def page_header(data: bytes) -> Page:
    """The header with which `data` begins.

    Raises:
        ThriftBroken: where it is none.
        ThriftCut: where more bytes are needed.
    """
    reader = _Compact(data)
    fields = reader.read(_PAGE)
    of_kind = fields.get(5) or fields.get(7) or fields.get(8) or {}
    kind, stored, unpacked = _numbers(fields, 1, 3, 2)
    (values,) = _numbers({1: 0, **of_kind}, 1)
    return Page(kind, stored, unpacked, values, reader.at)


def footer(data: bytes) -> tuple[RowGroup, ...]:
    """The row groups that a footer tells of.

    Raises:
        ThriftBroken: where it is none, or its numbers contradict one another.
    """
    try:
        fields = _Compact(data).read(_FOOTER)
    except ThriftCut:
        raise ThriftBroken("a footer that was cut") from None
    groups = tuple(_row_group(one) for one in fields.get(4) or ())
    (rows,) = _numbers(fields, 3)
    if rows != sum(group.rows for group in groups):
        raise ThriftBroken(f"a footer that tells of {rows:,} rows, and of {sum(g.rows for g in groups):,}")
    return groups


def _row_group(fields: dict[int, Any]) -> RowGroup:
    rows, unpacked = _numbers(fields, 3, 2)
    return RowGroup(rows, unpacked, tuple(_chunk(one) for one in fields.get(1) or ()))


def _chunk(fields: dict[int, Any]) -> Chunk:
    if 1 in fields:
        raise ThriftBroken("columns in other files")
    column = fields.get(3)
    if column is None:
        raise ThriftBroken("an encrypted column")
    kind, codec, values, stored, start, dictionary = _numbers({11: 0, **column}, 1, 4, 5, 7, 9, 11)
    if codec >= len(_CODECS):
        raise ThriftBroken(f"compression of kind {codec}")
    # As Arrow's reader decides: writers have put nonsense here.
    start = dictionary if 0 < dictionary < start else start
    return Chunk(start, start + stored, values, _CODECS[codec], kind == _BYTE_ARRAY)


def _numbers(fields: Mapping[int, Any], *wanted: int) -> list[int]:
    numbers = [fields.get(number) for number in wanted]
    found = [number for number in numbers if isinstance(number, int) and 0 <= number < 1 << 62]
    if len(found) < len(wanted):
        raise ThriftBroken("sizes that are missing or none")
    return found


class _Compact:
    """Reads one struct."""

    def __init__(self, data: bytes) -> None:
        self.at = 0
        self._data = data

    def read(self, shape: _Shape) -> dict[int, Any]:
        """The fields that are wanted.

        Raises:
            ThriftBroken: where the bytes are no struct of the shape.
            ThriftCut: where it goes on behind them.
        """
        try:
            return self._struct(shape, 0)
        except IndexError:
            raise ThriftCut from None

    def _struct(self, shape: _Shape, depth: int) -> dict[int, Any]:
        if depth > _MAX_DEPTH:
            raise ThriftBroken("structs in structs")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._signed()
            kind = head & 0x0F
            # The value of a boolean field is in its type.
            value = None if kind in (_TRUE, _FALSE) else self._value(kind, shape.get(number), depth)
            if number in shape:
                fields[number] = value
        return fields

    def _value(self, kind: int, shape: Any, depth: int) -> Any:
        if kind == _STRUCT and not isinstance(shape, tuple):
            return self._struct(shape or {}, depth + 1)
        if kind in _LISTS and not isinstance(shape, dict):
            return self._list(shape, depth)
        if shape is not None:
            raise ThriftBroken(f"a field of type {kind}")
        if kind in _INTEGERS:
            return self._signed()
        if kind == _BINARY:
            self._skip(self._unsigned())
        elif kind in (_TRUE, _FALSE, _BYTE):
            self._skip(1)
        elif kind == _DOUBLE:
            self._skip(8)
        else:
            raise ThriftBroken(f"a field of type {kind}")
        return None

    def _list(self, shape: tuple[_Shape] | None, depth: int) -> list[Any]:
        head = self._byte()
        count = head >> 4 if head >> 4 < 0x0F else self._unsigned()
        if count > len(self._data) - self.at:
            raise ThriftCut
        inner = shape[0] if shape else None
        values = [self._value(head & 0x0F, inner, depth + 1) for _ in range(count)]
        if shape and not all(isinstance(value, dict) for value in values):
            raise ThriftBroken("a list of something else")
        return values

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def _skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self._data):
            raise ThriftCut

    def _unsigned(self) -> int:
        value = 0
        for place in range(_MAX_INTEGER_BYTES):
            byte = self._byte()
            value |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                return value
        raise ThriftBroken("an integer without end")

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
