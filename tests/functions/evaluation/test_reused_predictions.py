"""From one run to the next over real HTTP: what is unchanged is not asked again, and the decision is the same."""

import json

import pytest

from dropforge_core.gate.documents import GateReport
from dropforge_core.layout import PREDICTION_CACHE, RunLayout

LAYOUT = RunLayout(run_id="b" * 26)
PINNED = "registry/dropforge@sha256:" + "1" * 64


@pytest.fixture
def pinned(run, monkeypatch):
    """The run in a stack whose image is named by digest, and whose bucket keeps versions."""
    monkeypatch.setenv("IMAGE_URI", PINNED)
    run.aws["s3"].put_bucket_versioning(Bucket="runs", VersioningConfiguration={"Status": "Enabled"})
    run.put("new/model.tar.gz", b"adapter")
    yield run
    listed = run.aws["s3"].list_object_versions(Bucket="runs")
    for item in [*listed.get("Versions", []), *listed.get("DeleteMarkers", [])]:
        run.aws["s3"].delete_object(Bucket="runs", Key=item["Key"], VersionId=item["VersionId"])


def evaluated(run):
    """Prepare, answer what is asked, score."""
    setup = run.prepare()
    run.answer()
    return setup, run.score(setup)


def forget_answers(run):
    for prefix in (LAYOUT.prompts, LAYOUT.predictions, LAYOUT.reused):
        for key in run.keys(prefix):
            run.aws["s3"].delete_object(Bucket="runs", Key=key)


def gate(run):
    return GateReport.model_validate_json(run.read(LAYOUT.gate))


def test_an_unchanged_base_is_not_asked_again(pinned):
    """The second evaluation asks the candidate alone, comes to the same decision from the same answers, and says so."""
    setup, outcome = evaluated(pinned)
    assert setup.reused == ()
    assert "base" in setup.kept_as
    first = gate(pinned)
    forget_answers(pinned)
    again, after = evaluated(pinned)
    assert set(again.reused) == {name for name in setup.kept_as if name.endswith("base")}
    assert all("candidate" in key for key in pinned.keys(LAYOUT.prompts))
    assert again.prompts == sum(len(pinned.read(key).splitlines()) for key in pinned.keys(LAYOUT.prompts))
    assert any(note.startswith("base: the same") for note in again.cache_notes)
    second = gate(pinned)
    assert after.verdict == outcome.verdict == "PASS"
    assert set(second.notes) >= set(again.cache_notes)
    assert second.coverage == first.coverage
    assert second.rules == first.rules
    assert second.provenance == first.provenance


def test_a_candidate_s_answers_serve_when_it_is_the_champion(pinned):
    """What the registry approved has been asked already."""
    evaluated(pinned)
    forget_answers(pinned)
    sagemaker = pinned.aws["sagemaker"]
    sagemaker.create_model_package_group(ModelPackageGroupName="m")
    sagemaker.create_model_package(
        ModelPackageGroupName="m",
        ModelApprovalStatus="Approved",
        InferenceSpecification={
            "Containers": [{"Image": "i", "ModelDataUrl": "s3://runs/new/model.tar.gz"}],
            "SupportedContentTypes": ["application/jsonlines"],
            "SupportedResponseMIMETypes": ["application/jsonlines"],
        },
        CustomerMetadataProperties={
            "base_model_prefix": json.loads(pinned.read(LAYOUT.evaluation_setup))["base_model_prefix"]
        },
    )
    pinned.put("newer/model.tar.gz", b"another adapter")
    setup = pinned.prepare(model_data="s3://runs/newer/model.tar.gz")
    assert {"base", "champion"} <= set(setup.reused)
    kept = pinned.read(f"{LAYOUT.reused}champion-kept.jsonl.out").splitlines()
    assert {json.loads(line)["variant"] for line in kept} == {"champion"}
    pinned.answer()
    pinned.score(setup)
    assert gate(pinned).coverage.is_complete


@pytest.mark.parametrize("change", ["image", "recipe", "holdout"])
def test_what_changed_is_asked_again(pinned, monkeypatch, change):
    """Another image, other generation settings or another hold-out: nothing is reused."""
    evaluated(pinned)
    if change == "image":
        monkeypatch.setenv("IMAGE_URI", "registry/dropforge@sha256:" + "2" * 64)
    elif change == "recipe":
        recipe = json.loads(pinned.read(LAYOUT.recipe))
        recipe["evaluation"]["generation"]["max_new_tokens"] += 1
        pinned.put(LAYOUT.recipe, json.dumps(recipe))
    else:
        (first, *_) = pinned.keys(LAYOUT.holdout)
        pinned.put(first, pinned.read(first).replace(b"question 1", b"question one"))
    assert "base" not in pinned.prepare().reused


@pytest.mark.parametrize("spoil", [lambda body: body[:-40], lambda body: body.replace(b"dunno", b"42!!!", 1)])
def test_a_spoilt_entry_is_told_and_asked_again(pinned, spoil):
    """An entry that was cut or altered is not used, the note says why, and the run decides as if there were none."""
    _, outcome = evaluated(pinned)
    for key in pinned.keys(PREDICTION_CACHE):
        pinned.put(key, spoil(pinned.read(key)))
    forget_answers(pinned)
    setup, after = evaluated(pinned)
    assert "base" not in setup.reused
    assert any("base" in note and "not used" in note for note in setup.cache_notes)
    assert after.verdict == outcome.verdict


def test_answers_that_are_not_whole_are_not_kept(pinned):
    """Where one answer is missing, its variant's answers are of no use to a later run."""
    setup = pinned.prepare()
    pinned.answer()
    (first, *_) = [key for key in pinned.keys(LAYOUT.predictions) if "base" in key and "general" not in key]
    pinned.put(first, b"\n".join(pinned.read(first).splitlines()[1:]))
    assert pinned.score(setup).verdict == "FAIL"
    forget_answers(pinned)
    assert "base" not in pinned.prepare().reused


def test_leftovers_of_an_earlier_attempt_count_for_nothing(pinned):
    """An attempt that asked the base, and one that reused it, leave files of both; one answer each is taken."""
    first, outcome = evaluated(pinned)
    second, after = evaluated(pinned)
    assert second.reused
    assert any("base" in key for key in pinned.keys(LAYOUT.predictions))
    assert gate(pinned).coverage.is_complete
    assert after.verdict == outcome.verdict
    assert pinned.score(first).verdict == outcome.verdict


def test_an_image_by_tag_keeps_nothing(pinned, monkeypatch):
    """A tag is no digest: nothing is kept, nothing is reused, and the evaluation goes on."""
    monkeypatch.setenv("IMAGE_URI", "registry/dropforge:latest")
    setup, outcome = evaluated(pinned)
    assert (setup.reused, setup.kept_as, outcome.verdict) == ((), {}, "PASS")
    assert pinned.keys(PREDICTION_CACHE) == []
