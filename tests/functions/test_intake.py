"""Intake, over HTTP: every way in which events of an upload may arrive."""

import itertools
import json
from pathlib import Path
from typing import NamedTuple

import boto3
import pytest

import intake
from dropforge_core.aws import ExecutionConflict, Executions, Ledger
from dropforge_core.identity import DATA_SUFFIXES
from dropforge_core.ledger import Status

RECIPE = "base_model: org/name\n"
ROW = b'{"prompt": "a", "completion": "b"}\n'


@pytest.fixture
def stack(account, published, monkeypatch, context):
    """The account with a versioned dataset bucket, a state machine, and a way to upload and to deliver."""
    made = Stack(account, published, context)
    monkeypatch.setenv("STATE_MACHINE_ARN", made.machine)
    monkeypatch.setenv("DEFAULT_RECIPE", RECIPE)
    yield made
    made.destroy()


class Stack:
    def __init__(self, account, published, context):
        self.account, self.published, self.context = account, published, context
        self.s3, self.sfn = account.s3, boto3.client("stepfunctions")
        self.s3.create_bucket(Bucket="datasets")
        self.s3.put_bucket_versioning(Bucket="datasets", VersioningConfiguration={"Status": "Enabled"})
        definition = '{"StartAt": "Stay", "States": {"Stay": {"Type": "Wait", "Seconds": 9, "End": true}}}'
        self.machine = self.sfn.create_state_machine(
            name="tune", definition=definition, roleArn="arn:aws:iam::123456789012:role/r"
        )["stateMachineArn"]
        self.ledger = Ledger("runs")
        self._sequence = itertools.count(0xFE)

    def upload(self, key, body=ROW, **metadata):
        """Put an object; returns its event as S3 sends it through EventBridge, not yet delivered."""
        answer = self.s3.put_object(Bucket="datasets", Key=key, Body=body, Metadata=metadata)
        number = next(self._sequence)
        return {
            "version": "0",
            "id": f"17793124-05d4-b198-2fde-7ededc63{number:04x}",
            "detail-type": "Object Created",
            "source": "aws.s3",
            "account": "123456789012",
            "time": "2026-11-01T10:00:00Z",
            "region": "us-east-1",
            "resources": ["arn:aws:s3:::datasets"],
            "detail": {
                "version": "0",
                "bucket": {"name": "datasets"},
                "object": {
                    "key": key,
                    "size": len(body),
                    "etag": answer["ETag"].strip('"'),
                    "version-id": answer["VersionId"],
                    "sequencer": f"{number:018X}",
                },
                "request-id": "N4N7GDK58NMKJ12R",
                "requester": "123456789012",
                "source-ip-address": "192.0.2.7",
                "reason": "PutObject",
            },
        }

    def deliver(self, event):
        return intake.handler(event, self.context)

    def runs(self):
        found = self.sfn.list_executions(stateMachineArn=self.machine)["executions"]
        return sorted(execution["name"] for execution in found)

    def told(self, kind):
        return [event for name, event in self.published if name == kind]

    def request(self, run_id):
        return json.loads(self.account.get(f"runs/{run_id}/request.json"))

    def destroy(self):
        self.sfn.delete_state_machine(stateMachineArn=self.machine)
        for kind in ("Versions", "DeleteMarkers"):
            for entry in self.s3.list_object_versions(Bucket="datasets").get(kind, []):
                self.s3.delete_object(Bucket="datasets", Key=entry["Key"], VersionId=entry["VersionId"])
        self.s3.delete_bucket(Bucket="datasets")


def test_the_execution_learns_how_much_data_there_is(stack):
    """Run, model and the size of all data files together: the state machine divides what is large."""
    stack.upload("datasets/bot/v1/recipe.yaml", RECIPE.encode())
    for name in ("a.jsonl", "b.jsonl"):
        stack.upload(f"datasets/bot/v1/{name}")
    run_id = stack.deliver(stack.upload("datasets/bot/v1/_READY", b""))["run_id"]
    (found,) = stack.sfn.list_executions(stateMachineArn=stack.machine)["executions"]
    begun = json.loads(stack.sfn.describe_execution(executionArn=found["executionArn"])["input"])
    assert begun == {
        "run_id": run_id,
        "model": "bot",
        "started_at": "2026-11-01T10:00:00Z",
        "redrive": 0,
        "dataset_bytes": 2 * len(ROW),
    }


