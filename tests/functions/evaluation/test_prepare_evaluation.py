"""PrepareEvaluation over real HTTP: what it asks, of whom, and that asking again changes nothing."""

import json

import pytest

import prepare_evaluation
from dropforge_core.contracts import Plan
from dropforge_core.evaluation.rows import HoldoutBroken
from dropforge_core.layout import RunLayout
from dropforge_core.planning import load_catalogue

RUN = "b" * 26
LAYOUT = RunLayout(run_id=RUN)
BASE = "base-models/org/base/" + "0" * 40 + "/"


def test_every_row_is_asked_of_base_and_candidate(run):
    """PrepareEvaluation asks 60 rows of two variants, 40 of them by generation, and moves the ledger."""
    setup = run.prepare()
    lines = [json.loads(x) for key in run.keys(LAYOUT.prompts) for x in run.read(key).splitlines()]
    assert setup.prompts == len(lines)
    held_out = [line for line in lines if line["purpose"] == "holdout"]
    assert len(held_out) == 120
    assert sum(line["generate"] for line in held_out) == 80
    assert setup.variants == ("base", "candidate")
    assert setup.job_name == f"m-{RUN}-e1"
    assert json.loads(run.read(LAYOUT.evaluation_setup)) == setup.model_dump(mode="json")
    assert run.status() == "EVALUATING"


def test_preparing_again_changes_nothing(run):
    """A retried PrepareEvaluation writes the same bytes under the same keys."""
    run.prepare()
    before = {key: run.read(key) for key in run.keys(LAYOUT.root)}
    run.prepare()
    assert {key: run.read(key) for key in run.keys(LAYOUT.root)} == before


def test_the_newest_approved_package_is_the_champion(run):
    """An approved package of the model with its artifact in place is asked too."""
    run.aws["s3"].put_object(Bucket="runs", Key="old/model.tar.gz", Body=b"x")
    run.aws["sagemaker"].create_model_package_group(ModelPackageGroupName="m")
    run.aws["sagemaker"].create_model_package(
        ModelPackageGroupName="m",
        ModelApprovalStatus="Approved",
        InferenceSpecification={
            "Containers": [{"Image": "i", "ModelDataUrl": "s3://runs/old/model.tar.gz"}],
            "SupportedContentTypes": ["application/jsonlines"],
            "SupportedResponseMIMETypes": ["application/jsonlines"],
        },
        CustomerMetadataProperties={"base_model_prefix": BASE},
    )
    setup = run.prepare()
    assert setup.variants == ("base", "champion", "candidate")
    assert setup.champion_model_data == "s3://runs/old/model.tar.gz"
    asked = run.keys(f"{LAYOUT.prompts}champion-")
    assert sum(len(run.read(key).splitlines()) for key in asked) == 60


@pytest.mark.parametrize(("limit_usd", "by"), [(0.0, "reserve"), (1.0, "cap"), (500.0, "prompts")])
def test_the_job_may_take_what_its_prompts_need_and_the_cap_has_left(run, limit_usd, by):
    """By the prompts where there is money enough, else what is left of the cap, never less than was put aside."""
    made = Plan.model_validate_json(run.read(LAYOUT.plan))
    run.put(LAYOUT.plan, made.model_copy(update={"spend_limit_usd": limit_usd}).model_dump_json())
    setup = run.prepare()
    hour = load_catalogue().price("ml.g5.xlarge", "evaluation")
    expected = {
        "reserve": prepare_evaluation.LEAST_S,
        "cap": int(limit_usd / hour * 3600 - 120),
        "prompts": 3600 + 15 * setup.prompts,
    }
    assert setup.max_runtime_s == expected[by]


def test_an_empty_holdout_is_refused(run):
    """Without a row to judge by nothing is asked."""
    for key in run.keys(LAYOUT.holdout):
        run.aws["s3"].delete_object(Bucket="runs", Key=key)
    with pytest.raises(HoldoutBroken, match="nothing to judge by"):
        run.prepare()
