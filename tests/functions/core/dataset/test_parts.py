"""However a file is divided, its parts together are the file."""

import gzip
import pickle
import random
from itertools import pairwise

import msgspec
import pytest
from dataset_cases import in_memory
from hypothesis import example, given
from hypothesis import strategies as st

from dropforge_core.dataset.reading import lines, shapes
from dropforge_core.dataset.reading.blocks import MAX_ROW_BYTES, PartReader
from dropforge_core.dataset.reading.parts import BOM, FileOutline, Part, outline_file, split
from dropforge_core.dataset.reading.source import SourceFile, local_file

SMALL_ROW = 12
"""Stands for `MAX_ROW_BYTES` where lines of a few bytes are to be too long."""
mostly_lines = st.lists(
    st.sampled_from([b"{", b"}", b"a", b"\n", b"\n", b"\r\n", b" ", BOM, b"0123456789abc", b"\xff"]),
    max_size=24,
).map(b"".join)


def read(file, outline, part):
    """Rows and faults with the part's own lines, and how many lines and bytes it has."""
    faults = []
    reader = PartReader(file, outline, part, lambda line, fault: faults.append((line, fault.code)))
    rows = []
    for block in reader:
        assert block.text == b"\n".join(block.rows)
        rows += zip(block.lines, block.rows, strict=True)
    return rows, faults, reader.lines, reader.bytes


def put_together(file, outline, parts):
    rows, faults, before, size = [], [], 0, 0
    for part in parts:
        more, wrong, count, length = read(file, outline, part)
        rows += [(before + line, row) for line, row in more]
        faults += [(before + line, code) for line, code in wrong]
        before += count
        size += length
    return rows, faults, before, size


def as_lines_of(body):
    """What the file is by definition: its physical lines, the long ones faults."""
    faults = [(1, "BOM")] if body.startswith(BOM) else []
    text = body.removeprefix(BOM)
    physical = text.split(b"\n")
    if physical[-1] == b"":
        physical.pop()
    rows = [(n, row) for n, row in enumerate(physical, 1) if len(row) <= SMALL_ROW]
    return rows, faults + [(n, "LINE_TOO_LONG") for n, row in enumerate(physical, 1) if len(row) > SMALL_ROW]


@given(mostly_lines | st.binary(max_size=60), st.lists(st.integers(1, 100), max_size=12), st.integers(1, 30))
@example(BOM + b'{"a":1}\n', [1, 1, 1, 1], 2)
@example(b"0123456789abcdefghij\nb\n", [1] * 30, 3)
def test_any_division_of_json_lines_gives_the_same_rows_lines_and_faults(body, cuts, chunk):
    """Rows, their line numbers by prefix sum, faults and bytes are those of the file, wherever it is cut."""
    body = b"x" + body
    outline = FileOutline("t.jsonl", len(body), "train", "lines", divisible=True, units=len(body))
    places = sorted({0, len(body), *(sum(cuts[:n]) % len(body) for n in range(len(cuts)))})
    parts = [Part(n, 0, *ends) for n, ends in enumerate(pairwise(places))]
    for text in (body, body[1:] + b"x"):
        rows, faults = as_lines_of(text)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lines, "MAX_ROW_BYTES", SMALL_ROW)
            patch.setattr(shapes, "MAX_ROW_BYTES", SMALL_ROW)
            found = put_together(in_memory(text, chunk=chunk), outline, parts)
        count = text.removeprefix(BOM).count(b"\n") + (not text.endswith(b"\n") and text != BOM)
        assert found == (rows, faults, count, len(text))


