"""The template as a whole: it lints, it fits the code, and nothing that is sent gets lost."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from template_text import ROOT, functions, machine_states, pascal, resources, template

BIN: Final = Path(sys.executable).parent
MACHINE: Final = (ROOT / "statemachine" / "fine_tune.asl.json").read_text()
HANDLERS: Final = sorted(
    path.stem
    for path in (ROOT / "functions").glob("*.py")
    if any(
        isinstance(node, ast.FunctionDef) and node.name == "handler"
        for node in ast.parse(path.read_text()).body
    )
)
OF_THE_LIBRARY: Final = {"POWERTOOLS_SERVICE_NAME", "POWERTOOLS_METRICS_NAMESPACE", "LOG_LEVEL"}
OF_LAMBDA: Final = frozenset({"AWS_REGION"})
"""Lambda sets these for every function."""
OVERRIDES: Final = {"HF_ENDPOINT", "SLACK_API_URL", "SLACK_WEBHOOK_ORIGIN"}
"""Addresses of the outside world, which have one value in the cloud and another in tests."""


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    quiet = {"AWS_DEFAULT_REGION": "us-east-1", "SAM_CLI_TELEMETRY": "0"}
    return subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=ROOT,
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
        check=False,
    )


def test_cfn_lint_has_nothing_to_say() -> None:
    """Not one error or warning."""
    done = _run("cfn-lint", "template.yaml")
    assert done.returncode == 0, done.stdout


def test_sam_finds_it_valid() -> None:
    """The very command that people type."""
    done = _run("sam", "validate", "--lint")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_handler_has_a_function_and_every_function_a_handler() -> None:
    """One name travels: module, handler, resource, role, log group."""
    assert sorted(functions()) == HANDLERS
    for module, properties in functions().items():
        name = pascal(module)
        assert properties["Handler"] == f"{module}.handler"
        assert template()["Resources"][f"{name}Function"]["Properties"] is properties
        assert properties["Role"] == {"Fn::GetAtt": [f"{name}Role", "Arn"]}
        dashed = module.replace("_", "-")
        assert properties["FunctionName"] == {"Fn::Sub": f"${{AWS::StackName}}-{dashed}"}
        assert properties["LoggingConfig"] == {"LogGroup": {"Ref": f"{name}LogGroup"}}
        group = resources("AWS::Logs::LogGroup")[f"{name}LogGroup"]
        assert group["LogGroupName"] == {"Fn::Sub": f"/aws/lambda/${{AWS::StackName}}-{dashed}"}


def test_every_log_group_is_encrypted_and_ends() -> None:
    """Logs are kept as long as the parameter says, under the stack's key."""
    for name, properties in resources("AWS::Logs::LogGroup").items():
        assert properties["RetentionInDays"] == {"Ref": "LogRetentionDays"}, name
        assert properties["KmsKeyId"] == {"Fn::GetAtt": ["DataKey", "Arn"]}, name


