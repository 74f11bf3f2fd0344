"""`cancel`, `redrive`, `approve`, `deny`: what a person may do to a run."""

import json
from typing import Any, Final, Literal

from botocore.exceptions import ClientError

from dropforge.cli.console import RUN_FAILED, CommandFailed
from dropforge.cli.stack import RunRecord, Stack
from dropforge_core import aws
from dropforge_core.contracts import ExecutionInput
from dropforge_core.ledger import REDRIVE_STEP, Status
from dropforge_core.messages.wording import known, phrase
from dropforge_core.model import Frozen

REDRIVABLE: Final = frozenset(
    {Status.CANCELLED, Status.APPROVAL_DENIED, Status.APPROVAL_EXPIRED}
    | {status for status in Status if status.is_failure}
)
"""Ends after which the same upload may be tried again; the others are answers, not accidents."""
JOB_LISTS: Final = {
    "training": "TrainingJobSummaries",
    "transform": "TransformJobSummaries",
    "processing": "ProcessingJobSummaries",
}


class Answered(Frozen):
    """What was done."""

    run_id: str
    done: bool
    message: str
    execution_arn: str = ""


def execution_of(stack: Stack, run: RunRecord) -> str:
    """The ARN of the run's newest execution."""
    machine = stack.resources.state_machine_arn
    return run.execution_arn or machine.replace(":stateMachine:", ":execution:") + f":{run.run_id}"


def cancel(stack: Stack, run: RunRecord) -> Answered:
    """Stop the run and its jobs; its ledger says CANCELLED as soon as Step Functions told of it.

    Raises:
        CommandFailed: when it has ended already.
    """
    status = known(run.status)
    if status is not None and status.is_terminal:
        raise CommandFailed(f"The run has ended already: {phrase(run.status)}.")
    try:
        aws.client("stepfunctions").stop_execution(
            executionArn=execution_of(stack, run), error="Cancelled", cause="cancelled by dropforge cancel"
        )
    except ClientError as error:
        raise CommandFailed(f"The run can't be stopped: {error}", RUN_FAILED) from error
    return Answered(run_id=run.run_id, done=True, message="The run is being stopped, and its jobs with it.")


def redrive(stack: Stack, run: RunRecord, started_at: str) -> Answered:
    """Start an ended run again. What is cached, validated or checkpointed is used; jobs get new names.

    It is a new execution, because Step Functions' own redrive would enter the `Fail` state that it ended in.

    Raises:
        CommandFailed: when the run goes on still, ended with an answer instead of an accident, or has a job that is
            still stopping.
    """
    status = known(run.status)
    if status is not None and not status.is_terminal:
        raise CommandFailed(
            f"The run goes on still, it is {phrase(run.status)}: dropforge follow {run.run_id}. To begin anew, "
            "cancel it first."
        )
    if status not in REDRIVABLE:
        raise CommandFailed(
            f"A run that is '{phrase(run.status)}' can't be driven again. Upload again with changed data or "
            "recipe, or with `dropforge push --again`."
        )
    if _has_running_jobs(run.run_id):
        raise CommandFailed(
            "A job of the run is still stopping, and another would write the same checkpoints. Try again in two minutes."
        )
    turn = run.rank // REDRIVE_STEP + 1
    begins = ExecutionInput(
        run_id=run.run_id, model=run.model, started_at=started_at, redrive=turn, dataset_bytes=run.bytes
    )
    sfn: Any = aws.client("stepfunctions")
    try:
        arn = sfn.start_execution(
            stateMachineArn=stack.resources.state_machine_arn,
            name=f"{run.run_id}-r{turn}",
            input=begins.model_dump_json(),
        )["executionArn"]
    except ClientError as error:
        if aws.error_code(error) == "ExecutionAlreadyExists":
            raise CommandFailed(
                "The run was driven again a moment ago: `dropforge follow` shows it."
            ) from error
        raise
    stack.ledger.annotate(run.run_id, {"execution_arn": arn})
    return Answered(
        run_id=run.run_id,
        done=True,
        message=f"The run goes on, time {turn + 1}: dropforge follow {run.run_id}",
        execution_arn=arn,
    )


def _has_running_jobs(run_id: str) -> bool:
    client = aws.client("sagemaker")
    return any(
        getattr(client, f"list_{kind}_jobs")(NameContains=run_id, StatusEquals=status, MaxResults=1)[
            summaries
        ]
        for kind, summaries in JOB_LISTS.items()
        for status in ("InProgress", "Stopping")
    )


def decide(stack: Stack, run: RunRecord, decision: Literal["approve", "deny"]) -> Answered:
    """Answer the run's question for money, in the caller's own name.

    Raises:
        CommandFailed: when the function that takes answers failed.
    """
    try:
        who = str(aws.client("sts").get_caller_identity()["Arn"])
    except ClientError as error:
        raise CommandFailed(f"AWS does not say who you are: {error}") from error
    answer = aws.client("lambda").invoke(
        FunctionName=stack.resources.decide_approval_function,
        Payload=json.dumps({"run_id": run.run_id, "decision": decision, "decided_by": who}).encode(),
    )
    said = json.loads(answer["Payload"].read())
    if answer.get("FunctionError"):
        raise CommandFailed(f"The answer was not taken: {said.get('errorMessage', said)}", RUN_FAILED)
    return Answered(run_id=run.run_id, done=bool(said["accepted"]), message=str(said["message"]))
