"""What is uploaded where, in which order, and what never leaves this machine."""

import boto3
import pytest

from dropforge.cli.console import CommandFailed
from dropforge.cli.upload import data_files, plan_upload, recipe_of, upload
from dropforge_core.identity import parse_dataset_key


@pytest.fixture
def folder(tmp_path, rows):
    place = tmp_path / "set"
    place.mkdir()
    for name in ("train-1.jsonl", "train-2.jsonl", "eval.jsonl"):
        (place / name).write_bytes(rows.read_bytes() + name.encode())
    (place / "recipe.yaml").write_text("training: {steps: 3}\n")
    (place / "README.md").write_text("not data")
    return place


def test_a_file_alone_lies_under_the_model(rows):
    """One file without recipe is a whole dataset, and starts the run itself."""
    plan = plan_upload(rows, "m", None, None)
    assert [item.key for item in plan.items] == ["datasets/m/rows.jsonl"]
    assert plan.starter == "datasets/m/rows.jsonl"


def test_a_folder_is_a_version(folder):
    """Data and recipe lie in one version folder; what is no data stays here; the marker starts the run."""
    plan = plan_upload(folder, "m", "v7", recipe_of(folder, None))
    assert [item.key for item in plan.items] == [
        f"datasets/m/v7/{name}" for name in ("eval.jsonl", "train-1.jsonl", "train-2.jsonl", "recipe.yaml")
    ]
    assert plan.starter == "datasets/m/v7/_READY"


def test_a_version_is_named_by_its_content(folder):
    """The same folder is the same version, one byte more is another, and the recipe counts."""
    before = plan_upload(folder, "m", None, None).version
    assert before == plan_upload(folder, "m", None, None).version
    assert before != plan_upload(folder, "m", None, recipe_of(folder, None)).version
    (folder / "eval.jsonl").write_text("other")
    assert before != plan_upload(folder, "m", None, None).version


def test_a_file_with_a_recipe_leaves_the_models_recipe_alone(folder, rows):
    """A recipe given for one upload is not put where every later upload would find it."""
    plan = plan_upload(rows, "m", None, folder / "recipe.yaml")
    assert {item.key.rsplit("/", 1)[0] for item in plan.items} == {f"datasets/m/{plan.version}"}


def test_every_key_is_one_that_intake_accepts(folder):
    """The uploader and intake agree on names."""
    plan = plan_upload(folder, "support-bot", None, recipe_of(folder, None))
    assert {parse_dataset_key(item.key).model for item in plan.items} == {"support-bot"}


@pytest.mark.parametrize("name", ["a b.jsonl", "é.jsonl", "a+b.jsonl", "a%20.jsonl"])
def test_a_name_that_would_be_refused_is_refused_here(tmp_path, name):
    """A bad file name is told before anything is uploaded."""
    (tmp_path / name).write_text("{}")
    with pytest.raises(CommandFailed, match="Use letters"):
        plan_upload(tmp_path / name, "m", None, None)


def test_what_is_no_data_is_told(tmp_path):
    """Missing, empty and wrong paths are three different sentences."""
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for path, said in (
        (tmp_path / "none", "not there"),
        (tmp_path / "x.txt", "no data file"),
        (tmp_path / "empty", "holds no"),
    ):
        with pytest.raises(CommandFailed, match=said):
            data_files(path)


def test_bytes_arrive_and_the_marker_last(world, folder):
    """Everything is there, byte for byte, before the marker; the answer names the versions."""
    plan = plan_upload(folder, "m", "v1", recipe_of(folder, None))
    counted: list[int] = []
    pushed = upload(plan, "datasets", model="m", progress=counted.append)
    s3 = boto3.client("s3")
    for item, version in zip(plan.items, pushed.version_ids, strict=True):
        stored = s3.get_object(Bucket="datasets", Key=item.key, VersionId=version, ChecksumMode="ENABLED")
        assert stored["Body"].read() == item.path.read_bytes()
    assert sum(counted) == plan.bytes
    times = {o["Key"]: o["LastModified"] for o in s3.list_objects_v2(Bucket="datasets")["Contents"]}
    assert times[pushed.keys[-1]] == max(times.values())
    assert pushed.keys[-1].endswith("/_READY")


def test_again_is_said_by_the_object_that_starts_the_run(world, folder, rows):
    """`--again` travels as metadata of the marker, or of the file where there is no marker."""
    s3 = boto3.client("s3")
    for path in (folder, rows):
        plan = plan_upload(path, "m", None, None)
        upload(plan, "datasets", model="m", again=True)
        assert s3.head_object(Bucket="datasets", Key=plan.starter)["Metadata"] == {"dropforge-again": "true"}
