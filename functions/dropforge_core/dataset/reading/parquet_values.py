"""Columns of Arrow as JSON: each row an object, text as text, a null where others have a value as absent."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final
from uuid import UUID

import msgspec

from dropforge_core.dataset.faults import Fault, FileFault
from dropforge_core.dataset.reading.columns import COLUMNS, holds_json, parsed, recognised
from dropforge_core.dataset.renaming import renamed

Values = Callable[[Any], list[Any]]
"""From an Arrow array to as many things that can be written as JSON."""

_INDEX: Final = re.compile(r"__index_level_\d+__")
"""Column that pandas makes of a table's index."""
_CONVERSATION: Final = (COLUMNS | {"tools"}) - {"text"}
"""Columns in whose structs a null means that the field is not there: Parquet gives all structs all fields."""
_NO_FIELD_NAME: Final = re.compile(r'["\\\x00-\x1f]')
"""What msgspec does not take in the name of a field."""

_UUID_BYTES: Final = 16
_QUICK_LISTS: Final = 26
"""Version of Arrow whose `to_pylist` takes some ten nanoseconds a value; that of 20 takes a microsecond."""

_encoder: Final = msgspec.json.Encoder()


class ValueBroken(Exception):
    """A value that JSON can't hold."""

    def __init__(self, path: str, found: str) -> None:
        super().__init__(f"{path}: {found}")
        self.path = path
        self.found = found


class RowEncoder:
    """Writes rows of a table as JSON.

    Args:
        schema: a `pyarrow.Schema`.

    Raises:
        FileFault: PARQUET_COLUMNS where no column is of a known format, two have one name, or one has a type that is
            no JSON.
    """

    def __init__(self, schema: Any) -> None:
        self._kept = [at for at, name in enumerate(schema.names) if not _INDEX.fullmatch(name)]
        names = recognised([schema.names[at] for at in self._kept])
        _unlike(names, "")
        if not COLUMNS & set(names):
            raise _columns("", f"{len(names)} columns, none of them of a known format", renamed(names))
        self._columns = [
            _column(name, schema.field(at).type) for name, at in zip(names, self._kept, strict=True)
        ]
        self._row = _maker(names, bare=True)

    def encode(self, batch: Any) -> list[bytes]:
        """The rows of a `pyarrow.RecordBatch`.

        Raises:
            ValueBroken: at a value that JSON can't hold.
        """
        columns = [values(batch.column(at)) for values, at in zip(self._columns, self._kept, strict=True)]
        rows = list(self._row(columns))
        encoded = _encoder.encode_lines(rows)[:-1].split(b"\n")
        # JSON that is taken over as it is written may have line breaks.
        return encoded if len(encoded) == len(rows) else [_encoder.encode(row) for row in rows]


def unpacked_bytes(batch: Any) -> int:
    """About how much a `pyarrow.RecordBatch` takes where each value is written out."""
    from pyarrow import compute, types  # noqa: PLC0415

    size = batch.nbytes
    for column in batch.columns:
        if types.is_dictionary(column.type) and _is_text(column.type.value_type):
            longest = compute.max(compute.binary_length(column.dictionary)).as_py()
            size += len(column) * (longest or 0)
    return int(size)


def _column(name: str, kind: Any) -> Values:
    values = _values(kind, _shown(name), bare=name in _CONVERSATION)
    if not holds_json(name):
        return values

    def of_json(array: Any) -> list[Any]:
        return [parsed(name, value) if type(value) is str else value for value in values(array)]

    return of_json


