"""What the states of the machine hand to one another, and the documents of a run.

Inputs and outputs of states stay small (Step Functions carries 256 KiB); anything that grows with
the data lies in the run bucket, at the places that `layout.RunLayout` names.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import ConfigDict, Field

# Python's own can't be configured before 3.12 (pydantic, "TypedDict").
from typing_extensions import TypedDict

from dropforge_core.model import Frozen, Tolerant

# --- intake -----------------------------------------------------------------------------------------


class UploadedObject(Frozen):
    """One object of a dataset, pinned to its version."""

    key: str
    version_id: str
    size: int
    """Bytes."""
    etag: str


class RunRequest(Frozen):
    """`request.json`: what was uploaded and under which recipe. Written once, by intake."""

    run_id: str
    model: str
    version: str | None
    """Name of the version folder; None where one object is the dataset."""
    bucket: str
    objects: tuple[UploadedObject, ...]
    """The data files, sorted by key; recipe and marker are not among them."""
    recipe_key: str | None
    recipe_text: str | None
    """The person's recipe as it was uploaded, unparsed; ValidateDataset reports its faults."""
    recipe_default: str
    """The stack's default recipe at that moment, as YAML."""
    received_at: str
    """ISO 8601, UTC."""
    requester: str
    """Account id or principal from the event; `unknown` where the event has none."""
    again: bool = False
    """Train even where the same content was trained before."""


class ExecutionInput(Frozen):
    """The whole input of the state machine."""

    run_id: str
    model: str
    started_at: str
    redrive: int = 0
    """0, or 1 + rank // 100 of the run's ledger item where an ended run is started again under another name."""
    dataset_bytes: int = 0
    """Of the data files as stored: tells whether one function can check them. 0 where it is not known."""


# --- ValidateDataset --------------------------------------------------------------------------------


class StateInput(Tolerant):
    """What every function of the machine gets at least."""

    run_id: str
    model: str
    redrive: int = 0
    """How often the run was started again after it had ended; `ledger.rank` climbs with it."""


class DatasetFacts(Frozen):
    """What later states need to know of the validated dataset."""

    digest: str
    """`sha256:<hex>` over the validated rows, both sides, in canonical form."""
    rows_train: int
    rows_eval: int
    bytes_train: int
    tokens_train: int
    """Estimated or exact tokens of the training rows under the base model's tokenizer."""
    tokens_exact: bool
    tokens_error: float | None = None
    """Half of the 95 % interval of a sampled count, as a share of it; None where nothing is known of the error."""
    longest_tokens: int
    format: str


class ValidationVerdict(Frozen):
    """Output of ValidateDataset."""

    outcome: Literal["VALID", "INVALID", "DUPLICATE"]
    duplicate_of: str | None = None
    error_count: int = 0
    summary: str
    """One sentence for a person."""
    dataset: DatasetFacts | None = None
    recipe_digest: str | None = None


class DatasetSplit(Frozen):
    """Output of SplitDataset."""

    parts: int
    """0 where no file can be read; ReduceFindings tells why."""


class PartInput(StateInput):
    """Input of SurveyPart and WritePart."""

    part: int = Field(ge=0)
    """Place of the part in the order of reading."""


class SealInput(StateInput):
    """Input of SealDataset."""

    dataset: DatasetFacts
    """As ReduceFindings found it."""


class ShardEntry(Frozen):
    key: str
    sha256: str
    bytes: int
    rows: int


class DatasetManifest(Frozen):
    """`dataset/manifest.json`: the immutable copy that training reads."""

    digest: str
    train: tuple[ShardEntry, ...]
    holdout: tuple[ShardEntry, ...]
    holdout_source: Literal["given", "cut"]


# --- PlanTraining -----------------------------------------------------------------------------------


class PlanInput(StateInput):
    dataset: DatasetFacts


class Interval(Frozen):
    low: float
    expected: float
    high: float


Residency = Literal["auto", "4bit", "bf16"]
"""How an NF4 base lies in memory: packed, unpacked once into the compute type, or whichever fits."""


Parallelism = Literal["dp", "fsdp"]
"""How several GPUs share a job: each with the whole base, or the base sharded over the GPUs of a host."""


