"""PlanTraining over HTTP: sources of base models, and the documents that it writes."""

import hashlib
import json

import pytest

import plan_training
from dropforge_core.aws import Ledger, Purse
from dropforge_core.contracts import DatasetFacts, Plan, TrainingConfig
from dropforge_core.layout import MODEL_SHAPE, RunLayout
from dropforge_core.ledger import Status
from dropforge_core.planning import BaseModelUnsuitable, CountedShape, shape_of
from dropforge_core.recipe import Recipe
from hub import BaseModelUnavailable
from money import settle

RUN = "d" * 26
LAYOUT = RunLayout(run_id=RUN)
COMMIT = "ab" * 20
CONFIG = json.dumps(
    {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 512,
        "dtype": "float32",
    }
)
FACTS = DatasetFacts(
    digest="sha256:" + "1" * 64,
    rows_train=100,
    rows_eval=20,
    bytes_train=40_000,
    tokens_train=10_000,
    tokens_exact=True,
    longest_tokens=300,
    format="messages",
)


@pytest.fixture
def start(account, published, context, monkeypatch):
    """Plan a run of a base model, after its request and recipe were stored."""
    monkeypatch.setenv("IMAGE_URI", "image:1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    def go(base_model, **fields):
        recipe = Recipe.model_validate({"base_model": base_model, **fields})
        account.put(LAYOUT.recipe, recipe.model_dump_json())
        Ledger("runs").open_run(RUN, "m", Status.VALIDATING, {})
        event = {"run_id": RUN, "model": "m", "redrive": 0, "dataset": FACTS.model_dump(mode="json")}
        return Plan.model_validate(plan_training.handler(event, context))

    return go


def put_model(account, prefix):
    account.put(prefix + "config.json", CONFIG)
    account.put(prefix + "model.safetensors", b"w" * 1000)


def test_a_model_at_an_s3_prefix_is_planned_and_written_down(account, start, published):
    """plan.json is what is returned; training.json has recipe, digests and the base model's revision."""
    put_model(account, "sources/tiny/")
    made = start("s3://runs/sources/tiny/")
    assert made.fits
    assert made.within_budget
    assert made.base_model.source == "s3://runs/sources/tiny/"
    assert not made.base_model.cached
    assert Plan.model_validate_json(account.get(LAYOUT.plan)) == made
    config = TrainingConfig.model_validate_json(account.get(LAYOUT.training_config + "training.json"))
    assert made.base_model.prefix == f"base-models/tiny/{config.base_model_revision}/"
    assert config.dataset_digest == FACTS.digest
    assert config.image == "image:1"
    assert Ledger("runs").run(RUN)["status"] == Status.PLANNING
    [(kind, event)] = published
    assert kind == "RunPlanned"
    assert event.message.startswith("Plan: ml.g6.xlarge on spot")
    assert event.data["rows_train"] == 100
    assert event.data["cost_low"] <= event.data["cost_expected"] <= event.data["cost_high"]


def test_a_run_that_is_started_again_goes_on_with_what_it_has_left(account, start):
    """What its jobs cost before is settled; the plan gives the rest, counts what is trained, and takes no more."""
    put_model(account, "sources/tiny/")
    first = start("s3://runs/sources/tiny/")
    settle(Purse("runs"), run_id=RUN, cost_usd=20.0)
    account.put(f"{LAYOUT.checkpoints}step-{first.steps:08d}/MANIFEST.json", "{}")
    again = start("s3://runs/sources/tiny/")
    assert again.within_budget
    assert again.compute.max_runtime_s < first.compute.max_runtime_s / 3
    assert any("has spent $20.00 of its cap; it has 100%" in note for note in again.notes)
    assert Purse("runs").held(RUN).reserved_micro == 5_000_000
    settle(Purse("runs"), run_id=RUN, cost_usd=24.9)
    assert "$24.90 are spent" in start("s3://runs/sources/tiny/").reason


def test_checkpoints_are_as_frequent_as_the_cap_is_small(account, start):
    """A machine that is taken away costs about a twentieth of what the cap pays, at most five minutes, at least one."""
    put_model(account, "sources/tiny/")
    for cap, least, most in ((25, 300, 300), (1.2, 60, 299)):
        made = start("s3://runs/sources/tiny/", compute={"max_cost_usd": cap})
        config = TrainingConfig.model_validate_json(account.get(LAYOUT.training_config + "training.json"))
        assert least <= config.checkpoint_every_s <= most
        assert config.checkpoint_every_s <= max(60, made.compute.max_runtime_s / 20)


JUDGE = {
    "model": "amazon.nova-pro-v1:0",
    "usd_per_million_input_tokens": 1.0,
    "usd_per_million_output_tokens": 1.0,
}


def test_a_judge_that_the_stack_may_not_ask_stops_the_run_before_it_costs(account, start, monkeypatch):
    """Refused by the plan, with what to do; with the stack's parameter set to that model the same recipe is planned."""
    put_model(account, "sources/tiny/")
    refused = start("s3://runs/sources/tiny/", evaluation={"judge": JUDGE})
    assert not refused.fits
    assert "JudgeModelId" in refused.reason
    monkeypatch.setenv("JUDGE_MODEL_ID", "amazon.nova-pro-v1:0")
    assert start("s3://runs/sources/tiny/", evaluation={"judge": JUDGE}).fits


def test_a_copy_counts_only_with_its_manifest(account, start):
    """The manifest is written last; content that changes has another revision and so another copy."""
    put_model(account, "sources/tiny/")
    first = start("s3://runs/sources/tiny/")
    account.put(first.base_model.prefix + "config.json", CONFIG)
    assert not start("s3://runs/sources/tiny/").base_model.cached
    account.put(first.base_model.prefix + "MANIFEST.json", "{}")
    assert start("s3://runs/sources/tiny/").base_model.cached
    account.put("sources/tiny/model.safetensors", b"other")
    assert not start("s3://runs/sources/tiny/").base_model.cached


def test_a_cached_commit_needs_no_hub(account, start):
    """With a commit as revision and a whole copy, nobody is asked: the hub of this test does not exist."""
    prefix = f"base-models/org/tiny/{COMMIT}/"
    put_model(account, prefix)
    account.put(prefix + "MANIFEST.json", "{}")
    made = start(f"org/tiny@{COMMIT}")
    assert made.base_model.cached
    assert made.base_model.source == f"hub:org/tiny@{COMMIT}"


def test_a_counted_shape_beside_the_copy_goes_before_the_arithmetic(account, start):
    """It is believed for the config.json that it was counted of, and for no other; a broken one is no failure."""
    prefix = f"base-models/org/tiny/{COMMIT}/"
    put_model(account, prefix)
    account.put(prefix + "MANIFEST.json", "{}")
    plain = start(f"org/tiny@{COMMIT}").base_model.parameters
    counted = CountedShape(
        counted_by="transformers 5",
        config_sha256=hashlib.sha256(CONFIG.encode()).hexdigest(),
        shape=shape_of(json.loads(CONFIG)).model_copy(update={"origin": "counted", "other_parameters": 7}),
    )
    account.put(prefix + MODEL_SHAPE, counted.model_dump_json())
    believed = start(f"org/tiny@{COMMIT}").base_model.parameters
    assert believed == counted.shape.parameters != plain
    other = counted.model_copy(update={"config_sha256": "0" * 64}).model_dump_json()
    for body in (other, "{}", "no JSON"):
        account.put(prefix + MODEL_SHAPE, body)
        assert start(f"org/tiny@{COMMIT}").base_model.parameters == plain


def test_an_architecture_that_nobody_knows_is_planned_as_a_bound(account, start):
    """The plan says that it is one, and its interval is wider than a known family's of the same size."""
    put_model(account, "sources/llama/")
    known = start("s3://runs/sources/llama/")
    account.put("sources/new/config.json", CONFIG.replace('"llama"', '"mystery"'))
    account.put("sources/new/model.safetensors", b"w" * 1000)
    bound = start("s3://runs/sources/new/")
    assert any("mystery is not known to the planner" in note for note in bound.notes)
    assert not any("not known to the planner" in note for note in known.notes)
    assert bound.forecast.mfu.low < known.forecast.mfu.low < known.forecast.mfu.high < bound.forecast.mfu.high


@pytest.mark.parametrize(
    ("allowed", "said"), [("https://m.example.org", "is told of the run"), ("", "there is none")]
)
def test_the_plan_knows_which_mlflow_server_the_stack_tells(account, start, monkeypatch, allowed, said):
    """The stack's parameter, not the recipe, says to whom anything is sent; the plan tells what will be."""
    put_model(account, "sources/tiny/")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", allowed)
    notes = start("s3://runs/sources/tiny/", tracking={"mlflow_uri": "https://m.example.org"}).notes
    assert [said in note for note in notes if "MLflow" in note] == [True]


@pytest.mark.parametrize(
    ("files", "error", "says"),
    [
        ({}, BaseModelUnavailable, "nothing under"),
        ({"model.safetensors": b"w"}, BaseModelUnavailable, "no config.json"),
        ({"config.json": CONFIG, "pytorch_model.bin": b"w"}, BaseModelUnsuitable, "no .safetensors"),
        ({"config.json": "{", "model.safetensors": b"w"}, BaseModelUnsuitable, "not JSON"),
        ({"config.json": '{"auto_map": {}}', "model.safetensors": b"w"}, BaseModelUnsuitable, "auto_map"),
    ],
)
def test_a_source_that_is_no_model_is_refused_in_words(account, start, files, error, says):
    """Nothing there, no config, no safetensors, broken JSON, remote code."""
    for name, body in files.items():
        account.put("sources/tiny/" + name, body)
    with pytest.raises(error, match=says):
        start("s3://runs/sources/tiny/")


def test_a_bucket_that_may_not_be_read_is_told(start):
    """A missing bucket names the permission that the role needs."""
    with pytest.raises(BaseModelUnavailable, match="s3:ListBucket"):
        start("s3://nobody-s-bucket/tiny/")
