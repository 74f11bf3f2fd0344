"""Files with one fault that is the file's own, and what must be told of it."""

import gzip
import io
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from planted.containers import Layout, dumps, otherwise_packed, utf16
from planted.rows import Seed, good


class FaultyFile(NamedTuple):
    """A file, the one thing that must be said of it, and the rows that are read all the same."""

    suffix: str
    body: bytes
    code: str
    line: int | None
    rows: tuple[int, ...] = ()
    """Lines of good rows."""
    path: str = ""


class FilePlant(NamedTuple):
    name: str
    code: str
    make: Callable[[str, Seed], FaultyFile]
    forms: frozenset[str] | None = None
    """None for all."""


FILE_PLANTS: list[FilePlant] = []


def _row(form: str, seed: Seed) -> bytes:
    return dumps(good(form, seed), Layout("jsonl"))


def _plant(
    name: str,
    code: str,
    make: Callable[[str, Seed], tuple[str, bytes, int | None, int]],
    forms: frozenset[str] | None = None,
) -> None:
    """Note a plant that answers suffix, bytes, line of the fault, and how many good rows lie before it.

    Good rows are one a line, in an array or CSV from the second line on.
    """

    def whole(form: str, seed: Seed) -> FaultyFile:
        suffix, body, line, rows = make(form, seed)
        first = 1 if suffix == ".jsonl" else 2
        return FaultyFile(suffix, body, code, line, tuple(range(first, first + rows)))

    FILE_PLANTS.append(FilePlant(f"{code}: {name}", code, whole, forms))


def _nothing(_form: str, seed: Seed) -> tuple[str, bytes, int | None, int]:
    suffix, body = seed.pick(
        (".jsonl", b""),
        (".json", b" \n\n"),
        (".jsonl", b"\r\n\r\n"),
        (".jsonl.gz", gzip.compress(b"", mtime=0)),
        (".jsonl.zst", zstandard.compress(b"\n")),
        (".parquet", _written({"text": []})),
    )
    return suffix, body, None, 0


def _other_kind(form: str, seed: Seed) -> tuple[str, bytes, int | None, int]:
    row = _row(form, seed)
    suffix, body = seed.pick(
        (".jsonl.bz2", otherwise_packed(row, "bz2")),
        (".jsonl", otherwise_packed(row, "xz")),
        (".txt", row),
        ("", row),
        (".zip", b"PK\x03\x04" + row),
        (".xlsx", b"PK\x03\x04" + row),
        (".yaml.gz", gzip.compress(row, mtime=0)),
        (".jsonl", b"PK\x03\x04" + row),
    )
    return suffix, body, None, 0


