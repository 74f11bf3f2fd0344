"""DiagnoseFailure over HTTP: what it looks up, and what it answers."""

import json
import time

import pytest

import diagnose_failure
from dropforge_core.aws import Ledger
from dropforge_core.contracts import DatasetFacts, Diagnosis
from dropforge_core.identity import job_name
from dropforge_core.ladder.steps import STOP_GRACE_S
from dropforge_core.layout import RunLayout
from dropforge_core.ledger import Status
from dropforge_core.planning import BaseSource, load_catalogue, plan, shape_of
from dropforge_core.recipe import Recipe

RUN = "e" * 26
LAYOUT = RunLayout(run_id=RUN)
NAME = job_name("m", RUN, 1)
SMALL = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
FACTS = DatasetFacts(
    digest="sha256:0",
    rows_train=100,
    rows_eval=20,
    bytes_train=1,
    tokens_train=10_000,
    tokens_exact=True,
    longest_tokens=300,
    format="messages",
)


@pytest.fixture
def made(account):
    """The plan of a run that is training."""
    recipe = Recipe.model_validate({"base_model": "org/model"})
    base = BaseSource(name="org/model", source="hub:org/model@0", prefix="base-models/x/0/", cached=True)
    planned = plan(recipe=recipe, dataset=FACTS, shape=shape_of(SMALL), base=base, run_id=RUN, model="m")
    account.put(LAYOUT.recipe, recipe.model_dump_json())
    account.put(LAYOUT.plan, planned.model_dump_json())
    Ledger("runs").open_run(RUN, "m", Status.TRAINING, {})
    return planned


@pytest.fixture
def diagnose(account, published, context):
    def go(cause, compute, stage="TRAIN", **more):
        event = {
            "run_id": RUN,
            "model": "m",
            "redrive": 0,
            "stage": stage,
            "state": "TrainAdapter",
            "error": "States.TaskFailed",
            "cause": cause if isinstance(cause, str) else json.dumps(cause),
            "job_name": NAME,
            "compute": compute.model_dump(mode="json") if compute else None,
            "attempts_of_class": {},
        }
        return Diagnosis.model_validate(diagnose_failure.handler(event | more, context))

    return go


def failed(reason):
    return {
        "TrainingJobName": NAME,
        "TrainingJobStatus": "Failed",
        "SecondaryStatus": "Failed",
        "FailureReason": reason,
    }


def test_a_crash_ends_with_the_last_lines_of_its_log(account, made, diagnose, published):
    """The message has AWS's reason, the log's end and the command to go on; the event has no more than it."""
    account.logs.create_log_group(logGroupName="/aws/sagemaker/TrainingJobs")
    stream = {"logGroupName": "/aws/sagemaker/TrainingJobs", "logStreamName": f"{NAME}/algo-1-1"}
    account.logs.create_log_stream(**stream)
    # CloudWatch Logs refuses what is older than two weeks.
    began = int(time.time() * 1000) - 1000
    lines = [{"timestamp": began + n, "message": f"line {n}"} for n in range(40)]
    account.logs.put_log_events(**stream, logEvents=lines)
    found = diagnose(failed("AlgorithmError: CODE: KeyError: 'x', exit code: 1"), made.compute)
    assert (found.fault, found.action, found.final_status) == ("CODE", "FAIL", "FAILED_CODE")
    assert "line 39" in found.message
    assert "line 20" in found.message
    assert "line 19" not in found.message
    assert f"dropforge redrive {RUN}" in found.message
    [(kind, event)] = published
    assert (kind, event.data) == ("RunDiagnosed", {"fault": "CODE", "action": "FAIL", "wait_s": 0})


def test_an_attempt_follows_with_what_is_left_of_the_cap(made, diagnose):
    """Capacity moves to the next type, counts the failure, and keeps the cap at the new price."""
    found = diagnose(failed("CapacityError: none"), made.compute)
    assert found.action == "RETRY"
    assert found.compute.instance_type == made.compute.remaining_types[0]
    assert found.compute.job_name == job_name("m", RUN, 2)
    assert found.attempts_of_class == {"TRAIN:CAPACITY": 1}
    price = 1.408
    paid = found.compute.max_runtime_s / 3600 * price + made.evaluation_reserve_usd
    assert paid <= made.spend_limit_usd


def evaluation_failed(reason):
    return {"TransformJobName": NAME, "TransformJobStatus": "Failed", "FailureReason": reason}


