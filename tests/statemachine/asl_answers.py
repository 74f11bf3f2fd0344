"""What the services answer when all goes well. Documents are built from the contracts, so that they can't drift."""

from collections.abc import Mapping
from typing import Any, Final

from asl_interpreter import Answer

from dropforge_core.contracts import (
    BaseModelPlan,
    ComputeChoice,
    DatasetFacts,
    DatasetSplit,
    Diagnosis,
    EvaluationSetup,
    GateOutcome,
    Plan,
    ReportWritten,
    ValidationVerdict,
)
from dropforge_core.identity import client_token, job_name
from dropforge_core.model import Frozen

RUN_ID: Final = "abcdefghij2345abcdefghij23"
MODEL: Final = "support-bot"
INPUT: Final = {
    "run_id": RUN_ID,
    "model": MODEL,
    "started_at": "2026-11-21T05:00:00+00:00",
    "redrive": 0,
    "dataset_bytes": 400_000,
}
LARGE: Final = {"dataset_bytes": 5_000_000_000}
PACKAGE_ARN: Final = f"arn:aws:sagemaker:eu-west-1:123456789012:model-package/{MODEL}/1"
ARTIFACT: Final = f"s3://dropforge-runs/runs/{RUN_ID}/training/output/job/output/model.tar.gz"

VERDICT: Final = ValidationVerdict(
    outcome="VALID",
    summary="1,200 rows are valid.",
    dataset=DatasetFacts(
        digest="sha256:" + "1" * 64,
        rows_train=1080,
        rows_eval=120,
        bytes_train=400_000,
        tokens_train=120_000,
        tokens_exact=True,
        longest_tokens=400,
        format="messages",
    ),
    recipe_digest="sha256:" + "2" * 64,
)
COMPUTE: Final = ComputeChoice(
    attempt=1,
    job_name=job_name(MODEL, RUN_ID, 1),
    instance_type="ml.g5.xlarge",
    spot=True,
    max_runtime_s=3600,
    max_wait_s=7200,
    volume_gb=60,
    micro_batch_tokens=2048,
    remaining_types=("ml.g6e.xlarge",),
)
PLAN: Final = Plan(
    run_id=RUN_ID,
    fits=True,
    within_budget=True,
    needs_approval=False,
    reason="ml.g5.xlarge is the first allowed type that fits.",
    base_model=BaseModelPlan(
        name="org/small",
        source="hub:org/small@" + "a" * 40,
        cached=False,
        prefix="base-models/org/small/" + "a" * 40 + "/",
        parameters=8_000_000_000,
        cache_job_name=job_name(MODEL, RUN_ID, 1, "b"),
    ),
    compute=COMPUTE,
    evaluation_instance_type="ml.g5.xlarge",
    gradient_checkpointing=True,
    steps=45,
    tokens_total=360_000,
    cost_usd=None,
    hours=None,
    max_cost_usd=25.0,
    options=(),
)
SETUP: Final = EvaluationSetup(
    job_name=job_name(MODEL, RUN_ID, 1, "e"),
    sagemaker_model_name=job_name(MODEL, RUN_ID, 1, "e"),
    prompts=240,
    max_runtime_s=7200,
    variants=("base", "candidate"),
    champion_package_arn=None,
    champion_model_data="",
)
GATE: Final = GateOutcome(
    verdict="PASS",
    approval_status="PendingManualApproval",
    summary='Better than the base: "nll_per_byte" 0.61 → 0.34,\nby at least 0.21.',
    gate_digest="3" * 64,
    metrics_uri=f"s3://dropforge-runs/runs/{RUN_ID}/evaluation/metrics.json",
    client_token=client_token(RUN_ID),
    model_data=ARTIFACT,
    metadata={"dataset_digest": "sha256:" + "1" * 64, "base_model": "org/small"},
)
DIAGNOSIS: Final = Diagnosis(
    fault="CODE",
    action="FAIL",
    wait_s=0,
    message="The trainer ended with exit code 1: KeyError 'x'.",
    final_status="FAILED_CODE",
    compute=None,
    attempts_of_class={"TRAIN:CODE": 1},
)


