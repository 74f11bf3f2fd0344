"""Rows and line numbers, whatever the pieces in which the bytes come."""

import gzip
import json

import pytest
import zstandard
from dataset_cases import in_memory
from hypothesis import given
from hypothesis import strategies as st

from dropforge_core.dataset.faults import FileFault
from dropforge_core.dataset.reading.array import ArrayReader
from dropforge_core.dataset.reading.blocks import MAX_ROW_BYTES, PartReader
from dropforge_core.dataset.reading.delimited import MAX_LINE
from dropforge_core.dataset.reading.parts import outline_file, split
from dropforge_core.dataset.reading.shapes import element_of, line_of

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
objects = st.lists(st.dictionaries(st.text(max_size=6), json_values, max_size=4), min_size=1, max_size=6)
pieces = st.integers(1, 40)


def blocks_of(file, report):
    """All of a file, and what keeps it from being read."""
    outline = outline_file(file)
    if outline.fault is not None:
        report(outline.line, outline.fault)
        return []
    (whole,) = split([outline], 1 << 40)
    return PartReader(file, outline, whole, report)


def rows_of(file):
    faults = []
    rows = [
        (line_of(line), raw)
        for block in blocks_of(file, lambda line, fault: faults.append((line, fault.code)))
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


@st.composite
def damaged_arrays(draw):
    """Arrays of chat rows and of anything, some with a few bytes put in, taken out or changed."""
    row = st.builds(lambda text: {"messages": [{"role": "user", "content": text}]}, st.text(max_size=6))
    values = draw(st.lists(row | st.just({"messages": "}, {"}) | json_values, max_size=8))
    form = draw(st.sampled_from([{}, {"indent": 1}, {"indent": 2}, {"separators": (",", ":")}]))
    body = bytearray(json.dumps(values, **form).encode())
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(body) - 1))
        body[at : at + draw(st.integers(0, 1))] = draw(st.sampled_from([*'{}[],"\\ \n', ""])).encode()
    return b"[" + bytes(body[1:])


@given(damaged_arrays())
def test_a_guess_changes_nothing(body):
    """Rows, lines and faults of an array are those that counting every bracket gives, in whatever pieces it comes."""
    slow = ArrayReader([body], lambda *_: None)
    slow._guess = lambda _separator: (False, False)
    expected = elements(slow)
    for chunk in (1, 3, 40, 1000):
        pieces = [body[at : at + chunk] for at in range(0, len(body), chunk)]
        assert elements(ArrayReader(pieces, lambda *_: None)) == expected


def elements(reader):
    rows = []
    try:
        for block in reader:
            assert block.text == b"\n".join(block.rows)
            numbers = map(element_of, block.lines)
            rows += zip(map(line_of, block.lines), numbers, block.rows, strict=True)
    except FileFault as fault:
        return rows, fault.line, fault.fault
    return rows, None, None


def test_elements_that_share_a_line_are_numbered():
    """Where a line does not tell which element is meant its number does, in whatever pieces the array comes."""
    body = b'[{"a": 1},\n{"b": 2}, {"c":\n3}, {"d": 4}, {"e": 5}\n, {"f": 6}]'
    places = [(1, None), (2, 1), (2, 2), (3, 3), (3, 4), (4, None)]
    for chunk in range(1, len(body) + 1):
        pieces = [body[at : at + chunk] for at in range(0, len(body), chunk)]
        rows, _, _ = elements(ArrayReader(pieces, lambda *_: None))
        assert [(line, number) for line, number, _ in rows] == places


@pytest.mark.parametrize(
    "bad", [b'{"text": NaN}', b'{"text": "b" "c"}', b"{'text': 'b'}", b"[" * 5000 + b"]" * 5000]
)
def test_one_bad_element_costs_only_itself(bad):
    """An element that is no JSON comes as it is, in its place, with all around it."""
    good = [b'{"text": "%d"}' % number for number in range(3000)]
    both = [*good[:1000], bad, *good[1000:2000], bad, *good[2000:]]
    rows, faults = rows_of(in_memory(b"[\n" + b",\n".join(both) + b"\n]\n", "train.json"))
    assert faults == []
    assert rows == list(enumerate(both, 2))


@pytest.mark.parametrize("chunk", [10_000, 1 << 20, 1 << 24])
def test_an_endless_element_is_passed_over(chunk):
    """An element that is too long, also one that is mostly one string, is one problem, and the rows behind it are read."""
    long = b'{"text": "' + b'x\\"' * MAX_ROW_BYTES + b'"}'
    body = b'[{"text": "a"},\n\n' + long + b',\n{"text": "b"},\n{"text": "c"}, ' + long + b"]"
    rows, faults = rows_of(in_memory(body, "train.json", chunk))
    assert faults == [(3, "LINE_TOO_LONG"), (5, "LINE_TOO_LONG")]
    assert [line for line, _ in rows] == [1, 4, 5]


