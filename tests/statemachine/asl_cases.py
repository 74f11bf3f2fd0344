"""The table: which answers lead along which path to which end.

Each case names only what differs from `HAPPY`, and its whole path, put together from the stretches that
every run shares.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from asl_answers import (
    COMPUTE,
    DIAGNOSIS,
    GATE,
    LARGE,
    MODEL,
    PLAN,
    RUN_ID,
    VERDICT,
    map_runs,
    payload,
    processing,
    training,
    transform,
)
from asl_interpreter import Answer, Fails

from dropforge_core.contracts import DatasetSplit
from dropforge_core.identity import job_name

Path = tuple[str, ...]

CHECK: Final[Path] = ("BeginRun", "IsDatasetLarge", "ValidateDataset", "IsDatasetValid")
DIVIDE: Final[Path] = ("BeginRun", "IsDatasetLarge", "SplitDataset")
SURVEY: Final[Path] = (*DIVIDE, "SurveyParts")
REDUCE: Final[Path] = (*SURVEY, "ReduceFindings")
COPY: Final[Path] = (*REDUCE, "IsLargeDatasetValid", "WriteParts")
CHECK_LARGE: Final[Path] = (*COPY, "SealDataset", "IsDatasetValid")
WHICH_PART: Final[Path] = ("FindMapRun", "FindFailedPart", "DescribeFailedPart")
PRICE: Final[Path] = (*CHECK, "PlanTraining", "IsWithinBudget")
CACHE: Final[Path] = ("IsBaseModelCached", "MarkCachingBase", "CacheBaseModel", "DidCachingComplete")
BASED: Final[Path] = (*PRICE, *CACHE)
TRAIN: Final[Path] = ("AcquireTrainingSlot", "MarkTraining", "TrainAdapter", "DidTrainingComplete")
TRAINED: Final[Path] = (*BASED, *TRAIN)
PREPARE: Final[Path] = ("PrepareEvaluation", "CreateCandidateModel")
ANSWER: Final[Path] = ("AcquireEvaluationSlot", "EvaluateCandidate", "DidEvaluationComplete")
JUDGE: Final[Path] = ("ScorePredictions", "WhatDidTheGateSay")
JUDGED: Final[Path] = (*TRAINED, *PREPARE, *ANSWER, *JUDGE)
REGISTER: Final[Path] = ("MarkRegistering", "EnsureModelPackageGroup", "RegisterModel")
TELL: Final[Path] = ("RecordOutcome", "ReportOutcome", "HowDidItEnd")
REFUSE: Final[Path] = ("WriteReport", *TELL)
"""What never was planned holds nothing."""
REPORT: Final[Path] = ("SettleRun", *REFUSE)
GIVE_UP: Final[Path] = ("DiagnoseFailure", "WhatIsTheNextStep", *REPORT, "RunFailed")
AGAIN: Final[Path] = ("DiagnoseFailure", "WhatIsTheNextStep", "WaitBeforeNextStep", "WhichStepAgain")

BROKEN: Final = Fails("RuntimeError", "it broke")
TIMEOUT: Final = Fails("States.Timeout")
TAKEN: Final = Fails("SageMaker.ResourceInUseException", "Training job names must be unique")
TOO_LARGE: Final = Fails("States.DataLimitExceeded", "The result is too large.")
RETRY: Final = payload(DIAGNOSIS, action="RETRY", fault="INTERNAL", wait_s=0)
NEXT_TYPE: Final = COMPUTE.model_copy(
    update={
        "attempt": 2,
        "job_name": job_name(MODEL, RUN_ID, 2),
        "instance_type": "ml.g6e.xlarge",
        "remaining_types": (),
        "spot": False,
        "max_wait_s": 3600,
    }
)


@dataclass(frozen=True)
class Case:
    """Answers in, path and end out."""

    path: Path
    status: str
    """The run's terminal status, as RecordOutcome writes it; empty where it never does."""
    answers: Mapping[str, list[Answer]] = field(default_factory=dict)
    execution: str = "SUCCEEDED"
    input: Mapping[str, Any] = field(default_factory=dict)


