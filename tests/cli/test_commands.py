"""Commands as they are typed: exit status, one JSON document on stdout, words on stderr."""

import hashlib
import io
import json
import tarfile
import time
from types import SimpleNamespace

import boto3
import pytest
from stub_hub import serving

from dropforge.cli import act
from dropforge.cli.doctor import event_check
from dropforge.local import base_models
from dropforge_core import aws
from dropforge_core.ledger import Status

RUN = "abcdefghijklmnopqrstuvwxyz"
OTHER = "zyxwvutsrqponmlkjihgfedcba"


def test_valid_data_ends_with_0(dropforge, rows):
    """A sane file is valid, with the promised document."""
    said = dropforge("validate", rows, "--json")
    assert (said.code, said.document["valid"], said.document["rows"]) == (0, True, 24)


def test_an_mlflow_server_that_is_not_safe_starts_no_local_aws(dropforge):
    """Plain http to another machine is refused with the form that is taken, before anything is started."""
    said = dropforge("local", "up", "--mlflow-uri", "http://mlflow.example.org")
    assert said.code == 5
    assert "MlflowTrackingUri can't be 'http://mlflow.example.org'" in said.err


def test_every_fault_is_listed_with_its_line(dropforge, rows):
    """Two broken rows are two faults with file and line, and the status is 1."""
    lines = rows.read_text().splitlines()
    lines[4], lines[9] = "{broken", json.dumps({"messages": []})
    rows.write_text("\n".join(lines) + "\n")
    said = dropforge("validate", rows, "--json")
    assert said.code == 1
    assert sorted(error["line"] for error in said.document["errors"]) == [5, 10]
    assert "rows.jsonl:5" in dropforge("validate", rows).out


def test_a_recipes_faults_are_told_with_the_datas(dropforge, rows, tmp_path):
    """A recipe with two mistakes and a broken row are three faults of one report."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("training: {epochs: -1}\nadaptor: {}\n")
    rows.write_text(rows.read_text() + "{broken\n")
    said = dropforge("validate", rows, "--recipe", recipe, "--json")
    assert said.code == 1
    assert {error["file"] for error in said.document["errors"]} == {"recipe.yaml", "rows.jsonl"}
    assert said.document["error_count"] == 3


@pytest.mark.parametrize(
    "arguments", [("validate", "nowhere.jsonl"), ("push", "nowhere.jsonl", "--model", "m")]
)
def test_a_missing_file_is_a_usage_error(dropforge, arguments):
    """What can't be read ends with 2 and a sentence, not with a traceback."""
    said = dropforge(*arguments)
    assert said.code == 2
    assert said.out == ""
    assert "not there" in said.err
    assert "Traceback" not in said.err


LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}


def test_plan_prices_what_validate_accepts(dropforge, rows, tmp_path):
    """With the base model's config the plan ranks instances, without AWS."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    said = dropforge("plan", rows, "--base-config", tmp_path / "config.json", "--json")
    assert said.code == 0
    assert said.document["fits"]
    assert said.document["cost_usd"]["low"] <= said.document["cost_usd"]["expected"]
    assert "ml.g6.xlarge" in dropforge("plan", rows, "--base-config", tmp_path).out


def test_plan_asks_the_hub_for_the_model_that_the_recipe_names(dropforge, rows, tmp_path, monkeypatch):
    """A base model of the hub is planned at the commit that its branch has now."""
    commit = "12" * 20
    answers = {
        "/api/models/org/llama/revision/main": [
            (200, {"sha": commit, "siblings": [{"rfilename": "model.safetensors", "size": 269_060_552}]}, {})
        ],
        f"/org/llama/resolve/{commit}/config.json": [(200, LLAMA, {})],
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base_model: org/llama\n")
    with serving(answers) as (endpoint, _):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        said = dropforge("plan", rows, "--recipe", recipe, "--json")
    assert said.code == 0
    assert said.document["base_model"]["source"] == f"hub:org/llama@{commit}"
    assert said.document["base_model"]["parameters"] == pytest.approx(134_515_008, rel=1e-3)


def test_plan_without_a_base_model_says_whose_it_takes(dropforge, rows, tmp_path, monkeypatch):
    """Where neither recipe nor option names a base model, the demo's is planned, and that is said."""
    folder = tmp_path / "dropforge" / "models" / base_models.SMOL
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    (folder / base_models.MARKER).write_text(base_models.EDITION[base_models.SMOL])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said = dropforge("plan", rows, "--json")
    assert said.code == 0
    assert said.document["base_model"]["name"] == base_models.SMOL
    assert base_models.SMOL in said.err


