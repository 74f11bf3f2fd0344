"""Step Functions over HTTP: what our state machine relies on, asked of the running engine."""

import json
import uuid
from typing import Any

import pytest
from botocore.exceptions import ClientError
from sample_stack import Sample, eventually

SUCCEED = {"Type": "Succeed"}


def refused(error: pytest.ExceptionInfo[ClientError]) -> str:
    return str(error.value.response["Error"]["Code"])


def test_catch_sees_the_exceptions_own_name(sample: Sample) -> None:
    """A function's exception is caught by its class name, its Cause is the runtime's JSON."""
    caught = {
        "ErrorEquals": ["DatasetInvalid"],
        "Output": "{% $parse($states.errorOutput.Cause) %}",
        "Next": "Done",
    }
    end = sample.run({"Ask": sample.probe({"do": "fail"}, Catch=[caught], Next="Done"), "Done": SUCCEED})
    assert end["status"] == "SUCCEEDED"
    assert end["output"]["errorType"] == "DatasetInvalid"
    assert end["output"]["errorMessage"] == "three rows are broken"


def test_a_dead_function_is_a_runtime_exit(sample: Sample) -> None:
    """A function whose process dies fails its task, and the next invocation finds a new process."""
    end = sample.run({"Ask": sample.probe({"do": "exit"})})
    assert (end["status"], end["error"]) == ("FAILED", "Runtime.ExitError")
    assert sample.run({"Ask": sample.probe({"do": "echo"})})["status"] == "SUCCEEDED"


def test_retry_tries_again_and_counts(sample: Sample) -> None:
    """A retrier tries as often as it says; each attempt sees its own RetryCount."""
    payload = {
        "do": "flaky",
        "id": uuid.uuid4().hex,
        "failures": 2,
        "retry_count": "{% $states.context.State.RetryCount %}",
    }
    retry = {
        "ErrorEquals": ["ConnectionError"],
        "IntervalSeconds": 1,
        "MaxDelaySeconds": 1,
        "JitterStrategy": "FULL",
    }
    end = sample.run({"Ask": sample.probe(payload, Retry=[retry])})
    assert end["output"]["Payload"] == {"attempts": 3, "retry_count": 2}


def test_variables_live_beyond_their_state(sample: Sample) -> None:
    """What one state assigns, a later one reads, and an assignment shows only in the next state."""
    end = sample.run(
        {
            "First": {"Type": "Pass", "Assign": {"n": 1, "who": "{% $states.input.who %}"}, "Next": "Second"},
            "Second": {
                "Type": "Pass",
                "Assign": {"n": "{% $n + 1 %}"},
                "Output": "{% {'before': $n, 'who': $who} %}",
                "Next": "Third",
            },
            "Third": {
                "Type": "Choice",
                "Choices": [{"Condition": "{% $n = 2 %}", "Next": "Done"}],
                "Default": "No",
            },
            "Done": SUCCEED,
            "No": {"Type": "Fail", "Error": "No"},
        },
        {"who": "a person"},
    )
    assert end["output"] == {"before": 1, "who": "a person"}


def test_a_missing_variable_fails_a_choice(sample: Sample) -> None:
    """A condition on what was never assigned is an error, not a no."""
    choice = {
        "Type": "Choice",
        "Choices": [{"Condition": "{% $missing = 1 %}", "Next": "Done"}],
        "Default": "Done",
    }
    end = sample.run(
        {"Choose": {**choice, "Choices": [{"Condition": "{% $missing %}", "Next": "Done"}]}, "Done": SUCCEED}
    )
    assert (end["status"], end["error"]) == ("FAILED", "States.QueryEvaluationError")