def _values(kind: Any, path: str, *, bare: bool) -> Values:
    """How arrays of a type become values.

    Args:
        kind: a `pyarrow.DataType`.
        path: of the column, for messages.
        bare: whether nulls in structs are left out.
    """
    from pyarrow import types  # noqa: PLC0415

    of_text = _of_texts, types.is_string, types.is_large_string
    of_bytes = _of_bytes, types.is_binary, types.is_large_binary, types.is_fixed_size_binary
    of_times = _of_times, types.is_timestamp, types.is_time64, types.is_duration
    as_they_are = _as_they_are, types.is_null, types.is_date, types.is_time, types.is_decimal
    of_numbers = _of_numbers, types.is_boolean, types.is_integer
    for values, *kinds in (of_text, of_numbers, of_times, of_bytes, as_they_are):
        if any(is_it(kind) for is_it in kinds):
            return _checked(path, values)
    if types.is_floating(kind):
        return _of_floats(path)
    nested = _nested(kind, path, bare=bare)
    if nested is None:
        raise _columns(path, f"type {str(kind)[:80]}")
    return nested


def _nested(kind: Any, path: str, *, bare: bool) -> Values | None:
    from pyarrow import types  # noqa: PLC0415

    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _of_lists(_values(kind.value_type, path, bare=bare))
    if types.is_struct(kind):
        return _of_structs(kind, path, bare=bare)
    if types.is_map(kind):
        return _of_maps(kind, path, bare=bare)
    if types.is_dictionary(kind):
        inner = _values(kind.value_type, path, bare=bare)
        return lambda array: inner(array.dictionary_decode())
    if isinstance(kind, _extension()):
        inner = _values(kind.storage_type, path, bare=bare)
        return lambda array: inner(array.storage)
    return None


def _extension() -> Any:
    import pyarrow as pa  # noqa: PLC0415

    return pa.BaseExtensionType


def _is_text(kind: Any) -> bool:
    from pyarrow import types  # noqa: PLC0415

    return bool(types.is_string(kind) or types.is_large_string(kind))


def _checked(path: str, values: Values) -> Values:
    import pyarrow as pa  # noqa: PLC0415

    def checked(array: Any) -> list[Any]:
        try:
            return values(array)
        except (UnicodeDecodeError, pa.ArrowException):
            raise ValueBroken(path, f"bytes that are no UTF-8, as {array.type}") from None
        except (ValueError, OverflowError):
            raise ValueBroken(path, f"a value out of range, as {array.type}") from None

    return checked


def _of_texts(array: Any) -> list[Any]:
    return _plain(array)


def _of_numbers(array: Any) -> list[Any]:
    if array.null_count == len(array):
        return [None] * len(array)
    if not array.null_count:
        return _plain(array)
    nothing = False if array.type == "bool" else 0
    return _where_there(_plain(array.fill_null(nothing)), array)


def _plain(array: Any) -> list[Any]:
    """Texts, or numbers without nulls."""
    import pyarrow as pa  # noqa: PLC0415

    if int(pa.__version__.partition(".")[0]) >= _QUICK_LISTS:
        return list(array.to_pylist())
    # 30 times as fast there; in later versions as fast, but it loads pandas where that is installed.
    return list(array.to_numpy(zero_copy_only=False).tolist())


def _of_bytes(array: Any) -> list[Any]:
    from pyarrow import types  # noqa: PLC0415

    if types.is_fixed_size_binary(array.type) and array.type.byte_width == _UUID_BYTES:
        # Arrow tells of identifiers from no other bytes of that length, and not in every version.
        return [value if value is None else UUID(bytes=value) for value in array.to_pylist()]
    return [value if value is None else value.decode() for value in array.to_pylist()]


def _of_times(array: Any) -> list[Any]:
    """In microseconds, as Python has them. Instants are told in UTC: no table of time zones is needed."""
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import types  # noqa: PLC0415

    micro = pa.time64("us") if types.is_time64(array.type) else pa.duration("us")
    if types.is_timestamp(array.type):
        micro = pa.timestamp("us", "UTC" if array.type.tz else None)
    return list(array.cast(micro, safe=False).to_pylist())


def _as_they_are(array: Any) -> list[Any]:
    return list(array.to_pylist())


def _where_there(values: Iterable[Any], array: Any) -> list[Any]:
    """The values, None where the array has a null."""
    there = _plain(array.is_valid())
    return [value if valid else None for value, valid in zip(values, there, strict=True)]


