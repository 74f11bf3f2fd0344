"""What is uploaded where, in which order, and what is left behind when it is interrupted."""

import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest

from dropforge.cli import upload as uploading
from dropforge.cli.console import CommandFailed
from dropforge.cli.files import STDIN, find
from dropforge.cli.upload import PART_BYTES, make_room, plan_upload, upload
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


@pytest.fixture
def s3(world):
    return world.s3


@contextlib.contextmanager
def piped(monkeypatch, body: bytes):
    """Standard input that another program writes."""
    read, write = os.pipe()

    def write_all():
        with contextlib.suppress(BrokenPipeError), os.fdopen(write, "wb") as out:
            out.write(body)

    writer = threading.Thread(target=write_all)
    with os.fdopen(read) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        writer.start()
        yield
    writer.join()


def keys(s3):
    return [entry["Key"] for entry in s3.list_objects_v2(Bucket="datasets").get("Contents", [])]


def test_a_file_alone_lies_under_the_model(rows):
    """One file without recipe is a whole dataset, and starts the run itself."""
    plan = plan_upload(find([rows]), "m", None)
    assert [item.key for item in plan.items] == ["datasets/m/rows.jsonl"]
    assert plan.starter == "datasets/m/rows.jsonl"


def test_a_folder_is_a_version(folder):
    """Data and recipe lie in one version folder; what is no data stays here; the marker starts the run."""
    plan = plan_upload(find([folder]), "m", "v7")
    assert [item.key for item in plan.items] == [
        f"datasets/m/v7/{name}" for name in ("eval.jsonl", "train-1.jsonl", "train-2.jsonl", "recipe.yaml")
    ]
    assert plan.starter == "datasets/m/v7/_READY"


def test_a_version_is_named_by_its_content(folder):
    """The same folder is the same version, one byte more is another, and the recipe counts."""
    before = plan_upload(find([folder]), "m", None).version
    assert before == plan_upload(find([folder]), "m", None).version
    (folder / "recipe.yaml").write_text("training: {steps: 4}\n")
    changed = plan_upload(find([folder]), "m", None).version
    assert changed != before
    (folder / "eval.jsonl").write_text("other")
    assert plan_upload(find([folder]), "m", None).version not in (before, changed)


def test_a_file_with_a_recipe_leaves_the_models_recipe_alone(folder, rows):
    """A recipe given for one upload is not put where every later upload would find it."""
    plan = plan_upload(find([rows], recipe=folder / "recipe.yaml"), "m", None)
    assert {item.key.rsplit("/", 1)[0] for item in plan.items} == {f"datasets/m/{plan.version}"}


def test_every_key_is_one_that_intake_accepts(folder):
    """The uploader and intake agree on names."""
    plan = plan_upload(find([folder]), "support-bot", None)
    assert {parse_dataset_key(item.key).model for item in plan.items} == {"support-bot"}


@pytest.mark.parametrize("name", ["a b.jsonl", "é.jsonl", "a+b.jsonl", "a%20.jsonl"])
def test_a_name_that_would_be_refused_is_refused_here(tmp_path, name):
    """A bad file name is told before anything is uploaded."""
    (tmp_path / name).write_text("{}")
    with pytest.raises(CommandFailed, match="Use letters"):
        plan_upload(find([tmp_path / name]), "m", None)


@pytest.mark.parametrize("version", ["..", "a/b", "my version", ""])
def test_a_version_s_name_is_checked(folder, version):
    """A version that can't be part of a key is refused, or is named by its content where it is empty."""
    if version:
        with pytest.raises(CommandFailed):
            plan_upload(find([folder]), "m", version)
    else:
        assert plan_upload(find([folder]), "m", version).version.startswith("v-")


def test_an_empty_file_is_refused(folder):
    """Nothing is uploaded of a dataset that would be refused for it."""
    (folder / "train-2.jsonl").write_text("")
    with pytest.raises(CommandFailed, match=r"train-2\.jsonl is empty"):
        plan_upload(find([folder]), "m", "v1")


def test_bytes_arrive_and_the_marker_last(s3, folder):
    """Everything is there, byte for byte, before the marker; the answer names the versions."""
    plan = plan_upload(find([folder]), "m", "v1")
    counted: list[int] = []
    pushed = upload(plan, "datasets", model="m", progress=counted.append)
    for item, version in zip(plan.items, pushed.version_ids, strict=True):
        stored = s3.get_object(Bucket="datasets", Key=item.key, VersionId=version, ChecksumMode="ENABLED")
        assert stored["Body"].read() == item.path.read_bytes()
        assert stored["ChecksumSHA256"]
    assert sum(counted) == plan.bytes == pushed.bytes
    times = {o["Key"]: o["LastModified"] for o in s3.list_objects_v2(Bucket="datasets")["Contents"]}
    assert times[pushed.keys[-1]] == max(times.values())
    assert pushed.keys[-1].endswith("/_READY")
    assert pushed.uri == "s3://datasets/datasets/m/v1/_READY"


def test_again_is_said_by_the_object_that_starts_the_run(s3, folder, rows):
    """`--again` travels as metadata of the marker, or of the file where there is no marker."""
    for path in (folder, rows):
        plan = plan_upload(find([path]), "m", None)
        upload(plan, "datasets", model="m", again=True)
        assert s3.head_object(Bucket="datasets", Key=plan.starter)["Metadata"] == {"dropforge-again": "true"}


