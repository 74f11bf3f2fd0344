"""`dropforge validate`: several datasets, several processes, exact lengths, annotations, and every exit status."""

import errno
import gzip
import io
import json
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from dropforge.cli import check, parallel
from dropforge.cli.annotations import SHOWN, annotations
from dropforge.cli.console import clean
from dropforge.cli.files import find
from dropforge_core.contracts import Problem, ValidationReport

EMPTY = {
    "valid": False, "format": None, "rows": 0, "bytes": 0, "error_count": 0, "errors": (), "warnings": (),
    "tokens": {}, "duplicates": {}, "leakage": {}, "pii": {},
}  # fmt: skip
TEMPLATE = "{% for m in messages %}<|a|>{{ m['role'] }}\n{{ m['content'] }}<|z|>{% endfor %}"


@pytest.fixture
def data(tmp_path, rows, monkeypatch):
    """A repository with two datasets: a folder with a recipe, and a lone file; the current folder is its root."""
    text = rows.read_text()
    for name, body in {
        "data/bot/train.jsonl": text + "{broken\n",
        "data/bot/eval.jsonl": text.replace("mean", "say"),
        "data/bot/recipe.yaml": "training: {max_seq_len: 64}\n",
        "data/lone/rows.jsonl": text,
        "notes/README.md": "words",
    }.items():
        place = tmp_path / "repo" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(body)
    monkeypatch.chdir(tmp_path / "repo")
    return tmp_path / "repo"


@pytest.fixture
def tokenizer(tmp_path):
    """A folder as the hub has it, of a tokenizer with one token a byte."""
    folder = tmp_path / "model"
    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(["<|a|>", "<|z|>"])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder


def large(path, rows, size):
    """A file of rows that are all different, with a fault on every 1,000th line."""
    lines = rows.read_text().splitlines()
    with path.open("w") as out:
        number = 0
        while out.tell() < size:
            number += 1
            row = lines[number % len(lines)].replace("mean", f"mean{number:x}")
            out.write((row if number % 1000 else "{broken") + "\n")
    return number // 1000


def test_several_processes_give_the_report_of_one(dropforge, rows, tmp_path, monkeypatch):
    """Byte for byte, whatever --jobs says, and whatever of it is compressed."""
    monkeypatch.setattr(check, "PARALLEL_FROM", 1)
    monkeypatch.setattr(parallel, "SMALLEST_PART", 100_000)
    faults = large(tmp_path / "train.jsonl", rows, 600_000)
    (tmp_path / "eval.jsonl.gz").write_bytes(gzip.compress(rows.read_bytes(), mtime=0))
    several = dropforge("validate", tmp_path / "*.jsonl*", "--json", "--jobs", "3")
    one = dropforge("validate", tmp_path / "*.jsonl*", "--json", "--jobs", "1")
    assert several.out == one.out
    assert [(e["code"], e["count"]) for e in several.document["errors"] if e["code"] == "JSON_INVALID"] == [
        ("JSON_INVALID", faults)
    ]


def test_the_bar_is_told_every_byte_and_no_more(rows, tmp_path, monkeypatch):
    """What is read twice or ahead never fills the bar beyond its end, in one process or in several."""
    monkeypatch.setattr(check, "PARALLEL_FROM", 1)
    monkeypatch.setattr(parallel, "SMALLEST_PART", 100_000)
    large(tmp_path / "train.jsonl", rows, 400_000)
    found = find([tmp_path / "train.jsonl"])
    for jobs in (1, 2):
        told, said = [], []
        bar = SimpleNamespace(advance=told.append, describe=said.append)
        check.check(found, check.Options.of(jobs), bar)
        assert sum(told) >= found.size
        assert said == ["comparing"]


def test_every_folder_is_a_dataset_with_all_of_its_files(dropforge, data):
    """Of a folder, one changed file is enough: all of it is checked, its recipe too; other folders are others."""
    said = dropforge("validate", "--each", "folder", "data/bot/eval.jsonl", "data/lone", "--json")
    assert said.code == 1
    assert [(d["path"], d["valid"], d["rows"]) for d in said.document["datasets"]] == [
        ("data/bot", False, 49),
        ("data/lone", True, 24),
    ]
    assert said.document["valid"] is False
    assert said.document["datasets"][0]["tokens"]["limit"] == 64
    only_recipe = dropforge("validate", "--each", "folder", "data/bot/recipe.yaml", "--json")
    assert [d["rows"] for d in only_recipe.document["datasets"]] == [49]


def test_every_file_is_a_dataset(dropforge, data):
    """Files of one name in two folders don't meet."""
    (data / "data/lone/train.jsonl").write_text((data / "data/lone/rows.jsonl").read_text())
    said = dropforge("validate", "--each", "file", "data/*/train.jsonl")
    assert said.code == 1
    assert re.findall(r"^(data/\S+)$", said.out, re.MULTILINE) == [
        "data/bot/train.jsonl",
        "data/lone/train.jsonl",
    ]
    assert dropforge("validate", "--each", "file", "data/lone").code == 0


