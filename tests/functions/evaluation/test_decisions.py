"""The gate from prompts to verdict, over real HTTP: what is refused, what passes, what stays open."""

import json
from collections.abc import Callable

import pytest

import judging
import score_predictions
from dropforge_core.aws import Bucket, Ledger
from dropforge_core.gate.documents import GateReport
from dropforge_core.layout import RunLayout
from dropforge_core.recipe import BaseModelRef, Evaluation, Gate, Recipe

RUN = "b" * 26
LAYOUT = RunLayout(run_id=RUN)
BASE = "base-models/org/base/" + "0" * 40 + "/"
POLICY = Gate(primary="exact_match", guarded=("exact_match",), delta=0.1, forgetting="off")


def recipe(gate=POLICY, **evaluation):
    return Recipe(base_model=BaseModelRef(repo="org/base"), evaluation=Evaluation(**evaluation), gate=gate)


def holdout(run, rows, marks=()):
    """As many held-out rows; some are marked as canaries."""
    for key in run.keys(LAYOUT.holdout):
        run.aws["s3"].delete_object(Bucket="runs", Key=key)
    lines = [
        {
            "id": f"{i:016x}",
            "messages": [
                {"role": "user", "content": f"question {i}"},
                {"role": "assistant", "content": f"answer {i}"},
            ],
            "meta": {"canary": True} if i in marks else {},
        }
        for i in range(rows)
    ]
    run.put(f"{LAYOUT.holdout}part-00000.jsonl", "\n".join(map(json.dumps, lines)))


def answer(run, right: dict[str, Callable[[int], bool]]):
    """Answer every prompt; `right` tells by variant which rows are answered right."""
    for key in run.keys(LAYOUT.prompts):
        out = []
        for line in run.read(key).splitlines():
            prompt = json.loads(line)
            good = prompt["purpose"] == "general" or right[prompt["variant"]](int(prompt["id"], 16))
            out.append(
                {
                    "id": prompt["id"],
                    "variant": prompt["variant"],
                    "text": prompt["reference"] if good else "dunno",
                    "nll": 5.0,
                    "reference_bytes": len(prompt["reference"].encode()),
                }
            )
        run.put(
            f"{LAYOUT.predictions}{key.removeprefix(LAYOUT.prompts)}.out", "\n".join(map(json.dumps, out))
        )


def approve(run, uri, package="m"):
    """Register an approved package with its artifact."""
    bucket, key = uri.removeprefix("s3://").split("/", 1)
    run.aws["s3"].put_object(Bucket=bucket, Key=key, Body=b"x")
    if not run.aws["sagemaker"].list_model_package_groups()["ModelPackageGroupSummaryList"]:
        run.aws["sagemaker"].create_model_package_group(ModelPackageGroupName=package)
    return run.aws["sagemaker"].create_model_package(
        ModelPackageGroupName=package,
        ModelApprovalStatus="Approved",
        InferenceSpecification={
            "Containers": [{"Image": "i", "ModelDataUrl": uri}],
            "SupportedContentTypes": ["application/jsonlines"],
            "SupportedResponseMIMETypes": ["application/jsonlines"],
        },
        CustomerMetadataProperties={"base_model_prefix": BASE},
    )["ModelPackageArn"]


def gate(run):
    return GateReport.model_validate_json(run.read(LAYOUT.gate))


@pytest.fixture
def judged(run):
    """Prepare, answer and score with a hold-out of some size; a champion where its answers are told."""

    def judge(rows, right, policy=POLICY, marks=()):
        run.put(LAYOUT.recipe, recipe(policy).model_dump_json())
        holdout(run, rows, marks)
        setup = run.prepare()
        answer(run, right)
        return run.score(setup), setup

    return judge


def test_a_planted_regression_is_refused(run, judged):
    """Better than the base and clearly worse than the champion: FAIL, nothing is registered, the rows are named."""
    approve(run, "s3://runs/old/model.tar.gz")
    found, setup = judged(
        300,
        {"base": lambda i: i % 4 == 0, "champion": lambda i: i % 10 != 0, "candidate": lambda i: i % 3 != 0},
    )
    assert setup.variants == ("base", "champion", "candidate")
    assert (found.verdict, found.approval_status) == ("FAIL", "nothing")
    failed = [one.name for one in gate(run).rules if one.verdict == "FAIL"]
    assert failed == ["not_worse_than_champion"]
    (flips,) = [one for one in gate(run).flips if one.against == "champion"]
    assert f"{3:016x}" in flips.broken


def test_a_real_improvement_passes_as_the_policy_says(run, judged):
    """Better than the base and not worse than the champion: registered under the status that the recipe names."""
    approve(run, "s3://runs/old/model.tar.gz")
    right = {
        "base": lambda i: i % 4 == 0,
        "champion": lambda i: i % 5 != 0,
        "candidate": lambda i: i % 20 != 0,
    }
    found, _ = judged(300, right, POLICY.model_copy(update={"on_pass": "Approved"}))
    assert (found.verdict, found.approval_status) == ("PASS", "Approved")


