"""Parquet gives the rows that were written, whatever wrote it, however it is divided, and never more than memory holds."""

import datetime as dt
import decimal
import gzip
import io
import json
from itertools import pairwise

import pyarrow as pa
import pytest
from dataset_cases import in_memory
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet as pq

from dropforge_core.dataset.faults import Fault, FileFault
from dropforge_core.dataset.reading import parquet
from dropforge_core.dataset.reading.blocks import MAX_ROW_BYTES, PartReader
from dropforge_core.dataset.reading.parquet import ParquetReader
from dropforge_core.dataset.reading.parts import Part, outline_file, split
from dropforge_core.dataset.reading.source import SourceFile


def written(table, **options):
    body = io.BytesIO()
    pq.write_table(table if isinstance(table, pa.Table) else pa.Table.from_pylist(table), body, **options)
    return body.getvalue()


def read(body, parts=None, chunk=1 << 20, name="train.parquet"):
    """Rows as parsed JSON with their numbers, faults, rows counted, bytes; of the whole file or of parts put together."""
    file = in_memory(body, name, chunk)
    outline = outline_file(file)
    assert outline.fault is None, outline.fault
    assert (outline.reading, outline.divisible) == ("parquet", True)
    rows, faults, before, size = [], [], 0, 0
    for part in parts or [Part(0, 0, 0, outline.units)]:
        wrong = []
        reader = PartReader(file, outline, part, lambda line, fault, wrong=wrong: wrong.append((line, fault)))
        for block in reader:
            assert block.text == b"\n".join(block.rows)
            assert size + reader.bytes <= len(body)
            rows += [
                (before + line, json.loads(row)) for line, row in zip(block.lines, block.rows, strict=True)
            ]
        faults += [(before + line, fault) for line, fault in wrong]
        before += reader.lines
        size += reader.bytes
    return rows, faults, before, size


def fault_of(body, name="train.parquet"):
    fault = outline_file(in_memory(body, name)).fault
    assert fault is not None
    return fault


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
maybe = st.none() | texts
messages = st.lists(
    st.fixed_dictionaries({"role": texts, "content": maybe, "weight": st.none() | st.integers(0, 1)}),
    max_size=3,
)
chat_rows = st.lists(
    st.fixed_dictionaries(
        {
            "messages": st.none() | messages,
            "meta": st.none() | st.fixed_dictionaries({"source": maybe, "tags": st.lists(maybe, max_size=2)}),
            "score": st.none() | st.floats(allow_nan=False, allow_infinity=False),
            'odd "name"': maybe,
        }
    ),
    min_size=1,
    max_size=12,
)
SCHEMA = pa.schema(
    [
        (
            "messages",
            pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("weight", pa.int8())])),
        ),
        ("meta", pa.struct([("source", pa.string()), ("tags", pa.list_(pa.string()))])),
        ("score", pa.float64()),
        ('odd "name"', pa.string()),
    ]
)