def test_one_object_is_one_run_however_often_its_event_comes(stack):
    """The same event delivered again starts nothing and tells nothing."""
    event = stack.upload("datasets/bot/train.jsonl")
    answers = [stack.deliver(event) for _ in range(3)]
    assert len({answer["run_id"] for answer in answers}) == 1
    assert stack.runs() == [answers[0]["run_id"]]
    assert len(stack.told("RunReceived")) == 1
    assert stack.told("RunReceived")[0].data == {
        "objects": 1,
        "bytes": len(ROW),
        "uploaded_as": "datasets/bot/train.jsonl",
    }


def test_the_request_pins_versions_and_carries_the_recipe_unparsed(stack):
    """What ValidateDataset reads is what was uploaded when, under which recipe text, however wrong it is."""
    stack.upload("datasets/bot/recipe.yaml", b"base_model: [")
    event = stack.upload("datasets/bot/train.jsonl")
    request = stack.request(stack.deliver(event)["run_id"])
    assert request["recipe_text"] == "base_model: ["
    assert request["recipe_key"] == "datasets/bot/recipe.yaml"
    assert request["recipe_default"] == RECIPE
    assert [o["version_id"] for o in request["objects"]] == [event["detail"]["object"]["version-id"]]


def test_the_recipe_beside_the_version_comes_before_that_beside_the_model(stack):
    """A version's own recipe is taken, and the model's only where the version has none."""
    stack.upload("datasets/bot/recipe.yaml", b"base_model: a/model")
    stack.upload("datasets/bot/v1/recipe.yaml", b"base_model: a/version")
    for version in ("v1", "v2"):
        stack.upload(f"datasets/bot/{version}/train.jsonl")
    of_v1, of_v2 = (
        stack.request(stack.deliver(stack.upload(f"datasets/bot/{v}/_READY", b""))["run_id"])
        for v in ("v1", "v2")
    )
    assert (of_v1["recipe_text"], of_v2["recipe_text"]) == ("base_model: a/version", "base_model: a/model")


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_folder_is_one_run_in_any_order_of_arrival(stack, order):
    """Whichever of the three events comes first, last or twice, one run starts, with both files."""
    events = [
        stack.upload("datasets/bot/v1/train.jsonl"),
        stack.upload("datasets/bot/v1/eval.jsonl"),
        stack.upload("datasets/bot/v1/_READY", b""),
    ]
    started = {stack.deliver(events[i])["run_id"] for i in (*order, *order)} - {None}
    assert stack.runs() == sorted(started)
    assert len(started) == 1
    assert [o["key"] for o in stack.request(started.pop())["objects"]] == [
        "datasets/bot/v1/eval.jsonl",
        "datasets/bot/v1/train.jsonl",
    ]


def test_a_folder_without_its_marker_waits_in_silence(stack):
    """Files alone start nothing, and nobody is told."""
    assert stack.deliver(stack.upload("datasets/bot/v1/train.jsonl"))["run_id"] is None
    assert stack.runs() == []
    assert stack.published == []


def test_a_file_replaced_before_the_marker_is_trained_in_its_last_form(stack):
    """The marker pins the newest version of each file, not the first one."""
    stack.deliver(stack.upload("datasets/bot/v1/train.jsonl", b"first"))
    last = stack.upload("datasets/bot/v1/train.jsonl", b"second")
    run_id = stack.deliver(stack.upload("datasets/bot/v1/_READY", b""))["run_id"]
    assert stack.request(run_id)["objects"][0]["version_id"] == last["detail"]["object"]["version-id"]


def test_a_marker_before_any_data_waits_for_the_first_file(stack):
    """With the marker there already, a data file is enough; a later one waits for the next marker."""
    assert stack.deliver(stack.upload("datasets/bot/v1/_READY", b""))["run_id"] is None
    assert stack.deliver(stack.upload("datasets/bot/v1/train.jsonl"))["run_id"]
    stack.deliver(stack.upload("datasets/bot/v1/train-2.jsonl"))
    assert len(stack.runs()) == 1
    stack.deliver(stack.upload("datasets/bot/v1/_READY", b""))
    assert len(stack.runs()) == 2


