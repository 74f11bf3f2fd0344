"""The table of cases, on the interpreter that the local AWS uses."""

import json
from functools import cache

import pytest
from asl_answers import DIAGNOSIS, HAPPY, INPUT, MODEL, PACKAGE_ARN, PLAN, RUN_ID, SETUP, payload
from asl_cases import CASES, NEXT_TYPE, Case
from asl_interpreter import Fails, Story, run
from asl_machine import deployed, states

from dropforge_core.contracts import (
    DiagnoseInput,
    PartInput,
    PlanInput,
    PrepareEvaluationInput,
    ReportInput,
    ScoreInput,
    SealInput,
    SlotInput,
    StateInput,
)
from dropforge_core.events import RunEvent
from dropforge_core.ledger import Status, rank


@cache
def play(name: str) -> Story:
    """A case of the table, played once for all tests of this file."""
    case = CASES[name]
    return run(deployed(), {**INPUT, **case.input}, {**HAPPY, **case.answers})


@pytest.mark.parametrize("name", CASES)
def test_answers_lead_along_the_path(name: str) -> None:
    """Each row of the table takes exactly the path, and comes to the end, that it says."""
    case: Case = CASES[name]
    story = play(name)
    assert tuple(story.path) == case.path
    assert story.status == case.execution
    if not case.status:
        assert "RecordOutcome" not in story.path
        return
    recorded = story.request("RecordOutcome")["ExpressionAttributeValues"]
    assert recorded[":status"] == {"S": case.status}
    assert Status(case.status).is_terminal
    # What ReportJobState wrote of an earlier end would be taken for this one's.
    assert (recorded[":ended_by"], recorded[":told_end"]) == ({"S": "RecordOutcome"}, {"S": ""})
    if case.path[-1].startswith("Run"):
        event = story.request("ReportOutcome")["Entries"][0]
        assert event["Detail"]["status"] == case.status
        if story.status == "FAILED":
            assert story.error == case.status
            assert story.cause == event["Detail"]["message"]


def test_every_state_and_way_out_is_taken_by_some_case() -> None:
    """No state, catcher or branch is without a case: what is never tried is not known to work."""
    stories = [play(name) for name in CASES]
    visited = {state for story in stories for state in (*story.path, *story.path_in_children)}
    steps = {step for story in stories for step in zip(story.path, story.path[1:], strict=False)}
    caught = {entry for story in stories for entry in story.caught}
    for name, state in states().items():
        assert name in visited, f"no case visits {name}"
        for index in range(len(state.get("Catch", []))):
            assert (name, index) in caught, f"no case is caught by {name}'s catcher {index}"
        for choice in state.get("Choices", []):
            assert (name, choice["Next"]) in steps, f"no case goes from {name} to {choice['Next']}"
        if "Default" in state:
            assert (name, state["Default"]) in steps, f"no case takes {name}'s default"


def test_functions_get_what_their_contracts_ask() -> None:
    """Every payload is valid for its function's input, in every case."""
    contracts: dict[str, type[StateInput]] = {
        "ValidateDataset": StateInput,
        "SplitDataset": StateInput,
        "SurveyPart": PartInput,
        "ReduceFindings": StateInput,
        "WritePart": PartInput,
        "SealDataset": SealInput,
        "PlanTraining": PlanInput,
        "PrepareEvaluation": PrepareEvaluationInput,
        "ScorePredictions": ScoreInput,
        "DiagnoseFailure": DiagnoseInput,
        "AcquireTrainingSlot": SlotInput,
        "AcquireEvaluationSlot": SlotInput,
        "SettleRun": StateInput,
        "WriteReport": ReportInput,
    }
    seen = set()
    for name in CASES:
        for call in play(name).calls:
            if contract := contracts.get(call.state):
                asked = contract.model_validate_json(json.dumps(call.arguments["Payload"]))
                assert (asked.run_id, asked.model) == (RUN_ID, MODEL)
                seen.add(call.state)
    assert seen == set(contracts)


def test_marks_climb_as_the_ledger_does() -> None:
    """The ranks that the machine writes are the ledger's, and the outcome's is above them all."""
    for name in CASES:
        story = play(name)
        redrive = CASES[name].input.get("redrive", 0)
        ranks = []
        for call in story.calls:
            if call.resource.endswith("dynamodb:updateItem"):
                values = call.arguments["ExpressionAttributeValues"]
                status = Status(values[":status"]["S"])
                assert int(values[":rank"]["N"]) == rank(status, redrive)
                assert call.arguments["Key"] == {"pk": {"S": f"RUN#{RUN_ID}"}}
                ranks.append(int(values[":rank"]["N"]))
        assert ranks == sorted(ranks)


