"""The table of faults: how each is recognised, where it ends, and what a person can do. First match wins."""

import re
from collections.abc import Callable
from typing import Final, NamedTuple

from dropforge_core.contracts import Fault
from dropforge_core.ladder.cause import Evidence
from dropforge_core.ledger import Status


class About(NamedTuple):
    """What is said of a fault, and the status of a run that ends with it."""

    what: str
    mend: str
    status: Status


FAULTS: Final[dict[Fault, About]] = {
    "THROTTLED": About(
        "AWS asked us to slow down", "Start the run again in a few minutes.", Status.FAILED_INTERNAL
    ),
    "QUOTA": About(
        "the account's quota for this instance type is used up or zero",
        "Ask for a higher quota in Service Quotas (it names the type and 'training job usage' or 'spot training job "
        "usage'), or allow another type in compute.instance_types.",
        Status.FAILED_QUOTA,
    ),
    "CAPACITY": About(
        "AWS has no free instance of this type now",
        "Allow more types in compute.instance_types, switch compute.spot off, or start the run again later.",
        Status.FAILED_CAPACITY,
    ),
    "SPOT_INTERRUPTED": About(
        "no spot capacity was given, or it was taken away",
        "Switch compute.spot off, raise compute.max_cost_usd so that on-demand is affordable, or start again later.",
        Status.FAILED_CAPACITY,
    ),
    "OOM_GPU": About(
        "the GPU's memory was too small",
        "Allow a larger type in compute.instance_types, or lower training.max_seq_len or adapter.r.",
        Status.FAILED_CAPACITY,
    ),
    "INTERNAL": About("AWS met an internal error", "Start the run again.", Status.FAILED_INTERNAL),
    "TIME_LIMIT": About(
        "training hit its time or dollar limit before it had an adapter to show",
        "Raise compute.max_cost_usd or compute.max_hours, or train for fewer epochs.",
        Status.FAILED_CAPACITY,
    ),
    "DATA": About("the dataset can't be used", "Mend the dataset and upload it again.", Status.FAILED_DATA),
    "NAN_LOSS": About(
        "the loss became NaN or infinite, so training diverged",
        "Lower training.learning_rate, and look for broken rows in the data; upload again with the new recipe.",
        Status.FAILED_CODE,
    ),
    "BASE_MODEL": About(
        "the base model can't be had or can't be used",
        "Check 'base_model' in the recipe: name, revision, licence, access.",
        Status.FAILED_BASE_MODEL,
    ),
    "DISK_FULL": About(
        "the job's disk was full",
        "Use a smaller base model, or an instance type with more local storage.",
        Status.FAILED_INTERNAL,
    ),
    "CODE": About(
        "the code of the job failed",
        "Read the log below; mend the cause, then start the run again.",
        Status.FAILED_CODE,
    ),
    "STOPPED": About("somebody stopped the job", "Start the run again when it is wanted.", Status.CANCELLED),
    "TIMEOUT": About(
        "no end of it was heard of within its time", "Start the run again.", Status.FAILED_INTERNAL
    ),
    "PERMISSION": About(
        "a role lacks a permission, or a key can't be used",
        "Deploy the stack again if it was changed by hand; check the key policy and the bucket policies.",
        Status.FAILED_INTERNAL,
    ),
    "UNKNOWN": About(
        "it failed in a way that is not known here", "Read the cause below.", Status.FAILED_INTERNAL
    ),
}


class Rule(NamedTuple):
    """One row: a fault, and when a failure is one."""

    fault: Fault
    matches: Callable[[Evidence], bool]


def _said(pattern: str) -> Callable[[Evidence], bool]:
    """In the reason or the error's name."""
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda e: bool(compiled.search(e.error) or compiled.search(e.text))


def _word(word: str) -> Callable[[Evidence], bool]:
    """The stable first word of the image's failure file, as it stands in FailureReason."""
    compiled = re.compile(rf"(?:^|AlgorithmError:)\s*[\"']?{word}(?=[:\s,\"']|$)")
    return lambda e: bool(compiled.search(e.text))


def _named(*names: str) -> Callable[[Evidence], bool]:
    return lambda e: e.error in names


def _stopped(*secondaries: str) -> Callable[[Evidence], bool]:
    return lambda e: e.job.status in {"Stopped", "Stopping"} and e.job.secondary in secondaries


