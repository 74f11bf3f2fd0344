"""Rows and line numbers, whatever the pieces in which the bytes come."""

import gzip
import json

import pytest
import zstandard
from dataset_cases import in_memory
from hypothesis import given
from hypothesis import strategies as st

from dropforge_core.dataset.reading.blocks import MAX_ROW_BYTES, read_blocks

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
objects = st.lists(st.dictionaries(st.text(max_size=6), json_values, max_size=4), min_size=1, max_size=6)
pieces = st.integers(1, 40)


def rows_of(file):
    faults = []
    rows = [
        (line, raw)
        for block in read_blocks(file, lambda line, fault: faults.append((line, fault.code)))
        for line, raw in zip(block.lines, block.rows, strict=True)
    ]
    return rows, faults


@given(objects, st.sampled_from([None, 1]), st.booleans(), pieces)
def test_an_array_gives_its_elements_with_their_lines(values, indent, ascii_only, chunk):
    """However an array is laid out and cut into pieces, each element comes whole, from its own line."""
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    rows, faults = rows_of(in_memory(text.encode("utf-8", "surrogatepass"), "train.json", chunk))
    assert faults == []
    assert [json.loads(raw) for _, raw in rows] == values
    starts = [line for line, body in enumerate(text.split("\n"), 1) if body.startswith(" {")]
    assert [line for line, _ in rows] == (starts if indent else [1] * len(values))


@given(st.lists(st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b"")), max_size=12), pieces)
def test_lines_are_those_of_the_file(lines, chunk):
    """Lines and their numbers do not depend on how the stream is cut."""
    body = b'{"text":"first"}\n' + b"\n".join(lines)
    rows, _ = rows_of(in_memory(body, "train.jsonl", chunk))
    assert rows == [
        (number, raw) for number, raw in enumerate(body.removesuffix(b"\n").split(b"\n"), 1)
    ] or body.endswith(b"\n")
    assert [raw for _, raw in rows if raw] == [raw for raw in body.split(b"\n") if raw]


@given(
    st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), min_size=1, max_size=8),
    st.sampled_from([",", ";", "\t"]),
    pieces,
)
def test_csv_fields_come_as_written(pairs, separator, chunk):
    """Quoted separators, quotes and line breaks survive, and a row's line is where it begins."""
    pairs = [(a.replace("\0", ""), b.replace("\0", "")) for a, b in pairs]
    quoted = [[f'"{value.replace(chr(34), chr(34) * 2)}"' for value in pair] for pair in pairs]
    text = separator.join(["prompt", "completion"]) + "\n"
    starts = []
    for pair in quoted:
        starts.append(text.count("\n") + 1)
        text += separator.join(pair) + "\n"
    body = text.encode("utf-8", "replace")
    pairs = [tuple(value.encode("utf-8", "replace").decode() for value in pair) for pair in pairs]
    rows, faults = rows_of(in_memory(body, "train.csv", chunk))
    assert faults == []
    assert [tuple(json.loads(raw).values()) for _, raw in rows] == [
        tuple(
            json.loads(v) if v[:1] in ("[", "{") and is_json(v) and i == 0 else v for i, v in enumerate(pair)
        )
        for pair in pairs
    ]
    assert [line for line, _ in rows] == starts


def is_json(text):
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", ["train.jsonl.gz", "train.jsonl.zst", "train.jsonl"])
@pytest.mark.parametrize("chunk", [1, 7, 1000, 1 << 20])
def test_compression_changes_neither_rows_nor_lines(name, chunk):
    """Compressed files, also of several members, read as the text that they hold."""
    body = b"".join(b'{"text":"%d"}\n' % number for number in range(500))
    half = len(body) // 2
    packed = {
        "train.jsonl": body,
        "train.jsonl.gz": gzip.compress(body[:half]) + gzip.compress(body[half:]),
        "train.jsonl.zst": zstandard.compress(body[:half]) + zstandard.compress(body[half:]),
    }[name]
    rows, faults = rows_of(in_memory(packed, name, chunk))
    assert faults == []
    assert b"\n".join(raw for _, raw in rows) == body.rstrip()
    assert [line for line, _ in rows] == list(range(1, 501))


def test_an_endless_line_is_passed_over_without_being_held():
    """A line of any length is one problem at its own line, and the rows behind it are read."""
    body = b'{"text":"a"}\n' + b"x" * (3 * MAX_ROW_BYTES) + b'\n{"text":"b"}\n'
    rows, faults = rows_of(in_memory(body, chunk=1 << 16))
    assert faults == [(2, "LINE_TOO_LONG")]
    assert [line for line, raw in rows if raw] == [1, 3]


@given(
    st.binary(max_size=200),
    st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.jsonl.gz", "a.json.zst"]),
    pieces,
)
def test_no_bytes_crash_a_reader(body, name, chunk):
    """Whatever is uploaded, reading it ends, with rows or with problems."""
    rows, faults = rows_of(in_memory(body, name, chunk))
    assert rows or faults