def test_a_set_that_is_too_small_is_open(run, judged):
    """Twelve rows decide nothing, however good they look; the number that would is told."""
    found, _ = judged(12, {"base": lambda _: False, "candidate": lambda _: True})
    assert (found.verdict, found.approval_status) == ("INCONCLUSIVE", "PendingManualApproval")
    (size,) = [one for one in gate(run).rules if one.name == "sample_size"]
    assert size.n_needed == 30


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda body: body[: len(body) // 2],
        lambda body: body.replace(b'"nll": 5.0', b'"nll": NaN', 1),
        lambda body: body + b"\n" + body.splitlines()[0],
        lambda _: b"<html>service unavailable</html>",
        lambda _: b"",
    ],
    ids=["half a file", "NaN", "a line twice", "a page of an error", "empty"],
)
def test_a_corrupted_output_file_fails_closed(run, judged, corrupt):
    """One spoilt file among good ones: FAIL and nothing registered, whatever its other lines say."""
    right = {"base": lambda _: False, "candidate": lambda _: True}
    found, setup = judged(60, right)
    assert found.verdict == "PASS"
    key = next(key for key in run.keys(LAYOUT.predictions) if "candidate" in key)
    run.put(key, corrupt(run.read(key)))
    found = run.score(setup)
    assert (found.verdict, found.approval_status) == ("FAIL", "nothing")


def test_the_champion_is_the_newest_approved_package(run, judged):
    """Of two approved packages the newer one is asked, and gate.json names it; a pending one on top changes nothing."""
    approve(run, "s3://runs/older/model.tar.gz")
    newest = approve(run, "s3://runs/newer/model.tar.gz")
    pending = approve(run, "s3://runs/newest/model.tar.gz")
    run.aws["sagemaker"].update_model_package(
        ModelPackageArn=pending, ModelApprovalStatus="PendingManualApproval"
    )
    _, setup = judged(40, dict.fromkeys(("base", "champion", "candidate"), lambda i: i % 2 == 0))
    assert setup.champion_model_data == "s3://runs/newer/model.tar.gz"
    assert gate(run).provenance.champion_package_arn == newest


def test_a_first_model_has_the_base_only(run, judged):
    """Without an approved package base and candidate are asked, and no rule speaks of a champion."""
    found, setup = judged(60, {"base": lambda _: False, "candidate": lambda _: True})
    assert setup.variants == ("base", "candidate")
    assert found.verdict == "PASS"
    assert not [one for one in gate(run).rules if one.against == "champion"]


def test_a_canary_is_always_answered_and_one_failure_refuses(run, judged):
    """Marked rows are generated even where few are, count in no average, and one of them wrong fails the gate."""
    right = {"base": lambda _: False, "candidate": lambda i: i != 7}
    found, _ = judged(60, right, marks=(3, 7))
    assert found.verdict == "FAIL"
    assert gate(run).canaries.asked == 2
    assert [one.id for one in gate(run).canaries.failed] == [f"{7:016x}"]
    (size,) = [one for one in gate(run).rules if one.name == "sample_size"]
    assert size.n == 58


def test_general_questions_are_asked_and_bounded(run, judged):
    """With a margin in the recipe both are asked the fixed questions in the same job, and the answers decide."""
    policy = POLICY.model_copy(update={"forgetting": 0.1})
    found, setup = judged(60, {"base": lambda _: False, "candidate": lambda _: True}, policy)
    assert found.verdict == "PASS"
    assert gate(run).forgetting.base_right == gate(run).forgetting.questions == 160
    assert setup.prompts == 2 * (60 + 160)


def test_the_use_of_a_hold_out_is_counted_once_a_run(run, judged):
    """A second run of the model on the same rows is decision 2, also when it is scored again; another model starts anew."""
    right = {"base": lambda _: False, "candidate": lambda _: True}
    _, setup = judged(60, right)
    run.score(setup)
    assert gate(run).holdout.use == 1
    ledger, digest = Ledger("runs"), gate(run).holdout.digest
    assert score_predictions.use_of(ledger, "m", digest, "another-run") == 2
    assert score_predictions.use_of(ledger, "m", digest, RUN) == 1
    assert score_predictions.use_of(ledger, "m", digest, "another-run") == 2
    assert score_predictions.use_of(ledger, "other", digest, "another-run") == 1


def test_a_decision_can_be_recomputed_bit_for_bit(run, judged):
    """From the stored answers alone follows the stored gate.json; changed answers, or a changed verdict, are told."""
    _, _ = judged(60, {"base": lambda _: False, "candidate": lambda _: True}, marks=(3,))
    found = judging.recompute(Bucket("runs"), RUN)
    assert found.same
    assert found.stored_digest == found.digest
    assert found.differs == ()
    forged = gate(run).model_copy(update={"verdict": "INCONCLUSIVE"})
    stored = run.read(LAYOUT.gate)
    run.put(LAYOUT.gate, forged.model_dump_json(indent=2))
    found = judging.recompute(Bucket("runs"), RUN)
    assert not found.same
    assert (found.stored_verdict, found.verdict, found.differs) == ("INCONCLUSIVE", "PASS", ("verdict",))
    run.put(LAYOUT.gate, stored)
    key = next(key for key in run.keys(LAYOUT.predictions) if "candidate" in key)
    run.put(key, run.read(key).replace(b"answer 1", b"answer 2", 1))
    found = judging.recompute(Bucket("runs"), RUN)
    assert "provenance" in found.differs
