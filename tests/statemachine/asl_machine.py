"""The state machine as it is deployed: the file of this repository, with sample values for its substitutions."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
SOURCE: Final = ROOT / "statemachine" / "fine_tune.asl.json"
SUBSTITUTION: Final = re.compile(r"\$\{(\w+)\}")

_ACCOUNT: Final = "123456789012"
_REGION: Final = "eu-west-1"
_FUNCTIONS: Final = (
    "ValidateDataset",
    "SplitDataset",
    "SurveyPart",
    "ReduceFindings",
    "WritePart",
    "SealDataset",
    "PlanTraining",
    "RequestApproval",
    "DiagnoseFailure",
    "PrepareEvaluation",
    "ScorePredictions",
    "WriteReport",
    "AcquireSlot",
    "SettleRun",
)
VALUES: Final[Mapping[str, str]] = {
    "StackName": "dropforge",
    "RunTable": "dropforge-RunTable-1A2B3C",
    "RunBucket": f"dropforge-runs-{_ACCOUNT}-{_REGION}",
    "EventBusName": "dropforge",
    "DataKeyArn": f"arn:aws:kms:{_REGION}:{_ACCOUNT}:key/11111111-2222-3333-4444-555555555555",
    "ImageUri": f"{_ACCOUNT}.dkr.ecr.{_REGION}.amazonaws.com/dropforge@sha256:{'0' * 64}",
    "CacheInstanceType": "ml.m5.xlarge",
    "LargeDatasetBytes": "2000000000",
    "HubTokenSecretArn": "",
    "TrainingRoleArn": f"arn:aws:iam::{_ACCOUNT}:role/dropforge-TrainingRole",
    "EvaluationRoleArn": f"arn:aws:iam::{_ACCOUNT}:role/dropforge-EvaluationRole",
    "CacheRoleArn": f"arn:aws:iam::{_ACCOUNT}:role/dropforge-CacheRole",
    **{
        f"{name}FunctionArn": f"arn:aws:lambda:{_REGION}:{_ACCOUNT}:function:dropforge-{name}"
        for name in _FUNCTIONS
    },
}
EXECUTION_ARN: Final = (
    f"arn:aws:states:{_REGION}:{_ACCOUNT}:execution:dropforge-fine-tune:abcdefghij2345abcdefghij23"
)


def source() -> dict[str, Any]:
    """The machine as it is written."""
    machine: dict[str, Any] = json.loads(SOURCE.read_text())
    return machine


def deployed() -> dict[str, Any]:
    """The machine with every substitution made."""
    machine: dict[str, Any] = json.loads(SUBSTITUTION.sub(lambda found: VALUES[found[1]], SOURCE.read_text()))
    return machine


def workflows(workflow: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A workflow, and those that its Maps run for their items."""
    yield workflow
    for state in workflow["States"].values():
        if "ItemProcessor" in state:
            yield from workflows(state["ItemProcessor"])


def everywhere(workflow: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every state of a workflow and its Maps. Names are unique in the whole machine."""
    return {name: state for part in workflows(workflow) for name, state in part["States"].items()}


def states() -> dict[str, dict[str, Any]]:
    """See `everywhere`."""
    return everywhere(source())


def successors(state: Mapping[str, Any]) -> Iterator[str]:
    """Every state that may follow."""
    yield from (state[field] for field in ("Next", "Default") if field in state)
    yield from (way["Next"] for way in (*state.get("Choices", []), *state.get("Catch", [])))


def expressions(value: Any) -> Iterator[str]:
    """Every JSONata expression in a value, without its marks."""
    if isinstance(value, str) and value.startswith("{%") and value.endswith("%}"):
        yield value[2:-2].strip()
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from expressions(item)
    elif isinstance(value, list):
        for item in value:
            yield from expressions(item)