def test_a_task_token_takes_an_answer_once(sample: Sample) -> None:
    """A task that waits for its token goes on with what SendTaskSuccess brings; a second answer is too late."""
    key = uuid.uuid4().hex
    payload = {"do": "keep_token", "id": key, "token": "{% $states.context.Task.Token %}"}
    state = {**sample.probe(payload), "Resource": "arn:aws:states:::lambda:invoke.waitForTaskToken"}
    execution = sample.start(sample.machine({"Wait": state}))
    token = eventually(lambda: _item(sample, key).get("token", {}).get("S"))
    states = sample.client("stepfunctions")
    states.send_task_success(taskToken=token, output='{"approved": true}')
    assert sample.ended(execution)["output"] == {"approved": True}
    with pytest.raises(ClientError) as late:
        states.send_task_success(taskToken=token, output="{}")
    assert refused(late) == "TaskTimedOut"
    with pytest.raises(ClientError) as unknown:
        states.send_task_failure(taskToken="never given", error="No")
    assert refused(unknown) == "TaskDoesNotExist"


def test_a_task_token_nobody_answers_times_out(sample: Sample) -> None:
    """Without an answer the task ends in States.Timeout, which Catch takes by name."""
    payload = {"do": "keep_token", "id": uuid.uuid4().hex, "token": "{% $states.context.Task.Token %}"}
    state = sample.probe(
        payload, TimeoutSeconds=2, Catch=[{"ErrorEquals": ["States.Timeout"], "Next": "Late"}], Next="Done"
    )
    state["Resource"] = "arn:aws:states:::lambda:invoke.waitForTaskToken"
    end = sample.run({"Wait": state, "Late": {"Type": "Fail", "Error": "APPROVAL_EXPIRED"}, "Done": SUCCEED})
    assert end["error"] == "APPROVAL_EXPIRED"


def test_a_slow_function_times_out_its_task_and_itself(sample: Sample) -> None:
    """TimeoutSeconds ends the state as States.Timeout; the function's own limit as Sandbox.Timedout."""
    quick = sample.probe({"do": "sleep", "seconds": 4}, TimeoutSeconds=1)
    assert sample.run({"Ask": quick})["error"] == "States.Timeout"
    assert sample.run({"Ask": sample.probe({"do": "sleep", "seconds": 30})})["error"] == "Sandbox.Timedout"


def test_the_machines_own_timeout_ends_it(sample: Sample) -> None:
    """A machine's TimeoutSeconds ends the execution as TIMED_OUT."""
    assert (
        sample.run({"Wait": {"Type": "Wait", "Seconds": 60, "End": True}}, TimeoutSeconds=1)["status"]
        == "TIMED_OUT"
    )


def test_sync_gives_the_jobs_description(sample: Sample, job_name: str) -> None:
    """`.sync` waits for the job and answers with its description, times as epoch milliseconds."""
    output = sample.run({"Train": sample.training(job_name, "ok")})["output"]
    assert output["TrainingJobStatus"] == "Completed"
    assert output["ModelArtifacts"]["S3ModelArtifacts"].endswith(f"{job_name}/output/model.tar.gz")
    assert output["TrainingEndTime"] > 1_600_000_000_000
    tags = sample.client("sagemaker").list_tags(ResourceArn=output["TrainingJobArn"])["Tags"]
    assert {"Key": "MANAGED_BY_AWS", "Value": "STARTED_BY_STEP_FUNCTIONS"} in tags


def test_a_failed_job_is_task_failed_with_its_description(sample: Sample, job_name: str) -> None:
    """A job that fails is States.TaskFailed; its Cause parses and has the first word of output/failure."""
    end = sample.run({"Train": sample.training(job_name, "fail")})
    assert end["error"] == "States.TaskFailed"
    assert "CODE probe was told to fail" in json.loads(end["cause"])["FailureReason"]


def test_the_same_job_name_is_in_use(sample: Sample, job_name: str) -> None:
    """A second job of one name is refused under the name that our Catch knows."""
    sample.run({"Train": sample.training(job_name, "ok")})
    assert (
        sample.run({"Train": sample.training(job_name, "ok")})["error"] == "SageMaker.ResourceInUseException"
    )


