"""Rows to the bytes of a file, and the line on which each begins."""

import bz2
import contextlib
import csv
import gzip
import io
import itertools
import json
import lzma
import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from planted.rows import Row

SUFFIX = {"jsonl": ".jsonl", "array": ".json", "csv": ".csv", "parquet": ".parquet"}

BAD_BYTE = "\ue000"
"""Stands in a text for a byte of another encoding, which no text can hold."""

SEPARATOR = b"\xee\x80\x81"
"""Stands in a raw line of CSV for the file's separator."""

_CSV_FORMS = frozenset(
    {"messages", "tools", "weights", "sharegpt", "prompt_completion", "alpaca", "preference", "text"}
)
_PARQUET_FORMS = _CSV_FORMS


def holds(container: str, form: str) -> bool:
    """Whether rows of the form can be written there as they are."""
    return form in {"csv": _CSV_FORMS, "parquet": _PARQUET_FORMS}.get(container, {form})


@dataclass(frozen=True)
class Layout:
    """How a file is written; a container has use for some of it."""

    container: str
    ascii_only: bool = False
    spacing: int = 0
    """JSON: none, ordinary, or more spaces around separators."""
    indent: int | None = None
    """An array: None for one element a line, 0 for all on one, else spread over lines."""
    separator: str = ","
    quote_all: bool = False
    line_end: str = "\n"
    last_line_end: bool = True
    bom: bool = False
    compression: str = ""
    cuts: tuple[int, ...] = ()
    """Where the compressed stream begins a new member, in thousandths."""
    honest_name: bool = True
    """Whether the name says that the file is compressed."""
    row_group: int = 5

    @property
    def suffix(self) -> str:
        own = ".tsv" if self.container == "csv" and self.separator == "\t" else SUFFIX[self.container]
        if not self.compression or not self.honest_name:
            return own
        return own + {"gzip": ".gz", "zstd": ".zst"}[self.compression]


def write(rows: list[Row | bytes | None], layout: Layout) -> tuple[bytes, list[int]]:
    """The file, and the line of each row. None is an empty line, bytes go in as they are."""
    body, lines = _WRITERS[layout.container](rows, layout)
    if layout.container == "parquet":
        return body, lines
    if layout.bom:
        body = b"\xef\xbb\xbf" + body
    return compress(body, layout), lines