@pytest.mark.parametrize("part_bytes", [1 << 18, 1 << 20, 1 << 22, 1 << 30])
def test_a_line_over_many_parts_is_told_once(part_bytes):
    """A line that is too long is told by the part in which it begins; parts inside it have no line."""
    body = b'{"text":"a"}\n' + b"x" * (3 * MAX_ROW_BYTES) + b'\n{"text":"b"}\n' + b"y" * MAX_ROW_BYTES
    file = in_memory(body, chunk=1 << 16)
    outline = outline_file(file)
    parts = split([outline], part_bytes)
    assert len(parts) == -(-len(body) // part_bytes)
    rows, faults, count, size = put_together(file, outline, parts)
    assert [line for line, _ in rows] == [1, 3, 4]
    assert faults == [(2, "LINE_TOO_LONG")]
    assert (count, size) == (4, len(body))


def test_a_row_is_as_long_as_it_may_be_and_no_longer():
    """The limit is of the row without its line break, wherever chunks end."""
    body = b"x" * MAX_ROW_BYTES + b"\n" + b"y" * (MAX_ROW_BYTES + 1) + b"\n" + b"z" * MAX_ROW_BYTES
    for chunk in (100_000, 1 << 20, 1 << 26):
        file = in_memory(body, chunk=chunk)
        rows, faults, _, _ = put_together(file, outline_file(file), split([outline_file(file)], 1 << 30))
        assert [(line, len(row)) for line, row in rows] == [(1, MAX_ROW_BYTES), (3, MAX_ROW_BYTES)]
        assert faults == [(2, "LINE_TOO_LONG")]


def test_blocks_stay_small_whatever_the_source_gives():
    """A source that gives all at once does not make one block of it."""
    body = b'{"text":"a"}\n' * (1 << 20)
    file = in_memory(body, chunk=1 << 30)
    blocks = list(PartReader(file, outline_file(file), Part(0, 0, 0, len(body)), lambda *_: None))
    assert max(len(block.text) for block in blocks) <= 3 << 20
    assert sum(len(block.rows) for block in blocks) == 1 << 20


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.booleans(), st.booleans()), max_size=6), st.integers(1, 6000)
)
def test_parts_cover_every_file_that_can_be_read(sizes, part_bytes):
    """Parts are numbered in order, follow one another without gap, and leave out files with a fault only."""
    files = [
        outline_file(in_memory(b"" if broken else b"a" * size, name="t.jsonl" if divisible else "t.csv"))
        for size, divisible, broken in sizes
    ]
    parts = split(files, part_bytes)
    assert [part.index for part in parts] == list(range(len(parts)))
    for index, file in enumerate(files):
        own = [(part.start, part.end) for part in parts if part.file == index]
        if file.fault:
            assert not own
            continue
        assert own[0][0] == 0
        assert own[-1][1] == file.units
        assert all(a[1] == b[0] for a, b in pairwise(own))
        assert file.divisible or len(own) == 1
        assert all(0 < end - start <= part_bytes for start, end in own) or not file.divisible


def test_a_part_has_at_least_one_byte():
    """A part of nothing would never end."""
    with pytest.raises(ValueError, match="at least one byte"):
        split([], 0)


HEADS = {
    "lines.jsonl": (b'{"text":"a"}\n', ("lines", True, None, None)),
    "lines.json": (b'\n {"text":"a"}\n{"text":"b"}', ("lines", True, None, None)),
    "one-object.json": (b'{"text":"a"}', ("lines", True, None, None)),
    "array.json": (b' \n[{"text":"a"}]', ("array", False, None, None)),
    "array.jsonl": (b'[{"text":"a"}]\n \n', ("array", False, None, None)),
    "array-over-lines.jsonl": (b'[\n{"text":"a"}\n]', ("array", False, None, None)),
    "stray-array.jsonl": (b'[{"text":"a"}]\n{"text":"b"}', ("lines", True, None, None)),
    "packed.jsonl": (gzip.compress(b'{"text":"a"}\n', mtime=0), ("lines", False, None, None)),
    "packed.json.gz": (gzip.compress(BOM + b"[1]", mtime=0), ("array", False, None, None)),
    "table.csv": (b"text\na\n", ("csv", False, None, None)),
    "table.tsv": (b"text\na\n", ("tsv", False, None, None)),
    "much-white.jsonl": (b" \n" * (3 * MAX_ROW_BYTES) + b"{}", ("lines", True, None, None)),
    "empty.jsonl": (b"", (None, False, "FILE_EMPTY", None)),
    "empty.csv": (b"", (None, False, "FILE_EMPTY", None)),
    "empty.json.gz": (gzip.compress(b"", mtime=0), (None, False, "FILE_EMPTY", None)),
    "white.jsonl": (BOM + b" \r\n\t ", (None, False, "FILE_EMPTY", None)),
    "over-lines.json": (b'{\n"text":"a"}', (None, False, "ARRAY_BROKEN", 1)),
    "utf16.jsonl": ("{}".encode("utf-16"), (None, False, "ENCODING_UTF16", 1)),
    "utf16.csv.gz": (gzip.compress("text".encode("utf-16"), mtime=0), (None, False, "ENCODING_UTF16", 1)),
    "not-packed.jsonl.gz": (b'{"text":"a"}\n', (None, False, "COMPRESSION_BROKEN", None)),
    "notes.txt": (b'{"text":"a"}\n', (None, False, "FILE_KIND", None)),
    "nosuffix": (b'{"text":"a"}\n', (None, False, "FILE_KIND", None)),
    "archive.jsonl": (b"PK\x03\x04....", (None, False, "FILE_KIND", None)),
}