class InstanceOption(Frozen):
    """One row of the plan's ranking."""

    instance_type: str
    gpu: str
    gpu_memory_gib: float
    predicted_memory_gib: float
    residency: Residency = "auto"
    """Recommended on this type; the job decides where it is `auto`, and falls back where memory is short."""
    ranks: int = 1
    """Processes that train together: one for each GPU of each instance."""
    parallelism: Parallelism = "dp"
    """How they share the work."""
    fits: bool
    price_usd_hour: float | None
    """Of all instances of the training job together."""
    hours: Interval | None
    cost_usd: Interval | None


class Forecast(Frozen):
    """What the chosen type is expected to do; a finished run is measured against it."""

    flop_per_token: float
    mfu: Interval
    """Share of the GPU's dense bf16 peak that training reaches."""
    measured_runs: float
    """How many finished runs the share was learned from, runs of another model size counting in part; 0: none yet."""
    tokens_per_s: Interval
    """Of the training loop."""
    memory_gib: float
    """Peak of one GPU in training."""
    phase_s: Mapping[str, Interval]
    """Seconds by phase: `loop` (training steps alone), and billed ones of `caching`, `training`, `evaluation`."""


class BaseModelPlan(Frozen):
    name: str
    source: str
    """`hub:<repo>@<revision>` or `s3://...`."""
    cached: bool
    prefix: str
    """Key prefix in the run bucket where it lies or will lie, with final slash."""
    parameters: int
    cache_job_name: str


class ComputeChoice(Frozen):
    """Everything that a training attempt may change. The ladder answers with a new one."""

    attempt: int
    job_name: str
    instance_type: str
    spot: bool
    max_runtime_s: int
    max_wait_s: int
    """Equal to max_runtime_s where spot is off; then it is not sent."""
    volume_gb: int
    micro_batch_tokens: int
    """Upper bound of tokens in one forward pass; 0 lets the trainer choose."""
    remaining_types: tuple[str, ...]
    """Instance types not tried yet, in order."""
    preferences: tuple[str, ...] = ()
    """Types that SageMaker may start this attempt on where `instance_type` has no capacity, in order."""
    instance_count: int = 1
    input_mode: Literal["File", "FastFile"] = "FastFile"
    """Of the base model and the data."""
    keep_alive_s: int = 0
    """Seconds that the instances stay warm, and are billed, after the job; 0 is not sent."""


class Plan(Frozen):
    """`plan.json` and output of PlanTraining."""

    run_id: str
    fits: bool
    within_budget: bool
    needs_approval: bool
    approval_expires_s: int = 259_200
    """Seconds that a person has to approve the cost."""
    reason: str
    """One sentence: why this instance, or why none."""
    base_model: BaseModelPlan
    compute: ComputeChoice
    evaluation_instance_type: str
    gradient_checkpointing: bool
    steps: int
    tokens_total: int
    cost_usd: Interval | None
    hours: Interval | None
    max_cost_usd: float
    spend_limit_usd: float = 0.0
    """What this run may spend: max_cost_usd, or the larger sum that a person is asked to approve."""
    evaluation_reserve_usd: float = 0.0
    """Kept back for the evaluation; the rest bounds the training job's run time."""
    notes: tuple[str, ...] = ()
    """What the figures leave out or assume, a sentence each."""
    options: tuple[InstanceOption, ...]
    cheapest: str | None = None
    """The allowed type that fits with the lowest expected cost; None where none that fits has a price."""
    fastest: str | None = None
    """The allowed type that fits with the shortest expected time."""
    forecast: Forecast | None = None
    """None where nothing fits."""


# --- slots ------------------------------------------------------------------------------------------


class SlotInput(StateInput):
    """Input of AcquireTrainingSlot and AcquireEvaluationSlot."""

    stage: Literal["TRAIN", "EVALUATE"]
    instance_type: str
    spot: bool = False
    hold_s: float = Field(gt=0)
    """The longest that the job may take, with room: then the slot is given back whatever happened."""
    instances: int = Field(1, ge=1)
    """That the job takes: quotas count instances."""
    task_token: str
    started_at: str | None = None


