"""Shards: the rows that were examined, each once, on its side, with its name."""

import hashlib
import json

import pytest
from dataset_cases import as_lines, chat, in_memory, question

from dropforge_core.dataset import writing
from dropforge_core.dataset.reading.source import SourceFile
from dropforge_core.dataset.validation import examine
from dropforge_core.dataset.writing import DatasetChanged, write


class Shelf:
    def __init__(self):
        self.bodies = {}

    def put(self, side, name, body):
        self.bodies[f"{side}/{name}"] = body
        return f"{side}/{name}"


def written(files, recipe):
    shelf = Shelf()
    examined = examine(files, recipe)
    return shelf, examined, write(examined, files, shelf)


def rows_on(shelf, side):
    return [
        json.loads(line)
        for key, body in shelf.bodies.items()
        if key.startswith(side)
        for line in body.splitlines()
    ]


def test_every_valid_row_is_written_once_and_the_manifest_is_true(recipe, monkeypatch):
    """Shards hold all rows between them, in order; the manifest has the digest and size of each."""
    monkeypatch.setattr(writing, "SHARD_BYTES", 5000)
    rows = [chat(question(n)) for n in range(300)]
    shelf, examined, manifest = written([in_memory(as_lines(*rows), chunk=777)], recipe())
    train, held = rows_on(shelf, "train"), rows_on(shelf, "eval")
    assert len(manifest.train) > 1
    assert [row["messages"] for row in train] == [
        row["messages"] for row, side in zip(rows, examined.cut.sides, strict=True) if side == 0
    ]
    assert len(train) + len(held) == 300
    assert len({row["id"] for row in train + held}) == 300
    for entry in (*manifest.train, *manifest.holdout):
        body = shelf.bodies[entry.key]
        assert (entry.sha256, entry.bytes) == (hashlib.sha256(body).hexdigest(), len(body))
        assert entry.rows == body.count(b"\n")
    assert manifest.digest == examined.facts.digest
    assert examined.facts.rows_train == sum(entry.rows for entry in manifest.train)


def test_a_repeated_row_keeps_its_weight_in_training_and_counts_once_in_evaluation(recipe):
    """Copies have ids of their own in training; in a given eval file the second copy is left out."""
    train = in_memory(as_lines(*[chat(question(n)) for n in (1, 2, 1, 3, 1)]), "train.jsonl")
    held = in_memory(as_lines(*[chat(question(n)) for n in (40, 50, 40)]), "eval.jsonl")
    shelf, examined, _ = written([train, held], recipe())
    ids = [row["id"] for row in rows_on(shelf, "train")]
    assert ids[2] == ids[0] + "-2"
    assert ids[4] == ids[0] + "-3"
    assert len(rows_on(shelf, "eval")) == 2
    assert examined.report.holdout["left_out"] == 1


def test_what_is_not_chat_becomes_canonical(recipe):
    """Every format is written as messages and meta; pairs keep both answers."""
    cases = {
        "alpaca": {"instruction": "a b", "input": "c", "output": "d", "source": "web"},
        "sharegpt": {
            "system": "s",
            "conversations": [{"from": "human", "value": "a b"}, {"from": "gpt", "value": "d"}],
        },
        "text": {"text": "a b c"},
        "preference": {"prompt": "a b", "chosen": "c", "rejected": "d"},
        "prompt_completion": {"prompt": "a b", "completion": "c", "meta": {"k": 1}},
    }
    made = {}
    for name, row in cases.items():
        other = json.loads(json.dumps(row).replace("a b", "x y"))
        method = "dpo" if name == "preference" else "sft"
        shelf, _, _ = written([in_memory(as_lines(row, other))], recipe(method=method))
        made[name] = next(r for r in rows_on(shelf, "") if "a b" in json.dumps(r))
    roles = {name: [(m["role"], m["content"]) for m in row["messages"]] for name, row in made.items()}
    assert roles["alpaca"] == [("user", "a b\n\nc"), ("assistant", "d")]
    assert made["alpaca"]["meta"] == {"source": "web"}
    assert roles["sharegpt"] == [("system", "s"), ("user", "a b"), ("assistant", "d")]
    assert roles["text"] == [("assistant", "a b c")]
    assert roles["preference"] == [("user", "a b"), ("assistant", "c")]
    assert (made["preference"]["chosen"]["content"], made["preference"]["rejected"]["content"]) == ("c", "d")
    assert made["prompt_completion"]["meta"] == {"k": 1}


def test_dropped_rows_are_not_written(recipe):
    """Neither faulty rows nor those refused for their length reach a shard."""
    rows = [chat(question(n)) for n in range(60)]
    body = as_lines(*rows[:30], {"messages": []}, *rows[30:])
    rules = {"on_invalid": "drop", "max_dropped_share": 0.1}
    shelf, _, _ = written([in_memory(body)], recipe(dataset=rules))
    assert len(rows_on(shelf, "")) == 60


def test_rows_on_one_line_are_told_apart(recipe):
    """Of an array on one line, each row goes where it belongs, also where the length check refused one between."""
    rows = [chat(question(n)) for n in range(60)]
    rows.insert(20, chat("much " * 4000))
    rules = {"on_invalid": "drop", "max_dropped_share": 0.1, "checks": {"OVER_LENGTH_ESTIMATED": "error"}}
    shelf, examined, _ = written([in_memory(json.dumps(rows).encode(), "train.json")], recipe(dataset=rules))
    assert examined.report.rows == 61
    assert len(rows_on(shelf, "")) == 60


@pytest.mark.parametrize("second", [29, 31])
def test_a_file_that_changes_between_the_passes_is_noticed(recipe, second):
    """Rows that were not examined are never written as if they had been."""
    bodies = [
        as_lines(*[chat(question(n)) for n in range(30)]),
        as_lines(*[chat(question(n + 1)) for n in range(second)]),
    ]
    file = SourceFile("train.jsonl", lambda start: iter([bodies[0][start:]]), len(bodies[0]))
    examined = examine([file], recipe())
    del bodies[0]
    with pytest.raises(DatasetChanged):
        write(examined, [file], Shelf())


def test_an_invalid_dataset_can_not_be_written(recipe):
    """There is nothing to write where there is no valid whole."""
    with pytest.raises(ValueError, match="valid"):
        written([in_memory(b"{\n")], recipe())
