"""Least privilege, derived: what the code can reach is granted, and nothing else."""

import json
import re
from typing import Any, Final

import pytest
from iam_needs import needs
from template_text import (
    actions,
    functions,
    granted,
    machine_states,
    pascal,
    resources,
    statements,
    targets,
    template,
)

from dropforge_core.layout import PREDICTION_CACHE, VALIDATION_WORK

MACHINE: Final = machine_states()
UNDELIVERED: Final = {"sqs:SendMessage", "kms:GenerateDataKey", "kms:Decrypt"}
"""Lambda puts what a function failed to take into the encrypted queue, with the function's role."""
WITHOUT_RESOURCES: Final = frozenset(
    {
        "ecr:GetAuthorizationToken",
        "cloudwatch:PutMetricData",
        "logs:CreateLogDelivery",
        "logs:GetLogDelivery",
        "logs:UpdateLogDelivery",
        "logs:DeleteLogDelivery",
        "logs:ListLogDeliveries",
        "logs:PutResourcePolicy",
        "logs:DescribeResourcePolicies",
        "logs:DescribeLogGroups",
        "sagemaker:ListTrainingJobs",
        "sagemaker:ListTransformJobs",
        "sagemaker:ListProcessingJobs",
        "xray:PutTraceSegments",
        "xray:PutTelemetryRecords",
        "xray:GetSamplingRules",
        "xray:GetSamplingTargets",
    }
)
LOGGING_AND_TRACING: Final = {action for action in WITHOUT_RESOURCES if action.startswith(("logs:", "xray:"))}
ROLES: Final = sorted(resources("AWS::IAM::Role"))


@pytest.mark.parametrize("module", sorted(functions()))
def test_a_function_may_do_what_its_code_does_and_no_more(module: str) -> None:
    """Needed is granted, and granted is needed, action by action."""
    role = pascal(module) + "Role"
    needed = set(needs(module))
    if "EventInvokeConfig" in functions()[module]:
        needed |= UNDELIVERED
    if any("${DatasetBucket}" in target for statement in statements(role) for target in targets(statement)):
        # Of the upload, the very version that the event named.
        needed |= {"s3:GetObjectVersion"}
    assert granted(role) == needed


def test_the_derivation_sees_what_functions_do() -> None:
    """Known calls are found, through gateways, bound methods and computed names; a socket's read is none of S3's."""
    assert "dynamodb:UpdateItem" in needs("plan_training")
    assert {"sns:Publish", "secretsmanager:GetSecretValue"} <= needs("notify")
    assert not any(action.startswith("s3:") for action in needs("notify"))
    assert "sagemaker:StopTransformJob" in needs("report_job_state")
    assert "sagemaker:ListTrainingJobs" in needs("diagnose_failure")
    assert "sagemaker:ListTransformJobs" not in needs("intake")


def _needed_by_state(state: dict[str, Any]) -> set[str]:
    """The permissions behind one state (Step Functions guide, "IAM policies for integrated services")."""
    if state["Type"] == "Map":
        # Children are started, followed, ended with their parent, and redriven with it ("IAM policies for using
        # Distributed Map states").
        calls = ("StartExecution", "DescribeExecution", "StopExecution", "RedriveExecution")
        return {f"states:{call}" for call in calls}
    found = re.fullmatch(
        r"arn:aws:states:::(?P<sdk>aws-sdk:)?(?P<service>\w+):(?P<action>\w+)(?:\.(?P<pattern>\w+))?",
        state["Resource"],
    )
    assert found
    service, action = found["service"], found["action"][0].upper() + found["action"][1:]
    if service == "lambda":
        return {"lambda:InvokeFunction"}
    needed = {f"{'states' if service == 'sfn' else service}:{action}"}
    if "Tags" in state["Arguments"]:
        needed.add("sagemaker:AddTags")
    if found["pattern"] == "sync":
        job = action.removeprefix("Create")
        needed |= {f"sagemaker:Describe{job}", f"sagemaker:Stop{job}", "sagemaker:ListTags"}
        needed |= {"events:PutTargets", "events:PutRule", "events:DescribeRule"}
    if any(key in state["Arguments"] for key in ("RoleArn", "ExecutionRoleArn")):
        needed.add("iam:PassRole")
    return needed