def _settings(module: str) -> dict[str, bool]:
    """The variables that a handler declares, and whether each is required."""
    tree = ast.parse((ROOT / "functions" / f"{module}.py").read_text())
    env = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Env")
    return {
        node.target.id.upper(): node.value is None
        for node in env.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


@pytest.mark.parametrize("module", HANDLERS)
def test_a_function_is_given_the_variables_that_it_reads(module: str) -> None:
    """Those that its settings declare, and none besides."""
    given = set(template()["Globals"]["Function"]["Environment"]["Variables"])
    given |= set(functions()[module]["Environment"]["Variables"])
    assert given - OF_THE_LIBRARY == set(_settings(module)) - OVERRIDES - OF_LAMBDA
    assert functions()[module]["Environment"]["Variables"]["POWERTOOLS_SERVICE_NAME"] == module


def test_no_secret_stands_in_the_open() -> None:
    """Secrets are named by ARN, in parameters and variables alike; nothing is resolved into the template."""
    text = (ROOT / "template.yaml").read_text()
    assert "{{resolve:" not in text
    for name in template()["Parameters"]:
        assert not re.search(r"(?i)secret|token|password|webhook", name) or name.endswith("Arn"), name
    for module, properties in functions().items():
        for variable in properties["Environment"]["Variables"]:
            assert not re.search(r"SECRET|TOKEN|PASSWORD", variable) or variable.endswith("_ARN"), module


def test_substitutions_are_those_of_the_state_machine() -> None:
    """Each `${X}` of the definition is given, and none besides."""
    machine = resources("AWS::Serverless::StateMachine")["FineTuneStateMachine"]
    assert set(machine["DefinitionSubstitutions"]) == set(re.findall(r"\$\{(\w+)\}", MACHINE))
    assert (ROOT / machine["DefinitionUri"]).read_text() == MACHINE


def test_the_state_machine_logs_no_data_and_is_traced() -> None:
    """Inputs and outputs may tell of the data, so the log has none of them."""
    machine = resources("AWS::Serverless::StateMachine")["FineTuneStateMachine"]
    assert machine["Logging"]["IncludeExecutionData"] is False
    assert machine["Tracing"] == {"Enabled": True}
    group = resources("AWS::Logs::LogGroup")["FineTuneLogGroup"]
    assert group["LogGroupName"]["Fn::Sub"].startswith("/aws/vendedlogs/states/")


def test_functions_outlast_no_state() -> None:
    """A state's time-out lies above its function's, so that the function's own error is the one that is told."""
    states = machine_states()
    shared = template()["Globals"]["Function"]["Timeout"]
    for module, properties in functions().items():
        state = states.get(pascal(module))
        if state and isinstance(state["TimeoutSeconds"], int):
            assert properties.get("Timeout", shared) < state["TimeoutSeconds"], module


def _rules() -> dict[str, Mapping[str, Any]]:
    return {
        name: event["Properties"]
        for properties in functions().values()
        for name, event in properties.get("Events", {}).items()
        if event["Type"] == "EventBridgeRule"
    }


def test_no_event_is_lost() -> None:
    """Every rule's target has the queue and a full day of tries; so has every function behind one."""
    queue = {"Fn::GetAtt": ["DeadLetterQueue", "Arn"]}
    assert set(_rules()) == {
        "DatasetObjectCreated",
        "JobStateChange",
        "ModelPackageStateChange",
        "ExecutionStateChange",
        "RunEvent",
        "RunEnded",
    }
    for name, rule in _rules().items():
        assert rule["DeadLetterConfig"] == {"Arn": queue}, name
        assert rule["RetryPolicy"] == {"MaximumRetryAttempts": 185, "MaximumEventAgeInSeconds": 86_400}, name
    for properties in functions().values():
        if "Events" in properties:
            failed = properties["EventInvokeConfig"]["DestinationConfig"]["OnFailure"]
            assert failed == {"Type": "SQS", "Destination": queue}
    policy = resources("AWS::SQS::QueuePolicy")["DeadLetterQueuePolicy"]["PolicyDocument"]["Statement"]
    allowed = next(s for s in policy if s["Effect"] == "Allow")
    assert allowed["Principal"] == {"Service": "events.amazonaws.com"}
    assert "aws:SourceArn" in allowed["Condition"]["ArnLike"]
    alarm = resources("AWS::CloudWatch::Alarm")["DeadLetterQueueAlarm"]
    assert alarm["Dimensions"][0]["Value"] == {"Fn::GetAtt": ["DeadLetterQueue", "QueueName"]}


def _matches(pattern: Mapping[str, Any], event: Mapping[str, Any]) -> bool:
    """EventBridge's matching, as far as these rules use it: exact values and prefixes."""

    def one(wanted: Any, found: Any) -> bool:
        if isinstance(wanted, Mapping):
            if set(wanted) == {"prefix"}:
                return isinstance(found, str) and found.startswith(wanted["prefix"])
            # `!Ref X` stands for a name that the sample event has in the same form.
            return bool(found == wanted)
        return bool(found == wanted)

    return all(
        _matches(wanted, event.get(key) or {})
        if isinstance(wanted, Mapping)
        else any(one(item, event.get(key)) for item in wanted)
        for key, wanted in pattern.items()
    )


def _upload(key: str, bucket: Any = None) -> dict[str, Any]:
    return {
        "source": "aws.s3",
        "detail-type": "Object Created",
        "detail": {
            "bucket": {"name": bucket or {"Ref": "DatasetBucket"}},
            "object": {"key": key, "size": 5, "version-id": "v1", "sequencer": "617f08299329d189"},
            "reason": "PutObject",
        },
    }


def _execution(status: str, machine: Any = None) -> dict[str, Any]:
    return {
        "source": "aws.states",
        "detail-type": "Step Functions Execution Status Change",
        "detail": {"stateMachineArn": machine or {"Ref": "FineTuneStateMachine"}, "status": status},
    }


def _sagemaker(detail_type: str) -> dict[str, Any]:
    return {"source": "aws.sagemaker", "detail-type": detail_type, "detail": {}}


@pytest.mark.parametrize(
    ("event", "heard_by"),
    [
        (_upload("datasets/support-bot/train.jsonl"), {"DatasetObjectCreated"}),
        (_upload("datasets/support-bot/v2/_READY"), {"DatasetObjectCreated"}),
        (_upload("drafts/train.jsonl"), set()),
        (_upload("datasets/support-bot/train.jsonl", bucket="another-bucket"), set()),
        ({**_upload("datasets/a/b.jsonl"), "detail-type": "Object Deleted"}, set()),
        (_upload("runs/x/gate.json", bucket={"Ref": "RunBucket"}), set()),
        (_sagemaker("SageMaker Training Job State Change"), {"JobStateChange"}),
        (_sagemaker("SageMaker Transform Job State Change"), {"JobStateChange"}),
        (_sagemaker("SageMaker Processing Job State Change"), {"JobStateChange"}),
        (_sagemaker("SageMaker Model Package State Change"), {"ModelPackageStateChange"}),
        (_sagemaker("SageMaker Endpoint State Change"), set()),
        (_execution("FAILED"), {"ExecutionStateChange"}),
        (_execution("TIMED_OUT"), {"ExecutionStateChange"}),
        (_execution("ABORTED"), {"ExecutionStateChange"}),
        (_execution("SUCCEEDED"), {"ExecutionStateChange"}),
        (_execution("RUNNING"), set()),
        (_execution("FAILED", machine="arn:aws:states:eu-west-1:123456789012:stateMachine:another"), set()),
        # A child of a Map ends; its run goes on.
        (_execution("FAILED", machine={"Fn::Sub": "${FineTuneStateMachine}/SurveyParts"}), set()),
        ({"source": "dropforge", "detail-type": "RunEnded", "detail": {}}, {"RunEvent", "RunEnded"}),
        ({"source": "dropforge", "detail-type": "RunPlanned", "detail": {}}, {"RunEvent"}),
        ({"source": "another", "detail-type": "RunEnded", "detail": {}}, set()),
    ],
)
def test_rules_hear_what_is_theirs(event: dict[str, Any], heard_by: set[str]) -> None:
    """Each event reaches exactly the rules that are for it."""
    assert {name for name, rule in _rules().items() if _matches(rule["Pattern"], event)} == heard_by


def test_only_events_of_runs_come_over_the_stacks_bus() -> None:
    """AWS services speak on the default bus, and the stack on its own."""
    assert [name for name, rule in _rules().items() if "EventBusName" in rule] == [
        "RunEvent",
        "RunEnded",
    ]


def test_every_function_is_watched_by_an_alarm_that_may_be() -> None:
    """Each function's errors are in one alarm; an alarm on metric math takes ten metrics at most (CloudWatch quotas)."""
    watched: list[str] = []
    for name, alarm in resources("AWS::CloudWatch::Alarm").items():
        metrics = [item["MetricStat"]["Metric"] for item in alarm.get("Metrics", []) if "MetricStat" in item]
        assert len(metrics) <= 10, name
        watched += [metric["Dimensions"][0]["Value"]["Ref"] for metric in metrics]
    assert sorted(watched) == sorted(f"{pascal(module)}Function" for module in functions())


@pytest.mark.parametrize("name", ["DatasetBucket", "RunBucket"])
def test_a_bucket_is_closed_versioned_encrypted_and_kept(name: str) -> None:
    """No public access, no ACLs, TLS only, the stack's key only, and no data lost with the stack."""
    whole = template()["Resources"][name]
    assert whole["DeletionPolicy"] == whole["UpdateReplacePolicy"] == "Retain"
    bucket = whole["Properties"]
    assert all(bucket["PublicAccessBlockConfiguration"].values())
    assert len(bucket["PublicAccessBlockConfiguration"]) == 4
    assert bucket["OwnershipControls"] == {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    encryption = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"][0]
    assert encryption["BucketKeyEnabled"] is True
    assert encryption["ServerSideEncryptionByDefault"]["KMSMasterKeyID"] == {"Fn::GetAtt": ["DataKey", "Arn"]}
    lifecycle = bucket["LifecycleConfiguration"]["Rules"]
    assert any("AbortIncompleteMultipartUpload" in rule for rule in lifecycle)
    denied = {
        statement["Sid"]: statement
        for statement in resources("AWS::S3::BucketPolicy")[f"{name}Policy"]["PolicyDocument"]["Statement"]
    }
    assert set(denied) == {"TlsOnly", "Tls12", "NoOtherKey", "NoOtherCipher"}
    assert all(statement["Effect"] == "Deny" for statement in denied.values())


def test_only_uploads_make_events() -> None:
    """The run bucket is silent: what the service writes can never start a run."""
    buckets = resources("AWS::S3::Bucket")
    assert buckets["DatasetBucket"]["NotificationConfiguration"] == {
        "EventBridgeConfiguration": {"EventBridgeEnabled": True}
    }
    assert "NotificationConfiguration" not in buckets["RunBucket"]


def test_the_table_is_the_ledgers() -> None:
    """Key, index and time to live as the gateway and the command line use them; restorable, and kept."""
    whole = template()["Resources"]["RunTable"]
    assert whole["DeletionPolicy"] == "Retain"
    table = whole["Properties"]
    assert table["KeySchema"] == [{"AttributeName": "pk", "KeyType": "HASH"}]
    (index,) = table["GlobalSecondaryIndexes"]
    assert index["IndexName"] == "by-model"
    assert [key["AttributeName"] for key in index["KeySchema"]] == ["model", "received_at"]
    assert table["TimeToLiveSpecification"] == {"AttributeName": "expires_at", "Enabled": True}
    assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}


def test_every_parameter_is_explained_and_grouped() -> None:
    """A person who deploys reads what each is for, in an order that makes sense."""
    grouped = [
        name
        for group in template()["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
        for name in group["Parameters"]
    ]
    assert sorted(grouped) == sorted(template()["Parameters"])
    for name, parameter in template()["Parameters"].items():
        assert len(parameter["Description"]) > 20, name
        assert {"AllowedPattern", "AllowedValues", "MaxLength", "MaxValue"} & set(parameter), name
        pattern = parameter.get("AllowedPattern")
        if pattern and "Default" in parameter:
            assert re.fullmatch(pattern, parameter["Default"]), name


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("ImageUri", "123456789012.dkr.ecr.eu-west-1.amazonaws.com/dropforge@sha256:" + "0" * 64, "my image"),
        ("ImageUri", "dropforge-tuner:local", ""),
        ("NotificationEmail", "ml-team@example.com", "ml-team"),
        ("SlackSecretArn", "arn:aws:secretsmanager:eu-west-1:123456789012:secret:slack-AbCdEf", "xoxb-1"),
        ("HubTokenSecretArn", "arn:aws:secretsmanager:eu-west-1:123456789012:secret:hub-AbCdEf", "hf_1"),
        ("MlflowTrackingUri", "https://mlflow.example.org:8443/team", "http://mlflow.example.org"),
        ("MlflowTrackingUri", "http://127.0.0.1:5000", "https://me:pw@mlflow.example.org"),
        ("MlflowTokenSecretArn", "arn:aws:secretsmanager:eu-west-1:123456789012:secret:mlflow-AbCdEf", "tok"),
        ("BaseModelBucketName", "my-models", "s3://my-models"),
        ("CacheInstanceType", "ml.m5.xlarge", "ml.g5.xlarge"),
    ],
)
def test_a_parameter_takes_what_it_should(name: str, good: str, bad: str) -> None:
    """A wrong value is refused before anything is made; above all, a secret in place of its ARN."""
    pattern = template()["Parameters"][name]["AllowedPattern"]
    assert re.fullmatch(pattern, good)
    assert not re.fullmatch(pattern, bad)


