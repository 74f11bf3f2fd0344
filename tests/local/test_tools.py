"""The tools that people type, against the engine: the AWS CLI and SAM."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from sample_stack import SAMPLE, Sample, eventually

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def type_in(sample: Sample, *words: str, cwd: Path = ROOT) -> str:
    """Run a command as a person would, with the environment that `local up` prints."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
        **sample.engine.env(),
        "SAM_CLI_TELEMETRY": "0",
        "AWS_PAGER": "",
    }
    # No look at the user's own files: their profiles and endpoints are not ours.
    environment |= {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    done = subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_aws_cli_sees_it_all(sample: Sample, tmp_path: Path) -> None:
    """cp, list-executions, scan, logs and list-model-packages work with an --endpoint-url and nothing else."""
    file, key = tmp_path / "data.jsonl", f"datasets/{uuid.uuid4().hex}.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n')
    endpoint = ("--endpoint-url", sample.engine.endpoint)
    type_in(sample, "aws", *endpoint, "s3", "cp", str(file), f"s3://{sample.outputs['Bucket']}/{key}")
    assert key.rpartition("/")[2] in type_in(
        sample, "aws", *endpoint, "s3", "ls", f"s3://{sample.outputs['Bucket']}/datasets/"
    )
    execution = sample.start(sample.outputs["MachineArn"], {"asked": "by CLI"})
    sample.ended(execution)
    listed = type_in(
        sample,
        "aws",
        *endpoint,
        "stepfunctions",
        "list-executions",
        "--state-machine-arn",
        sample.outputs["MachineArn"],
    )
    assert execution in {found["executionArn"] for found in json.loads(listed)["executions"]}
    scanned = type_in(
        sample, "aws", *endpoint, "dynamodb", "scan", "--table-name", sample.outputs["TableName"]
    )
    assert "Items" in json.loads(scanned)
    group = f"/aws/lambda/{sample.outputs['ProbeName']}"
    assert "probe does echo" in type_in(
        sample, "aws", *endpoint, "logs", "filter-log-events", "--log-group-name", group
    )
    sample.client("sagemaker").create_model_package_group(ModelPackageGroupName="by-cli")
    packages = type_in(
        sample, "aws", *endpoint, "sagemaker", "list-model-packages", "--model-package-group-name", "by-cli"
    )
    assert json.loads(packages) == {"ModelPackageSummaryList": []}


@pytest.mark.parametrize("folder", [SAMPLE, ROOT], ids=["sample", "real template"])
def test_sam_deploys(sample: Sample, tmp_path: Path, folder: Path) -> None:
    """`sam deploy` packages and deploys against the endpoint, and its state machine is there afterwards."""
    project = tmp_path / "project"
    project.mkdir()
    for name in ("template.yaml", "functions", "layers", "statemachine", "machine.asl.json"):
        source = folder / name
        if source.is_dir():
            shutil.copytree(source, project / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, project / name)
    stack = f"by-sam-{uuid.uuid4().hex[:6]}"
    overrides = ["--parameter-overrides", "ImageUri=probe:local"] if folder == ROOT else []
    type_in(
        sample,
        "sam",
        "deploy",
        "--stack-name",
        stack,
        "--resolve-s3",
        "--no-confirm-changeset",
        "--capabilities",
        "CAPABILITY_IAM",
        "CAPABILITY_AUTO_EXPAND",
        *overrides,
        cwd=project,
    )
    found = sample.client("cloudformation").describe_stacks(StackName=stack)["Stacks"][0]
    assert found["StackStatus"] == "CREATE_COMPLETE"
    machines = sample.client("stepfunctions").list_state_machines()["stateMachines"]
    assert any(machine["name"].startswith(stack) for machine in machines)
    if folder == SAMPLE:
        outputs = {output["OutputKey"]: output["OutputValue"] for output in found["Outputs"]}
        execution = sample.start(outputs["MachineArn"], {"deployed": "by sam"})
        assert eventually(lambda: sample.ended(execution))["output"]["echo"]["given"] == {
            "deployed": "by sam"
        }
