"""A trained run in an account over real HTTP, and a model server that answers its prompts."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

import prepare_evaluation
import score_predictions
from dropforge_core.contracts import (
    BaseModelPlan,
    ComputeChoice,
    DatasetManifest,
    EvaluationSetup,
    GateOutcome,
    Plan,
    Prediction,
)
from dropforge_core.layout import RunLayout
from dropforge_core.recipe import BaseModelRef, Evaluation, Recipe

RUN = "b" * 26
LAYOUT = RunLayout(run_id=RUN)
BASE = "base-models/org/base/" + "0" * 40 + "/"


class Context:
    """What Powertools reads of a Lambda context."""

    function_name = "f"
    memory_limit_in_mb = 128
    invoked_function_arn = "arn:aws:lambda:us-east-1:0:function:f"
    aws_request_id = "r"


@pytest.fixture
def aws(account):
    """Clients of a fresh account in which the run trains."""
    account.dynamodb.put_item(
        TableName="runs",
        Item={"pk": {"S": f"RUN#{RUN}"}, "status": {"S": "TRAINING"}, "rank": {"N": "50"}},
    )
    return {"s3": account.s3, "dynamodb": account.dynamodb, "sagemaker": account.sagemaker}


@dataclass
class Run:
    """The run, and what a test does with it."""

    aws: dict[str, Any]

    def prepare(self, **changed):
        return EvaluationSetup.model_validate(prepare_evaluation.handler({**ORDER, **changed}, Context()))

    def keys(self, prefix):
        found = self.aws["s3"].list_objects_v2(Bucket="runs", Prefix=prefix)
        return [entry["Key"] for entry in found.get("Contents", [])]

    def read(self, key):
        return self.aws["s3"].get_object(Bucket="runs", Key=key)["Body"].read()

    def put(self, key, body):
        self.aws["s3"].put_object(Bucket="runs", Key=key, Body=body)

    def status(self):
        item = self.aws["dynamodb"].get_item(TableName="runs", Key={"pk": {"S": f"RUN#{RUN}"}})["Item"]
        return item["status"]["S"]

    def answer(self, gain=1.0):
        """Answer every prompt as a model server would: the candidate's loss is lower by about `gain`."""
        for key in self.keys(LAYOUT.prompts):
            out = []
            for number, line in enumerate(self.read(key).splitlines()):
                prompt = json.loads(line)
                better = prompt["variant"] == "candidate"
                answer = Prediction(
                    id=prompt["id"],
                    variant=prompt["variant"],
                    text=prompt["reference"] if better and prompt["generate"] else "dunno",
                    nll=20.0 + number % 3 - (gain * len(prompt["reference"]) if better else 0),
                    reference_bytes=len(prompt["reference"]),
                )
                out.append(answer.model_dump_json(exclude_none=True))
            name = key.removeprefix(LAYOUT.prompts)
            self.put(f"{LAYOUT.predictions}{name}.out", "\n".join(out))

    def score(self, setup):
        event = {"run_id": RUN, "model": "m", "setup": setup.model_dump(mode="json")}
        return GateOutcome.model_validate(score_predictions.handler(event, Context()))


@pytest.fixture
def run(aws):
    """A trained run of 60 held-out rows in two shards."""

    def put(key, body):
        aws["s3"].put_object(Bucket="runs", Key=key, Body=body)

    recipe = Recipe(base_model=BaseModelRef(repo="org/base"), evaluation=Evaluation(generate_at_most=40))
    put(LAYOUT.recipe, recipe.model_dump_json())
    for shard in range(2):
        rows = [
            {
                "id": f"row-{i}",
                "messages": [
                    {"role": "user", "content": f"question {i}"},
                    {"role": "assistant", "content": f"answer {i}"},
                ],
                "meta": {},
            }
            for i in range(shard * 30, shard * 30 + 30)
        ]
        put(f"{LAYOUT.holdout}part-{shard:05d}.jsonl", "\n".join(map(json.dumps, rows)))
    put(
        LAYOUT.manifest,
        DatasetManifest(
            digest="sha256:" + "d" * 64, train=(), holdout=(), holdout_source="cut"
        ).model_dump_json(),
    )
    put(LAYOUT.plan, plan().model_dump_json())
    return Run(aws)


def plan():
    return Plan(
        run_id=RUN,
        fits=True,
        within_budget=True,
        needs_approval=False,
        reason="It fits.",
        base_model=BaseModelPlan(
            name="org/base",
            source="hub:org/base@main",
            cached=True,
            prefix=BASE,
            parameters=1,
            cache_job_name="b",
        ),
        compute=ComputeChoice(
            attempt=1,
            job_name="m-t1",
            instance_type="ml.g5.xlarge",
            spot=False,
            max_runtime_s=60,
            max_wait_s=60,
            volume_gb=10,
            micro_batch_tokens=0,
            remaining_types=(),
        ),
        evaluation_instance_type="ml.g5.xlarge",
        gradient_checkpointing=False,
        steps=1,
        tokens_total=1,
        cost_usd=None,
        hours=None,
        max_cost_usd=1.0,
        options=(),
    )


ORDER = {
    "run_id": RUN,
    "model": "m",
    "training_job_name": f"m-{RUN}-t1",
    "model_data": "s3://runs/new/model.tar.gz",
    "base_model_prefix": BASE,
    "evaluation_instance_type": "ml.g5.xlarge",
}