def test_a_marker_uploaded_again_over_the_same_files_trains_nothing_and_says_so(stack):
    """Nothing new was uploaded, so the answer names the run that has it; asked for `again`, there is a new one."""
    stack.upload("datasets/bot/v1/train.jsonl")
    first = stack.deliver(stack.upload("datasets/bot/v1/_READY", b""))["run_id"]
    second = stack.upload("datasets/bot/v1/_READY", b"")
    told = {stack.deliver(second)["run_id"] for _ in range(2)}
    assert len(told) == 1
    assert stack.ledger.run(told.pop())["status"] == "DUPLICATE"
    assert [event.data["duplicate_of"] for event in stack.told("RunEnded")] == [first]
    assert stack.runs() == [first]
    again = stack.deliver(stack.upload("datasets/bot/v1/_READY", b"", **{"dropforge-again": "true"}))[
        "run_id"
    ]
    assert again != first
    assert stack.request(again)["again"] is True


def test_a_marker_uploaded_again_after_a_failure_is_another_try(stack):
    """A run that failed answers nothing, so the same files may be asked for again with a new marker."""
    stack.upload("datasets/bot/v1/train.jsonl")
    first = stack.deliver(stack.upload("datasets/bot/v1/_READY", b""))["run_id"]
    stack.ledger.move(first, Status.FAILED_CAPACITY)
    event = stack.upload("datasets/bot/v1/_READY", b"")
    second = {stack.deliver(event)["run_id"] for _ in range(2)}
    assert stack.runs() == sorted({first, *second})
    assert stack.request(second.pop())["again"] is False


def test_a_file_that_comes_after_the_marker_is_told_while_the_run_goes_without_it(stack):
    """`aws s3 sync` may upload the marker first: once, not a file at a time, and never after the run's end."""
    stack.upload("datasets/bot/v1/eval.jsonl")
    run_id = stack.deliver(stack.upload("datasets/bot/v1/_READY", b""))["run_id"]
    late = [stack.upload(f"datasets/bot/v1/train-{i}.jsonl") for i in range(2)]
    for event in (*late, *late):
        stack.deliver(event)
    (told,) = stack.told("DatasetRejected")
    assert told.data["first"][0]["code"] == "FILE_LATE"
    assert run_id in told.message
    assert "train-0.jsonl" in told.message
    stack.ledger.move(run_id, Status.DATASET_REJECTED)
    assert stack.deliver(stack.upload("datasets/bot/v1/train-9.jsonl"))["run_id"] == run_id
    assert len(stack.told("RunEnded")) == 1
    assert stack.runs() == [run_id]


def test_a_file_whose_event_comes_late_is_part_of_the_run(stack):
    """Late news of what the run has already is no news, whichever version of the file it is about."""
    events = [stack.upload("datasets/bot/v1/train.jsonl", body) for body in (b"old", b"new")]
    run_id = stack.deliver(stack.upload("datasets/bot/v1/_READY", b""))["run_id"]
    assert {stack.deliver(event)["run_id"] for event in events} == {run_id}
    assert stack.told("RunEnded") == []


@pytest.mark.parametrize(
    "key",
    ["datasets/bot/recipe.yaml", "datasets/bot/v1/recipe.yaml", "datasets/bot/notes.txt", "datasets/bot/v1/"],
)
def test_what_is_no_data_starts_nothing(stack, key):
    """Recipes, notes and a console's folder markers are not uploads of data, and no reason to tell anybody."""
    assert stack.deliver(stack.upload(key, b""))["run_id"] is None
    assert stack.published == []