def failed(path: Path, status: str = "FAILED_CODE", **answers: list[Answer]) -> Case:
    return Case(path, status, answers, execution="FAILED")


def large(case: Case) -> Case:
    """The same for a dataset that is checked in parts."""
    return replace(case, input=LARGE)


CASES: Final[Mapping[str, Case]] = {
    # --- a run goes well --------------------------------------------------------------------------------
    "registered": Case((*JUDGED, *REGISTER, *REPORT, "RunSucceeded"), "REGISTERED"),
    "registered with a base model that is cached": Case(
        (*PRICE, "IsBaseModelCached", *TRAIN, *PREPARE, *ANSWER, *JUDGE, *REGISTER, *REPORT, "RunSucceeded"),
        "REGISTERED",
        {"PlanTraining": [payload(PLAN, base_model=PLAN.base_model.model_copy(update={"cached": True}))]},
    ),
    "registered after a person approved the cost": Case(
        (
            *PRICE,
            "RequestSpendApproval",
            "IsSpendApproved",
            *CACHE,
            *TRAIN,
            *PREPARE,
            *ANSWER,
            *JUDGE,
            *REGISTER,
            *REPORT,
            "RunSucceeded",
        ),
        "REGISTERED",
        {"PlanTraining": [payload(PLAN, needs_approval=True, within_budget=False)]},
    ),
    "inconclusive, put before a person": Case(
        (*JUDGED, *REGISTER, *REPORT, "RunSucceeded"),
        "INCONCLUSIVE",
        {"ScorePredictions": [payload(GATE, verdict="INCONCLUSIVE")]},
    ),
    "inconclusive, not registered": Case(
        (*JUDGED, *REPORT, "RunSucceeded"),
        "INCONCLUSIVE",
        {"ScorePredictions": [payload(GATE, verdict="INCONCLUSIVE", approval_status="nothing")]},
    ),
    "duplicate": Case(
        (*CHECK, *TELL, "RunSucceeded"),
        "DUPLICATE",
        {
            "ValidateDataset": [
                payload(VERDICT, outcome="DUPLICATE", duplicate_of="zzzzzzzzzz2345abcdefghij23")
            ]
        },
    ),
    "registered from a large dataset": large(
        Case(
            (
                *CHECK_LARGE,
                *PRICE[len(CHECK) :],
                *CACHE,
                *TRAIN,
                *PREPARE,
                *ANSWER,
                *JUDGE,
                *REGISTER,
                *REPORT,
                "RunSucceeded",
            ),
            "REGISTERED",
        )
    ),
    "large duplicate": large(
        Case(
            (*REDUCE, "IsLargeDatasetValid", "IsDatasetValid", *TELL, "RunSucceeded"),
            "DUPLICATE",
            {
                "ReduceFindings": [
                    payload(VERDICT, outcome="DUPLICATE", duplicate_of="zzzzzzzzzz2345abcdefghij23")
                ]
            },
        )
    ),
    # --- a run is refused ----------------------------------------------------------------------------------
    "invalid dataset": failed(
        (*CHECK, *REFUSE, "RunRejected"),
        "DATASET_REJECTED",
        ValidateDataset=[payload(VERDICT, outcome="INVALID", error_count=3, dataset=None)],
    ),
    "invalid large dataset": large(
        failed(
            (*REDUCE, "IsLargeDatasetValid", "IsDatasetValid", *REFUSE, "RunRejected"),
            "DATASET_REJECTED",
            ReduceFindings=[payload(VERDICT, outcome="INVALID", error_count=3, dataset=None)],
        )
    ),
    "large dataset of which no file can be read": large(
        failed(
            (*REDUCE, "IsLargeDatasetValid", "IsDatasetValid", *REFUSE, "RunRejected"),
            "DATASET_REJECTED",
            SplitDataset=[payload(DatasetSplit(parts=0))],
            ReduceFindings=[payload(VERDICT, outcome="INVALID", error_count=1, dataset=None)],
        )
    ),
    "fits no allowed instance": failed(
        (*PRICE, *REFUSE, "RunRejected"),
        "OVER_BUDGET",
        PlanTraining=[payload(PLAN, fits=False, needs_approval=True)],
    ),
    "over the cap": failed(
        (*PRICE, *REFUSE, "RunRejected"), "OVER_BUDGET", PlanTraining=[payload(PLAN, within_budget=False)]
    ),
    "cost denied": failed(
        (*PRICE, "RequestSpendApproval", "IsSpendApproved", *REPORT, "RunRejected"),
        "APPROVAL_DENIED",
        PlanTraining=[payload(PLAN, needs_approval=True)],
        RequestSpendApproval=[{"approved": False, "message": "The cost was denied by kim."}],
    ),
    "nobody answered": failed(
        (*PRICE, "RequestSpendApproval", *REPORT, "RunRejected"),
        "APPROVAL_EXPIRED",
        PlanTraining=[payload(PLAN, needs_approval=True)],
        RequestSpendApproval=[TIMEOUT],
    ),
    "gate said no": failed(
        (*JUDGED, *REPORT, "RunRejected"),
        "GATE_FAILED",
        ScorePredictions=[payload(GATE, verdict="FAIL", approval_status="nothing")],
    ),
    "gate passed without an approval status": failed(
        (*JUDGED, *REPORT, "RunFailed"),
        "FAILED_INTERNAL",
        ScorePredictions=[payload(GATE, approval_status="nothing")],
    ),
    "job stopped by a person": failed(
        (*TRAINED, "DiagnoseFailure", "WhatIsTheNextStep", *REPORT, "RunRejected"),
        "CANCELLED",
        TrainAdapter=[training("Stopped")],
        DiagnoseFailure=[payload(DIAGNOSIS, fault="STOPPED", final_status="CANCELLED")],
    ),
    # --- a function fails ------------------------------------------------------------------------------------
    "ValidateDataset fails": failed((*CHECK[:3], *GIVE_UP), ValidateDataset=[BROKEN]),
    # No wildcard takes DataLimitExceeded; the contracts keep answers small, and where one is not the rule on
    # execution states closes the run.
    "ValidateDataset answers with too much": failed(CHECK[:3], "", ValidateDataset=[TOO_LARGE]),
    "SplitDataset fails": large(failed((*DIVIDE, *GIVE_UP), SplitDataset=[BROKEN])),
    "a part can't be checked": large(failed((*SURVEY, *WHICH_PART, *GIVE_UP), SurveyPart=[BROKEN])),
    "a part can't be checked, and nothing tells which": large(
        failed((*SURVEY, "FindMapRun", *GIVE_UP), SurveyPart=[BROKEN], FindMapRun=[{"MapRuns": []}])
    ),
    "a part can't be checked, and none is listed": large(
        failed((*SURVEY, *WHICH_PART[:2], *GIVE_UP), SurveyPart=[BROKEN], FindFailedPart=[{"Executions": []}])
    ),
    "a part can't be checked, and can't be looked at": large(
        failed(
            (*SURVEY, *WHICH_PART, *GIVE_UP),
            SurveyPart=[BROKEN],
            DescribeFailedPart=[Fails("Sfn.ExecutionDoesNotExistException")],
        )
    ),
    "a part is throttled, then checked": large(
        Case(
            (*REDUCE, "IsLargeDatasetValid", "IsDatasetValid", *TELL, "RunSucceeded"),
            "DUPLICATE",
            {
                "SurveyPart": [Fails("Lambda.TooManyRequestsException"), Fails("Lambda.Unknown"), {}],
                "ReduceFindings": [payload(VERDICT, outcome="DUPLICATE", duplicate_of="z" * 26)],
            },
        )
    ),
    "ReduceFindings fails": large(failed((*REDUCE, *GIVE_UP), ReduceFindings=[BROKEN])),
    "a part can't be copied": large(
        failed((*COPY, *WHICH_PART, *GIVE_UP), WritePart=[BROKEN], FindMapRun=[map_runs("WriteParts")])
    ),
    "SealDataset fails": large(failed((*COPY, "SealDataset", *GIVE_UP), SealDataset=[BROKEN])),
    "PlanTraining fails": failed((*PRICE[:-1], *GIVE_UP), PlanTraining=[BROKEN]),
    "PlanTraining can't be tried again from outside": failed(
        (*PRICE[:-1], *GIVE_UP), "FAILED_INTERNAL", PlanTraining=[BROKEN], DiagnoseFailure=[RETRY]
    ),
    "RequestSpendApproval fails": failed(
        (*PRICE, "RequestSpendApproval", *GIVE_UP),
        PlanTraining=[payload(PLAN, needs_approval=True)],
        RequestSpendApproval=[BROKEN],
    ),
    "PrepareEvaluation fails": failed((*TRAINED, "PrepareEvaluation", *GIVE_UP), PrepareEvaluation=[BROKEN]),
    "ScorePredictions fails": failed((*JUDGED[:-1], *GIVE_UP), ScorePredictions=[BROKEN]),
    "ScorePredictions answers with an unknown verdict": failed(
        (*JUDGED[:-1], *GIVE_UP),
        ScorePredictions=[{"Payload": {**payload(GATE)["Payload"], "verdict": "PERHAPS"}}],
    ),
    "SettleRun fails": Case(
        (*JUDGED, *REGISTER, *REPORT, "RunSucceeded"), "REGISTERED", {"SettleRun": [BROKEN]}
    ),
    "WriteReport fails": Case(
        (*JUDGED, *REGISTER, *REPORT, "RunSucceeded"), "REGISTERED", {"WriteReport": [BROKEN]}
    ),
    "a function is throttled, then answers": Case(
        (*JUDGED, *REGISTER, *REPORT, "RunSucceeded"),
        "REGISTERED",
        {"PlanTraining": [Fails("Lambda.TooManyRequestsException"), Fails("Lambda.Unknown"), payload(PLAN)]},
    ),
    # --- the ledger, the bus -----------------------------------------------------------------------------------
    "no mark can be made": Case(
        (*JUDGED, *REGISTER, *REPORT, "RunSucceeded"),
        "REGISTERED",
        {
            mark: [Fails("DynamoDB.ConditionalCheckFailedException")]
            for mark in ("MarkCachingBase", "MarkTraining", "MarkRegistering")
        },
    ),
    "the outcome was recorded before": Case(
        (*JUDGED, *REGISTER, *REPORT, "RunSucceeded"),
        "REGISTERED",
        {"RecordOutcome": [Fails("DynamoDB.ConditionalCheckFailedException")]},
    ),
    "the outcome can't be recorded": failed(
        (*JUDGED, *REGISTER, "SettleRun", "WriteReport", "RecordOutcome"),
        "REGISTERED",
        RecordOutcome=[Fails("DynamoDB.AccessDeniedException")],
    ),
    "nobody can be told": Case(
        (*JUDGED, *REGISTER, *REPORT, "RunSucceeded"), "REGISTERED", {"ReportOutcome": [TIMEOUT]}
    ),
    # --- caching fails -------------------------------------------------------------------------------------------
    "caching fails": failed((*BASED[:-1], *GIVE_UP), CacheBaseModel=[BROKEN]),
    "caching answers with too much": failed(
        (*BASED[:-1], "StopCaching", *GIVE_UP), CacheBaseModel=[TOO_LARGE]
    ),
    "caching takes too long": failed((*BASED[:-1], "StopCaching", *GIVE_UP), CacheBaseModel=[TIMEOUT]),
    "caching takes too long and can't be stopped": failed(
        (*BASED[:-1], "StopCaching", *GIVE_UP),
        CacheBaseModel=[TIMEOUT],
        StopCaching=[Fails("SageMaker.SageMakerException")],
    ),
    "caching was stopped": failed((*BASED, *GIVE_UP), CacheBaseModel=[processing("Stopped")]),
    "caching is tried again": Case(
        (
            *BASED[:-1],
            *AGAIN,
            "CacheBaseModel",
            "DidCachingComplete",
            *TRAIN,
            *PREPARE,
            *ANSWER,
            *JUDGE,
            *REGISTER,
            *REPORT,
            "RunSucceeded",
        ),
        "REGISTERED",
        {"CacheBaseModel": [BROKEN, processing()], "DiagnoseFailure": [RETRY]},
    ),
    # --- training fails --------------------------------------------------------------------------------------------
    "training fails": failed((*TRAINED[:-1], *GIVE_UP), TrainAdapter=[BROKEN]),
    "training answers with too much": failed(
        (*TRAINED[:-1], "StopTraining", *GIVE_UP), TrainAdapter=[TOO_LARGE]
    ),
    "training takes too long": failed((*TRAINED[:-1], "StopTraining", *GIVE_UP), TrainAdapter=[TIMEOUT]),
    "the answer to CreateTrainingJob was lost": failed(
        (*TRAINED[:-1], "StopTraining", *GIVE_UP), TrainAdapter=[TAKEN]
    ),
    "training takes too long and can't be stopped": failed(
        (*TRAINED[:-1], "StopTraining", *GIVE_UP),
        TrainAdapter=[TIMEOUT],
        StopTraining=[Fails("SageMaker.SageMakerException")],
    ),
    "training is tried on the next instance": Case(
        (
            *TRAINED[:-1],
            *AGAIN,
            *TRAIN,
            *PREPARE,
            *ANSWER,
            *JUDGE,
            *REGISTER,
            *REPORT,
            "RunSucceeded",
        ),
        "REGISTERED",
        {
            "TrainAdapter": [Fails("States.TaskFailed", '{"FailureReason": "CapacityError"}'), training()],
            "DiagnoseFailure": [payload(DIAGNOSIS, action="RETRY", fault="CAPACITY", compute=NEXT_TYPE)],
        },
    ),
    "training hit its cap and left a checkpoint": Case(
        (
            *TRAINED,
            "DiagnoseFailure",
            "WhatIsTheNextStep",
            *PREPARE,
            *ANSWER,
            *JUDGE,
            *REGISTER,
            *REPORT,
            "RunSucceeded",
        ),
        "REGISTERED",
        {
            "TrainAdapter": [training("Stopped", "MaxRuntimeExceeded")],
            "DiagnoseFailure": [payload(DIAGNOSIS, action="USE_CHECKPOINT", fault="TIME_LIMIT")],
        },
    ),
    "a slot is waited for": Case(
        (
            *BASED,
            "AcquireTrainingSlot",
            "AcquireTrainingSlot",
            *TRAIN,
            *PREPARE,
            "AcquireEvaluationSlot",
            *ANSWER,
            *JUDGE,
            *REGISTER,
            *REPORT,
            "RunSucceeded",
        ),
        "REGISTERED",
        {"AcquireTrainingSlot": [TIMEOUT, TIMEOUT, {}], "AcquireEvaluationSlot": [TIMEOUT, {}]},
    ),
    "no slot can be asked for": failed(
        (*BASED, "AcquireTrainingSlot", *GIVE_UP), AcquireTrainingSlot=[BROKEN]
    ),
    "no slot can be asked for the evaluation": failed(
        (*TRAINED, *PREPARE, "AcquireEvaluationSlot", *GIVE_UP), AcquireEvaluationSlot=[BROKEN]
    ),
    "the failure can't be diagnosed": failed(
        (*TRAINED[:-1], "DiagnoseFailure", *REPORT, "RunFailed"),
        "FAILED_INTERNAL",
        TrainAdapter=[Fails("States.TaskFailed", 'AlgorithmError: "quoted" cause')],
        DiagnoseFailure=[BROKEN],
    ),
    # --- evaluation fails --------------------------------------------------------------------------------------------
    "the answer to CreateModel was lost": Case(
        (
            *TRAINED,
            *PREPARE,
            "DescribeCandidateModel",
            *ANSWER,
            *JUDGE,
            *REGISTER,
            *REPORT,
            "RunSucceeded",
        ),
        "REGISTERED",
        {"CreateCandidateModel": [Fails("SageMaker.AmazonSageMakerException", "already existing model")]},
    ),
    "the candidate can't be made a model": failed(
        (*TRAINED, *PREPARE, "DescribeCandidateModel", *GIVE_UP),
        CreateCandidateModel=[Fails("SageMaker.AmazonSageMakerException", "Could not assume role")],
        DescribeCandidateModel=[Fails("SageMaker.SageMakerException", "Could not find model")],
    ),
    "the candidate is made a model at the second try": Case(
        (
            *TRAINED,
            *PREPARE,
            "DescribeCandidateModel",
            *AGAIN,
            "CreateCandidateModel",
            *ANSWER,
            *JUDGE,
            *REGISTER,
            *REPORT,
            "RunSucceeded",
        ),
        "REGISTERED",
        {
            "CreateCandidateModel": [BROKEN, {}],
            "DescribeCandidateModel": [Fails("SageMaker.SageMakerException", "Could not find model")],
            "DiagnoseFailure": [RETRY],
        },
    ),
    "evaluation fails": failed((*TRAINED, *PREPARE, *ANSWER[:2], *GIVE_UP), EvaluateCandidate=[BROKEN]),
    "evaluation answers with too much": failed(
        (*TRAINED, *PREPARE, *ANSWER[:2], "StopEvaluation", *GIVE_UP), EvaluateCandidate=[TOO_LARGE]
    ),
    "evaluation takes too long": failed(
        (*TRAINED, *PREPARE, *ANSWER[:2], "StopEvaluation", *GIVE_UP), EvaluateCandidate=[TIMEOUT]
    ),
    "evaluation takes too long and can't be stopped": failed(
        (*TRAINED, *PREPARE, *ANSWER[:2], "StopEvaluation", *GIVE_UP),
        EvaluateCandidate=[TIMEOUT],
        StopEvaluation=[Fails("SageMaker.SageMakerException")],
    ),
    "evaluation was stopped": failed(
        (*TRAINED, *PREPARE, *ANSWER, *GIVE_UP), EvaluateCandidate=[transform("Stopped")]
    ),
    "evaluation is tried again": Case(
        (
            *TRAINED,
            *PREPARE,
            *ANSWER[:2],
            *AGAIN,
            *ANSWER,
            *JUDGE,
            *REGISTER,
            *REPORT,
            "RunSucceeded",
        ),
        "REGISTERED",
        {
            "EvaluateCandidate": [Fails("States.TaskFailed", "InternalServerError"), transform()],
            "DiagnoseFailure": [RETRY],
        },
    ),
    "evaluation is tried on the next instance": Case(
        (
            *TRAINED,
            *PREPARE,
            *ANSWER[:2],
            *AGAIN,
            *ANSWER,
            *JUDGE,
            *REGISTER,
            *REPORT,
            "RunSucceeded",
        ),
        "REGISTERED",
        {
            "EvaluateCandidate": [
                Fails("States.TaskFailed", '{"FailureReason": "CapacityError"}'),
                transform(),
            ],
            "DiagnoseFailure": [
                payload(DIAGNOSIS, action="RETRY", fault="CAPACITY", wait_s=0, instance_type="ml.g6.xlarge")
            ],
        },
    ),
    # --- registration fails --------------------------------------------------------------------------------------------
    "the group exists": Case(
        (*JUDGED, *REGISTER, *REPORT, "RunSucceeded"),
        "REGISTERED",
        {
            "EnsureModelPackageGroup": [
                Fails("SageMaker.SageMakerException", "Model Package Group already exists")
            ]
        },
    ),
    "registration fails": failed(
        (*JUDGED, *REGISTER, *GIVE_UP), RegisterModel=[Fails("SageMaker.ResourceLimitExceededException")]
    ),
    # --- again ---------------------------------------------------------------------------------------------------------
    "an ended run is started again": Case(
        (*JUDGED, *REGISTER, *REPORT, "RunSucceeded"), "REGISTERED", input={"redrive": 2}
    ),
}