def payload(document: Frozen, **changes: Any) -> dict[str, Any]:
    """A function's answer, as lambda:invoke gives it."""
    changed = document.model_copy(update=changes)
    return {
        "ExecutedVersion": "$LATEST",
        "StatusCode": 200,
        "Payload": type(document).model_validate(changed.model_dump()).model_dump(mode="json"),
    }


def processing(status: str = "Completed") -> Answer:
    return lambda request: {
        "ProcessingJobName": request["ProcessingJobName"],
        "ProcessingJobStatus": status,
        "AppSpecification": request["AppSpecification"],
    }


def training(status: str = "Completed", secondary: str | None = None) -> Answer:
    return lambda request: {
        "TrainingJobName": request["TrainingJobName"],
        "TrainingJobStatus": status,
        "SecondaryStatus": secondary or status,
        "BillableTimeInSeconds": 700,
        "ModelArtifacts": {
            "S3ModelArtifacts": f"{request['OutputDataConfig']['S3OutputPath']}"
            f"{request['TrainingJobName']}/output/model.tar.gz"
        },
        "HyperParameters": request["HyperParameters"],
    }


def transform(status: str = "Completed") -> Answer:
    return lambda request: {
        "TransformJobName": request["TransformJobName"],
        "TransformJobStatus": status,
        "TransformInput": request["TransformInput"],
    }


def map_runs(label: str) -> Answer:
    """ListMapRuns of an execution that had both Maps' runs."""
    arn = "arn:aws:states:eu-west-1:123456789012:mapRun:dropforge-fine-tune"
    labels = ["WriteParts", "SurveyParts"] if label == "WriteParts" else ["SurveyParts"]
    return {"MapRuns": [{"MapRunArn": f"{arn}/{name}:3ce4e1a5-{name}"} for name in labels]}


FAILED_PART: Final = "arn:aws:states:eu-west-1:123456789012:execution:dropforge-fine-tune/SurveyParts:5f2b"
HAPPY: Final[Mapping[str, list[Answer]]] = {
    "ValidateDataset": [payload(VERDICT)],
    "SplitDataset": [payload(DatasetSplit(parts=3))],
    "SurveyPart": [{"StatusCode": 200, "Payload": {}}],
    "ReduceFindings": [payload(VERDICT)],
    "WritePart": [{"StatusCode": 200, "Payload": {}}],
    "SealDataset": [{"StatusCode": 200, "Payload": {}}],
    "FindMapRun": [map_runs("SurveyParts")],
    "FindFailedPart": [{"Executions": [{"ExecutionArn": FAILED_PART}]}],
    "DescribeFailedPart": [{"Error": "DatasetChanged", "Cause": '{"errorMessage": "line 3 is not the row"}'}],
    "PlanTraining": [payload(PLAN)],
    "RequestSpendApproval": [{"approved": True}],
    "MarkCachingBase": [{}],
    "CacheBaseModel": [processing()],
    "AcquireTrainingSlot": [{}],
    "MarkTraining": [{}],
    "TrainAdapter": [training()],
    "PrepareEvaluation": [payload(SETUP)],
    "CreateCandidateModel": [{"ModelArn": "arn:aws:sagemaker:eu-west-1:123456789012:model/m"}],
    "DescribeCandidateModel": [{"ModelName": "m"}],
    "AcquireEvaluationSlot": [{}],
    "EvaluateCandidate": [transform()],
    "ScorePredictions": [payload(GATE)],
    "MarkRegistering": [{}],
    "EnsureModelPackageGroup": [{}],
    "RegisterModel": [{"ModelPackageArn": PACKAGE_ARN}],
    "SettleRun": [{"StatusCode": 200, "Payload": {"cost_usd": 1.5}}],
    "WriteReport": [
        payload(
            ReportWritten(report_uri=f"s3://dropforge-runs/runs/{RUN_ID}/report/index.html", cost_usd=1.25)
        )
    ],
    "RecordOutcome": [{}],
    "ReportOutcome": [{"FailedEntryCount": 0, "Entries": [{"EventId": "1"}]}],
    "StopCaching": [{}],
    "StopTraining": [{}],
    "StopEvaluation": [{}],
    "DiagnoseFailure": [payload(DIAGNOSIS)],
}