def test_a_folder_without_data_is_no_dataset(dropforge, data):
    """A folder without data is a mistake and ends with 2; a recipe.yaml alone, perhaps of another tool, is none."""
    (data / "notes/recipe.yaml").write_text("")
    said = dropforge("validate", "--each", "folder", "notes")
    assert (said.code, "no dataset" in said.err) == (2, True)
    for each in ("folder", "file"):
        said = dropforge("validate", "--each", each, "notes/recipe.yaml", "--json")
        assert (said.code, said.document) == (0, {"valid": True, "datasets": []})
        assert "nothing was checked" in said.err


def test_standard_input_is_a_dataset(dropforge, rows, monkeypatch):
    """What another program writes is checked under the name it is given, as a file of that kind."""
    piped = SimpleNamespace(
        buffer=io.BytesIO(gzip.compress(rows.read_bytes() + b"{\n", mtime=0)), isatty=lambda: False
    )
    monkeypatch.setattr(sys, "stdin", piped)
    said = dropforge("validate", "-", "--name", "train.jsonl.gz", "--format", "json")
    assert (said.code, said.document["rows"]) == (1, 25)
    assert said.document["errors"][0]["file"] == "train.jsonl.gz"


def test_lengths_are_counted_with_a_tokenizer(dropforge, rows, tokenizer, tmp_path):
    """With the tokenizer a row that is too long is an error with its count; without it a warning that says so."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("training: {max_seq_len: 64}\n")
    guessed = dropforge("validate", rows, "--recipe", recipe)
    assert guessed.code == 0
    assert "lengths: estimated, because no base model is named" in guessed.out
    exact = dropforge("validate", rows, "--recipe", recipe, "--tokenizer", tokenizer, "--json")
    assert exact.code == 1
    assert exact.document["tokens"]["exact"] is True
    (error,) = (e for e in exact.document["errors"] if e["code"] == "OVER_LENGTH")
    assert error["count"] == 24
    first = json.loads(rows.read_text().splitlines()[0])["messages"]
    tokens = sum(len(f"{m['role']}\n{m['content']}") + 2 for m in first)
    assert error["found"] == f"{tokens} tokens"


def test_lengths_are_those_under_the_recipe_s_own_template(dropforge, rows, tokenizer, tmp_path):
    """As in the cloud: what the recipe gives as chat template renders the rows, also where the tokenizer has none."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text('chat_template: "{% for m in messages %}{{ m.content }}!{% endfor %}"\n')
    first = json.loads(rows.read_text().splitlines()[0])["messages"]
    (tmp_path / "one.jsonl").write_text(rows.read_text().splitlines()[0] + "\n")
    (tokenizer / "tokenizer_config.json").write_text("{}")
    told = dropforge(
        "validate", tmp_path / "one.jsonl", "--recipe", recipe, "--tokenizer", tokenizer, "--json"
    )
    assert told.document["tokens"]["total"] == sum(len(f"{m['content']}!") for m in first)