# --- the image --------------------------------------------------------------------------------------


class TrainingConfig(Frozen):
    """`training.json` in the `config` channel: all that the trainer needs besides data and base model."""

    run_id: str
    model: str
    recipe: Mapping[str, Any]
    """`Recipe.model_dump(mode="json")`."""
    recipe_digest: str
    dataset_digest: str
    base_model_name: str
    base_model_revision: str
    gradient_checkpointing: bool
    residency: Residency = "auto"
    checkpoint_every_s: int = 300
    checkpoint_every_steps: int = 200
    source_commit: str = "unknown"
    image: str = "unknown"


class BaseModelManifest(Tolerant):
    """`MANIFEST.json` of a cached base model; written last, so its existence means a whole copy."""

    name: str
    revision: str
    source: str
    files: Mapping[str, str]
    """File name to sha256 hex."""
    bytes: int
    licence: str | None = None
    """Its identifier, as the source tells it: `apache-2.0`, `llama3.1`."""
    terms: Mapping[str, str] = {}
    """What binds whoever uses the model, as far as the source tells: `name`, `link`, `gated` (how access is
    granted on the hub; the token's account has accepted), `files` (licence texts in the copy)."""


class AnswerCheck(Frozen):
    """What an answer must be, where a number is not enough. Texts are compared as `normalised_match` does."""

    equals: tuple[str, ...] = ()
    """The answer is one of these."""
    contains: tuple[str, ...] = ()
    """The answer holds at least one of these, as whole words."""
    excludes: tuple[str, ...] = ()
    """The answer holds none of these."""


class EvaluationPrompt(Frozen):
    """One line of the batch transform's input."""

    id: str
    """`<row id>`; each variant answers it once."""
    variant: Literal["base", "champion", "candidate"]
    messages: tuple[Mapping[str, Any], ...]
    """The conversation up to the answer."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Definitions of the row's tools, which the chat template is shown as in training."""
    reference: str
    """The answer of the hold-out row; its likelihood is measured."""
    answer: Mapping[str, Any] | None = None
    """Where the answer calls tools: the message, which the chat template writes as it did in training."""
    generate: bool
    """False: only the likelihood is wanted."""
    max_new_tokens: int | None = Field(None, ge=1)
    """At most so many tokens of this answer; None is the job's limit, which is never exceeded."""
    purpose: Literal["holdout", "canary", "general"] = "holdout"
    """`holdout` is measured; `canary` must pass its check; `general` is the probe for what was forgotten."""
    check: AnswerCheck | None = None
    """Of a canary or a general question. A canary without one can't pass."""


class Prediction(Tolerant):
    """One line of the batch transform's output. A bad record has `error` and is a line, never an HTTP error."""

    id: str
    variant: str
    text: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    nll: float | None = None
    """Negative log likelihood of the reference, natural log, summed over its tokens."""
    reference_bytes: int | None = None
    """UTF-8 bytes of the reference: nll / reference_bytes is comparable between tokenizers."""
    error: str | None = None


# --- the ladder -------------------------------------------------------------------------------------


class DiagnoseInput(StateInput):
    stage: Literal["CACHE", "TRAIN", "EVALUATE", "REGISTER", "FUNCTION"]
    state: str
    """Name of the state that failed."""
    error: str
    cause: str
    job_name: str = ""
    """The job that failed, to be described where the cause is cut off; empty where there is none."""
    compute: ComputeChoice | None = None
    instance_type: str = ""
    """Of the failed job, where it is no training job."""
    attempts_of_class: Mapping[str, int] = {}


Fault = Literal[
    "THROTTLED",
    "QUOTA",
    "CAPACITY",
    "SPOT_INTERRUPTED",
    "OOM_GPU",
    "INTERNAL",
    "TIME_LIMIT",
    "DATA",
    "NAN_LOSS",
    "BASE_MODEL",
    "DISK_FULL",
    "CODE",
    "STOPPED",
    "TIMEOUT",
    "PERMISSION",
    "UNKNOWN",
]
"""What went wrong, as the ladder names it."""