def test_an_abort_stops_the_job(sample: Sample, job_name: str) -> None:
    """StopExecution ends the SageMaker job too: no job outlives its run."""
    execution = sample.start(sample.machine({"Train": sample.training(job_name, "sleep")}))
    eventually(lambda: sample.trains(job_name))
    sample.client("stepfunctions").stop_execution(
        executionArn=execution, error="Cancelled", cause="by a person"
    )
    assert sample.ended(execution)["status"] == "ABORTED"
    eventually(lambda: sample.job_status(job_name) == "Stopped")


def test_a_task_that_times_out_stops_its_job(sample: Sample, job_name: str) -> None:
    """A `.sync` task past its TimeoutSeconds fails as States.Timeout and its job is stopped."""
    assert (
        sample.run({"Train": sample.training(job_name, "sleep", TimeoutSeconds=2)})["error"]
        == "States.Timeout"
    )
    eventually(lambda: sample.job_status(job_name) == "Stopped")


def test_service_errors_have_awss_names(sample: Sample) -> None:
    """Optimized and SDK integrations name the errors that our Catch blocks match."""
    table = sample.outputs["TableName"]
    update = {
        "TableName": table,
        "Key": {"pk": {"S": "nobody"}},
        "UpdateExpression": "SET x = :x",
        "ConditionExpression": "attribute_exists(pk)",
        "ExpressionAttributeValues": {":x": {"S": "1"}},
    }
    assert _error(sample, "dynamodb:updateItem", update) == "DynamoDB.ConditionalCheckFailedException"
    assert _error(sample, "aws-sdk:dynamodb:updateItem", update) == "DynamoDb.ConditionalCheckFailedException"
    job = {"TrainingJobName": "nobody"}
    assert _error(sample, "aws-sdk:sagemaker:describeTrainingJob", job).startswith("SageMaker.")
    assert (
        _error(sample, "sagemaker:createModel", {"ModelName": "bad name!"})
        == "SageMaker.AmazonSageMakerException"
    )
    assert _error(sample, "lambda:invoke", {"FunctionName": "nobody"}) == "Lambda.ResourceNotFoundException"
    assert _error(sample, "dynamodb:updateItem", {"Key": {}}) == "States.Runtime"


def test_a_failed_execution_is_redriven_from_where_it_ended(sample: Sample) -> None:
    """RedriveExecution goes on at the failed state, with its variables and a higher RedriveCount."""
    check = {
        "Type": "Task",
        "Resource": "arn:aws:states:::dynamodb:updateItem",
        "Arguments": {
            "TableName": sample.outputs["TableName"],
            "Key": {"pk": {"S": "{% $key %}"}},
            "UpdateExpression": "SET seen = :one",
            "ConditionExpression": "attribute_exists(pk)",
            "ExpressionAttributeValues": {":one": {"N": "1"}},
        },
        "Output": "{% {'key': $key, 'redrives': $states.context.Execution.RedriveCount} %}",
        "End": True,
    }
    first = {"Type": "Pass", "Assign": {"key": "{% $states.context.Execution.Name %}"}, "Next": "Check"}
    execution = sample.start(sample.machine({"First": first, "Check": check}))
    assert sample.ended(execution)["status"] == "FAILED"
    name = execution.rpartition(":")[2]
    sample.client("dynamodb").put_item(TableName=sample.outputs["TableName"], Item={"pk": {"S": name}})
    states = sample.client("stepfunctions")
    assert states.describe_execution(executionArn=execution)["redriveStatus"] == "REDRIVABLE"
    states.redrive_execution(executionArn=execution)
    end = sample.ended(execution)
    assert end["output"] == {"key": name, "redrives": 1}
    assert end["redriveCount"] == 1
    kinds = [event["type"] for event in states.get_execution_history(executionArn=execution)["events"]]
    assert kinds.count("PassStateEntered") == 1
    assert "ExecutionRedriven" in kinds
    with pytest.raises(ClientError) as again:
        states.redrive_execution(executionArn=execution)
    assert refused(again) == "ExecutionNotRedrivable"