@pytest.mark.parametrize(
    ("key", "model"),
    [
        ("datasets/bot/my file.jsonl", "bot"),
        ("datasets/bot/a+b.jsonl", "bot"),
        ("datasets/bot/%2F.jsonl", "bot"),
        ("datasets/bot/\U0001f4a9.jsonl", "bot"),
        ("datasets/bot/../secret.jsonl", "bot"),
        ("datasets/bot//train.jsonl", "bot"),
        ("datasets/Bot/train.jsonl", "unknown"),
        ("datasets/train.jsonl", "unknown"),
        ("datasets/a/b/c/train.jsonl", "a"),
        ("datasets/" + "a" * (1024 - 21) + "/train.jsonl", "unknown"),
        ("datasets/bot/" + "\u00e9" * 502 + ".jsonl", "bot"),
        ("datasets/bot/';rm -rf $HOME;.jsonl", "bot"),
        ("datasets/bot/<!channel>\u202e.jsonl", "bot"),
    ],
)
def test_a_poisoned_key_is_refused_once_and_never_reaches_a_name(stack, key, model):
    """The refusal is in the ledger and on the bus, with the key escaped; no execution bears it."""
    event = stack.upload(key)
    run_id = stack.deliver(event)["run_id"]
    stack.deliver(event)
    assert stack.runs() == []
    assert {"status": "DATASET_REJECTED", "model": model}.items() <= stack.ledger.run(run_id).items()
    assert len(stack.told("DatasetRejected")) == len(stack.told("RunEnded")) == 1
    message = stack.told("RunEnded")[0].message
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 500


def test_an_empty_object_is_refused(stack):
    """Zero bytes are told at once, without an execution."""
    run_id = stack.deliver(stack.upload("datasets/bot/train.jsonl", b""))["run_id"]
    assert stack.runs() == []
    assert stack.told("DatasetRejected")[0].data["first"][0]["code"] == "FILE_EMPTY"
    assert stack.ledger.run(run_id)["model"] == "bot"


def test_an_older_version_that_comes_late_is_stale(stack):
    """Once a newer version was received, the older one's event trains nothing, whatever digits the sequencers have."""
    older = stack.upload("datasets/bot/train.jsonl", b"old")
    newer = stack.upload("datasets/bot/train.jsonl", b"new")
    older["detail"]["object"]["sequencer"], newer["detail"]["object"]["sequencer"] = "FF", "0100"
    run_id = stack.deliver(newer)["run_id"]
    late = stack.deliver(older)["run_id"]
    assert stack.runs() == [run_id]
    assert stack.ledger.run(late)["status"] == "STALE"
    assert [event.status for event in stack.told("RunEnded")] == ["STALE"]
    stack.deliver(newer)
    assert stack.runs() == [run_id]


def test_an_object_that_vanished_is_superseded(stack):
    """An event for what is deleted by now ends quietly, told once."""
    event = stack.upload("datasets/bot/train.jsonl")
    stack.s3.delete_object(Bucket="datasets", Key="datasets/bot/train.jsonl")
    run_id = stack.deliver(event)["run_id"]
    stack.deliver(event)
    assert stack.ledger.run(run_id)["status"] == "SUPERSEDED"
    assert [event.status for event in stack.told("RunEnded")] == ["SUPERSEDED"]
    assert stack.runs() == []


@pytest.mark.parametrize("broken", ["start", "annotate", "open_run", "claim"])
def test_a_crash_at_any_point_heals_when_the_event_comes_again(stack, monkeypatch, broken):
    """Whatever intake had done before it died, the next delivery ends with exactly one run started and told."""
    owner = Executions if broken == "start" else Ledger
    works = getattr(owner, broken)

    def dies(*_args, **_kwargs):
        raise ConnectionError("gone")

    event = stack.upload("datasets/bot/v1/train.jsonl") and stack.upload("datasets/bot/v1/_READY", b"")
    monkeypatch.setattr(owner, broken, dies)
    with pytest.raises(ConnectionError):
        stack.deliver(event)
    monkeypatch.setattr(owner, broken, works)
    run_id = stack.deliver(event)["run_id"]
    assert stack.runs() == [run_id]
    assert stack.ledger.run(run_id)["execution_arn"].endswith(run_id)
    assert stack.told("RunReceived")


def test_a_recipe_changed_between_two_deliveries_starts_no_second_run(stack):
    """One upload is one run, under the recipe that was there first."""
    event = stack.upload("datasets/bot/train.jsonl")
    run_id = stack.deliver(event)["run_id"]
    stack.upload("datasets/bot/recipe.yaml", b"base_model: another/one")
    stack.deliver(event)
    assert stack.runs() == [run_id]


