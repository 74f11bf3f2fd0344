"""What must hold for any bytes whatever, reader by reader, and the nasty files to begin from."""

import gzip
import hashlib
import json
import math
import re
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from dataset_cases import in_memory

from dropforge_core.dataset.codes import CODES
from dropforge_core.dataset.reading.blocks import PartReader
from dropforge_core.dataset.reading.parts import outline_file, split
from dropforge_core.dataset.reading.shapes import line_of
from dropforge_core.dataset.rows.decoding import RowBroken, decode_row
from dropforge_core.dataset.validation import examine
from dropforge_core.recipe import Recipe

CORPUS = Path(__file__).parent / "corpus"
RECIPE = Recipe.model_validate(
    {"base_model": "org/name", "dataset": {"min_rows": 1}, "training": {"max_seq_len": 131_072}}
)


class Held(NamedTuple):
    """What a file holds; its rows by their digest, for there may be millions in a file of a few KiB."""

    rows: int
    digest: str
    """Of all lines and rows."""
    faults: list[tuple[int | None, str]]
    """Line and code."""


def read(body, name, chunk=1 << 20, each=None):
    """What a file holds; every row is told to `each`."""
    file = in_memory(body, name, chunk)
    outline = outline_file(file)
    faults, rows, last = [], 0, 0
    digest, bodies = hashlib.sha256(), hashlib.sha256()
    if outline.fault is not None:
        return Held(0, "", [(outline.line, outline.fault.code)])
    for part in split([outline], len(body) + 1):
        reader = PartReader(file, outline, part, lambda line, fault: faults.append((line, fault.code)))
        for block in reader:
            assert len(block.lines) == len(block.rows)
            own = map(line_of, block.lines)
            lines = np.array([last, *own] if rows else [*own], np.int64)
            assert (np.diff(lines) >= 0).all()
            rows, last = rows + len(block.rows), int(lines[-1])
            digest.update(lines[-len(block.rows) :].tobytes())
            bodies.update(block.text + b"\n")
            for raw in block.rows if each else ():
                each(raw)
        assert not outline.divisible or last <= reader.lines
    assert all(code in CODES for _, code in faults)
    return Held(rows, digest.hexdigest() + bodies.hexdigest(), faults)


def any_pieces(data, name, each=None):
    """What a file holds, which must not depend on the pieces in which it comes."""
    whole = read(data, name, each=each)
    assert read(data, name, 3 + len(data) // 7) == whole
    return whole


def decode(data):
    """A row is an object that the standard library reads as the same, or has a fault."""
    faults = []
    try:
        row = decode_row(data, faults)
    except RowBroken as broken:
        assert broken.fault.code in CODES
        assert broken.fault.code != "JSON_INVALID" or not reads(data)
        return
    assert faults or json.loads(data) == row


def lines(data):
    """A file gives rows or faults, unless it is an array of nothing."""
    held = any_pieces(data, "train.jsonl")
    assert held.rows or held.faults or json.loads(data) == []


def array(data):
    """An array of objects that the standard library reads gives its elements, and no fault."""
    found = []
    held = any_pieces(data, "train.json", lambda raw: found.append(bytes(raw)))
    value = json.loads(data) if reads(data) else None
    if type(value) is list and value and all(type(one) is dict for one in value):
        assert held.faults in ([], [(1, "BOM")])
        assert [json.loads(raw) for raw in found] == value


def csv(data):
    """Every row is an object with the fields of the header."""
    any_pieces(data, "train.csv", is_object)


def parquet(data):
    """Every row is an object, or the file has a fault."""
    held = read(data, "train.parquet", each=is_object)
    assert held.rows or held.faults


def is_object(raw):
    """Checks that a row is one."""
    assert type(json.loads(raw)) is dict


_RESERVED = re.compile(rb"\x1f\x8b\x08[\x20-\xff]")
"""A gzip header with flags that RFC 1952 reserves: zlib refuses it, Python's own module does not look."""


def compression(data):
    """What gzip unpacks is read as it would be unpacked."""
    packed = any_pieces(data, "train.jsonl")
    # What was compressed twice is refused, whatever is in it.
    if data[:2] == b"\x1f\x8b" and packed.faults != [(None, "FILE_KIND")] and not _RESERVED.search(data):
        try:
            plain = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            return
        assert packed == read(plain, "train.jsonl")


NAMES = ("a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.csv.zst")


def whole(data):
    """Every file ends in a report, valid or with an error, whatever its name says that it is."""
    name = NAMES[data[0] % len(NAMES)] if data else NAMES[0]
    report = examine([in_memory(data[1:], name)], RECIPE).report
    assert report.valid == (report.error_count == 0)
    assert report.valid == (not report.errors)
    for problem in (*report.errors, *report.warnings):
        assert list(problem.lines) == sorted(problem.lines)
        assert problem.code in CODES


TARGETS = {one.__name__: one for one in (decode, lines, array, csv, parquet, compression, whole)}

_SUFFIXES = {
    "decode": (".jsonl",),
    "lines": (".jsonl",),
    "array": (".json",),
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet",),
    "compression": (".gz", ".zst"),
    "whole": ("",),
}
"""Which of the nasty files each target begins from."""


def reads(data):
    """Whether the standard library reads it, strictly, as UTF-8."""

    def refuse(_):
        raise ValueError("no JSON")

    def number(text):
        if math.isinf(value := float(text)):
            raise ValueError("out of range")
        return value

    try:
        json.loads(data.decode(), parse_constant=refuse, parse_float=number)
    except (ValueError, RecursionError):
        return False
    return True


def seeds(target):
    """Bytes to begin from."""
    paths = [path for path in sorted(CORPUS.rglob("*")) if path.is_file()]
    bodies = [path.read_bytes() for path in paths if path.name.endswith(_SUFFIXES[target])]
    bodies = [body for body in bodies if len(body) < 20_000]
    if target == "decode":
        return [line for body in bodies for line in body.split(b"\n") if line]
    return [b"\0" + body for body in bodies] if target == "whole" else bodies