def _cut_stream(form: str, seed: Seed) -> tuple[str, bytes, int | None, int]:
    row = _row(form, seed)
    packed, suffix = seed.pick(
        (gzip.compress(row, mtime=0), ".jsonl.gz"), (zstandard.compress(row), ".jsonl.zst")
    )
    return suffix, packed[: max(5, len(packed) * (1 + seed.style % 8) // 10)], None, 0


def _not_packed(form: str, seed: Seed) -> tuple[str, bytes, int | None, int]:
    return seed.pick(".jsonl.gz", ".csv.zst"), _row(form, seed), None, 0


def _wide(form: str, seed: Seed) -> tuple[str, bytes, int | None, int]:
    order = seed.pick("utf-16-le", "utf-16-be", "utf-32-le")
    return seed.pick(".jsonl", ".json", ".csv"), utf16(_row(form, seed), order), 1, 0


def _cut_array(form: str, seed: Seed) -> tuple[str, bytes, int | None, int]:
    rows = [_row(form, Seed(seed.number + place, seed.style)) for place in range(1 + seed.style % 3)]
    tail, more = seed.pick((b"", 0), (b',\n{"text": "a', 1), (b',\n{"text": [1]', 1), (b"\n\n", 0))
    return ".json", b"[\n" + b",\n".join(rows) + tail, 1 + len(rows) + more, len(rows) - (not more)


def _text_after_array(form: str, seed: Seed) -> tuple[str, bytes, int | None, int]:
    tail = seed.pick(b"x", b"]", b"[]", b"{}", b"null")
    return ".json", b"[\n" + _row(form, seed) + b"\n]\n" + tail, 4, 1


def _comma(form: str, seed: Seed) -> tuple[str, bytes, int | None, int]:
    row = _row(form, seed)
    return ".json", b"[\n" + row + seed.pick(b",\n,\n" + row, b",\n]", b",\n\t,"), 3, 1


def _one_object(_form: str, _seed: Seed) -> tuple[str, bytes, int | None, int]:
    return ".json", b'{\n  "text": "a"\n}\n', 1, 0


def _header(_form: str, seed: Seed) -> tuple[str, bytes, int | None, int]:
    body = seed.pick(
        b"question,answer\na,b\n", b"text,text\na,b\n", b"text,\na,b\n", b"Text,text\na,b\n", b"a\nb\n"
    )
    return ".csv", body, 1, 0


def _open_quote(_form: str, seed: Seed) -> tuple[str, bytes, int | None, int]:
    row = Seed(seed.number).says("w").encode()
    return ".csv", b"text\n" + row + b'\n"and then\n' + b"c\n" * (seed.style % 40), 3, 1


def _written(columns: dict[str, list[Any]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, row_group_size=2)
    return out.getvalue()


def _no_parquet(form: str, seed: Seed) -> tuple[str, bytes, int | None, int]:
    whole = _written({"text": [seed.says("a"), seed.says("b")]})
    body = seed.pick(
        whole[: len(whole) // 2],
        whole[: -1 - seed.style % 7],
        whole[:4] + whole[:4],
        _row(form, seed),
        whole[:-8] + b"\0\0\0\0PAR1",
        b"PAR1",
    )
    return ".parquet", body, None, 0


def _odd_columns(_form: str, seed: Seed) -> tuple[str, bytes, int | None, int]:
    odd = seed.pick({"question": ["a"], "answer": ["b"]}, {"Text ": [1], "n": [2]}, {"id": [1]})
    return ".parquet", _written(odd), None, 0


def _no_number(_form: str, seed: Seed) -> FaultyFile:
    odd = seed.pick(math.nan, math.inf, -math.inf)
    texts = [Seed(seed.number + place).says("w") for place in range(5)]
    scores = [0.5, 1.0, 1.5, None, 2.0]
    bad = seed.style % 5
    scores[bad] = odd
    good_rows = tuple(line for line in range(1, 6) if line != bad + 1)
    body = _written({"text": texts, "score": scores})
    return FaultyFile(".parquet", body, "PARQUET_VALUE", bad + 1, good_rows, "score")


_plant("no whole file", "PARQUET_BROKEN", _no_parquet)
_plant("columns of no format", "PARQUET_COLUMNS", _odd_columns)
FILE_PLANTS.append(
    FilePlant("PARQUET_VALUE: a number that JSON lacks", "PARQUET_VALUE", _no_number, frozenset({"text"}))
)
_plant("no row", "FILE_EMPTY", _nothing)
_plant("another kind", "FILE_KIND", _other_kind)
_plant("a stream that breaks off", "COMPRESSION_BROKEN", _cut_stream)
_plant("only the name is compressed", "COMPRESSION_BROKEN", _not_packed)
_plant("two or four bytes a character", "ENCODING_UTF16", _wide)
_plant("an array that breaks off", "ARRAY_BROKEN", _cut_array)
_plant("text after the array", "ARRAY_BROKEN", _text_after_array)
_plant("a comma too many", "ARRAY_BROKEN", _comma)
_plant("one object over several lines", "ARRAY_BROKEN", _one_object)
_plant("a header of no format", "CSV_HEADER", _header)
_plant("a quote that nobody closes", "CSV_BROKEN", _open_quote, frozenset({"text"}))