def test_a_refusal_that_was_not_told_is_told_when_the_event_comes_again(stack, monkeypatch):
    """A bus that is down loses no refusal: the event goes back to be tried again."""
    event = stack.upload("datasets/bot/a b.jsonl")
    with monkeypatch.context() as broken:
        broken.setattr(intake, "announce", lambda *_: False)
        with pytest.raises(intake.NotTold):
            stack.deliver(event)
    assert stack.told("RunEnded") == []
    stack.deliver(event)
    stack.deliver(event)
    assert len(stack.told("RunEnded")) == 1


def test_a_recipe_beyond_its_limit_is_carried_only_as_far_as_needed(stack):
    """A huge recipe.yaml does not fill the request; it is long enough to be refused for its length."""
    stack.upload("datasets/bot/recipe.yaml", b"#" * 1_000_000)
    run_id = stack.deliver(stack.upload("datasets/bot/train.jsonl"))["run_id"]
    assert len(stack.request(run_id)["recipe_text"]) == 65_537


@pytest.mark.parametrize("suffix", DATA_SUFFIXES)
def test_every_data_suffix_starts_a_run(stack, suffix):
    """What the documentation calls a data file is one."""
    assert stack.deliver(stack.upload("datasets/bot/train" + suffix))["run_id"]


def test_a_closed_execution_of_the_same_input_counts_as_started(stack):
    """A name that is taken is fine where the input is the same, and a conflict where it is not."""
    executions = Executions(stack.machine)
    arn = executions.start("a" * 26, '{"run_id": "a", "model": "m"}')
    stack.sfn.stop_execution(executionArn=arn)
    assert executions.start("a" * 26, '{"model":"m","run_id":"a"}') == arn
    with pytest.raises(ExecutionConflict):
        executions.start("a" * 26, '{"run_id": "b", "model": "m"}')


M, V = "datasets/bot/", "datasets/bot/v1/"
LONGEST = M + "v1/" + "a" * (1024 - len(M) - 9) + ".jsonl"


class Case(NamedTuple):
    """What people do and what arrives, in order."""

    steps: tuple[str | int, ...]
    """A key is uploaded, `-key` is deleted, a number is the arrival of that upload's event."""
    expected: tuple[str, ...]
    """What comes of each arrival."""