def test_the_end_is_told_as_the_event_promises() -> None:
    """RunEnded is a RunEvent with report, package, first run and cost."""
    entry = play("registered").request("ReportOutcome")["Entries"][0]
    assert (entry["Source"], entry["DetailType"]) == ("dropforge", "RunEnded")
    event = RunEvent.model_validate(entry["Detail"])
    assert event.data["package_arn"] == PACKAGE_ARN
    assert event.data["cost_usd"] == 1.25
    assert event.data["report_uri"].endswith("/report/index.html")
    assert play("duplicate").request("ReportOutcome")["Entries"][0]["Detail"]["data"]["duplicate_of"] == (
        "zzzzzzzzzz2345abcdefghij23"
    )


def test_a_report_that_failed_leaves_the_outcome_alone() -> None:
    """Without a report the run is registered all the same, and its report's address is empty."""
    data = play("WriteReport fails").request("ReportOutcome")["Entries"][0]["Detail"]["data"]
    assert (data["report_uri"], data["package_arn"]) == ("", PACKAGE_ARN)


def test_each_attempt_has_its_own_name_and_the_same_checkpoints() -> None:
    """A retried job never reuses a name, and goes on from where the last one was."""
    for case, state, key in (
        ("training is tried on the next instance", "TrainAdapter", "TrainingJobName"),
        ("evaluation is tried again", "EvaluateCandidate", "TransformJobName"),
        ("caching is tried again", "CacheBaseModel", "ProcessingJobName"),
    ):
        requests = [call.arguments for call in play(case).calls if call.state == state]
        names = [request[key] for request in requests]
        assert len(names) == len(set(names)) == 2
        assert [name[-1] for name in names] == ["1", "2"]
    first, second = (
        call.arguments
        for call in play("training is tried on the next instance").calls
        if call.state == "TrainAdapter"
    )
    assert first["CheckpointConfig"] == second["CheckpointConfig"]
    assert second["ResourceConfig"]["InstanceType"] == NEXT_TYPE.instance_type
    assert second["EnableManagedSpotTraining"] is False
    assert "MaxWaitTimeInSeconds" not in second["StoppingCondition"]
    assert first["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200}


def test_a_stage_goes_on_with_the_type_that_the_ladder_chose() -> None:
    """The evaluation takes the next type, asks for a slot of it, and tells it where that fails too."""
    story = play("evaluation is tried on the next instance")
    asked = [
        call.arguments["Payload"]["instance_type"]
        for call in story.calls
        if call.state == "AcquireEvaluationSlot"
    ]
    taken = [
        call.arguments["TransformResources"]["InstanceType"]
        for call in story.calls
        if call.state == "EvaluateCandidate"
    ]
    assert asked == taken == ["ml.g5.xlarge", "ml.g6.xlarge"]
    assert story.request("DiagnoseFailure")["Payload"]["instance_type"] == "ml.g5.xlarge"


def test_a_slot_outlasts_its_job() -> None:
    """Whoever holds a slot gives it back before it is taken away, or two jobs would be in one place."""
    for call in play("registered").calls:
        if call.state.startswith("Acquire"):
            job = {"TRAIN": "TrainAdapter", "EVALUATE": "EvaluateCandidate"}[
                call.arguments["Payload"]["stage"]
            ]
            limit = next(other.timeout_s for other in play("registered").calls if other.state == job)
            assert limit is not None
            assert call.arguments["Payload"]["hold_s"] > limit


@pytest.mark.parametrize(
    ("redrives", "restarts", "suffix"), [(0, 0, ""), (1, 0, "r1"), (0, 2, "r2"), (3, 2, "r5")]
)
def test_a_redrive_has_its_own_names(redrives: int, restarts: int, suffix: str) -> None:
    """Redrives of this execution and executions before it are counted together, in names, marks and payloads."""
    story = run(deployed(), {**INPUT, "redrive": restarts}, HAPPY, redrives)
    for state, key, name in (
        ("CacheBaseModel", "ProcessingJobName", f"{MODEL}-{RUN_ID}-b1"),
        ("TrainAdapter", "TrainingJobName", f"{MODEL}-{RUN_ID}-t1"),
        ("CreateCandidateModel", "ModelName", f"{MODEL}-{RUN_ID}-e1"),
        ("EvaluateCandidate", "TransformJobName", f"{MODEL}-{RUN_ID}-e1"),
        ("EvaluateCandidate", "ModelName", f"{MODEL}-{RUN_ID}-e1"),
    ):
        assert story.request(state)[key] == name + suffix
    assert story.request("MarkTraining")["ExpressionAttributeValues"][":job_name"] == {
        "S": f"{MODEL}-{RUN_ID}-t1{suffix}"
    }
    assert story.request("PlanTraining")["Payload"]["redrive"] == redrives + restarts
    assert story.request("RecordOutcome")["ExpressionAttributeValues"][":rank"] == {
        "N": str(rank(Status.REGISTERED, redrives + restarts))
    }


def test_a_job_that_outlives_its_state_is_stopped_by_name() -> None:
    """When a state times out or finds its job's name in use, the very job is stopped before anything else."""
    for case, state, key, stop in (
        ("caching takes too long", "CacheBaseModel", "ProcessingJobName", "StopCaching"),
        ("training takes too long", "TrainAdapter", "TrainingJobName", "StopTraining"),
        ("the answer to CreateTrainingJob was lost", "TrainAdapter", "TrainingJobName", "StopTraining"),
        ("evaluation takes too long", "EvaluateCandidate", "TransformJobName", "StopEvaluation"),
    ):
        story = play(case)
        assert story.request(stop) == {key: story.request(state)[key]}


def test_jobs_end_by_their_own_limit_before_their_state_does() -> None:
    """SageMaker's limit comes half an hour before Step Functions': a stopped job may still save its model."""
    for call in play("registered").calls:
        if call.state == "TrainAdapter":
            limits = call.arguments["StoppingCondition"]
            assert call.timeout_s == max(limits.values()) + 1800
        if call.state == "CacheBaseModel":
            assert call.timeout_s == call.arguments["StoppingCondition"]["MaxRuntimeInSeconds"] + 1800
        if call.state == "EvaluateCandidate":
            assert call.timeout_s == SETUP.max_runtime_s


def test_an_evaluation_ends_with_what_the_cap_has_left() -> None:
    """The first by the setup's limit, a further one by what the ladder says is left, and its slot outlasts both."""
    case = CASES["evaluation is tried again"]
    answers = {
        **HAPPY,
        **case.answers,
        "DiagnoseFailure": [payload(DIAGNOSIS, action="RETRY", wait_s=0, evaluation_limit_s=900)],
    }
    calls = run(deployed(), INPUT, answers).calls
    limits = [call.timeout_s for call in calls if call.state == "EvaluateCandidate"]
    held = [call.arguments["Payload"]["hold_s"] for call in calls if call.state == "AcquireEvaluationSlot"]
    assert limits == [SETUP.max_runtime_s, 900]
    assert held == [limit + 3600 for limit in limits]


def test_a_slot_weighs_the_instances_of_its_job() -> None:
    """Quotas count instances: a training job of two asks for two, and one of before there were any for one."""
    for given, expected in (({"instance_count": 2}, [2, 1]), ({}, [1, 1])):
        plan = PLAN.model_copy(update={"compute": PLAN.compute.model_copy(update=given)})
        calls = run(deployed(), INPUT, {**HAPPY, "PlanTraining": [payload(plan)]}).calls
        asked = [call.arguments["Payload"]["instances"] for call in calls if call.state.startswith("Acquire")]
        assert asked == expected


def test_each_part_is_checked_and_copied_once() -> None:
    """Every part of a large dataset is handed to one child, with the run that it belongs to."""
    for state in ("SurveyPart", "WritePart"):
        asked = [
            call.arguments["Payload"]
            for call in play("registered from a large dataset").calls
            if call.state == state
        ]
        assert asked == [{"run_id": RUN_ID, "model": MODEL, "redrive": 0, "part": part} for part in range(3)]


@pytest.mark.parametrize(
    ("given", "state"),
    [
        ({"dataset_bytes": 2_000_000_000}, "ValidateDataset"),
        ({"dataset_bytes": 2_000_000_001}, "SplitDataset"),
        ({}, "ValidateDataset"),
    ],
)
def test_only_what_is_too_much_for_one_function_is_divided(given: dict[str, int], state: str) -> None:
    """Up to and with the limit one function checks a dataset; a run that knows no size is one from before there was any."""
    begun = {name: value for name, value in INPUT.items() if name != "dataset_bytes"}
    assert run(deployed(), {**begun, **given}, HAPPY).path[2] == state


def test_a_part_that_failed_is_diagnosed_by_its_own_error() -> None:
    """The Map knows only that too many failed; what the child said is what a person and the ladder need."""
    story = play("a part can't be checked")
    asked = story.request("DiagnoseFailure")["Payload"]
    assert (asked["stage"], asked["state"]) == ("FUNCTION", "SurveyParts")
    assert (asked["error"], asked["cause"]) == ("DatasetChanged", '{"errorMessage": "line 3 is not the row"}')
    assert story.request("FindFailedPart")["MapRunArn"].endswith("/SurveyParts:3ce4e1a5-SurveyParts")
    copying = play("a part can't be copied")
    assert copying.request("FindFailedPart")["MapRunArn"].endswith("/WriteParts:3ce4e1a5-WriteParts")
    for case in (
        "a part can't be checked, and nothing tells which",
        "a part can't be checked, and none is listed",
        "a part can't be checked, and can't be looked at",
    ):
        asked = play(case).request("DiagnoseFailure")["Payload"]
        assert asked["error"] == "States.ExceedToleratedFailureThreshold"


def test_a_cut_off_training_is_judged_and_said_so() -> None:
    """USE_CHECKPOINT goes to the evaluation with the stopped job's artifact and the word partial."""
    story = play("training hit its cap and left a checkpoint")
    asked = story.request("PrepareEvaluation")["Payload"]
    assert asked["partial_training"] is True
    assert asked["model_data"].endswith("/output/model.tar.gz")
    assert (
        json.loads(story.request("DiagnoseFailure")["Payload"]["cause"])["SecondaryStatus"]
        == "MaxRuntimeExceeded"
    )
    assert play("registered").request("PrepareEvaluation")["Payload"]["partial_training"] is False


def test_a_caught_training_names_the_artifact_where_sagemaker_puts_it() -> None:
    """Where .sync calls a stopped job a failure, the artifact's address follows from the job's name."""
    story = run(
        deployed(),
        INPUT,
        {
            **HAPPY,
            "TrainAdapter": [Fails("States.TaskFailed", '{"TrainingJobStatus": "Stopped"}')],
            "DiagnoseFailure": CASES["training hit its cap and left a checkpoint"].answers["DiagnoseFailure"],
        },
        redrive_count=1,
    )
    output = story.request("TrainAdapter")["OutputDataConfig"]["S3OutputPath"]
    name = f"{MODEL}-{RUN_ID}-t1r1"
    asked = story.request("PrepareEvaluation")["Payload"]
    assert asked["model_data"] == f"{output}{name}/output/model.tar.gz"
    assert asked["training_job_name"] == name


def test_what_is_registered_carries_its_gate_report() -> None:
    """The package has the gate report's digest, the run's client token and the approval status that the gate gave."""
    request = play("registered").request("RegisterModel")
    statistics = request["ModelMetrics"]["ModelQuality"]["Statistics"]
    assert statistics["S3Uri"].endswith(f"/runs/{RUN_ID}/gate.json")
    assert statistics["ContentDigest"] == "sha256:" + "3" * 64
    assert request["ModelApprovalStatus"] == "PendingManualApproval"
    assert "Tags" not in request
    assert "\n" not in request["ModelPackageDescription"]


def test_the_ladder_waits_as_long_as_it_says() -> None:
    """The next attempt comes after the diagnosis' wait, and no sooner."""
    case = CASES["training is tried on the next instance"]
    answers = {
        **HAPPY,
        **case.answers,
        "DiagnoseFailure": [payload(DIAGNOSIS, action="RETRY", fault="QUOTA", wait_s=300, compute=NEXT_TYPE)],
    }
    assert run(deployed(), INPUT, answers).waited_s == 300


def test_retries_end() -> None:
    """A service that stays busy is asked a bounded number of times, within minutes, before the ladder takes over."""
    busy = Fails("ThrottlingException", "Rate exceeded")
    story = run(deployed(), INPUT, {**HAPPY, "TrainAdapter": [busy]})
    asked = [call for call in story.calls if call.state == "TrainAdapter"]
    assert len(asked) == 7
    assert len({call.arguments["TrainingJobName"] for call in asked}) == 1
    assert 60 < story.waited_s < 900
    assert story.request("DiagnoseFailure")["Payload"]["error"] == "ThrottlingException"