def as_read(row):
    """What a row is by the rules: nulls in the row and in messages are fields that are not there."""
    row = {name: value for name, value in row.items() if value is not None}
    if "messages" in row:
        row["messages"] = [{k: v for k, v in m.items() if v is not None} for m in row["messages"]]
    return row


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    chat_rows,
    st.sampled_from(["snappy", "zstd", "gzip", "brotli", "lz4", "none"]),
    st.integers(1, 5),
    st.booleans(),
    st.sampled_from(["1.0", "2.0"]),
    st.lists(st.integers(0, 11), max_size=4),
    st.sampled_from([13, 1 << 25]),
    st.sampled_from([7, 1 << 20]),
)
def test_rows_come_as_they_were_written(  # noqa: PLR0917  # what a table can vary in
    rows, codec, group, dictionary, pages, cuts, stretch, chunk
):
    """Rows, numbers, count and bytes are those of the table, whatever its codec, pages, row groups, parts and pieces."""
    body = written(
        pa.Table.from_pylist(rows, SCHEMA),
        compression=codec,
        row_group_size=group,
        use_dictionary=dictionary,
        data_page_version=pages,
        data_page_size=100,
    )
    groups = -(-len(rows) // group)
    places = sorted({0, groups, *(cut % groups for cut in cuts)})
    parts = [Part(n, 0, *ends) for n, ends in enumerate(pairwise(places))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "_STRETCH_BYTES", stretch)
        found = read(body, parts, chunk)
    assert found == (list(enumerate(map(as_read, rows), 1)), [], len(rows), len(body))


def test_a_large_row_group_is_read_in_stretches():
    """A row group that is not fetched as a whole is fetched in few streams, and nearly every byte once."""
    rows = [{"prompt": f"{n} " * 200, "completion": f"{n * n} " * 100} for n in range(60_000)]
    body = written(rows, compression="none", use_dictionary=False)
    assert len(body) > 50_000_000
    opened, given_out = [], []

    def chunks(start):
        opened.append(start)
        for at in range(start, len(body), 1 << 20):
            given_out.append(len(body[at : at + (1 << 20)]))
            yield body[at : at + (1 << 20)]

    reader = ParquetReader(SourceFile("t.parquet", chunks, len(body)), lambda *_: None, 0, 1)
    count = size = 0
    for block in reader:
        count += len(block.rows)
        size = max(size, len(block.text))
    assert (count, reader.lines, reader.share) == (60_000, 60_000, 1.0)
    assert size < 4 << 20
    assert len(opened) < 25
    assert sum(given_out) < 1.3 * len(body)


def test_json_in_text_columns_is_read_as_in_csv():
    """Text that holds a conversation is one; a prompt that only looks like JSON stays text, and so does a broken cell."""
    talk = '[{"role": "user",\n "content": "a"}]'
    rows = [
        {"messages": talk, "tools": "[]", "meta": '{"a": null}', "note": '{"a": 1}'},
        {"messages": "[broken", "tools": None, "meta": "", "note": None},
    ]
    found, faults, _, _ = read(written(rows))
    assert found == [
        (1, {"messages": json.loads(talk), "tools": [], "meta": {"a": None}, "note": '{"a": 1}'}),
        (2, {"messages": "[broken", "meta": ""}),
    ]
    assert faults == []
    cells = pa.array([talk.encode()], pa.binary())
    for column in (cells, cells.cast(pa.string()).dictionary_encode()):
        found, _, _, _ = read(written(pa.table({"conversations": column})))
        assert found == [(1, {"conversations": json.loads(talk)})]
    found, _, _, _ = read(written([{"prompt": talk, "completion": '{"a": 1}'}]))
    assert found == [(1, {"prompt": json.loads(talk), "completion": '{"a": 1}'})]


def test_a_key_given_twice_in_a_cell_is_still_there():
    """JSON in a cell is taken over as it is written, so that its faults are told where rows are read."""
    body = written([{"messages": '[{"role": "user", "role": "system"}]'}])
    file = in_memory(body, "t.parquet")
    (block,) = PartReader(file, outline_file(file), Part(0, 0, 0, 1), lambda *_: None)
    assert block.rows == [b'{"messages":[{"role": "user", "role": "system"}]}']


UTC = dt.UTC
VALUES = [
    (pa.bool_(), [True, None, False], [True, None, False]),
    (pa.uint64(), [2**64 - 1, None], [2**64 - 1, None]),
    (pa.int8(), [-128], [-128]),
    (pa.float32(), [0.5, None], [0.5, None]),
    (pa.float16(), [1.5, None], [1.5, None]),
    (pa.large_string(), ["é\x00\n", None, ""], ["é\x00\n", None, ""]),
    (pa.binary(), ["é".encode(), None], ["é", None]),
    (pa.large_binary(), [b"a"], ["a"]),
    (pa.binary(2), [b"ab", None], ["ab", None]),
    (pa.binary(16), [bytes(range(16)), None], ["00010203-0405-0607-0809-0a0b0c0d0e0f", None]),
    (pa.decimal128(10, 2), [decimal.Decimal("1.50"), None], ["1.50", None]),
    (pa.date32(), [dt.date(2020, 2, 29), None], ["2020-02-29", None]),
    (pa.time32("ms"), [dt.time(1, 2, 3)], ["01:02:03"]),
    (pa.time64("ns"), [dt.time(1, 2, 3, 4), None], ["01:02:03.000004", None]),
    (pa.timestamp("ns"), [dt.datetime(2020, 1, 1), None], ["2020-01-01T00:00:00", None]),  # noqa: DTZ001
    (pa.timestamp("s"), [dt.datetime(2020, 1, 1)], ["2020-01-01T00:00:00"]),  # noqa: DTZ001
    (
        pa.timestamp("us", "Asia/Kolkata"),
        [dt.datetime(2020, 1, 1, tzinfo=UTC)],
        ["2020-01-01T00:00:00Z"],
    ),
    (pa.duration("ns"), [dt.timedelta(seconds=90), None], ["PT90S", None]),
    (pa.null(), [None, None], [None, None]),
    (pa.dictionary(pa.int8(), pa.string()), ["a", None, "a"], ["a", None, "a"]),
    (pa.list_(pa.int64()), [[1, None], None, []], [[1, None], None, []]),
    (pa.large_list(pa.string()), [["a"], None], [["a"], None]),
    (pa.list_(pa.int64(), 2), [[1, 2], None, [3, 4]], [[1, 2], None, [3, 4]]),
    (pa.list_(pa.list_(pa.string())), [[["a"], None, []], None], [[["a"], None, []], None]),
    (pa.map_(pa.string(), pa.int64()), [{"a": 1, "b": None}, None, {}], [{"a": 1, "b": None}, None, {}]),
    (
        pa.struct([("a", pa.int64()), ("b", pa.list_(pa.date32()))]),
        [{"a": 1}, None],
        [{"a": 1, "b": None}, None],
    ),
]


@pytest.mark.parametrize(("kind", "values", "expected"), VALUES, ids=[str(kind) for kind, _, _ in VALUES])
def test_every_type_has_its_json(kind, values, expected):
    """A value becomes what JSON has for it, at the top, in lists and in structs; nulls stay where they are nested."""
    array = pa.array(values, kind)
    whole = pa.array([None, *[list(values)] * 2], pa.list_(kind))
    inside = pa.array([{"x": value} for value in values], pa.struct([("x", kind)]))
    table = pa.table({"text": ["t"] * len(values), "own": array, "inside": inside})
    found, faults, _, _ = read(written(table))
    assert faults == []
    for (_, row), value in zip(found, expected, strict=True):
        assert row.get("own") == value
        assert row["inside"] == {"x": value}
    found, faults, _, _ = read(written(pa.table({"text": ["t"] * 3, "whole": whole}), row_group_size=2))
    assert faults == []
    assert [row.get("whole") for _, row in found] == [None, expected, expected]


def test_nulls_in_messages_are_fields_that_are_not_there():
    """What Parquet must write into every struct is left out of messages and tools, and kept in meta."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    rows = [
        {
            "messages": [
                {"role": "user", "content": "a", "tool_calls": None},
                {"role": "assistant", "content": None, "tool_calls": [call]},
            ],
            "tools": [{"function": {"name": "f", "parameters": {"a": None, "b": 1}}}],
            "meta": {"source": None},
        },
        {"messages": None, "tools": None, "meta": None},
    ]
    found, _, _, _ = read(written(rows))
    assert found == [
        (
            1,
            {
                "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}],
                "tools": [{"function": {"name": "f", "parameters": {"b": 1}}}],
                "meta": {"source": None},
            },
        ),
        (2, {}),
    ]


def raw_text(values):
    """An array of text with bytes that nobody checked."""
    offsets, at = [0], 0
    for value in values:
        at += len(value)
        offsets.append(at)
    buffers = [None, pa.array(offsets, pa.int32()).buffers()[1], pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(pa.string(), len(values), buffers)


BROKEN_VALUES = {
    "own": pa.array([1.0, float("nan"), None, float("-inf")], pa.float64()),
    "own.x[0]": pa.array([{"x": [1.0]}, {"x": [0.0, float("nan")]}, None, {"x": [float("inf")]}]),
    "text": raw_text([b"a", b"a\xff", b"b", b"\xed\xa0\x80"]),
    "binary": pa.array([b"a", b"\xff\xfe", None, b"\x80"]),
    "far": pa.array([0, 10**9, None, 2**31 - 1], pa.int32()).cast(pa.date32()),
    "late": pa.array([0, 10**18, None, -(10**18)], pa.timestamp("ms")),
    "twice": pa.array(
        [[("a", 1)], [("a", 1), ("a", 2)], None, [("b", 1), ("b", 2)]], pa.map_(pa.string(), pa.int8())
    ),
}


@pytest.mark.parametrize("name", sorted(BROKEN_VALUES))
@pytest.mark.parametrize("group", [1, 3, 100])
def test_a_value_that_is_no_json_costs_its_row_only(name, group):
    """Each such row is told with its number and column and without the value, and all others are read."""
    column = name.partition(".")[0]
    columns = {"text": pa.array(["t"] * 4), column: BROKEN_VALUES[name]}
    found, faults, count, _ = read(written(pa.table(columns), row_group_size=group))
    assert [(line, fault.code, fault.path) for line, fault in faults] == [
        (2, "PARQUET_VALUE", name.removesuffix("[0]")),
        (4, "PARQUET_VALUE", name.removesuffix("[0]")),
    ]
    assert [line for line, _ in found] == [1, 3]
    assert count == 4


def test_a_row_that_is_too_long_is_told():
    """The limit is that of every other format."""
    long = "x" * (MAX_ROW_BYTES - len('{"text":""}'))
    found, faults, _, _ = read(
        written([{"text": long}, {"text": long + "x"}, {"text": "a"}], use_dictionary=False)
    )
    assert [line for line, _ in found] == [1, 3]
    assert [(line, fault.code) for line, fault in faults] == [(2, "LINE_TOO_LONG")]


def test_columns_keep_their_names_and_known_ones_are_recognised():
    """Capital letters do not hide a known column; what pandas adds of its own is left out."""
    table = pa.table({"Prompt": ["a"], "COMPLETION": ["b"], "My.Column": [1], "__index_level_0__": [7]})
    found, _, _, _ = read(written(table))
    assert found == [(1, {"prompt": "a", "completion": "b", "My.Column": 1})]


def same_names(*names):
    return pa.Table.from_arrays([pa.array(["a"])] * len(names), list(names))


REFUSED = {
    "no known column": (same_names("question", "answer"), "PARQUET_COLUMNS", ""),
    "no column": (pa.table({}), "FILE_EMPTY|PARQUET_COLUMNS", ""),
    "one name twice": (same_names("text", "text"), "PARQUET_COLUMNS", "text"),
    "one name but for capitals": (same_names("Text", "text"), "PARQUET_COLUMNS", "text"),
    "one name twice inside": (
        pa.table(
            {
                "text": ["a"],
                "own": pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"]),
            }
        ),
        "PARQUET_COLUMNS",
        "own.x",
    ),
    "a map of numbers": (
        pa.table({"text": ["a"], "own": pa.array([[(1, 1)]], pa.map_(pa.int8(), pa.int8()))}),
        "PARQUET_COLUMNS",
        "own",
    ),
    "no row": (pa.table({"text": pa.array([], pa.string())}), "FILE_EMPTY", ""),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_table_that_is_no_dataset_is_refused(name):
    """The outline tells it, before any row is read."""
    table, codes, path = REFUSED[name]
    fault = fault_of(written(table))
    assert fault.code in codes.split("|")
    assert fault.path == path


WHOLE = written([{"text": f"row {n}"} for n in range(1000)], row_group_size=400)


@pytest.mark.parametrize("size", [4, 8, 11, 12, 100, len(WHOLE) // 2, len(WHOLE) - 1])
def test_a_file_that_was_cut_is_told(size):
    """A Parquet file has its footer at its end; without it nothing can be read."""
    assert fault_of(WHOLE[:size]).code == "PARQUET_BROKEN"


def test_what_only_looks_like_parquet_is_told():
    """Neither a name nor the first bytes are enough, and other wrappings are named."""
    assert fault_of(b"PAR1" + bytes(20) + b"PAR1").code == "PARQUET_BROKEN"
    assert fault_of(b"PAR1" + bytes(20) + b"\xff\xff\xff\x7fPAR1").code == "PARQUET_BROKEN"
    assert fault_of(b'{"text": "a"}\n').code == "PARQUET_BROKEN"
    assert fault_of(b"").code == "FILE_EMPTY"
    assert "encrypted" in fault_of(b"PARE" + bytes(20) + b"PARE").found
    assert fault_of(gzip.compress(WHOLE, mtime=0), "train.parquet.gz").code == "FILE_KIND"
    assert fault_of(WHOLE, "train.xlsx").code == "FILE_KIND"


def test_parquet_is_told_by_its_content():
    """A wrong suffix does not matter, as with compression."""
    found, faults, count, size = read(WHOLE, name="train.jsonl")
    assert found == [(n + 1, {"text": f"row {n}"}) for n in range(1000)]
    assert (faults, count, size) == ([], 1000, len(WHOLE))


def renumbered(body, old, new):
    """The file with a number in its footer replaced, wherever it stands: `i64` in two bytes of Thrift's zigzag."""

    def encoded(number):
        return bytes([number * 2 & 0x7F | 0x80, number * 2 >> 7])

    start = len(body) - 8 - int.from_bytes(body[-8:-4], "little")
    assert encoded(old) in body[start:]
    return body[:start] + body[start:].replace(encoded(old), encoded(new))


@pytest.mark.parametrize("told", [390, 410])
def test_a_footer_that_lies_about_rows_is_told(told):
    """Rows that are missing or too many are a problem of their row group, and of no other."""
    lying = renumbered(renumbered(WHOLE, 400, told), 1000, 200 + 2 * told)
    found, faults, count, size = read(lying)
    assert [fault.code for _, fault in faults] == ["PARQUET_BROKEN"] * 2
    assert found[-200:] == [(2 * told + n - 799, {"text": f"row {n}"}) for n in range(800, 1000)]
    assert (count, size) == (200 + 2 * told, len(WHOLE))


def test_a_footer_that_contradicts_itself_is_refused():
    """The sum of the row groups is the file's rows."""
    assert fault_of(renumbered(WHOLE, 1000, 1001)).code == "PARQUET_BROKEN"


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
@example([(4, 255)])
def test_no_damage_is_passed_over_in_silence_or_crashes(changes):
    """Whatever bytes are changed, reading ends; rows that are missing are told, and it is the same in parts."""
    body = bytearray(WHOLE)
    for at, byte in changes:
        body[at] = byte
    file = in_memory(bytes(body), "t.parquet")
    outline = outline_file(file)
    if outline.reading != "parquet":
        assert outline.fault
        return
    found, faults, count, size = read(bytes(body))
    assert len(found) == count or faults
    parts = split([outline], 1)
    assert len(parts) == outline.units
    assert read(bytes(body), parts) == (found, faults, count, size)


def test_a_broken_row_group_leaves_the_others_readable():
    """Row groups stand for themselves: the rows of all others come, with their numbers."""
    body = bytearray(
        written([{"text": f"row {n}"} for n in range(1000)], row_group_size=400, compression="zstd")
    )
    column = pq.ParquetFile(io.BytesIO(bytes(body))).metadata.row_group(1).column(0)
    start = column.dictionary_page_offset
    body[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    found, faults, count, _ = read(bytes(body))
    assert [(line, fault.code) for line, fault in faults] == [(401, "PARQUET_BROKEN")]
    assert [line for line, _ in found] == [*range(1, 401), *range(801, 1001)]
    assert count == 1000


def constant(rows, size):
    """One long text, written once and referred to."""
    indices = pa.array([0] * rows, pa.int32())
    return pa.table({"text": pa.DictionaryArray.from_arrays(indices, pa.array(["x" * size]))})


BOMBS = {
    "a text for a million rows": lambda: written(constant(1_000_000, 100_000)),
    "pages of one byte": lambda: written(
        pa.table({"text": ["x" * 1_000_000] * 100}), use_dictionary=False, compression="zstd"
    ),
    "a page larger than any": lambda: written(
        pa.table({"text": ["x" * 150_000_000]}), use_dictionary=False, compression="zstd"
    ),
}


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_a_bomb_is_told_before_it_goes_off(name):
    """A file that unpacks to far more than it is, is refused with little memory used."""
    body = BOMBS[name]()
    assert len(body) < 500_000
    faults, size = [], 0
    reader = ParquetReader(in_memory(body, "t.parquet"), lambda *told: faults.append(told), 0, 1)
    for block in reader:
        assert len(block.text) < 20_000_000
        size += len(block.text)
    assert {fault.code for _, fault in faults} <= {"COMPRESSION_RATIO", "PARQUET_BROKEN"}
    assert len(faults) == 1
    assert size < 100_000_000


def test_many_values_in_a_row_are_refused():
    """A list of more values than memory has room for is told from the footer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "MAX_VALUES", 1000)
        _, faults, _, _ = read(written(pa.table({"text": ["a", "b"], "own": [[1] * 1001, []]})))
    assert [(line, fault.code) for line, fault in faults] == [(1, "PARQUET_BROKEN")]


def test_what_a_stream_raises_is_not_blamed_on_the_file():
    """A connection that fails is an error of its own; a file that vanished is told as such."""

    def fails(error):
        def chunks(start):
            if start < len(WHOLE) // 2:
                raise error
            return iter([WHOLE[start:]])

        return SourceFile("t.parquet", chunks, len(WHOLE))

    with pytest.raises(ConnectionError):
        list(ParquetReader(fails(ConnectionError("reset")), lambda *_: None, 0, 1))
    gone = FileFault(Fault("FILE_VANISHED", "", "gone"))
    with pytest.raises(FileFault, match="gone"):
        list(ParquetReader(fails(gone), lambda *_: None, 0, 1))


def test_a_stream_is_closed_after_each_stretch():
    """Nothing stays open between two reads, also where the rows are not read to their end."""
    open_streams = []

    def chunks(start):
        open_streams.append(start)
        try:
            for at in range(start, len(WHOLE), 100):
                yield WHOLE[at : at + 100]
        finally:
            open_streams.remove(start)

    file = SourceFile("t.parquet", chunks, len(WHOLE))
    outline = outline_file(file)
    blocks = iter(PartReader(file, outline, Part(0, 0, 0, 3), lambda *_: None))
    next(blocks)
    assert open_streams == []
    blocks.close()
    assert outline.units == 3