def test_plan_where_the_hub_is_silent_names_the_way_out(dropforge, rows, tmp_path, monkeypatch):
    """Without a hub the plan ends with 2 and names --base-config."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base_model: org/llama\n")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    said = dropforge("plan", rows, "--recipe", recipe)
    assert said.code == 2
    assert "--base-config" in said.err


def test_plan_needs_a_model_that_is_one(dropforge, rows, tmp_path):
    """A config that describes no language model ends with 1 and says which file."""
    (tmp_path / "config.json").write_text("{}")
    said = dropforge("plan", rows, "--base-config", tmp_path)
    assert said.code == 1
    assert "config.json" in said.err


def test_push_uploads_and_says_where(dropforge, world, rows):
    """The file is in the dataset bucket under its model."""
    said = dropforge("push", rows, "--model", "support-bot", "--json")
    assert said.code == 0
    assert said.document["keys"] == ["datasets/support-bot/rows.jsonl"]
    boto3.client("s3").head_object(Bucket="datasets", Key=said.document["keys"][0])


@pytest.mark.parametrize("name", ["Support", "a--b", "-a", "a" * 41, "a/b", "../x"])
def test_a_models_name_is_checked_before_anything_else(dropforge, rows, name):
    """A name that AWS would refuse later is refused now."""
    said = dropforge("push", rows, f"--model={name}")
    assert said.code == 2
    assert "lower-case" in said.err


def test_runs_lists_newest_first(dropforge, world):
    """All runs, or one model's, with whole ids; claims in the same table are no runs."""
    world.run(RUN, received_at="2026-11-20T00:00:00+00:00")
    world.run(OTHER, "REGISTERED", received_at="2026-11-21T00:00:00+00:00", model="other", cost_usd="0.41")
    world.ledger.claim("CONTENT#x", RUN)
    assert [run["run_id"] for run in dropforge("runs", "--json").document] == [OTHER, RUN]
    assert [run["run_id"] for run in dropforge("runs", "--model", "other", "--json").document] == [OTHER]
    table = dropforge("runs").out
    assert RUN in table
    assert "$0.41" in table


def test_show_tells_a_rejected_runs_faults(dropforge, world):
    """File, line, code and message, and nothing in them is read as markup."""
    world.run(status="DATASET_REJECTED", message="1 fault [bold]here[/bold]")
    problem = {
        "file": "a.jsonl",
        "line": 7,
        "path": "",
        "code": "JSON_BROKEN",
        "message": "found [red]x[/red]\x1b[2J",
    }
    world.document(
        "validation",
        {
            "valid": False,
            "format": None,
            "rows": 1,
            "bytes": 9,
            "error_count": 1,
            "errors": [problem],
            "warnings": [],
            **{name: {} for name in ("tokens", "duplicates", "leakage", "pii")},
        },
    )
    said = dropforge("show", RUN[:6])
    assert said.code == 0
    assert "a.jsonl:7" in said.out
    assert "found [red]x[/red]" in said.out
    assert "[bold]here[/bold]" in said.out
    assert "\x1b[2J" not in said.out


def test_an_unknown_run_is_told(dropforge, world):
    """A run that is not there, and a beginning that fits two, end with 2."""
    world.run("abcd" + "a" * 22)
    world.run("abcd" + "b" * 22)
    assert "There is no run" in dropforge("show", "zzzz").err
    ambiguous = dropforge("show", "abcd")
    assert ambiguous.code == 2
    assert "More than one" in ambiguous.err