def _of_floats(path: str) -> Values:
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import compute, types  # noqa: PLC0415

    def values(array: Any) -> list[Any]:
        if types.is_float16(array.type):
            array = array.cast(pa.float32())
        if compute.all(compute.is_finite(array)).as_py() is False:
            raise ValueBroken(path, "NaN or Infinity")
        return _of_numbers(array)

    return values


def _of_lists(inner: Values) -> Values:
    from pyarrow import compute  # noqa: PLC0415

    def values(array: Any) -> list[Any]:
        items = iter(inner(array.flatten()))
        lengths = compute.list_value_length(array)
        if not array.null_count:
            return [list(islice(items, length)) for length in _plain(lengths)]
        # A list of fixed size has that many places also where it is null, and `flatten` passes over them.
        there = _plain(compute.if_else(array.is_valid(), lengths, 0))
        return _where_there([list(islice(items, length)) for length in there], array)

    return values


def _of_structs(kind: Any, path: str, *, bare: bool) -> Values:
    names = [kind.field(at).name for at in range(kind.num_fields)]
    _unlike(names, path)
    fields = [
        _values(kind.field(at).type, f"{path}.{_shown(name)}", bare=bare) for at, name in enumerate(names)
    ]
    make = _maker(names, bare=bare)

    def values(array: Any) -> list[Any]:
        if not names:
            made: Iterator[Any] = ({} for _ in range(len(array)))
        else:
            made = make([field(column) for field, column in zip(fields, array.flatten(), strict=True)])
        if not array.null_count:
            return list(made)
        return _where_there(made, array)

    return values


def _of_maps(kind: Any, path: str, *, bare: bool) -> Values:
    import pyarrow as pa  # noqa: PLC0415

    if not _is_text(kind.key_type):
        raise _columns(path, f"a map with keys of type {str(kind.key_type)[:80]}")
    pairs = pa.struct([("key", kind.key_type), ("value", kind.item_type)])
    lists = pa.list_(pairs)
    entries = _of_lists(lambda array: list(zip(*_flat(array), strict=True)))
    keys, items = _values(kind.key_type, path, bare=bare), _values(kind.item_type, path, bare=bare)

    def _flat(array: Any) -> tuple[list[Any], list[Any]]:
        key, item = array.flatten()
        return keys(key), items(item)

    def values(array: Any) -> list[Any]:
        found = [one if one is None else (dict(one), len(one)) for one in entries(array.cast(lists))]
        if any(one and len(one[0]) < one[1] for one in found):
            raise ValueBroken(path, "a map with a key given twice")
        return [one and one[0] for one in found]

    return values


def _maker(names: Sequence[str], *, bare: bool) -> Callable[[list[list[Any]]], Iterator[Any]]:
    """From columns to objects with these fields."""
    if any(_NO_FIELD_NAME.search(name) for name in names):

        def objects(columns: list[list[Any]]) -> Iterator[Any]:
            for row in zip(*columns, strict=True):
                fields = zip(names, row, strict=True)
                yield {name: value for name, value in fields if value is not None or not bare}

        return objects
    # Made and written several times as fast as dictionaries.
    shape = msgspec.defstruct(
        "Fields",
        [(f"f{at}", Any, None) for at in range(len(names))],
        rename={f"f{at}": name for at, name in enumerate(names)},
        omit_defaults=bare,
        gc=False,
    )
    return lambda columns: map(shape, *columns)


def _unlike(names: Sequence[str], path: str) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        shown = _shown(twice)
        raise _columns(f"{path}.{shown}" if path else shown, "two columns of one name")


def _shown(name: str) -> str:
    """A column's name as a part of a path: escaped and cut where it is no ordinary name."""
    return name if name.isidentifier() and name.isascii() and len(name) <= 40 else ascii(name[:40])


def _columns(path: str, found: str, expected: str = "") -> FileFault:
    return FileFault(Fault("PARQUET_COLUMNS", path, found, expected))