@pytest.mark.parametrize("size", [20, PART_BYTES, 2 * PART_BYTES + 5])
def test_standard_input_goes_up_in_parts(s3, monkeypatch, size):
    """Whatever its length, it arrives as one object, byte for byte, without a file in between."""
    body = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    with piped(monkeypatch, body):
        found = find([STDIN], stdin_name="train.jsonl")
        pushed = upload(plan_upload(found, "m", None), "datasets", model="m")
    assert pushed.bytes == size
    assert s3.get_object(Bucket="datasets", Key="datasets/m/train.jsonl")["Body"].read() == body


def test_empty_standard_input_is_no_dataset(s3, monkeypatch):
    """A program that wrote nothing leaves nothing."""
    with piped(monkeypatch, b""):
        found = find([STDIN], stdin_name="train.jsonl")
        with pytest.raises(CommandFailed, match="empty"):
            upload(plan_upload(found, "m", None), "datasets", model="m")
    assert keys(s3) == []


def test_standard_input_in_a_version_needs_the_version_s_name(folder, monkeypatch):
    """What has not come yet has no content to be called after."""
    with piped(monkeypatch, b"x"):
        found = find([STDIN], stdin_name="train.jsonl", recipe=folder / "recipe.yaml")
        with pytest.raises(CommandFailed, match="--version"):
            plan_upload(found, "m", None)
        assert plan_upload(found, "m", "v1").starter == "datasets/m/v1/_READY"


def test_a_file_that_changes_on_the_way_starts_nothing(s3, folder):
    """Half of the old and half of the new is no dataset: no marker follows."""
    plan = plan_upload(find([folder]), "m", "v1")

    def changing(_count):
        (folder / "train-1.jsonl").write_text("changed")

    with pytest.raises(CommandFailed, match="changed while it was uploaded"):
        upload(plan, "datasets", model="m", progress=changing)
    assert plan.marker not in keys(s3)


def test_another_upload_of_the_version_is_not_mixed_in(s3, folder):
    """What an earlier push left is refused by name, deleted, or kept, as the person says."""
    upload(plan_upload(find([folder]), "m", "v1"), "datasets", model="m")
    (folder / "train-2.jsonl").unlink()
    plan = plan_upload(find([folder]), "m", "v1")
    other = "datasets/m/v1/train-2.jsonl"
    with pytest.raises(CommandFailed, match=r"train-2\.jsonl.*--replace.*--add"):
        make_room(plan, "datasets", replace=False, add=False)
    assert plan.marker in keys(s3)
    assert make_room(plan, "datasets", replace=False, add=True) == ()
    assert other in keys(s3)
    assert make_room(plan, "datasets", replace=True, add=False) == (other,)
    assert not {other, plan.marker} & set(keys(s3))


def test_the_old_marker_is_gone_while_new_files_arrive(dropforge, world, folder):
    """A version that is pushed again has no marker until all of it is there."""
    assert dropforge("push", folder, "--model", "m", "--version", "v1").code == 0
    (folder / "eval.jsonl").unlink()
    refused = dropforge("push", folder, "--model", "m", "--version", "v1")
    assert refused.code == 2
    assert "eval.jsonl" in refused.err
    said = dropforge("push", folder, "--model", "m", "--version", "v1", "--replace", "--json")
    assert said.document["removed"] == ["datasets/m/v1/eval.jsonl"]
    assert said.document["left_out"] == ["README.md"]
    versions = world.s3.list_object_versions(Bucket="datasets", Prefix="datasets/m/v1/_READY")
    assert (len(versions["Versions"]), len(versions["DeleteMarkers"])) == (2, 1)


def test_replace_and_add_exclude_each_other(dropforge, folder):
    """Both at once is a usage error."""
    said = dropforge("push", folder, "--model", "m", "--replace", "--add")
    assert said.code == 2
    assert "exclude" in said.err


SLOW = f"""
import sys, time
import dropforge.cli.upload as uploading
uploading.PART_BYTES = {5 << 20}
send = uploading._Subscriber.on_progress
def slow(self, future, bytes_transferred, **kwargs):
    sys.stdout.write("going\\n")
    sys.stdout.flush()
    time.sleep(0.3)
    send(self, future, bytes_transferred, **kwargs)
uploading._Subscriber.on_progress = slow
from dropforge.cli import main
main()
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("what", ["folder", "stdin"])
def test_an_interrupted_push_leaves_no_marker_and_no_unfinished_object(world, folder, tmp_path, how, what):
    """^C or SIGTERM ends with 130 and a sentence; multipart uploads are aborted; nothing can start."""
    for name in ("train-1.jsonl", "train-2.jsonl"):
        (folder / name).write_bytes(b"x" * (30 << 20))
    arguments = (
        ["push", str(folder), "--version", "v1"] if what == "folder" else ["push", "-", "--name", "t.jsonl"]
    )
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    child = subprocess.Popen(
        [sys.executable, str(script), *arguments, "--model", "m"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    if what == "stdin":
        child.stdin.write(b"x" * (12 << 20))
        child.stdin.flush()
    assert child.stdout.readline().startswith(b"going")
    child.send_signal(how)
    _, said = child.communicate(timeout=60)
    assert (child.returncode, b"Nothing was started" in said) == (130, True)
    assert b"Traceback" not in said
    assert world.s3.list_multipart_uploads(Bucket="datasets").get("Uploads", []) == []
    assert not [key for key in keys(world.s3) if key.endswith(("_READY", "t.jsonl"))]


def test_the_end_of_a_pipe_is_not_believed_while_all_of_it_is_stopped():
    """^C ends the program before us too: what it had written by then never becomes an object."""
    read, write = os.pipe()
    os.write(write, b"half")
    os.close(write)
    with os.fdopen(read, "rb") as reader:
        stream = uploading._Stream(reader)
        stream.stop()
        with pytest.raises(uploading.Interrupted):
            stream.read(100)