class Diagnosis(Frozen):
    fault: Fault
    action: Literal["RETRY", "USE_CHECKPOINT", "FAIL"]
    """USE_CHECKPOINT: the job hit its cap but left an adapter; evaluate that."""
    wait_s: int
    message: str
    """For the person who must act: what happened, the last log lines, what to do."""
    final_status: str
    """The ledger status where action is FAIL."""
    compute: ComputeChoice | None
    instance_type: str = ""
    """What the next caching or evaluation job takes."""
    evaluation_limit_s: int = 0
    """What is left of the cap, as run time of the next evaluation job; 0 for other jobs."""
    attempts_of_class: Mapping[str, int]
    """Failures so far, by `<stage>:<fault>`; handed back in the next DiagnoseInput."""


# --- evaluation -------------------------------------------------------------------------------------


class PrepareEvaluationInput(StateInput):
    training_job_name: str
    model_data: str
    """S3 URI of the candidate's model.tar.gz."""
    base_model_prefix: str
    evaluation_instance_type: str
    partial_training: bool = False
    """True where training stopped at its cap and the best checkpoint is judged."""


class PredictionKey(Frozen):
    """What predictions follow from. Two runs with equal keys would generate the same, up to rounding."""

    base_model_prefix: str
    """Where the base lies; it ends in the 40 hex digits of its revision."""
    quantization: str
    chat_template: str | None
    """The recipe's, under which the bare base reads; None for an adapter, which brings its own."""
    adapter: str | None
    """`sha256:<hex>`, see `evaluation.cache.artifact_identity`; None for the bare base."""
    prompts_digest: str
    """`sha256:<hex>`, see `evaluation.cache.PromptSet`."""
    max_new_tokens: int
    temperature: float
    image: str
    """By digest."""


class EvaluationSetup(Frozen):
    """Output of PrepareEvaluation, and `evaluation/setup.json`."""

    job_name: str
    sagemaker_model_name: str
    prompts: int
    """That the transform job is asked."""
    variants: tuple[str, ...]
    reused: tuple[str, ...] = ()
    """Series of shards (`base`, `general-base`) that are not asked: an earlier run kept the predictions, which lie in
    `evaluation/reused/`."""
    kept_as: Mapping[str, PredictionKey] = {}
    """By series that is asked: as what its predictions are kept for later runs."""
    cache_notes: tuple[str, ...] = ()
    """What was reused, and what could not be, and why; a sentence each."""
    champion_package_arn: str | None
    champion_model_data: str
    """S3 URI of the champion's artifact; empty where there is no champion."""
    max_new_tokens: int = 256
    temperature: float = 0.0
    """The recipe's generation settings, for the container's environment."""
    champion_comparable: bool = True
    """False where an approved package exists that cannot be answered for here, so that nothing is known of it."""
    champion_note: str = ""
    """Why there is no champion in this evaluation, or why it is not comparable."""
    max_runtime_s: int = 86_400
    """That the transform job may take: by its prompts, and by what is left of the run's cap."""
    partial_training: bool = False
    training_job_name: str = ""
    model_data: str = ""
    """S3 URI of the candidate's artifact."""
    base_model_prefix: str = ""


class ScoreInput(StateInput):
    setup: EvaluationSetup


class GateOutcome(Frozen):
    """Output of ScorePredictions; the whole is `gate.json`."""

    verdict: Literal["PASS", "FAIL", "INCONCLUSIVE"]
    approval_status: Literal["Approved", "PendingManualApproval", "nothing"]
    summary: str
    gate_digest: str
    """sha256 hex of gate.json, without prefix."""
    metrics_uri: str
    client_token: str
    """CreateModelPackage's ClientToken: the same run registers once."""
    model_data: str
    """S3 URI of the artifact to register."""
    metadata: Mapping[str, str]
    """CustomerMetadataProperties for the package: values 1-256 of `[\\p{L}\\p{Z}\\p{N}_.:/=+\\-@]`."""


class ReportInput(StateInput):
    status: str
    message: str = ""
    """What ended the run, for a person: a diagnosis, the gate's summary; empty where the documents say it."""
    package_arn: str | None = None


class ReportWritten(Frozen):
    report_uri: str
    cost_usd: float | None = None
    """What the run's jobs cost, where it is known."""


