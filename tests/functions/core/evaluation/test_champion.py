"""Who the champion is, and when there is none."""

import pytest

from dropforge_core.evaluation.champion import Here, champion_of

BASE = "base-models/org/base/" + "0" * 40 + "/"
ARN = "arn:aws:sagemaker:us-east-1:000000000000:model-package/m/3"


def package(url="s3://runs/old/model.tar.gz", base=BASE, quantization=None, **container):
    recorded = {"base_model_prefix": base} | ({"quantization": quantization} if quantization else {})
    return {
        "ModelPackageArn": ARN,
        "InferenceSpecification": {"Containers": [{"ModelDataUrl": url, **container}]},
        "CustomerMetadataProperties": recorded,
    }


def champion(found, exists=True):
    return champion_of(
        found,
        Here("s3://runs/new/model.tar.gz", BASE, "nf4", "runs"),
        lambda key: exists and key == "old/model.tar.gz",
    )


def test_the_approved_package_takes_part():
    """An approved package with its artifact in the run bucket and the same base model is the champion."""
    found = champion(package())
    assert (found.package_arn, found.model_data) == (ARN, "s3://runs/old/model.tar.gz")
    assert champion(package(quantization="nf4")).model_data == found.model_data
    listed = champion(
        package(url=None, ModelDataSource={"S3DataSource": {"S3Uri": "s3://runs/old/model.tar.gz"}})
    )
    assert listed.model_data == "s3://runs/old/model.tar.gz"


@pytest.mark.parametrize(
    ("found", "exists"),
    [
        (package(url=None), True),
        (package(url="https://elsewhere/model.tar.gz"), True),
        (package(), False),
        ({"ModelPackageArn": ARN}, True),
        (package(base="base-models/org/other/1/"), True),
        (package("s3://theirs/m.tar.gz"), True),
        (package(quantization="none"), True),
    ],
    ids=[
        "no artifact",
        "not in S3",
        "artifact gone",
        "no containers",
        "another base",
        "another bucket",
        "quantised otherwise",
    ],
)
def test_a_champion_that_cannot_be_asked_is_not_forgotten(found, exists):
    """Whatever keeps an approved package from being asked: it takes no part, and the comparison stays open."""
    result = champion(found, exists)
    assert not result.comparable
    assert result.package_arn == ARN
    assert result.model_data == ""
    assert ARN in result.note


@pytest.mark.parametrize("found", [None, package(url="s3://runs/new/model.tar.gz")])
def test_where_there_is_nobody_to_match_there_is_no_champion(found):
    """Without an approved package, and where it is the candidate itself, nothing is left open; the reason is noted."""
    result = champion(found)
    assert result.model_data == ""
    assert result.comparable
    assert result.note
