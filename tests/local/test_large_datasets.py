"""The real template on the local AWS: a dataset that is checked in parts, and the same one that is not."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sample_stack import eventually

from dropforge.local.deploy import deploy
from dropforge.local.engine import Settings
from dropforge.local.stack import IMAGE, ROOT, Engine
from dropforge_core.contracts import DatasetManifest
from dropforge_core.layout import RunLayout

pytestmark = pytest.mark.e2e

ROWS = (ROOT / "examples" / "us-addresses" / "addresses.jsonl").read_bytes().splitlines(keepends=True)
GOOD = {
    "a.jsonl": b"".join(ROWS[:300]),
    "b.jsonl.gz": gzip.compress(b"".join(ROWS[300:500]), mtime=0),
    "c.jsonl": b"".join(ROWS[500:600] + ROWS[:40]),
}
BROKEN = {**GOOD, "c.jsonl": b"".join([*ROWS[500:600], b"{\n", *ROWS[600:650], b'{"messages": []}\n'])}
LIMIT_S = 240.0


@dataclass(frozen=True)
class Deployed:
    """One stack of the real template."""

    engine: Engine
    outputs: dict[str, str]

    def run(self, model: str, files: dict[str, bytes]) -> dict[str, Any]:
        """Upload a folder, and the description of its execution once that is over.

        There is no base model, so that a valid dataset's run ends where the training is to be planned.
        """
        s3, states = self.engine.client("s3"), self.engine.client("stepfunctions")
        for name, body in {**files, "_READY": b""}.items():
            key = f"datasets/{model}/v1/{name}"
            s3.put_object(Bucket=self.outputs["DatasetBucketName"], Key=key, Body=body)

        def ended() -> dict[str, Any] | None:
            machine = self.outputs["StateMachineArn"]
            for found in states.list_executions(stateMachineArn=machine)["executions"]:
                described: dict[str, Any] = states.describe_execution(executionArn=found["executionArn"])
                if json.loads(described["input"])["model"] == model:
                    return None if described["status"] == "RUNNING" else described
            return None

        found: dict[str, Any] = eventually(ended, LIMIT_S)
        return found

    def states_of(self, execution: dict[str, Any]) -> list[str]:
        """The states that it entered."""
        pages = (
            self.engine.client("stepfunctions")
            .get_paginator("get_execution_history")
            .paginate(executionArn=execution["executionArn"])
        )
        events = [event for page in pages for event in page["events"]]
        return [e["stateEnteredEventDetails"]["name"] for e in events if "stateEnteredEventDetails" in e]

    def read(self, key: str) -> bytes:
        body: bytes = (
            self.engine.client("s3").get_object(Bucket=self.outputs["RunBucketName"], Key=key)["Body"].read()
        )
        return body

    def rows(self, layout: RunLayout) -> dict[str, list[bytes]]:
        """The rows of both sides, in the order of the manifest."""
        manifest = DatasetManifest.model_validate_json(self.read(layout.manifest))
        return {
            side: [line for entry in getattr(manifest, side) for line in self.read(entry.key).splitlines()]
            for side in ("train", "holdout")
        }


@pytest.fixture(scope="module")
def engine_of_stacks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("stacks")
    with Engine(Settings(str(folder), str(ROOT / "training_image" / "Dockerfile"))) as running:
        yield running


def stack(engine: Engine, name: str, **parameters: str) -> Deployed:
    recipe = json.dumps({"base_model": f"s3://{name}-runs-000000000000-us-east-1/sources/none/"})
    given = {"ImageUri": IMAGE, "DefaultRecipe": recipe, **parameters}
    return Deployed(engine, deploy(Path(ROOT / "template.yaml"), given, engine.client, stack=name))


@pytest.fixture(scope="module")
def whole(engine_of_stacks: Engine) -> Deployed:
    """A stack as it is deployed by default."""
    return stack(engine_of_stacks, "whole")


@pytest.fixture(scope="module")
def divided(engine_of_stacks: Engine) -> Deployed:
    """A stack to which a hundred kilobytes are much."""
    return stack(engine_of_stacks, "divided", LargeDatasetBytes="100000", PartBytes="40000")


def test_parts_and_the_whole_give_the_same(whole: Deployed, divided: Deployed) -> None:
    """Report and rows are the same, byte for byte, whichever way the state machine took."""
    one, other = whole.run("good", GOOD), divided.run("good", GOOD)
    assert "ValidateDataset" in whole.states_of(one)
    way = divided.states_of(other)
    assert way[: way.index("IsDatasetValid")] == [
        "BeginRun",
        "IsDatasetLarge",
        "SplitDataset",
        "SurveyParts",
        "ReduceFindings",
        "IsLargeDatasetValid",
        "WriteParts",
        "SealDataset",
    ]
    assert "PlanTraining" in way
    states = divided.engine.client("stepfunctions")
    runs = states.list_map_runs(executionArn=other["executionArn"])["mapRuns"]
    counts = [states.describe_map_run(mapRunArn=run["mapRunArn"])["itemCounts"] for run in runs]
    assert len(counts) == 2
    assert all(count["succeeded"] == count["total"] > 5 for count in counts)
    mine, its = (RunLayout(run_id=json.loads(end["input"])["run_id"]) for end in (one, other))
    assert whole.read(mine.validation) == divided.read(its.validation)
    assert whole.rows(mine) == divided.rows(its)
    assert len(divided.rows(its)["train"]) > 500


def test_faults_of_a_large_dataset_end_its_run(whole: Deployed, divided: Deployed) -> None:
    """Spoilt rows are told by the same report, and nothing is copied."""
    ends = [deployed.run("broken", BROKEN) for deployed in (whole, divided)]
    assert [end["error"] for end in ends] == ["DATASET_REJECTED"] * 2
    assert ends[0]["cause"] == ends[1]["cause"]
    mine, its = (RunLayout(run_id=json.loads(end["input"])["run_id"]) for end in ends)
    assert whole.read(mine.validation) == divided.read(its.validation)
    assert "WriteParts" not in divided.states_of(ends[1])


def test_a_part_that_fails_is_told_by_its_own_error(divided: Deployed) -> None:
    """The run's message says what went wrong in the part, not only that a part failed."""
    functions = divided.engine.client("lambda")
    name = "divided-survey-part"
    before = functions.get_function_configuration(FunctionName=name)["Environment"]["Variables"]
    functions.update_function_configuration(
        FunctionName=name, Environment={"Variables": {**before, "RUN_BUCKET": "no-such-bucket"}}
    )
    try:
        end = divided.run("failing", GOOD)
    finally:
        functions.update_function_configuration(FunctionName=name, Environment={"Variables": before})
    way = divided.states_of(end)
    assert way[way.index("SurveyParts") :][:5] == [
        "SurveyParts",
        "FindMapRun",
        "FindFailedPart",
        "DescribeFailedPart",
        "DiagnoseFailure",
    ]
    assert "NoSuchBucket" in end["cause"]
    assert "SurveyParts" in end["cause"]