class Problem(Frozen):
    """One thing wrong with a dataset; entries of one kind are grouped, `lines` has the rest."""

    file: str
    """Name of the file without folders; `(dataset)` where all files together are meant, the recipe's name or key for its faults."""
    line: int | None
    """The first line of this kind, from 1, in the file as it was before compression; null where there is none."""
    path: str
    """JSON path such as `messages[2].content`; empty for the whole line or file. Where elements of an array share a line it
    begins with the element's number, `[6].messages[2].content`."""
    code: str
    """A stable code of docs/error-codes.md."""
    message: str
    """What was found, what was expected, how to mend it; never quotes data that may be private."""
    found: str = ""
    """What is there."""
    expected: str = ""
    """What should be there."""
    mend: str = ""
    """What to do."""
    others: tuple[str, ...] = ()
    """What else was found on lines of this kind, each with the first such line; at most four."""
    lines: tuple[int, ...] = ()
    """All lines of this kind, the first 10,000, ascending."""
    count: int = Field(1, ge=1)
    """True number of lines of this kind, also beyond the first 10,000 in `lines`; of elements where these share a line."""


_STRICT: Final = ConfigDict(extra="forbid")


class TokenFacts(TypedDict, total=False):
    """How long the valid rows are under the base model."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]  # pydantic's place for a TypedDict's configuration
    total: int
    """Tokens of all valid rows."""
    interval: tuple[int, int] | None
    """Where the total lies with 95 % confidence; null where nothing is known of the error."""
    exact: bool
    """Whether every row was counted."""
    rows_counted: int
    """Rows that were counted one by one."""
    longest: int
    """Tokens of the longest row."""
    limit: int | None
    """The recipe's `training.max_seq_len`; null where the recipe can't be read."""
    method: str
    """How tokens were counted or estimated. Verdicts on single rows are exact where it is the tokenizer."""


class DuplicateFacts(TypedDict, total=False):
    """Rows that repeat earlier ones."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    exact: int
    """The same row again, on the same side."""
    near: int
    """A prompt much like an earlier one."""
    conflicting: int
    """Another answer to the same prompt."""


class LeakageFacts(TypedDict, total=False):
    """Prompts of the evaluation files that training has seen."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    exact: int
    """The very same prompt."""
    near: int
    """A prompt much like it."""


class PrivateFacts(TypedDict, total=False):
    """Private data and secrets; where they are stands among errors or warnings, what they are nowhere."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    rows: Mapping[str, int]
    """Rows with something of that kind, by code."""


class LanguageFacts(TypedDict, total=False):
    """Languages of a sample of rows."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    sampled: int
    """Rows looked at."""
    told: int
    """Rows whose language could be told."""
    shares: Mapping[str, float]
    """Of those, by ISO 639-1 code, the largest first."""


class HoldoutFacts(TypedDict, total=False):
    """What is trained on, and what is kept for the evaluation."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    basis: Literal["given", "similarity", "prompt", "row"]
    """How rows were held out: files of their own were given, or so that these stay on one side."""
    train: int
    """Rows to train on."""
    eval: int
    """Rows held out."""
    left_out: int
    """Copies of held-out rows, on neither side."""


class ValidationReport(Frozen):
    """`validation.json`, and what `dropforge validate --json` prints."""

    valid: bool
    """Whether there is no error; warnings don't count."""
    format: str | None
    """The rows' format (docs/datasets.md); null where no row could be read."""
    rows: int
    """Rows read, valid or not."""
    bytes: int
    """Bytes read, decompressed."""
    error_count: int
    """Faulty lines and facts, each kind counted for itself."""
    errors: tuple[Problem, ...]
    """What must be mended, by file, line and code; the first 1,000 kinds."""
    warnings: tuple[Problem, ...]
    """What should be looked at."""
    tokens: TokenFacts
    duplicates: DuplicateFacts
    leakage: LeakageFacts
    pii: PrivateFacts
    languages: LanguageFacts = LanguageFacts()
    holdout: HoldoutFacts = HoldoutFacts()
    schema_version: int = 1
    """Of this document; fields may be added to a version, none is renamed or removed."""
