"""The transform job's request: every request that may be sent at the same time has work, and ends."""

from typing import Any

import pytest
from asl_answers import HAPPY, INPUT, SETUP, payload
from asl_interpreter import run
from asl_machine import deployed

from dropforge_core.dataset.reading.shapes import MAX_ROW_BYTES
from dropforge_core.evaluation.prompts import CONCURRENT_REQUESTS, PAYLOAD_MB, SHARD_BYTES


def sent(**changes: Any) -> dict[str, dict[str, Any]]:
    """Arguments of the evaluation's calls, by state."""
    answers = {**HAPPY, "PrepareEvaluation": [payload(SETUP, **changes)]}
    calls = run(deployed(), INPUT, answers).calls
    wanted = ("CreateCandidateModel", "EvaluateCandidate")
    return {call.state: call.arguments for call in calls if call.state in wanted}


def test_the_transform_asks_as_the_shards_are_cut() -> None:
    """Requests at the same time and their size are those that the shards were made for; time-outs are explicit."""
    request = sent()["EvaluateCandidate"]
    at_once = request["TransformResources"]["InstanceCount"] * request["MaxConcurrentTransforms"]
    assert at_once == CONCURRENT_REQUESTS
    assert request["MaxPayloadInMB"] == PAYLOAD_MB
    assert SHARD_BYTES <= PAYLOAD_MB * 1024**2 / 2
    # A line has the row, its answer once more, and the names of the fields.
    assert PAYLOAD_MB * 1024**2 > 3 * MAX_ROW_BYTES
    assert request["MaxPayloadInMB"] * request["MaxConcurrentTransforms"] <= 100
    assert (request["BatchStrategy"], request["TransformInput"]["SplitType"]) == ("MultiRecord", "Line")
    assert request["ModelClientConfig"].keys() == {"InvocationsTimeoutInSeconds", "InvocationsMaxRetries"}
    assert request["TransformResources"]["TransformAmiVersion"].startswith("al2-ami-sagemaker-batch-gpu-")


@pytest.mark.parametrize(("reused", "loaded"), [((), "s3://runs/a.tar.gz"), (("base", "champion"), "")])
def test_a_champion_that_is_not_asked_is_not_loaded(reused: tuple[str, ...], loaded: str) -> None:
    """Its adapter is fetched only where some of its answers are missing."""
    changes = {"champion_model_data": "s3://runs/a.tar.gz", "reused": reused}
    model = sent(**changes)["CreateCandidateModel"]
    assert model["PrimaryContainer"]["Environment"]["CHAMPION_MODEL_URI"] == loaded