def test_rows_before_a_break_are_read():
    """What can be read of a broken array is read, however it comes; the fault has the line where it lies."""
    body = b'[{"text": "a"},\n{"text": "b"},\n,{"text": "c"}]'
    for chunk in (1, 1000):
        rows, faults = rows_of(in_memory(body, "train.json", chunk))
        assert [line for line, _ in rows] == [1, 2]
        assert faults == [(3, "ARRAY_BROKEN")]


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
    assert [tuple(json.loads(raw).values()) for _, raw in rows] == pairs
    assert [line for line, _ in rows] == starts


@pytest.mark.parametrize(
    ("cell", "read"),
    [
        ('{"ask": 1}', '{"ask": 1}'),
        ("[1, 2]", "[1, 2]"),
        ("[]", "[]"),
        ("[sic]", "[sic]"),
        ('[{"role": "user", "content": "a"}]', [{"role": "user", "content": "a"}]),
    ],
)
def test_a_prompt_in_csv_is_text_unless_it_is_a_conversation(cell, read):
    """JSON that a prompt asks about stays text; only a list of messages is read as one."""
    quoted = cell.replace('"', '""')
    rows, faults = rows_of(in_memory(f'prompt,completion\n"{quoted}",b\n'.encode(), "train.csv"))
    assert faults == []
    assert [json.loads(raw) for _, raw in rows] == [{"prompt": read, "completion": "b"}]


@given(
    st.lists(
        st.sampled_from([b'"', b"\n", b",", b"a", b"\xff", b"b,c\n", b'"d""e\n",f\n', b"\r\n"]), max_size=12
    )
)
def test_csv_does_not_depend_on_its_pieces(parts):
    """Rows, lines and faults of a table are the same however its bytes come."""
    body = b"prompt,completion\n" + b"".join(parts)
    assert rows_of(in_memory(body, "t.csv", 1)) == rows_of(in_memory(body, "t.csv", 1000))


def test_a_line_of_csv_without_end_ends_the_reading():
    """What can't be a row is told with its line, and the rows before it are read."""
    body = b"text\na\n" + b"x" * (MAX_LINE + 1) + b"\nb\n"
    for chunk in (100_000, 1 << 30):
        rows, faults = rows_of(in_memory(body, "t.csv", chunk))
        assert [line for line, _ in rows] == [2]
        assert faults == [(3, "LINE_TOO_LONG")]


@pytest.mark.parametrize("name", ["train.jsonl.gz", "train.jsonl.zst", "train.jsonl"])
@pytest.mark.parametrize("chunk", [1, 7, 1000, 1 << 20])
def test_compression_changes_neither_rows_nor_lines(name, chunk):
    """Compressed files, also of several members, read as the text that they hold."""
    body = b"".join(b'{"text":"%d"}\n' % number for number in range(500))
    half = len(body) // 2
    packed = {
        "train.jsonl": body,
        "train.jsonl.gz": gzip.compress(body[:half], mtime=0) + gzip.compress(body[half:], mtime=0),
        "train.jsonl.zst": zstandard.compress(body[:half]) + zstandard.compress(body[half:]),
    }[name]
    rows, faults = rows_of(in_memory(packed, name, chunk))
    assert faults == []
    assert b"\n".join(raw for _, raw in rows) == body.rstrip()
    assert [line for line, _ in rows] == list(range(1, 501))


SKIPPABLE = b"\x5a\x2a\x4d\x18" + (3000).to_bytes(4, "little") + bytes(3000)


@pytest.mark.parametrize("chunk", [1, 1000])
@pytest.mark.parametrize(
    "packed",
    [
        SKIPPABLE + zstandard.compress(b"{}\n"),
        zstandard.compress(b"{") + SKIPPABLE + zstandard.compress(b"}\n") + SKIPPABLE,
        gzip.compress(b"{}\n", mtime=0) + bytes(512),
        gzip.compress(b"{", mtime=0) + bytes(3) + gzip.compress(b"}\n", mtime=0),
    ],
)
def test_what_is_no_text_in_a_compressed_file_is_passed_over(packed, chunk):
    """Skippable frames of zstd and zero padding of gzip are part of no row."""
    rows, faults = rows_of(in_memory(packed, "train.jsonl", chunk))
    assert rows == [(1, b"{}")]
    assert faults == []


def long_window():
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    engine = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return engine.compress(b"{}\n") + engine.flush()


@pytest.mark.parametrize(
    ("packed", "found"),
    [
        (zstandard.compress(b"{}\n") + b"{}\n", "broken"),
        (zstandard.compress(b"{}\n") + SKIPPABLE[:20], "too early"),
        (long_window(), "128 MiB"),
        (gzip.compress(b"{}\n", mtime=0) + b"{}\n", "behind the end"),
        (gzip.compress(b"{}\n", mtime=0) + gzip.compress(b"{}\n", mtime=0)[:-3], "too early"),
        (gzip.compress(b"{}\n", mtime=0)[:-8] + bytes(8), "broken"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 1000])
def test_a_compressed_file_that_is_not_whole_is_told(packed, found, chunk):
    """What lies behind, misses or does not match is one problem of the file, beside the rows before it."""
    faults = []
    list(blocks_of(in_memory(packed, "train.jsonl", chunk), lambda _line, fault: faults.append(fault)))
    assert [fault.code for fault in faults] == ["COMPRESSION_BROKEN"]
    assert found in faults[0].found


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