def test_only_the_pinned_model_may_judge() -> None:
    """The one permission for Bedrock names the parameter's model, alone and behind an inference profile, and nothing more."""
    found = [(role, s) for role in ROLES for s in statements(role) if "bedrock" in json.dumps(actions(s))]
    assert [role for role, _ in found] == ["ScorePredictionsRole"]
    assert all(target.endswith("${JudgeModelId}") for target in targets(found[0][1]))
    assert template()["Parameters"]["JudgeModelId"]["Default"] == ""


def test_the_state_machine_may_do_what_its_states_do_and_no_more() -> None:
    """Derived from each state's Resource, with what `.sync`, tags and roles bring along."""
    needed = {
        action
        for state in MACHINE.values()
        if state["Type"] in {"Task", "Map"}
        for action in _needed_by_state(state)
    }
    assert granted("FineTuneRole") == needed | LOGGING_AND_TRACING


def test_the_state_machine_invokes_exactly_the_functions_that_it_names() -> None:
    """No other function can be started by a run."""
    named = set(re.findall(r"\$\{(\w+)FunctionArn\}", json.dumps(MACHINE)))
    allowed = next(s for s in statements("FineTuneRole") if s["Sid"] == "Functions")
    assert set(targets(allowed)) == {f"${{{name}Function}}" for name in named}


def test_the_state_machine_passes_exactly_the_roles_that_it_names() -> None:
    """And to SageMaker only."""
    named = set(re.findall(r"\$\{(\w+Role)Arn\}", json.dumps(MACHINE)))
    allowed = next(s for s in statements("FineTuneRole") if "iam:PassRole" in actions(s))
    assert set(targets(allowed)) == {f"${{{name}}}" for name in named}
    assert allowed["Condition"] == {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}


def test_the_state_machine_starts_no_execution_but_its_own() -> None:
    """What a Distributed Map needs is granted for this very machine, its executions and its Maps' children."""
    name = "${AWS::StackName}-fine-tune"
    own = resources("AWS::Serverless::StateMachine")["FineTuneStateMachine"]["Name"]
    assert own == {"Fn::Sub": name}
    for statement in statements("FineTuneRole"):
        if any(action.startswith("states:") for action in actions(statement)):
            for target in targets(statement):
                assert re.fullmatch(
                    rf".*:(stateMachine|execution|mapRun):{re.escape(name)}([:/]\*)?", target
                ), target
    children = [target for statement in statements("FineTuneRole") for target in targets(statement)]
    assert any(target.endswith(f":execution:{name}/*") for target in children)


def test_the_work_of_a_validation_expires_and_its_results_do_not() -> None:
    """Findings go when no redrive can want them any more, kept predictions when no run does; nothing else expires."""
    rules = resources("AWS::S3::Bucket")["RunBucket"]["LifecycleConfiguration"]["Rules"]
    expiring = [rule for rule in rules if "ExpirationInDays" in rule]
    assert [(rule["Prefix"], rule["ExpirationInDays"]) for rule in expiring] == [
        (VALIDATION_WORK, 14),
        (PREDICTION_CACHE, 90),
    ]


def test_sync_rules_are_those_of_the_jobs_that_are_waited_for() -> None:
    """Step Functions refuses to create a machine whose managed rules its role may not write."""
    waited = {
        re.sub(r".*:create(\w+)\.sync", r"\1", state["Resource"])
        for state in MACHINE.values()
        if state.get("Resource", "").endswith(".sync")
    }
    rules = next(s for s in statements("FineTuneRole") if "events:PutRule" in actions(s))
    assert {target.rsplit("/", 1)[-1] for target in targets(rules)} == {
        f"StepFunctionsGetEventsForSageMaker{job}sRule" for job in waited
    }


@pytest.mark.parametrize("role", ROLES)
def test_a_star_stands_only_where_the_service_knows_no_resources(role: str) -> None:
    """Everything else names what it is about; no action is a pattern."""
    for statement in statements(role):
        assert all("*" not in action for action in actions(statement)), statement["Sid"]
        if "*" in targets(statement):
            assert set(actions(statement)) <= WITHOUT_RESOURCES, statement["Sid"]