def test_the_same_start_is_the_same_execution(sample: Sample) -> None:
    """StartExecution is idempotent while the execution runs, and refused after it or with another input."""
    machine = sample.machine({"Wait": {"Type": "Wait", "Seconds": 30, "End": True}})
    execution = sample.start(machine, {"a": 1}, name="one-run")
    assert sample.start(machine, {"a": 1}, name="one-run") == execution
    with pytest.raises(ClientError) as other:
        sample.start(machine, {"a": 2}, name="one-run")
    assert refused(other) == "ExecutionAlreadyExists"
    sample.client("stepfunctions").stop_execution(executionArn=execution)
    with pytest.raises(ClientError) as after:
        sample.start(machine, {"a": 1}, name="one-run")
    assert refused(after) == "ExecutionAlreadyExists"


def test_a_broken_definition_is_refused_with_every_fault(sample: Sample) -> None:
    """CreateStateMachine names each state that can't run, instead of failing on it later."""
    states: dict[str, Any] = {
        "A": {"Type": "Pass", "Next": "Nowhere"},
        "B": {"Type": "Parallel", "End": True},
        "C": {"Type": "Task", "Resource": "arn:aws:states:::sns:publish", "InputPath": "$", "End": True},
        "D": {"Type": "Pass", "Output": "{% 1 + %}", "End": True},
    }
    with pytest.raises(ClientError) as error:
        sample.machine(states)
    assert refused(error) == "InvalidDefinition"
    message = str(error.value)
    for found in (
        "A: MISSING_TRANSITION_TARGET",
        "B: Type Parallel",
        "sns:publish",
        "C: InputPath",
        "D: '1 +'",
    ):
        assert found in message


def test_what_cannot_be_faithful_is_refused(sample: Sample) -> None:
    """Calls that would need another interpreter say so."""
    with pytest.raises(ClientError) as error:
        sample.client("stepfunctions").create_activity(name="no")
    assert refused(error) == "UnsupportedOperationException"


