"""Which files make a dataset, and what is said where none do."""

import os
import sys
from pathlib import Path

import pytest

from dropforge.cli.console import CommandFailed
from dropforge.cli.files import STDIN, find, spooled, told_left_out
from dropforge_core.identity import DATA_SUFFIXES


@pytest.fixture
def folder(tmp_path):
    """A folder as people have it: data, a recipe, notes, what macOS leaves, a folder in it."""
    place = tmp_path / "set"
    (place / "raw").mkdir(parents=True)
    for name in ("train-2.jsonl", "train-1.jsonl", "eval.JSONL.gz", "raw/all.jsonl", "._train-1.jsonl"):
        (place / name).write_text("{}\n")
    (place / "recipe.yaml").write_text("method: sft\n")
    (place / "README.md").write_text("words")
    (place / "_READY").touch()
    return place


def names(found):
    return [file.name for file in found.files]


def test_a_folder_is_its_data_files_and_its_recipe(folder):
    """Files of the folder itself, by name; hidden ones and the marker are nobody's data; the rest is told."""
    found = find([folder])
    assert names(found) == ["eval.JSONL.gz", "train-1.jsonl", "train-2.jsonl"]
    assert found.recipe == folder / "recipe.yaml"
    assert told_left_out(found) == "left out, being no data: README.md, raw/"


def test_a_pattern_is_expanded_here_too(folder):
    """Quoted, it means what it means unquoted; `**` reaches into folders."""
    assert names(find([folder / "train-*.jsonl"])) == ["train-1.jsonl", "train-2.jsonl"]
    assert names(find([folder / "**" / "a*.jsonl"])) == ["all.jsonl"]
    assert names(find([folder / "r*"])) == ["all.jsonl"]
    with pytest.raises(CommandFailed, match="No file fits"):
        find([folder / "*.parquet"])


def test_several_paths_are_one_dataset(folder):
    """Files, folders and patterns may be mixed; a file that two of them name is there once."""
    found = find([folder / "train-1.jsonl", folder / "raw", folder / "train-1*"])
    assert names(found) == ["all.jsonl", "train-1.jsonl"]
    assert not found.is_one_file


def test_a_shell_s_expansion_may_name_the_recipe(folder):
    """`data/*.jsonl data/recipe.yaml` is the dataset with its recipe."""
    found = find([folder / "train-1.jsonl", folder / "recipe.yaml"])
    assert (names(found), found.recipe) == (["train-1.jsonl"], folder / "recipe.yaml")


def test_a_file_by_its_name_is_one_file_and_a_folder_with_one_is_a_folder(folder):
    """The first may start a run by itself; the second keeps its version."""
    assert find([folder / "train-1.jsonl"]).is_one_file
    assert not find([folder / "raw"]).is_one_file


def test_two_files_of_one_name_are_refused(folder):
    """A dataset has no folders, so that one of the two would be lost."""
    (folder / "raw" / "train-1.jsonl").write_text("{}")
    with pytest.raises(CommandFailed, match=r"Two files have the name train-1\.jsonl: .*set/train-1.*raw"):
        find([folder, folder / "raw"])


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("none.jsonl", "not there"),
        ("README.md", "is no data file"),
        ("empty", "holds no data file"),
        ("broken.jsonl", "can't be read: No such file"),
        ("unreadable.jsonl", "can't be read: "),
        ("pipe.jsonl", "no regular file"),
        ("above", "Those of the folder .*/above/set don't count"),
        ("yml", "a recipe is called recipe.yaml"),
    ],
)
def test_what_can_t_be_used_is_told(folder, path, said):
    """Missing, empty, unreadable and misnamed are different sentences, before anything is done."""
    (folder / "empty").mkdir()
    (folder / "broken.jsonl").symlink_to("nowhere")
    # Opens for reading, root or not, and refuses every read.
    (folder / "unreadable.jsonl").symlink_to("/proc/self/mem")
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "above" / "set").mkdir(parents=True)
    (folder / "above" / "set" / "train.jsonl").write_text("{}")
    (folder / "yml").mkdir()
    (folder / "yml" / "recipe.yml").write_text("")
    with pytest.raises(CommandFailed, match=said):
        find([folder / path])


def test_two_recipes_are_refused_and_a_named_one_decides(folder):
    """Which recipe is meant is never guessed."""
    other = folder.parent / "other"
    other.mkdir()
    (other / "more.jsonl").write_text("{}")
    (other / "recipe.yaml").write_text("")
    with pytest.raises(CommandFailed, match="more than one recipe"):
        find([folder, other])
    assert find([folder, other], recipe=other / "recipe.yaml").recipe == other / "recipe.yaml"
    with pytest.raises(CommandFailed, match="is not there"):
        find([folder], recipe=folder / "none.yaml")


def test_standard_input_needs_a_name(tmp_path, monkeypatch):
    """Its suffix tells how it is read; a name without standard input is a mistake."""
    read, write = os.pipe()
    with os.fdopen(write, "w") as out, os.fdopen(read) as piped:
        monkeypatch.setattr(sys, "stdin", piped)
        out.write('{"text": "a"}\n')
        out.close()
        for name in (None, "train", "a/train.jsonl"):
            with pytest.raises(CommandFailed, match="--name"):
                find([STDIN], stdin_name=name)
        found = find([STDIN], stdin_name="train.jsonl")
        assert (names(found), found.size, found.has_stdin) == (["train.jsonl"], None, True)
        with spooled(found) as kept:
            assert (names(kept), kept.size) == (["train.jsonl"], 14)
            place = kept.files[0].path
        assert not place.exists()
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(CommandFailed, match="--name is for standard input"):
        find([tmp_path / "a.jsonl"], stdin_name="train.jsonl")


@pytest.mark.parametrize("suffix", DATA_SUFFIXES)
def test_every_kind_of_data_is_found(tmp_path, suffix):
    """The command line knows the same kinds as the cloud."""
    (tmp_path / f"train{suffix}").write_text("x")
    assert names(find([tmp_path])) == [f"train{suffix}"]


def test_the_path_of_standard_input_is_no_file():
    """A file that is called '-' is named ./- and is another path."""
    assert Path("-") == STDIN
    assert Path("./x/-") != STDIN