CASES = {
    "a file directly under the model": Case((M + "train.jsonl", 0), ("RUN",)),
    "its event comes again": Case((M + "train.jsonl", 0, 0, 0), ("RUN", "KNOWN", "KNOWN")),
    "the file is replaced after its run began": Case(
        (M + "train.jsonl", 0, M + "train.jsonl", 0, 1), ("RUN", "KNOWN", "RUN")
    ),
    "the file is replaced before its event arrives": Case(
        (M + "train.jsonl", M + "train.jsonl", 0, 0, 1), ("STALE", "KNOWN", "RUN")
    ),
    "the file is replaced, and the events change places": Case(
        (M + "train.jsonl", M + "train.jsonl", 1, 0, 0), ("RUN", "STALE", "KNOWN")
    ),
    "the file is gone by now": Case(
        (M + "train.jsonl", "-" + M + "train.jsonl", 0, 0, M + "train.jsonl", 0, 1),
        ("SUPERSEDED", "KNOWN", "KNOWN", "RUN"),
    ),
    "the file is empty": Case((M + "empty.jsonl", 0, 0), ("FILE_EMPTY", "KNOWN")),
    "a file of a kind that nothing reads": Case(
        (M + "train.xlsx", V + "train.txt", 0, 0, 1), ("FILE_KIND", "KNOWN", "FILE_KIND")
    ),
    "a name with spaces, `+`, `%2F`, emoji, `..`": Case(
        (
            M + "a b.jsonl",
            M + "a+b.jsonl",
            M + "%2F.jsonl",
            V + "\U0001f4a9.jsonl",
            M + "../a.jsonl",
            0,
            1,
            2,
            3,
            4,
            0,
        ),
        (*["KEY_REFUSED"] * 5, "KNOWN"),
    ),
    "a key of 1,024 bytes": Case((LONGEST, 0, V + "_READY", 1), ("IGNORED", "RUN")),
    "a folder that a console made": Case((M, V, 0, 1), ("IGNORED", "IGNORED")),
    "a recipe, a README": Case((M + "recipe.yaml", V + "README.md", 0, 1), ("IGNORED", "IGNORED")),
    "a recipe or marker by a wrong name": Case(
        (M + "recipe.yml", V + "_READY.txt", V + "ready", 0, 1, 2),
        ("KEY_REFUSED", "KEY_REFUSED", "KEY_REFUSED"),
    ),
    "files of a version without `_READY`": Case(
        (V + "train.jsonl", V + "eval.jsonl", 0, 1, 0), ("IGNORED", "IGNORED", "IGNORED")
    ),
    "the version's `_READY`": Case(
        (V + "train.jsonl", 0, V + "eval.jsonl", 1, V + "_READY", 2, 2),
        ("IGNORED", "IGNORED", "RUN", "KNOWN"),
    ),
    "the version's `_READY`, its event before those of the files": Case(
        (V + "train.jsonl", V + "eval.jsonl", V + "_READY", 2, 1, 0, 2), ("RUN", "KNOWN", "KNOWN", "KNOWN")
    ),
    "a file added or replaced before `_READY`": Case(
        (V + "train.jsonl", 0, V + "train.jsonl", V + "eval.jsonl", V + "_READY", 3, 1, 2),
        ("IGNORED", "RUN", "KNOWN", "KNOWN"),
    ),
    "a file added or replaced after `_READY`, while the run goes": Case(
        (V + "train.jsonl", V + "_READY", 1, V + "train.jsonl", V + "eval.jsonl", 2, 3, 2),
        ("RUN", "FILE_LATE", "KNOWN", "KNOWN"),
    ),
    "`_READY` before any file": Case((V + "_READY", 0, V + "train.jsonl", 1), ("IGNORED", "RUN")),
    "`_READY` is gone by now": Case(
        (V + "train.jsonl", V + "_READY", "-" + V + "_READY", 1, 1, 0), ("SUPERSEDED", "KNOWN", "IGNORED")
    ),
    "`_READY` again, with other files": Case(
        (V + "train.jsonl", V + "_READY", 1, V + "train.jsonl", V + "_READY", 3), ("RUN", "RUN")
    ),
    "`_READY` again, with the same files": Case(
        (V + "train.jsonl", V + "_READY", 1, V + "_READY", 2, 2, 1), ("RUN", "DUPLICATE", "KNOWN", "KNOWN")
    ),
}


def outcome(stack, event):
    """What comes of an arrival, in one word."""
    told = len(stack.told("RunEnded"))
    answer = stack.deliver(event)
    for ended in stack.told("RunEnded")[told:]:
        refused = [
            e.data["first"][0]["code"] for e in stack.told("DatasetRejected") if e.run_id == ended.run_id
        ]
        return refused[0] if refused else ended.status
    if answer["run_id"] is None:
        return "IGNORED"
    return "RUN" if answer["outcome"] == "a run was started" else "KNOWN"


@pytest.mark.parametrize("name", CASES)
def test_every_arrival_has_its_outcome(stack, name):
    """Each refusal is told once with its code, what is ignored is told to nobody, and no event starts two runs."""
    case, events, seen = CASES[name], [], []
    for step in case.steps:
        if isinstance(step, int):
            seen.append(outcome(stack, events[step]))
        elif step.startswith("-"):
            stack.s3.delete_object(Bucket="datasets", Key=step[1:])
        else:
            empty = step.endswith(("empty.jsonl", "/", "_READY"))
            events.append(stack.upload(step, b"" if empty else ROW))
    assert tuple(seen) == case.expected
    assert len(stack.runs()) == len(stack.told("RunReceived")) == case.expected.count("RUN")


def test_the_page_has_every_case():
    """docs/upload.md tells what comes of each kind of arrival, and no other."""
    page = (Path(__file__).parents[2] / "docs" / "upload.md").read_text()
    rows = page.partition("## What comes of an upload")[2].partition("\n## ")[0]
    told = {line.split("|")[1].strip() for line in rows.splitlines() if line.startswith("| ")} - {
        "what arrives"
    }
    assert told == set(CASES)