RULES: Final[tuple[Rule, ...]] = (
    Rule("SPOT_INTERRUPTED", _stopped("MaxWaitTimeExceeded")),
    Rule("TIME_LIMIT", _stopped("MaxRuntimeExceeded")),
    # After these two the state machine stops the job itself, so its being stopped says nothing.
    Rule("TIMEOUT", _named("States.Timeout", "States.HeartbeatTimeout")),
    Rule("INTERNAL", _named("SageMaker.ResourceInUseException")),
    Rule("STOPPED", lambda e: e.job.status in {"Stopped", "Stopping"}),
    # The image's own words come before everything that its log lines may happen to say.
    Rule("OOM_GPU", _word("OOM_GPU")),
    Rule("NAN_LOSS", _word("NAN_LOSS")),
    Rule("DATA", _word("BAD_DATA")),
    Rule("BASE_MODEL", _word("BASE_MODEL")),
    Rule("DISK_FULL", _word("DISK_FULL")),
    # One of several processes died; all that was learnt up to the last checkpoint is there.
    Rule("INTERNAL", _word("RANK_LOST")),
    Rule("CODE", _word("CODE")),
    # Exceptions of our functions, by the name that Lambda hands on.
    Rule("BASE_MODEL", _named("BaseModelUnavailable", "BaseModelUnsuitable")),
    Rule("INTERNAL", _named("HubUnreachable")),
    # The files were replaced between their check and their copy, or are not what was checked.
    Rule(
        "DATA", _named("ObjectVanished", "RecipeInvalid", "DatasetInvalid", "DatasetChanged", "HoldoutBroken")
    ),
    # Parts of one dataset must be counted alike: the tokenizer was there for the first, and is not now.
    Rule("BASE_MODEL", _named("TokenizerGone")),
    Rule("THROTTLED", _named("Contended")),
    Rule(
        "CAPACITY",
        _said(
            r"CapacityError|unable to provision requested|insufficient capacity|not available in this region"
        ),
    ),
    Rule("SPOT_INTERRUPTED", _said(r"spot.{0,40}interrupt|interrupt.{0,40}spot|MaxWaitTimeExceeded")),
    Rule("QUOTA", _said(r"ResourceLimitExceeded|account-level service limit")),
    Rule("THROTTLED", _said(r"Throttl|TooManyRequests|Rate exceeded|RequestLimitExceeded|SlowDown")),
    Rule(
        "PERMISSION",
        _said(
            r"AccessDenied|not authorized to perform|States\.Permissions|KMS\.\w*Exception|UnauthorizedOperation"
        ),
    ),
    Rule("OOM_GPU", _said(r"CUDA out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED")),
    Rule("DISK_FULL", _said(r"No space left on device|Disk quota exceeded")),
    # A name in use means that the job was started and only the answer was lost: the next has another name.
    Rule("INTERNAL", _said(r"ResourceInUse|Job name must be unique")),
    Rule(
        "INTERNAL",
        _said(
            r"InternalServer(?:Error|Exception)|InternalFailure|InternalError|internal error|ServiceUnavailable"
            r"|SdkClientException|Lambda\.(?:ServiceException|AWSLambdaException|Unknown)|Sandbox\.Timedout"
        ),
    ),
    # 143: the container was told to end, by SIGTERM, and nobody says why; it left a checkpoint.
    Rule("INTERNAL", _said(r"exit code: 143\b")),
    Rule("TIMEOUT", _said(r"Task timed out after")),
    Rule("CODE", _said(r"AlgorithmError|exit code: \d+|ClientError|ValidationException|ModelError")),
    Rule(
        "CODE",
        lambda e: (
            e.stage == "FUNCTION"
            and re.fullmatch(r"[A-Z]\w*(?:Error|Exception|Vanished|Invalid|Refused)", e.error) is not None
        ),
    ),
    Rule(
        "CODE",
        _named(
            "Runtime.ExitError",
            "Runtime.OutOfMemory",
            "Runtime.ImportModuleError",
            "States.QueryEvaluationError",
            "States.DataLimitExceeded",
        ),
    ),
)


def classify(evidence: Evidence) -> Fault:
    """The fault of a failure; UNKNOWN where no row matches, never a guess."""
    return next((rule.fault for rule in RULES if rule.matches(evidence)), "UNKNOWN")
