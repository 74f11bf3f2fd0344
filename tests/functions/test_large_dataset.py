"""A large dataset through its five functions: the same as through the one, part by part."""

import gzip
import hashlib
import json

import pytest
from dataset_stack import RECIPE, Stack, rows

import reduce_findings
import seal_dataset
import split_dataset
import survey_part
import write_part
from dataset_parts import TokenizerGone, read_division
from dropforge_core.aws import Bucket, ObjectVanished
from dropforge_core.contracts import UploadedObject
from dropforge_core.dataset.writing import DatasetChanged
from dropforge_core.layout import RunLayout, ValidationWork
from dropforge_core.recipe import Recipe

PART_BYTES = 700


@pytest.fixture
def stack(account, published, context, monkeypatch):
    monkeypatch.setenv("PART_BYTES", str(PART_BYTES))
    made = Stack(account, published, context)
    yield made
    made.destroy()


def files(stack):
    """Plain lines that are divided, and a compressed file that is not; a hold-out of its own."""
    return (
        stack.put("v1/train.jsonl", rows(60)),
        stack.put("v1/more.jsonl.gz", gzip.compress(rows(30, answer="no"), mtime=0)),
        stack.put("v1/eval.jsonl", b"".join(held_out(n) for n in range(20))),
    )


def held_out(number):
    """A row that nothing is trained on resembles."""
    said = " ".join("mnopqrstuvwx"[digit] * 5 for digit in (number % 12, number // 12, (7 * number) % 11))
    return json.dumps({"prompt": f"{said}?", "completion": f"{said}!"}).encode() + b"\n"


def test_parts_give_what_the_one_function_gives(stack):
    """Verdict, report, recipe and rows are the same, whatever the parts; the manifest's shards are true."""
    given = files(stack)
    alone = stack.request("a", *given)
    divided = stack.request("b", *given, again=True)
    expected = stack.validate(alone)
    assert stack.validate_in_parts(divided) == expected
    assert expected.outcome == "VALID"
    assert len(read_division(divided, Bucket("runs")).parts) == 8
    one, other = RunLayout(run_id=alone), RunLayout(run_id=divided)
    for mine, its in ((one.validation, other.validation), (one.recipe, other.recipe)):
        assert stack.account.get(mine) == stack.account.get(its)
    whole, parts = stack.manifest(alone), stack.manifest(divided)
    assert (whole.digest, whole.holdout_source) == (parts.digest, parts.holdout_source)
    for side in ("train", "holdout"):
        assert stack.lines(getattr(parts, side)) == stack.lines(getattr(whole, side))
    for entry in (*parts.train, *parts.holdout):
        body = stack.account.get(entry.key)
        assert (hashlib.sha256(body).hexdigest(), len(body)) == (entry.sha256, entry.bytes)
    assert stack.ledger.run(divided)["dataset_digest"] == whole.digest
    assert stack.ledger.run(divided)["recipe_digest"] == expected.recipe_digest
    assert stack.ledger.run(divided)["status"] == "VALIDATING"
    assert stack.published == []


def test_faults_are_told_as_the_one_function_tells_them(stack):
    """Lines are counted through all parts; the report, the verdict and the event are the same, and nothing is copied."""
    broken = rows(60) + b'{"prompt": "x"\n' + rows(5, answer="five") + b'{"prompt": "", "completion": "b"}\n'
    given = stack.put("train.jsonl", broken)
    alone, divided = stack.request("a", given), stack.request("b", given)
    expected = stack.validate(alone)
    assert stack.validate_in_parts(divided) == expected
    assert (expected.outcome, expected.error_count) == ("INVALID", 2)
    assert stack.report(divided) == stack.report(alone)
    assert stack.keys(divided) == {"request.json", "validation.json"}
    (_, first), (kind, second) = stack.published
    assert kind == "DatasetRejected"
    assert [fault["line"] for fault in second.data["first"]] == [61, 67]
    assert second.data["first"] == first.data["first"]


def test_a_duplicate_is_recognised_before_anything_is_copied(stack):
    """The reduction knows the content's digest: a known one costs no second pass, and leaves nothing."""
    given = files(stack)
    first = stack.request("a", *given)
    assert stack.validate(first).outcome == "VALID"
    second = stack.request("b", *given)
    stack.survey(second)
    verdict = stack.call(reduce_findings, second)
    assert (verdict["outcome"], verdict["duplicate_of"]) == ("DUPLICATE", first)
    assert stack.keys(second) == {"request.json"}


def test_a_dataset_of_which_nothing_can_be_read_has_no_parts(stack):
    """There is nothing to survey, and the reduction tells why."""
    run_id = stack.request("a", stack.put("train.jsonl", b"\n"))
    assert stack.validate_in_parts(run_id).outcome == "INVALID"
    assert read_division(run_id, Bucket("runs")).parts == ()
    assert "FILE_EMPTY" in {problem.code for problem in stack.report(run_id).errors}


def test_a_recipe_that_cannot_be_read_is_told_with_the_data(stack):
    """The data is checked by the defaults, and recipe and rows are answered together."""
    body = rows(60) + b"[]\n"
    run_id = stack.request("a", stack.put("train.jsonl", body), recipe="base_modle: x\n", default="")
    assert stack.validate_in_parts(run_id).outcome == "INVALID"
    assert {p.code for p in stack.report(run_id).errors} == {
        "RECIPE_MISSING",
        "RECIPE_FIELD_UNKNOWN",
        "ROW_TYPE",
    }


def test_each_step_may_be_done_again(stack):
    """Retries, and a redrive that repeats everything, end with the same verdict, manifest and shards."""
    run_id = stack.request("a", *files(stack))
    first = stack.validate_in_parts(run_id)
    manifest, keys = stack.manifest(run_id), stack.keys(run_id)
    assert stack.validate_in_parts(run_id) == first
    assert (stack.manifest(run_id), stack.keys(run_id)) == (manifest, keys)


def test_what_another_division_left_is_not_trained_on(stack, monkeypatch):
    """Training reads whole prefixes: shards of an earlier attempt that was divided otherwise are gone."""
    given = files(stack)
    run_id = stack.request("a", *given)
    stack.validate_in_parts(run_id)
    rows_before = stack.lines(stack.manifest(run_id).train)
    monkeypatch.setenv("PART_BYTES", "100000")
    for again in (stack.validate_in_parts, stack.validate):
        again(run_id)
        manifest, layout = stack.manifest(run_id), RunLayout(run_id=run_id)
        listed = {
            entry["Key"] for prefix in (layout.train, layout.holdout) for entry in Bucket("runs").list(prefix)
        }
        assert listed == {entry.key for entry in (*manifest.train, *manifest.holdout)}
        assert stack.lines(manifest.train) == rows_before


def test_parts_grow_where_they_would_be_too_many(stack, monkeypatch):
    """A run has a bounded number of parts, however large it is."""
    monkeypatch.setattr(split_dataset, "MOST_PARTS", 3)
    run_id = stack.request("a", stack.put("train.jsonl", rows(90)))
    assert stack.call(split_dataset, run_id)["parts"] <= 4


def test_what_was_overwritten_is_read_at_its_version(stack):
    """Overwriting the upload between two steps changes nothing."""
    first = stack.put("train.jsonl", rows(60, answer="first"))
    run_id = stack.request("a", first)
    parts = stack.survey(run_id)
    stack.put("train.jsonl", rows(60, answer="second"))
    facts = stack.call(reduce_findings, run_id)["dataset"]
    for part in range(parts):
        stack.call(write_part, run_id, part=part)
    stack.call(seal_dataset, run_id, dataset=facts)
    assert all(b"first" in line for line in stack.lines(stack.manifest(run_id).train))


def test_a_part_that_became_another_is_not_copied(stack):
    """Where a file gives other rows the second time, its part fails by the name that the ladder knows."""
    stack.account.s3.create_bucket(Bucket="unversioned")
    stack.account.s3.put_object(Bucket="unversioned", Key="datasets/bot/t.jsonl", Body=rows(60))
    run_id = stack.request(
        "a", UploadedObject(key="datasets/bot/t.jsonl", version_id="null", size=4000, etag="e")
    )
    key = RunLayout(run_id=run_id).request
    stack.account.put(key, stack.account.get(key).replace(b'"datasets"', b'"unversioned"'))
    stack.survey(run_id)
    assert stack.call(reduce_findings, run_id)["outcome"] == "VALID"
    stack.account.s3.put_object(Bucket="unversioned", Key="datasets/bot/t.jsonl", Body=rows(60, answer="not"))
    with pytest.raises(DatasetChanged):
        stack.call(write_part, run_id, part=0)
    stack.account.s3.delete_object(Bucket="unversioned", Key="datasets/bot/t.jsonl")
    stack.account.s3.delete_bucket(Bucket="unversioned")


def test_findings_that_are_missing_are_no_dataset(stack):
    """A part that was never surveyed, or copied, stops the run; nothing is sealed half."""
    run_id = stack.request("a", *files(stack))
    parts = stack.survey(run_id)
    facts = stack.call(reduce_findings, run_id)["dataset"]
    for part in range(1, parts):
        stack.call(write_part, run_id, part=part)
    with pytest.raises(ObjectVanished, match="shards/00000"):
        stack.call(seal_dataset, run_id, dataset=facts)
    assert "dataset/manifest.json" not in stack.keys(run_id)
    Bucket("runs").delete(ValidationWork(run_id=run_id).findings(2))
    with pytest.raises(ObjectVanished, match="findings/00002"):
        stack.call(reduce_findings, run_id)


def test_all_parts_count_with_the_same_tokenizer(stack):
    """It is settled when the dataset is divided; parts counted in two ways could not be added up."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415  # only this test builds one

    made = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    config = json.dumps({"chat_template": "{% for m in messages %}{{ m['content'] }} {% endfor %}"})
    places = {"sources/tiny/tokenizer.json": made.to_str(), "sources/tiny/tokenizer_config.json": config}
    recipe = RECIPE.replace("org/name", "s3://runs/sources/tiny/")
    given = stack.put("train.jsonl", rows(60))
    later = stack.request("a", given, recipe=recipe)
    stack.call(split_dataset, later)
    for key, body in places.items():
        stack.account.put(key, body)
    stack.call(survey_part, later, part=0)
    exact = stack.request("b", given, recipe=recipe)
    assert stack.validate_in_parts(exact).dataset.tokens_exact
    for part in range(1, len(read_division(later, Bucket("runs")).parts)):
        stack.call(survey_part, later, part=part)
    assert stack.call(reduce_findings, later)["dataset"]["tokens_exact"] is False
    gone = stack.request("c", given, recipe=recipe)
    stack.call(split_dataset, gone)
    Bucket("runs").delete("sources/tiny/tokenizer.json")
    with pytest.raises(TokenizerGone, match="sources/tiny"):
        stack.call(survey_part, gone, part=0)


def test_the_sealed_recipe_is_the_runs(stack):
    """What training reads is the recipe that the rows were checked under."""
    run_id = stack.request("a", *files(stack), recipe="training: {seed: 5}\n")
    verdict = stack.validate_in_parts(run_id)
    recipe = Recipe.model_validate_json(stack.account.get(RunLayout(run_id=run_id).recipe))
    assert (recipe.digest, recipe.training.seed) == (verdict.recipe_digest, 5)