def distributed(state: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A Distributed Map that runs one state for each item of the input."""
    config = {"Mode": "DISTRIBUTED", "ExecutionType": "STANDARD"}
    processor = {"ProcessorConfig": config, "StartAt": "Do", "States": {"Do": state}}
    return {"Type": "Map", "ItemProcessor": processor, "Label": "parts", "End": True, **fields}


def test_a_map_run_and_its_children_can_be_looked_at(sample: Sample) -> None:
    """ListMapRuns, DescribeMapRun, ListExecutions and a child's own description and history tell of a Map."""
    do = sample.probe({"do": "echo", "n": "{% $states.input %}"}, Output="{% $states.input %}")
    execution = sample.start(sample.machine({"Each": distributed(do, MaxConcurrency=2)}), [1, 2, 3])
    assert sample.ended(execution)["output"] == [1, 2, 3]
    states = sample.client("stepfunctions")
    (listed,) = states.list_map_runs(executionArn=execution)["mapRuns"]
    run = states.describe_map_run(mapRunArn=listed["mapRunArn"])
    assert (run["status"], run["maxConcurrency"]) == ("SUCCEEDED", 2)
    assert (run["itemCounts"]["succeeded"], run["itemCounts"]["total"]) == (3, 3)
    children = states.list_executions(mapRunArn=run["mapRunArn"])["executions"]
    assert [child["status"] for child in children] == ["SUCCEEDED"] * 3
    assert all("/parts:" in child["executionArn"] for child in children)
    machine = execution.replace(":execution:", ":stateMachine:").rpartition(":")[0]
    assert len(states.list_executions(stateMachineArn=machine)["executions"]) == 1
    child = states.describe_execution(executionArn=children[0]["executionArn"])
    assert child["stateMachineArn"] == f"{machine}/parts"
    assert json.loads(child["input"]) in {1, 2, 3}
    events = states.get_execution_history(executionArn=child["executionArn"])["events"]
    assert [event["type"] for event in events][-2:] == ["TaskStateExited", "ExecutionSucceeded"]


def test_a_stopped_map_stops_its_childrens_jobs(sample: Sample, job_name: str) -> None:
    """StopExecution of the parent ends the children, and the jobs that they wait for."""
    do = sample.training("{% '" + job_name + "-' & $string($states.input) %}", "sleep")
    execution = sample.start(sample.machine({"Each": distributed(do)}), [1, 2])
    eventually(lambda: all(sample.trains(f"{job_name}-{n}") for n in (1, 2)))
    states = sample.client("stepfunctions")
    (run,) = states.list_map_runs(executionArn=execution)["mapRuns"]
    child = states.list_executions(mapRunArn=run["mapRunArn"])["executions"][0]["executionArn"]
    with pytest.raises(ClientError) as alone:
        states.stop_execution(executionArn=child)
    assert refused(alone) == "UnsupportedOperationException"
    states.stop_execution(executionArn=execution)
    eventually(lambda: all(sample.job_status(f"{job_name}-{n}") == "Stopped" for n in (1, 2)))
    eventually(lambda: states.describe_execution(executionArn=child)["status"] == "ABORTED")
    eventually(lambda: states.describe_map_run(mapRunArn=run["mapRunArn"])["status"] == "ABORTED")
    last = states.get_execution_history(executionArn=execution, reverseOrder=True)["events"][0]
    assert last["type"] == "ExecutionAborted"


def test_a_failed_map_run_is_redriven_with_its_parent(sample: Sample) -> None:
    """A redrive of the parent runs the children that failed, and those only."""
    payload = {"do": "flaky", "id": uuid.uuid4().hex, "failures": 1}
    do = sample.probe(payload, Output="{% $states.result.Payload.attempts %}")
    execution = sample.start(sample.machine({"Each": distributed(do, MaxConcurrency=1)}), [1, 2])
    end = sample.ended(execution)
    assert (end["status"], end["error"]) == ("FAILED", "States.ExceedToleratedFailureThreshold")
    states = sample.client("stepfunctions")
    states.redrive_execution(executionArn=execution)
    assert sample.ended(execution)["output"] == [2, 3]
    (run,) = states.list_map_runs(executionArn=execution)["mapRuns"]
    assert states.describe_map_run(mapRunArn=run["mapRunArn"])["redriveCount"] == 1


def test_history_tells_the_way(sample: Sample) -> None:
    """GetExecutionHistory shows states, tasks and assigned variables while and after the execution ran."""
    execution = sample.start(sample.outputs["MachineArn"], {"hello": "there"})
    assert sample.ended(execution)["output"]["echo"]["given"] == {"hello": "there"}
    events = sample.client("stepfunctions").get_execution_history(executionArn=execution)["events"]
    kinds = [event["type"] for event in events]
    assert kinds == [
        "ExecutionStarted",
        "TaskStateEntered",
        "TaskScheduled",
        "TaskStarted",
        "TaskSucceeded",
        "TaskStateExited",
        "SucceedStateEntered",
        "SucceedStateExited",
        "ExecutionSucceeded",
    ]
    assert "answer" in events[5]["stateExitedEventDetails"]["assignedVariables"]


def _item(sample: Sample, key: str) -> dict[str, Any]:
    table = sample.outputs["TableName"]
    found = sample.client("dynamodb").get_item(TableName=table, Key={"pk": {"S": key}}, ConsistentRead=True)
    item: dict[str, Any] = found.get("Item", {})
    return item


def _error(sample: Sample, action: str, arguments: dict[str, Any]) -> str:
    state = {"Type": "Task", "Resource": f"arn:aws:states:::{action}", "Arguments": arguments, "End": True}
    return str(sample.run({"Call": state}).get("error"))
