"""However a dataset is divided, and in whatever order its parts are looked at, the result is that of one pass."""

import gzip
import random

import pytest
import zstandard
from dataset_cases import effort, in_memory
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from planted.containers import Layout, dumps
from planted.datasets import plans, realise
from planted.rows import Seed, good

from dropforge_core.dataset.validation import examine
from dropforge_core.dataset.writing import write
from dropforge_core.recipe import Recipe

WHOLE = 1 << 40
RECIPE = Recipe.model_validate(
    {
        "base_model": "org/name",
        "dataset": {"min_rows": 1},
        "training": {"max_seq_len": 131_072},
        "evaluation": {"min_holdout": 1},
        "gate": {"min_examples": 1},
    }
)


class Rows:
    """Keeps the rows of all shards, side by side."""

    def __init__(self):
        self.of = {"train": [], "eval": []}

    def put(self, side, name, body):
        self.of[side] += body.splitlines()
        return f"{side}/{name}"


def everything(files, recipe, part_bytes, order=None, tokenizer=None):
    """All that a dataset's examination and its writing give, but how the rows were put into shards."""

    def each(survey, parts):
        turns = list(parts)
        if order is not None:
            random.Random(order).shuffle(turns)
        return [survey(part) for part in turns]

    examined = examine(files, recipe, tokenizer=tokenizer, part_bytes=part_bytes, each=each)
    sink = Rows()
    if examined.facts:
        write(examined, files, sink)
    return (
        examined.report.model_dump(mode="json"),
        examined.facts and examined.facts.model_dump(mode="json"),
        bytes(examined.cut.sides),
        sink.of,
    )


orders = st.one_of(st.none(), st.integers(0, 1000))


@settings(max_examples=effort(80), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans(most_files=2, most_rows=10), st.integers(1, 40), orders)
def test_any_division_of_any_dataset_gives_the_same(plan, pieces, order):
    """Report, facts, sides and written rows are those of one pass, for every format, container and fault."""
    dataset = realise(plan)
    largest = max(map(len, dataset.bodies.values()), default=1)
    once = everything(dataset.files, dataset.recipe, WHOLE, tokenizer=dataset.tokenizer)
    part_bytes = max(1, largest // pieces)
    again = everything(dataset.files, dataset.recipe, part_bytes, order, dataset.tokenizer)
    assert again == once


ROW = dumps(good("text", Seed(1)), Layout("jsonl"))
TOKENS = (
    b"\n",
    b"\n",
    b"\r\n",
    b" ",
    b"\r",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b'"',
    b"\\",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xae",
    b'{"text":"a"}',
    b'{"text":"b c"}\n',
    b'{"text":""}\n',
    b'{"prompt":"a","completion":"b"}\n',
    b"[]\n",
    b"7\n",
    ROW + b"\n",
)
texts = st.lists(st.sampled_from(TOKENS) | st.binary(max_size=3), min_size=1, max_size=14).map(b"".join)
names = st.sampled_from(["train.jsonl", "train.jsonl", "train.jsonl", "train.json", "eval.jsonl", "a.csv"])


@settings(max_examples=effort(100), deadline=None)
@given(texts, names, st.integers(1, 30), orders)
@example(b'\xef\xbb\xbf{"text":"a"}\n{"text":"b"}', "train.jsonl", 1, None)
@example(b'\n\n\xef\xbb\xbf{"text":"a"}\n', "train.jsonl", 1, None)
@example(b'{"text":"a"}\r\n\r\n{"text":"b"}\r', "train.jsonl", 1, 3)
@example(b'[]\n{"text":"a"}\n', "train.jsonl", 2, 3)
@example(b'{"text":"\xe2\x80\xae"}\n{"text":"\xe2\x80', "train.jsonl", 1, None)
def test_any_division_of_any_bytes_gives_the_same(body, name, part_bytes, order):
    """Parts of any size, down to a byte, cut anywhere: in a line break, a mark, a character, a row."""
    files = [in_memory(body, name)]
    assert everything(files, RECIPE, part_bytes, order) == everything(files, RECIPE, WHOLE)


@settings(max_examples=effort(40), deadline=None)
@given(st.lists(texts, min_size=2, max_size=3), st.integers(5, 60), orders)
@example([b"\n" + ROW + b" ", ROW], 60, None)
def test_any_division_of_several_files_gives_the_same(bodies, part_bytes, order):
    """Lines are those of their own file, and rows are compared across files, however these are divided."""
    files = [
        in_memory(body, name)
        for body, name in zip(bodies, ("b.jsonl", "eval.jsonl", "a.jsonl"), strict=False)
    ]
    assert everything(files, RECIPE, part_bytes, order) == everything(files, RECIPE, WHOLE)


@pytest.mark.parametrize("length", [1 << 20, (1 << 20) + 1, 3 << 20])
@pytest.mark.parametrize("part_bytes", [100_000, (1 << 20) - 7, 1 << 20, (1 << 20) + 1, 2 << 20])
def test_a_long_line_is_the_same_line_wherever_it_is_cut(length, part_bytes):
    """Lines of about the limit, and some times as long, over one part boundary or many."""
    before = b"".join(dumps(good("text", Seed(number)), Layout("jsonl")) + b"\n" for number in range(40))
    long = b'{"text": "' + b"word " * (length // 5 + 1)
    long = long[: length - 2] + b'"}'
    assert len(long) == length
    body = before + long + b"\n" + before.replace(b" ", b" \\u0061", 3) + b'{"text": " "}\n'
    files = [in_memory(body, "train.jsonl")]
    report, *rest = everything(files, RECIPE, part_bytes, 1)
    assert (report, *rest) == everything(files, RECIPE, WHOLE)
    lost = [problem["lines"] for problem in report["errors"] if problem["code"] == "LINE_TOO_LONG"]
    assert lost == ([[41]] if length > 1 << 20 else [])


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_what_can_not_be_divided_is_one_part(pack):
    """Compressed text and arrays are read whole, whatever size of parts is asked for."""
    rows = b"".join(dumps(good("text", Seed(number)), Layout("jsonl")) + b"\n" for number in range(40))
    files = [in_memory(pack(rows + b'{"text": " "}\n'), "train.jsonl")]
    assert everything(files, RECIPE, 1, 1) == everything(files, RECIPE, WHOLE)


@settings(max_examples=effort(15), deadline=None)
@given(st.lists(st.integers(0, 12), min_size=2, max_size=60), st.integers(1, 40), orders, st.booleans())
def test_repetition_across_parts_is_found_as_in_one(numbers, pieces, order, both):
    """Repeated, conflicting, leaking and near rows are told of the same rows, however far apart their parts are."""
    rows = []
    for place, number in enumerate(numbers):
        row = good("prompt_completion", Seed(number))
        if place % 3 == 1:
            row["completion"] += f" and {place}"
        if place % 5 == 2:
            row["prompt"] = row["prompt"].replace(" 1", " 11")
        rows.append(dumps(row, Layout("jsonl")) + b"\n")
    half = len(rows) // 2 if both else len(rows)
    files = [in_memory(b"".join(rows[:half]), "train.jsonl")]
    if both:
        files.append(in_memory(b"".join(rows[half:]), "eval.jsonl"))
    part_bytes = max(1, sum(map(len, rows)) // pieces)
    assert everything(files, RECIPE, part_bytes, order) == everything(files, RECIPE, WHOLE)
