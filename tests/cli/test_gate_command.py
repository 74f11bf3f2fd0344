"""`dropforge gate`: the decision as it stands, and whether it follows from the stored answers."""

import json

import pytest
from conftest import RUN

import dropforge.cli.functions  # noqa: F401  # puts the functions' modules on the path
import judging
from dropforge_core.aws import Bucket
from dropforge_core.contracts import EvaluationSetup
from dropforge_core.layout import RunLayout
from dropforge_core.recipe import BaseModelRef, Gate, Recipe

AT = RunLayout(run_id=RUN)
PLAN = {
    "run_id": RUN, "fits": True, "within_budget": True, "needs_approval": False, "reason": "It fits.",
    "base_model": {"name": "org/base", "source": "hub:org/base@main", "cached": True, "prefix": "base-models/b/",
                   "parameters": 1, "cache_job_name": "c"},
    "compute": {"attempt": 1, "job_name": "t", "instance_type": "ml.g5.xlarge", "spot": False, "max_runtime_s": 60,
                "max_wait_s": 60, "volume_gb": 10, "micro_batch_tokens": 0, "remaining_types": []},
    "evaluation_instance_type": "ml.g5.xlarge", "gradient_checkpointing": False, "steps": 1, "tokens_total": 1,
    "cost_usd": None, "hours": None, "max_cost_usd": 1.0, "options": [],
}  # fmt: skip


@pytest.fixture
def decided(world):
    """A run of 50 held-out rows, decided, with everything that it was decided by."""
    world.run(status="REGISTERED")
    recipe = Recipe(base_model=BaseModelRef(repo="org/base"), gate=Gate(forgetting="off"))
    setup = EvaluationSetup(
        job_name="e", sagemaker_model_name="e", prompts=100, variants=("base", "candidate"),
        champion_package_arn=None, champion_model_data="",
    )  # fmt: skip
    world.document("recipe", recipe.model_dump(mode="json"))
    world.document("evaluation_setup", setup.model_dump(mode="json"))
    world.document("manifest", {"digest": "sha256:00", "train": [], "holdout": [], "holdout_source": "cut"})
    world.document("plan", PLAN)
    for variant in setup.variants:
        rows = [{"id": f"r{i}", "variant": variant} for i in range(50)]
        question = {"messages": [{"role": "user", "content": "?"}], "reference": "yes", "generate": True}
        asked = [row | question | {"messages": [{"role": "user", "content": row["id"]}]} for row in rows]
        told = [row | {"text": "yes", "nll": 3.0 + (variant == "base") + i % 2} for i, row in enumerate(rows)]
        for prefix, name, lines in (
            (AT.prompts, f"{variant}-00000.jsonl", asked),
            (AT.predictions, f"{variant}-00000.jsonl.out", told),
        ):
            world.s3.put_object(Bucket="runs", Key=prefix + name, Body="\n".join(map(json.dumps, lines)))
    bucket = Bucket("runs")
    judgement = judging.judged(
        bucket, run_id=RUN, model="support-bot", setup=setup, recipe=recipe,
        joined=judging.answers(bucket, RUN, setup), use=3,
    )  # fmt: skip
    bucket.write(AT.gate, judgement.gate_json)
    return world


def test_the_decision_is_shown_rule_by_rule(decided, dropforge):
    """Every rule of gate.json with its verdict; --json is the document itself."""
    said = dropforge("gate", RUN)
    assert said.code == 0
    assert "better_than_base" in said.out
    assert "decision 3" in said.out
    document = dropforge("gate", RUN, "--json").document
    assert document["verdict"] == "PASS"
    assert document["holdout"]["use"] == 3


def test_a_decision_that_follows_from_its_answers_is_confirmed(decided, dropforge):
    """Recomputed it is the same gate.json, bit for bit: exit 0."""
    said = dropforge("gate", RUN, "--recompute", "--json")
    assert (said.code, said.document["same"], said.document["differs"]) == (0, True, [])


def test_changed_answers_are_found_out(decided, dropforge):
    """Answers that were changed after the decision give another gate.json: exit 1, and what differs is told."""
    key = f"{AT.predictions}candidate-00000.jsonl.out"
    body = decided.s3.get_object(Bucket="runs", Key=key)["Body"].read()
    decided.s3.put_object(Bucket="runs", Key=key, Body=body.replace(b'"nll": 3.0', b'"nll": 9.0'))
    said = dropforge("gate", RUN, "--recompute")
    assert said.code == 1
    assert "Not the same" in said.out
    assert "PASS" in said.out


def test_a_run_that_was_not_decided_says_so(world, dropforge):
    """Without gate.json there is nothing to show: exit 1 with a sentence."""
    world.run()
    said = dropforge("gate", RUN, "--recompute")
    assert said.code == 1
    assert "nothing was decided" in said.err