def compress(body: bytes, layout: Layout) -> bytes:
    """The body in as many members or frames as there are cuts, and one more."""
    if not layout.compression:
        return body
    cuts = [0, *sorted(len(body) * cut // 1000 for cut in layout.cuts), len(body)]
    parts = [body[start:end] for start, end in itertools.pairwise(cuts)]
    pack = zstandard.compress if layout.compression == "zstd" else gzip.compress
    return b"".join(map(pack, parts))


def dumps(value: Any, layout: Layout, indent: int | None = None) -> bytes:
    """JSON text as one of many writers writes it."""
    separators = [(",", ":"), (", ", ": "), (" , ", " : ")][layout.spacing]
    text = json.dumps(value, ensure_ascii=layout.ascii_only, separators=separators, indent=indent)
    return text.encode()


def _jsonl(rows: list[Row | bytes | None], layout: Layout) -> tuple[bytes, list[int]]:
    end = layout.line_end.encode()
    texts = [_text(row, layout) for row in rows]
    body = end.join(texts)
    if layout.last_line_end or not texts[-1]:
        body += end
    return body, list(range(1, len(rows) + 1))


def _text(row: Row | bytes | None, layout: Layout) -> bytes:
    if row is None:
        return b""
    return row if isinstance(row, bytes) else dumps(row, layout)


def _array(rows: list[Row | bytes | None], layout: Layout) -> tuple[bytes, list[int]]:
    end = layout.line_end.encode()
    between = b"" if layout.indent == 0 else end
    body, lines = b"[" + between, []
    for place, row in enumerate(rows):
        lines.append(1 + body.count(b"\n"))
        if isinstance(row, bytes):
            text = row
        else:
            text = dumps(row, layout, layout.indent or None).replace(b"\n", end)
        body += text + (b"," if place < len(rows) - 1 else b"") + between
    return body + b"]" + (end if layout.last_line_end else b""), lines


_STEP = re.compile(r"\[(\d+)\]|\.?([^.\[]+)")


def lines_down(row: Row | bytes | None, layout: Layout, path: str) -> int:
    """How far below the row's first line the value at a path begins, or what is around where it is missing."""
    if layout.container != "array" or not layout.indent or not isinstance(row, dict):
        return 0
    # Rows may have one object in two places; JSON parts them.
    marked = json.loads(json.dumps(row))
    around: Any = None
    at: Any = None
    value: Any = marked
    for number, name in _STEP.findall(path):
        step: Any = int(number) if number else name
        there = step < len(value) if isinstance(value, list) else isinstance(value, dict) and step in value
        if not there:
            break
        around, at, value = value, step, value[step]
    if around is None:
        return 0
    around[at] = "\ue002"
    return dumps(marked, Layout("array"), layout.indent).partition("\ue002".encode())[0].count(b"\n")


def _csv(rows: list[Row | bytes | None], layout: Layout) -> tuple[bytes, list[int]]:
    names: list[str] = []
    for row in rows:
        names += [name for name in row if name not in names] if isinstance(row, dict) else []
    names = names or ["text"]
    quoting = csv.QUOTE_ALL if layout.quote_all else csv.QUOTE_MINIMAL
    body, lines = b"", []
    for row in [dict(zip(names, names, strict=True)), *rows]:
        lines.append(1 + body.count(b"\n"))
        if isinstance(row, bytes):
            body += row.replace(SEPARATOR, layout.separator.encode()) + layout.line_end.encode()
            continue
        if row is None:
            body += layout.line_end.encode()
            continue
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter=layout.separator, quoting=quoting, lineterminator=layout.line_end)
        writer.writerow([_cell(row.get(name, ""), layout) for name in names])
        written, bad, rest = text.getvalue().partition(BAD_BYTE)
        lines[-1] += written.count("\n") if bad else 0
        body += written.encode() + (b"\xe9" if bad else b"") + rest.encode()
    if not layout.last_line_end and rows[-1] is not None and body.endswith(layout.line_end.encode()):
        body = body[: -len(layout.line_end)]
    return body, lines[1:]


def _cell(value: Any, layout: Layout) -> str:
    return value if isinstance(value, str) else dumps(value, layout).decode()


def _parquet(rows: list[Row | bytes | None], layout: Layout) -> tuple[bytes, list[int]]:
    out = io.BytesIO()
    packing = "zstd" if layout.ascii_only else "none"
    pq.write_table(_table(rows, layout), out, row_group_size=layout.row_group, compression=packing)
    return out.getvalue(), list(range(1, len(rows) + 1))


def _table(rows: list[Any], layout: Layout) -> pa.Table:
    """Nested columns where the rows allow it and the layout wants it, else what is no text as JSON text."""
    names: dict[str, None] = {name: None for row in rows for name in row}
    columns = {name: [row.get(name) for row in rows] for name in names}
    if not layout.spacing:
        with contextlib.suppress(pa.ArrowException):
            return pa.table({name: pa.array(values) for name, values in columns.items()})
    texts = {name: [_text_or_null(value, layout) for value in values] for name, values in columns.items()}
    return pa.table({name: pa.array(values, pa.string()) for name, values in texts.items()})


def _text_or_null(value: Any, layout: Layout) -> str | None:
    return None if value is None else _cell(value, layout)


_WRITERS = {"jsonl": _jsonl, "array": _array, "csv": _csv, "parquet": _parquet}


def utf16(body: bytes, order: str) -> bytes:
    """The same text with a byte order mark, in two or four bytes a character."""
    return ("\ufeff" + body.decode()).encode(order)


def otherwise_packed(body: bytes, kind: str) -> bytes:
    """Compressed in a way that is not taken."""
    return {"bz2": bz2.compress, "xz": lzma.compress}[kind](body)
