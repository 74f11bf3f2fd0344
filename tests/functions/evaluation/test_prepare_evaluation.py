"""PrepareEvaluation over real HTTP: what it asks, of whom, and that asking again changes nothing."""

import json

import pytest

from dropforge_core.evaluation.rows import HoldoutBroken
from dropforge_core.layout import RunLayout

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


def test_an_empty_holdout_is_refused(run):
    """Without a row to judge by nothing is asked."""
    for key in run.keys(LAYOUT.holdout):
        run.aws["s3"].delete_object(Bucket="runs", Key=key)
    with pytest.raises(HoldoutBroken, match="nothing to judge by"):
        run.prepare()