@pytest.mark.parametrize(
    ("allowed", "next_type"), [("", "ml.g6.xlarge"), ("ml.g5.xlarge, ml.g6e.xlarge", "ml.g6e.xlarge")]
)
def test_the_ladder_keeps_to_what_the_stack_allows(
    account, made, diagnose, monkeypatch, *, allowed, next_type
):
    """An evaluation without capacity goes to the next type of the recipe that the stack allows, with what is left."""
    monkeypatch.setenv("ALLOWED_INSTANCE_TYPES", allowed)
    types = ["ml.g5.xlarge", "ml.g6.xlarge", "ml.g6e.xlarge"]
    recipe = Recipe.model_validate(
        {"base_model": "org/model", "compute": {"evaluation_instance_types": types}}
    )
    account.put(LAYOUT.recipe, recipe.model_dump_json())
    found = diagnose(
        evaluation_failed("CapacityError: none"),
        made.compute,
        stage="EVALUATE",
        state="EvaluateCandidate",
        instance_type="ml.g5.xlarge",
    )
    assert (found.action, found.instance_type) == ("RETRY", next_type)
    hour = load_catalogue().price(next_type, "evaluation")
    assert 600 <= found.evaluation_limit_s <= made.spend_limit_usd / hour * 3600


class Running:
    """SageMaker whose job goes on although Step Functions has given it up."""

    def __init__(self):
        self.stopped = []

    def __getattr__(self, call):
        kind = {"training": "TrainingJob", "transform": "TransformJob", "processing": "ProcessingJob"}[
            call.split("_")[1]
        ]
        if call.startswith("list_"):
            return lambda **_: {f"{kind}Summaries": []}
        if call.startswith("stop_"):
            return lambda **asked: self.stopped.append(asked[f"{kind}Name"])
        return lambda **asked: {f"{kind}Name": asked[f"{kind}Name"], f"{kind}Status": "InProgress"}


@pytest.mark.parametrize(
    ("stage", "state"),
    [("CACHE", "CacheBaseModel"), ("TRAIN", "TrainAdapter"), ("EVALUATE", "EvaluateCandidate")],
)
def test_a_job_that_step_functions_lost_sight_of_is_stopped(made, diagnose, monkeypatch, stage, state):
    """The next attempt would run beside it: it is stopped by name first, and waited for."""
    running = Running()
    monkeypatch.setattr(diagnose_failure.Jobs, "connect", lambda: diagnose_failure.Jobs(running))
    found = diagnose(
        "Rate exceeded while the job was followed",
        made.compute,
        stage=stage,
        state=state,
        instance_type="ml.m5.xlarge" if stage == "CACHE" else "ml.g5.xlarge",
    )
    assert running.stopped == [NAME]
    assert (found.fault, found.action) == ("THROTTLED", "RETRY")
    assert found.wait_s >= STOP_GRACE_S


def test_a_job_at_its_limit_is_judged_by_what_it_left(account, made, diagnose):
    """Only where the artifact is in the bucket; without it the run ends and says so."""
    cause = {"TrainingJobName": NAME, "TrainingJobStatus": "Stopped", "SecondaryStatus": "MaxRuntimeExceeded"}
    assert diagnose(cause, made.compute).action == "FAIL"
    account.put(LAYOUT.training_output + f"{NAME}/output/model.tar.gz", b"tar")
    assert diagnose(cause, made.compute).action == "USE_CHECKPOINT"


def test_a_person_s_stop_is_a_cancelled_run(made, diagnose):
    """No attempt follows."""
    found = diagnose(
        {"TrainingJobName": NAME, "TrainingJobStatus": "Stopped", "SecondaryStatus": "Stopped"}, made.compute
    )
    assert (found.action, found.final_status) == ("FAIL", "CANCELLED")


def test_a_function_that_failed_before_there_was_a_plan_is_diagnosed(account, diagnose):
    """Without plan, recipe, compute or job the fault and its words are still there."""
    found = diagnose(
        '{"errorMessage": "it is gated", "errorType": "BaseModelUnavailable"}',
        None,
        stage="FUNCTION",
        state="PlanTraining",
        error="BaseModelUnavailable",
        job_name="",
    )
    assert (found.fault, found.final_status) == ("BASE_MODEL", "FAILED_BASE_MODEL")
    assert "it is gated" in found.message


def test_a_cut_off_cause_of_a_job_that_nobody_knows_is_unknown(made, diagnose):
    """No description, no reason: it is called unknown, never guessed."""
    found = diagnose('{"Truncat', made.compute, error="Something.New")
    assert (found.fault, found.action) == ("UNKNOWN", "FAIL")