@pytest.mark.parametrize(
    ("status", "code"),
    [("REGISTERED", 0), ("DUPLICATE", 0), ("DATASET_REJECTED", 3), ("GATE_FAILED", 4), ("INCONCLUSIVE", 4)]
    + [(status.value, 5) for status in Status if status.is_failure or status is Status.OVER_BUDGET],
)
def test_follow_ends_with_the_run(dropforge, world, status, code):
    """`follow` looks and ends with 0; with --exit-code it ends as `local run` would."""
    world.run(status=status, message="So it ended.")
    assert dropforge("follow", RUN).code == 0
    said = dropforge("follow", RUN, "--exit-code", "--json")
    assert (said.code, said.document["run"]["status"]) == (code, status)
    assert "So it ended." in said.err


def test_report_is_fetched(dropforge, world, tmp_path):
    """The page lands where it is said to; a run without one ends with 1."""
    world.run()
    assert dropforge("report", RUN).code == 1
    world.s3.put_object(Bucket="runs", Key=f"runs/{RUN}/report/index.html", Body=b"<html>")
    said = dropforge("report", RUN, "--out", tmp_path, "--json")
    assert said.document["path"] == str(tmp_path / "index.html")
    assert (tmp_path / "index.html").read_bytes() == b"<html>"


def artifact(weights, digest=None):
    """A model.tar.gz as training leaves it."""
    manifest = {
        "base_model": {"name": "org/name", "revision": "c" * 40},
        "quantization": "nf4",
        "files": {"adapter_model.safetensors": digest or hashlib.sha256(weights).hexdigest()},
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, body in {
            "adapter_model.safetensors": weights,
            "manifest.json": json.dumps(manifest).encode(),
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    return packed.getvalue()


def test_the_adapter_is_fetched(dropforge, world, tmp_path, monkeypatch):
    """The last training's adapter is unpacked with what it belongs to; a second time it takes the first one's place."""
    monkeypatch.chdir(tmp_path)
    world.run()
    assert dropforge("fetch", RUN).code == 1
    for attempt, weights in ((1, b"first"), (2, b"second")):
        key = f"runs/{RUN}/training/output/m-{RUN}-t{attempt}/output/model.tar.gz"
        # S3 tells when an object came to the second.
        time.sleep(1.1 * (attempt - 1))
        world.s3.put_object(Bucket="runs", Key=key, Body=artifact(weights))
    for _ in range(2):
        said = dropforge("fetch", RUN, "--json")
        assert said.document == {
            "run_id": RUN,
            "path": f".dropforge/models/{RUN}",
            "base_model": "org/name",
            "revision": "c" * 40,
            "quantization": "nf4",
        }
        assert (tmp_path / said.document["path"] / "adapter_model.safetensors").read_bytes() == b"second"
    assert [found.name for found in (tmp_path / ".dropforge" / "models").iterdir()] == [RUN]


def test_an_adapter_takes_no_other_files_place(dropforge, world, tmp_path):
    """A folder with something in it stays as it is, and what was altered on the way leaves nothing behind."""
    world.run()
    key = f"runs/{RUN}/training/output/m-{RUN}-t1/output/model.tar.gz"
    world.s3.put_object(Bucket="runs", Key=key, Body=artifact(b"weights", "0" * 64))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text("mine")
    assert dropforge("fetch", RUN, "--out", tmp_path / "mine").code == 2
    assert (tmp_path / "mine" / "manifest.json").read_text() == "mine"
    said = dropforge("fetch", RUN, "--out", tmp_path / "new")
    assert said.code == 5
    assert "adapter_model.safetensors of the artifact is not what its manifest says" in said.err
    assert [found.name for found in tmp_path.glob("[!.]*")] == ["mine"]


def test_cancel_stops_the_execution(dropforge, world):
    """A running run is stopped; one that has ended is left alone."""
    world.run()
    arn = world.execution()
    assert dropforge("cancel", RUN).code == 0
    assert boto3.client("stepfunctions").describe_execution(executionArn=arn)["status"] == "ABORTED"
    world.run(OTHER, "REGISTERED")
    assert dropforge("cancel", OTHER).code == 2


def test_redrive_starts_a_new_execution_above_the_old_rank(dropforge, world):
    """A failed run begins again under its own id and with its data's size, counted, and the ledger names the new execution."""
    world.run(status="FAILED_CODE", bytes="3000000000")
    said = dropforge("redrive", RUN, "--json")
    assert said.code == 0
    described = boto3.client("stepfunctions").describe_execution(executionArn=said.document["execution_arn"])
    assert described["name"] == f"{RUN}-r1"
    begins = {"run_id": RUN, "redrive": 1, "dataset_bytes": 3_000_000_000}
    assert begins.items() <= json.loads(described["input"]).items()
    assert world.ledger.run(RUN)["execution_arn"] == described["executionArn"]


class StoppingJobs:
    """SageMaker with one job of a kind that is still stopping."""

    def __init__(self, kind):
        self.kind = kind

    def __getattr__(self, call):
        kind = call.split("_")[1]

        def listed(*, NameContains, StatusEquals, MaxResults):  # noqa: N803  # the API's names
            assert (NameContains, MaxResults) == (RUN, 1)
            is_there = kind == self.kind and StatusEquals == "Stopping"
            return {f"{kind.title()}JobSummaries": [{}] if is_there else []}

        return listed


@pytest.mark.parametrize("kind", ["training", "transform", "processing"])
def test_redrive_waits_until_the_jobs_of_before_have_stopped(dropforge, world, monkeypatch, kind):
    """Right after a cancel a job may still save its checkpoint: a second one would write beside it."""
    world.run(status="CANCELLED")

    def client(service):
        return StoppingJobs(kind) if service == "sagemaker" else boto3.client(service)

    monkeypatch.setattr(act, "aws", SimpleNamespace(client=client, error_code=aws.error_code))
    said = dropforge("redrive", RUN)
    assert said.code == 2
    assert "still stopping" in said.err
    assert "execution_arn" not in world.ledger.run(RUN)


@pytest.mark.parametrize("status", ["REGISTERED", "DATASET_REJECTED", "TRAINING", "GATE_FAILED"])
def test_what_ended_with_an_answer_is_not_driven_again(dropforge, world, status):
    """Redrive is for accidents."""
    world.run(status=status)
    assert dropforge("redrive", RUN).code == 2


def test_compare_tells_what_differs(dropforge, world):
    """Settings that are equal are left out; what differs stands side by side."""
    for run, rate in ((RUN, 1e-4), (OTHER, 2e-4)):
        world.run(run, "REGISTERED")
        world.document("recipe", {"method": "sft", "training": {"learning_rate": rate}}, run)
    said = dropforge("compare", RUN, OTHER, "--json")
    assert said.document["recipe"] == [
        {"name": "training.learning_rate", "first": "0.0001", "second": "0.0002"}
    ]
    assert "training.learning_rate" in dropforge("compare", RUN, OTHER).out


def test_doctor_finds_what_is_wrong(dropforge, world):
    """A bucket without versions is found, ends with 1, and the answer says how to mend it."""
    world.s3.put_bucket_versioning(Bucket="datasets", VersioningConfiguration={"Status": "Suspended"})
    said = dropforge("doctor", "--json")
    assert said.code == 1
    bad = {check["name"]: check["mend"] for check in said.document["checks"] if check["state"] == "bad"}
    assert "turn versioning on" in bad["versioning"]
    assert said.document["not_checked"]


def test_doctor_reads_the_buckets_events():
    """EventBridge is on where its member is there, empty as it always is."""
    assert event_check("events", "b", {"EventBridgeConfiguration": {}}).state == "ok"
    assert event_check("events", "b", {"QueueConfigurations": []}).state == "bad"


def test_an_address_that_never_confirmed_is_found(dropforge, world):
    """Mail that would go nowhere is told before the first run."""
    boto3.client("sns").subscribe(TopicArn=world.topic, Protocol="email", Endpoint="a@example.com")
    states = {check["name"]: check["state"] for check in dropforge("doctor", "--json").document["checks"]}
    assert states["people to tell"] in {"ok", "bad"}
    assert states["run table"] == "ok"


def test_a_stack_that_is_not_there_is_told(dropforge, world):
    """The sentence names the stack and what to set."""
    said = dropforge("runs", "--stack", "nowhere")
    assert said.code == 2
    assert "nowhere" in said.err
    assert "AWS_ENDPOINT_URL" in said.err