@pytest.fixture(params=["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
def hub_cache(request, tmp_path, monkeypatch):
    """The hub's cache in one of the places that its variables name."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(request.param, str(tmp_path / "cache"))
    below = {"HF_HUB_CACHE": "", "HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}[request.param]
    return tmp_path / "cache" / below


def test_the_base_model_of_the_hub_s_cache_counts(dropforge, rows, tokenizer, tmp_path, hub_cache):
    """A recipe's base model that other tools have downloaded is found by its branch or commit."""
    model = hub_cache / "models--org--name"
    commit = "12" * 20
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    (model / "snapshots").mkdir()
    tokenizer.rename(model / "snapshots" / commit)
    recipe = tmp_path / "recipe.yaml"
    for revision, said in {
        "": "counted with the tokenizer of org/name",
        f"@{commit}": "counted with the tokenizer of org/name",
        "@v2": "estimated, because the tokenizer of org/name is not on this machine",
        "@../../../etc": "estimated",
    }.items():
        recipe.write_text(f"base_model: org/name{revision}\n")
        assert said in dropforge("validate", rows, "--recipe", recipe).out


def test_a_tokenizer_that_can_t_be_used_is_a_usage_error(dropforge, rows, tokenizer, tmp_path):
    """Nobody who names a tokenizer gets estimates in silence."""
    cases = {
        tmp_path / "none": "has no tokenizer.json and no tokenizer_config.json",
        tokenizer: "can't be used",
    }
    (tokenizer / "tokenizer.json").write_text("{}")
    for folder, told in cases.items():
        said = dropforge("validate", rows, "--tokenizer", folder)
        assert (said.code, told in said.err, said.out) == (2, True, "")
    (tokenizer / "tokenizer_config.json").write_text("{}")
    assert "no chat template" in dropforge("validate", rows, "--tokenizer", tokenizer).err


def test_faults_stand_on_their_lines_in_a_pull_request(dropforge, data):
    """Paths are those of the repository; the first line of each kind comes first; nothing else begins with '::'."""
    with (data / "data/bot/train.jsonl").open("a") as out:
        out.write('{"messages": []}\n{broken\n')
    said = dropforge("validate", "data/bot", "--format", "github")
    assert said.code == 1
    told = [line for line in said.out.splitlines() if line.startswith("::error")]
    places = [re.match(r"::error file=([^,]*),line=(\d+),title=(\w+)::", line).groups() for line in told]
    assert places == [
        ("data/bot/train.jsonl", "25", "JSON_INVALID"),
        ("data/bot/train.jsonl", "26", "MESSAGES_EMPTY"),
        ("data/bot/train.jsonl", "27", "JSON_INVALID"),
    ]
    assert told[0].endswith("Also on line 27.")


@given(st.text(), st.text(min_size=1), st.integers(1, 10**6))
def test_no_text_breaks_out_of_a_command(message, name, line):
    """Whatever is in a message or a file's name, a command is one line, and GitHub reads back what was meant."""
    problem = Problem(file=name, line=line, path="", code="CODE", message=message, lines=(line,))
    report = ValidationReport(**{**EMPTY, "errors": (problem,)})
    (command,) = annotations(report, lambda found: found)
    assert "\n" not in command
    assert "\r" not in command
    head, _, told = command.removeprefix("::error ").partition("::")
    properties = dict(pair.partition("=")[::2] for pair in head.split(","))
    assert properties["line"] == str(line)
    assert properties["title"] == "CODE"

    def read(text):
        for escape, character in {"%0D": "\r", "%0A": "\n", "%3A": ":", "%2C": ",", "%25": "%"}.items():
            text = text.replace(escape, character)
        return text

    assert read(properties["file"]) == clean(name)
    assert read(told) == clean(message)


def test_annotations_are_few_enough_to_be_read():
    """A kind with thousands of lines leaves room for the others, and the number of all is bounded."""
    problems = tuple(
        Problem(
            file="a.jsonl", line=1, path="", code=code, message="m.", lines=tuple(range(1, 5001)), count=5000
        )
        for code in ("A", "B")
    )
    told = list(annotations(ValidationReport(**{**EMPTY, "errors": problems}), lambda name: name))
    assert len(told) == SHOWN
    assert [line.partition("title=")[2][0] for line in told[:2]] == ["A", "B"]
    assert "Also on lines 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 4,989 more." in told[0]


def test_what_is_of_no_file_has_no_place_in_one():
    """A fault of the dataset as a whole is told without file and line."""
    problem = Problem(file="(dataset)", line=None, path="", code="ROWS_TOO_FEW", message="100% more")
    (told,) = annotations(ValidationReport(**{**EMPTY, "errors": (problem,)}), lambda _: None)
    assert told == "::error title=ROWS_TOO_FEW::100%25 more"


def test_a_file_that_goes_while_it_is_read_is_no_verdict(dropforge, rows, monkeypatch):
    """Something that can't be read ends with 2 and its name, never with 1, which means invalid."""

    def gone(*_args, **_kwargs):
        raise FileNotFoundError(2, "No such file or directory", str(rows))

    monkeypatch.setattr(check, "examine", gone)
    said = dropforge("validate", rows)
    assert said.code == 2
    assert f"{rows} can't be read: No such file" in said.err


def test_a_full_disk_is_not_told_of_the_data(dropforge, rows, monkeypatch):
    """What a check keeps beside it has no room: that is said, with the folder and how to choose another."""

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(check, "examine", full)
    said = dropforge("validate", rows)
    assert (said.code, "TMPDIR" in said.err, "can't be read" in said.err) == (2, True, False)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_no_verdict(how):
    """^C ends with 130 and one word, whatever processes are at work."""
    child = subprocess.Popen(
        [sys.executable, "-c", "from dropforge.cli import main; main()", "validate", "-", "--name", "a.jsonl"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    # More than a pipe holds: when it is written, the child has begun to read.
    child.stdin.write(b"{}\n" * 100_000)
    child.stdin.flush()
    child.send_signal(how)
    out, said = child.communicate(timeout=60)
    assert (child.returncode, out, said) == (130, b"", b"Stopped.\n")


def test_annotations_and_a_document_exclude_each_other(dropforge, rows):
    """One JSON document on stdout means nothing else is there."""
    said = dropforge("validate", rows, "--json", "--format", "github")
    assert (said.code, said.out) == (2, "")