@pytest.mark.parametrize("role", ROLES)
def test_every_action_exists(role: str) -> None:
    """An action that no service has would be granted in vain, and its lack found in production."""
    known = {
        "states": "stepfunctions",
        "xray": "xray",
        "iam": "iam",
        "lambda": "lambda",
        "bedrock": "bedrock-runtime",
        "kms": "kms",
        "ecr": "ecr",
        "cloudwatch": "cloudwatch",
        "sqs": "sqs",
    }
    import botocore.session  # noqa: PLC0415  # slow, and wanted by this test alone

    session = botocore.session.get_session()
    without_api = {
        "iam:PassRole",
        "lambda:InvokeFunction",
        "s3:ListBucket",
        "s3:GetObjectVersion",
        *LOGGING_AND_TRACING,
    }
    for action in granted(role) - without_api:
        prefix, name = action.split(":")
        assert name in session.get_service_model(known.get(prefix, prefix)).operation_names, action


def test_every_role_has_one_owner() -> None:
    """No two functions share a role, and no role is left over."""
    owners = [properties["Role"]["Fn::GetAtt"][0] for properties in functions().values()]
    owners += [p["Role"]["Fn::GetAtt"][0] for p in resources("AWS::Serverless::StateMachine").values()]
    jobs = ["TrainingRole", "EvaluationRole", "CacheRole"]
    assert sorted([*owners, *jobs]) == ROLES


def test_jobs_and_machine_are_no_confused_deputies() -> None:
    """Whoever assumes these roles does it for a resource of this account, and of the kind that they are for."""
    for name in ("FineTuneRole", "TrainingRole", "EvaluationRole", "CacheRole"):
        trust = template()["Resources"][name]["Properties"]["AssumeRolePolicyDocument"]["Statement"]
        for statement in trust:
            condition = statement["Condition"]
            assert condition["StringEquals"] == {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}
            assert "aws:SourceArn" in condition["ArnLike"]


def test_jobs_are_held_apart_by_the_stacks_tag() -> None:
    """Names begin with a model's name, so it is the tag that keeps one stack out of another's jobs."""
    tag = {"Ref": "AWS::StackName"}
    for role in ROLES:
        for statement in statements(role):
            doing = {action.removeprefix("sagemaker:") for action in actions(statement)}
            if {name for name in doing if re.match(r"(Stop|Describe)\w+Job|DescribeModel$", name)}:
                assert statement["Condition"] == {"StringEquals": {"aws:ResourceTag/dropforge:stack": tag}}, (
                    role
                )
            if any(name.startswith("Create") and name != "CreateModelPackage" for name in doing):
                assert statement["Condition"] == {"StringEquals": {"aws:RequestTag/dropforge:stack": tag}}, (
                    role
                )


@pytest.mark.parametrize(
    ("role", "state"),
    [
        ("TrainingRole", "TrainAdapter"),
        ("EvaluationRole", "EvaluateCandidate"),
        ("CacheRole", "CacheBaseModel"),
    ],
)
def test_a_jobs_role_reaches_what_its_request_names(role: str, state: str) -> None:
    """Every prefix of the run bucket in the request may be read or written by the job's role."""
    request = json.dumps(MACHINE[state]["Arguments"]) + json.dumps(
        MACHINE["CreateCandidateModel"]["Arguments"] if role == "EvaluationRole" else {}
    )
    named = {
        re.sub(r"^/+", "", re.sub(r"' & \$run_id & '", "*", found)).removesuffix("/") + "/*"
        for found in re.findall(r"s3://\$\{RunBucket\}(/runs/' & \$run_id & '[\w/]*)", request)
    }
    if "base_model.prefix" in request:
        named.add("base-models/*")
    reachable = {
        target.removeprefix("${RunBucket}/")
        for statement in statements(role)
        if {"s3:GetObject", "s3:PutObject"} & set(actions(statement))
        for target in targets(statement)
    }
    assert named
    for prefix in named:
        assert any(prefix.startswith(allowed.removesuffix("*")) for allowed in reachable), prefix


def test_nothing_may_write_what_was_uploaded_or_approve_a_model() -> None:
    """The service only reads the dataset bucket, and approval is for people and their own roles."""
    for role in ROLES:
        for statement in statements(role):
            if any("${DatasetBucket}" in target for target in targets(statement)):
                assert not {"s3:PutObject", "s3:DeleteObject"} & set(actions(statement)), role
        assert "sagemaker:UpdateModelPackage" not in granted(role)