def test_outputs_are_what_people_and_tools_need() -> None:
    """Each has a sentence; the command line reads those it needs by these names."""
    outputs = template()["Outputs"]
    assert {
        "DatasetBucketName",
        "RunBucketName",
        "RunTableName",
        "EventBusName",
        "StateMachineArn",
        "NotificationTopicArn",
        "DecideApprovalFunctionName",
        "ImageUri",
    } <= set(outputs)
    assert all(output["Description"] for output in outputs.values())


@pytest.mark.parametrize(
    ("copy", "lock"),
    [
        ("functions/requirements.txt", "requirements/functions.txt"),
        ("layers/validation/requirements.txt", "requirements/validation-layer.txt"),
    ],
)
def test_what_sam_builds_is_what_was_locked(copy: str, lock: str) -> None:
    """`sam build` reads a lock beside the code; requirements/lock.sh copies it there."""
    assert (ROOT / copy).read_text() == (ROOT / lock).read_text()
    assert "--hash=sha256:" in (ROOT / copy).read_text()


def test_only_the_validation_carries_the_heavy_libraries() -> None:
    """The other functions stay small, and start fast; scoring answers has its own, smaller layer."""
    layers = {m: properties["Layers"] for m, properties in functions().items() if "Layers" in properties}
    assert layers.pop("score_predictions") == [{"Ref": "MetricsLayer"}]
    assert set(layers) == {
        "validate_dataset",
        "split_dataset",
        "survey_part",
        "reduce_findings",
        "write_part",
        "seal_dataset",
    }
