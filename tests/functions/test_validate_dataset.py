"""ValidateDataset over HTTP: what it writes, claims, tells and answers."""

import gzip
import hashlib
import json

import pytest
from dataset_stack import Stack, rows

from dropforge_core.contracts import DatasetManifest, UploadedObject
from dropforge_core.layout import RunLayout
from dropforge_core.ledger import Status
from dropforge_core.recipe import Recipe


@pytest.fixture
def stack(account, published, context):
    made = Stack(account, published, context)
    yield made
    made.destroy()


def test_valid_data_is_copied_with_a_manifest_that_is_true(stack):
    """Shards, recipe, report and manifest are written, and the verdict says what they hold."""
    run_id = stack.request("a", stack.put("train.jsonl.gz", gzip.compress(rows(), mtime=0)))
    verdict = stack.validate(run_id)
    layout = RunLayout(run_id=run_id)
    manifest = DatasetManifest.model_validate_json(stack.account.get(layout.manifest))
    assert verdict.outcome == "VALID"
    assert verdict.dataset.rows_train + verdict.dataset.rows_eval == 40
    assert manifest.digest == verdict.dataset.digest
    for entry in (*manifest.train, *manifest.holdout):
        body = stack.account.get(entry.key)
        assert hashlib.sha256(body).hexdigest() == entry.sha256
        assert all(set(json.loads(line)) == {"id", "messages", "meta"} for line in body.splitlines())
    assert all(entry.key.startswith(layout.train) for entry in manifest.train)
    assert all(entry.key.startswith(layout.holdout) for entry in manifest.holdout)
    assert Recipe.model_validate_json(stack.account.get(layout.recipe)).digest == verdict.recipe_digest
    assert stack.report(run_id).valid
    assert stack.ledger.run(run_id)["status"] == "VALIDATING"
    assert stack.published == []


def test_what_is_trained_is_the_version_that_was_uploaded(stack):
    """Overwriting the upload while the run is under way changes nothing."""
    first = stack.put("train.jsonl", rows(answer="first"))
    stack.put("train.jsonl", rows(answer="second"))
    run_id = stack.request("a", first)
    stack.validate(run_id)
    shard = stack.account.get(RunLayout(run_id=run_id).train + "part-00000-000.jsonl")
    assert b"first" in shard
    assert b"second" not in shard


def test_invalid_data_is_told_with_file_line_and_mend(stack):
    """validation.json has every fault, the event the first ones, and no shard is written."""
    broken = rows() + b'{"prompt": "x"\n' + b'{"prompt": "", "completion": "b"}\n'
    run_id = stack.request("a", stack.put("train.jsonl", broken))
    verdict = stack.validate(run_id)
    assert (verdict.outcome, verdict.error_count) == ("INVALID", 2)
    assert "train.jsonl, line 41" in verdict.summary
    assert stack.keys(run_id) == {"request.json", "validation.json"}
    assert [(p.code, p.line) for p in stack.report(run_id).errors] == [
        ("JSON_INVALID", 41),
        ("CONTENT_EMPTY", 42),
    ]
    ((kind, event),) = stack.published
    assert kind == "DatasetRejected"
    assert event.data["error_count"] == 2
    assert [fault["line"] for fault in event.data["first"]] == [41, 42]
    assert event.data["validation_uri"] == f"s3://runs/runs/{run_id}/validation.json"


def test_a_bad_recipe_is_told_together_with_bad_data(stack):
    """One upload, one answer: the recipe's faults and the data's, each with its file and line."""
    run_id = stack.request(
        "a", stack.put("train.jsonl", rows() + b"[]\n"), recipe="base_modle: x\nmethod: ppo\n", default=""
    )
    stack.validate(run_id)
    told = {(p.file, p.line, p.code) for p in stack.report(run_id).errors}
    assert told == {
        ("datasets/bot/recipe.yaml", None, "RECIPE_MISSING"),
        ("datasets/bot/recipe.yaml", 1, "RECIPE_FIELD_UNKNOWN"),
        ("datasets/bot/recipe.yaml", 2, "RECIPE_VALUE"),
        ("train.jsonl", 41, "ROW_TYPE"),
    }


def test_a_vanished_file_is_a_fault_not_a_crash(stack):
    """A version that was deleted meanwhile ends the run with a reason."""
    gone = UploadedObject(key="datasets/bot/gone.jsonl", version_id="null", size=1, etag="e")
    run_id = stack.request("a", gone)
    assert stack.validate(run_id).outcome == "INVALID"
    assert "FILE_VANISHED" in {p.code for p in stack.report(run_id).errors}


def test_the_same_content_under_the_same_recipe_is_a_duplicate(stack):
    """Another name, compression and version: the first run is named, and nothing is written or told."""
    first = stack.request("a", stack.put("train.jsonl", rows()))
    assert stack.validate(first).outcome == "VALID"
    second = stack.request("b", stack.put("other.jsonl.gz", gzip.compress(rows(), mtime=0)))
    verdict = stack.validate(second)
    assert (verdict.outcome, verdict.duplicate_of) == ("DUPLICATE", first)
    assert stack.keys(second) == {"request.json"}
    assert stack.published == []


def test_validating_again_after_a_crash_is_no_duplicate_of_itself(stack):
    """The state machine may retry the function; the run holds its own claim."""
    run_id = stack.request("a", stack.put("train.jsonl", rows()))
    assert stack.validate(run_id) == stack.validate(run_id)


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (Status.REGISTERED, "DUPLICATE"),
        (Status.GATE_FAILED, "DUPLICATE"),
        (Status.FAILED_CAPACITY, "VALID"),
        (Status.CANCELLED, "VALID"),
    ],
)
def test_a_run_that_failed_gives_its_claim_up(stack, end, outcome):
    """Content is a duplicate of a run that came to a judgement, not of one that broke off."""
    first = stack.request("a", stack.put("train.jsonl", rows()))
    stack.validate(first)
    stack.ledger.move(first, end)
    second = stack.request("b", stack.put("train.jsonl", rows()))
    assert stack.validate(second).outcome == outcome


def test_again_and_another_recipe_are_no_duplicates(stack):
    """Asked for again, or under another recipe, known content is trained."""
    stack.validate(stack.request("a", stack.put("train.jsonl", rows())))
    again = stack.request("b", stack.put("train.jsonl", rows()), again=True)
    other = stack.request("c", stack.put("train.jsonl", rows()), recipe="training: {seed: 5}\n")
    assert stack.validate(again).outcome == "VALID"
    assert stack.validate(other).outcome == "VALID"


def test_the_base_models_tokenizer_counts_where_the_run_bucket_has_it(stack):
    """With tokenizer and template beside the base model, token counts are exact; without, they are estimates."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415  # only this test builds one

    made = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    config = {"chat_template": "{% for m in messages %}{{ m['content'] }} {% endfor %}"}
    for prefix in ("sources/tiny/", f"base-models/org/name/{'0' * 40}/"):
        stack.account.put(prefix + "tokenizer.json", made.to_str())
        stack.account.put(prefix + "tokenizer_config.json", json.dumps(config))
    data = stack.put("train.jsonl", rows())
    for letter, base, exact in (
        ("a", "s3://runs/sources/tiny/", True),
        ("b", f"org/name@{'0' * 40}", True),
        ("c", "org/name", False),
        ("d", "s3://elsewhere/tiny/", False),
    ):
        run_id = stack.request(letter, data, recipe=f"base_model: {base}\n")
        assert stack.validate(run_id).dataset.tokens_exact is exact