@pytest.mark.parametrize("name", sorted(HEADS))
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_the_beginning_tells_how_a_file_is_read(name, chunk):
    """Suffix and first bytes decide, the same way however the stream is cut; a fault is told instead."""
    body, expected = HEADS[name]
    if chunk == 1 and len(body) > 1000:
        chunk = 1000
    outline = outline_file(in_memory(body, name, chunk))
    code = outline.fault.code if outline.fault else None
    assert (outline.reading, outline.divisible, code, outline.line) == expected
    assert (outline.name, outline.size) == (name, len(body))


@pytest.mark.parametrize("name", sorted(HEADS))
def test_outlines_and_parts_travel_as_json(name):
    """What one process found out, another one works by."""
    outline = outline_file(in_memory(HEADS[name][0], name))
    parts = split([outline], 3)
    assert msgspec.json.decode(msgspec.json.encode(outline), type=FileOutline) == outline
    assert msgspec.json.decode(msgspec.json.encode(parts), type=tuple[Part, ...]) == parts


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.csv"])
def test_a_stream_is_closed_where_reading_stops(name, packed):
    """A reader that stops early leaves no stream open; neither does one that only looks at the beginning."""
    noise = random.Random(1).randbytes(500_000).hex().encode()
    rows = [noise[at : at + 500] for at in range(0, len(noise), 500)] * 4
    body = b'[{"text":"' + b'"},\n{"text":"'.join(rows) if name == "t.json" else b"text\n" + b"\n".join(rows)
    body = gzip.compress(body, mtime=0) if packed else body
    open_streams = []

    def chunks(start):
        open_streams.append(start)
        try:
            for at in range(start, len(body), 1000):
                yield body[at : at + 1000]
        finally:
            open_streams.remove(start)

    file = SourceFile(name, chunks, len(body))
    outline = outline_file(file)
    assert open_streams == []
    blocks = iter(PartReader(file, outline, Part(0, 0, 0, outline.units), lambda *_: None))
    next(blocks)
    assert open_streams == [0]
    blocks.close()
    assert open_streams == []


def test_a_size_that_is_told_too_small_costs_no_rows():
    """The last part reads to the end of the stream."""
    file = SourceFile("t.jsonl", lambda start: [b'{"text":"a"}\n'[start:], b'{"text":"b"}\n'], 5)
    outline = outline_file(file)
    rows, _, _, size = put_together(file, outline, split([outline], 100))
    assert len(rows) == 2
    assert size == 26


def test_local_files_travel_between_processes(tmp_path):
    """A file of this machine can be handed to another process, and is read from any offset."""
    path = tmp_path / "eval.jsonl"
    path.write_bytes(b"0123456789")
    file = pickle.loads(pickle.dumps(local_file(path, only=True)))
    assert b"".join(file.open(4)) == b"456789"
    assert b"".join(file.open(40)) == b""
    assert (file.name, file.size, file.side) == ("eval.jsonl", 10, "train")
    assert local_file(path).side == "eval"
