"""The recipe: everything a person may decide about a run, and nothing else.

A recipe is YAML. It is laid over the stack's default recipe, key by key, and every fault is
reported at once. Units stand in the names or the docstrings.
"""

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from dropforge_core.dataset.codes import CODES, Severity
from dropforge_core.metrics.options import MetricOptions, schema_fault
from dropforge_core.metrics.registry import JUDGE_PREFERENCE, REGISTRY, installed_names
from dropforge_core.model import Frozen
from dropforge_core.recipe_yaml import RecipeFault, RecipeInvalid, load_yaml

HubRepo = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$")
]
Revision = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]{1,128}$")]
S3Prefix = Annotated[
    str, StringConstraints(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[A-Za-z0-9._/=-]*/$")
]
InstanceType = Annotated[str, StringConstraints(pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9]+$")]


def _off(value: Any) -> Any:
    """YAML 1.1 reads a bare `off` as false."""
    return "off" if value is False else value


Strictness = Annotated[Severity, BeforeValidator(_off)]
TagText = Annotated[str, StringConstraints(pattern=r"^[\w .:/=+\-@]*$", max_length=256)]


TRANSFORM_FAMILIES: Final = frozenset({"g4dn", "g5", "g6", "g6e"})
"""GPU families that CreateTransformJob takes (`TransformInstanceType`)."""

FROZEN_MODULES: Final = frozenset({"lm_head", "embed_out", "embed_tokens", "wte"})
"""What models call their embeddings and their output head."""

SHOWN_ANSWERS: Final = 200
"""Rows that are answered by generation where no decision rests on generated answers."""

MAX_TAGS: Final = 40
"""SageMaker takes 50 tags a job; the service's own need room."""


class Section(Frozen):
    """A part of a recipe. No number of it may be infinite or NaN, both of which YAML can write."""

    model_config = ConfigDict(allow_inf_nan=False)


class BaseModelRef(Section):
    """Where the base model comes from: a hub repository at a revision, or an S3 prefix with safetensors."""

    repo: HubRepo | None = None
    revision: Revision = "main"
    s3: S3Prefix | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        """`org/name`, `org/name@revision` or `s3://bucket/prefix/`."""
        if isinstance(value, str):
            if value.startswith("s3://"):
                return {"s3": value if value.endswith("/") else value + "/"}
            repo, _, revision = value.partition("@")
            return {"repo": repo, **({"revision": revision} if revision else {})}
        if not isinstance(value, Mapping | BaseModel):
            raise ValueError(  # noqa: TRY004  # pydantic makes a fault of a ValueError only
                "'org/name', 'org/name@revision' or 's3://bucket/prefix/', or the fields 'repo' and 'revision', or 's3'"
            )
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.repo is None) == (self.s3 is None):
            raise ValueError(
                "give either 'repo' (a hub repository) or 's3' (an S3 prefix), not both and not neither"
            )
        return self

    @property
    def name(self) -> str:
        """What people call it: `org/name`, or the last folders of the S3 prefix."""
        return self.repo or str(self.s3).rstrip("/").rsplit("/", 1)[-1]


class Adapter(Section):
    """LoRA (arXiv 2106.09685) on the base model's linear layers."""

    r: int = Field(16, ge=1, le=256)
    """Rank."""
    alpha: float = Field(32.0, gt=0, le=1024)
    """Scale: the update is multiplied by alpha / r (or alpha / sqrt(r) with rslora)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: (
        Literal["all-linear"]
        | Annotated[
            tuple[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.]{1,64}$")], ...],
            Field(min_length=1),
        ]
    ) = "all-linear"
    """Names of the modules to adapt; all-linear leaves out only the output head."""
    rslora: bool = False
    """Rank-stabilised scale (arXiv 2312.03732)."""
    dora: bool = False
    """Weight-decomposed LoRA (arXiv 2402.09353)."""
    lora_plus_ratio: float | None = Field(None, gt=1, le=64)
    """LoRA+: the B matrices learn this many times faster than the A matrices (arXiv 2402.12354 has 16)."""


class Training(Section):
    epochs: float | None = Field(None, gt=0, le=100)
    """Passes over the data; 3 where neither epochs nor steps is given."""
    steps: int | None = Field(None, ge=1, le=1_000_000)
    """Optimiser steps; instead of epochs."""
    learning_rate: float = Field(2e-4, gt=0, le=1)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of the steps in which the learning rate climbs."""
    weight_decay: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    effective_batch_tokens: int = Field(8192, ge=64, le=4_194_304)
    """Tokens (padding not counted) of one optimiser step, over all micro-batches and GPUs."""
    max_seq_len: int = Field(2048, ge=16, le=131_072)
    """Tokens; a longer row is an error of the dataset, never truncated."""
    packing: bool = True
    early_stopping_patience: int | None = Field(None, ge=1)
    """Evaluations without a better held-out loss before stopping; None never stops early."""
    evals_per_epoch: int = Field(2, ge=1, le=100)
    """How often the held-out loss is measured in training."""
    dpo_beta: float | None = Field(None, gt=0, le=10)
    """With method dpo, the pull towards the base model (arXiv 2305.18290); None is 0.1."""
    seed: int = Field(17, ge=0, le=2**31 - 1)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give 'epochs' or 'steps', not both")
        return self


class Generation(Section):
    max_new_tokens: int = Field(256, ge=1, le=8192)
    temperature: float = Field(0.0, ge=0, le=2)
    """0 is greedy: the same prompts give the same answers."""


class Judge(Section):
    """A model on Amazon Bedrock that compares answers. Each row is asked twice for each reference, in both orders."""

    model: Annotated[
        str,
        StringConstraints(
            # Converse's pattern, but only ids that name one version: no router, no alias, no endpoint.
            pattern=r"^([a-z]{2,8}\.)?[a-z0-9-]{1,63}\.[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})?(-v[0-9]{1,2}|(-v[0-9]{1,2})?:[0-9]{1,2})$"
        ),
    ]
    """Bedrock's model id with its version, or that of its inference profile; the stack's `JudgeModelId` must name it."""
    rubric: Annotated[str, StringConstraints(min_length=1, max_length=4000)] = (
        "Prefer the answer that is correct, complete and follows the request. An answer that adds what is not true or was "
        "not asked for is worse."
    )
    """By what it compares."""
    rows: int = Field(100, ge=1, le=500)
    """Generated rows that it sees, the first by the hash of their id."""
    usd_per_million_input_tokens: float = Field(ge=0, le=1000)
    """Price of the model; the plan tells what the judge will cost."""
    usd_per_million_output_tokens: float = Field(ge=0, le=1000)
    max_cost_usd: float = Field(5.0, gt=0, le=1000)
    """Before verdicts can cost more than this no more are asked for, and nothing is decided by them."""


class Evaluation(Section):
    metrics: Literal["auto"] | tuple[str, ...] = "auto"
    """Names from `dropforge_core.metrics`; auto chooses from the data and says why."""
    metric_options: MetricOptions = MetricOptions()
    generation: Generation = Generation()
    holdout_fraction: float = Field(0.1, gt=0, le=0.5)
    """Where no eval file is given, as many rows are held out as the gate needs, but no more than this share.

    What it needs follows from `gate.delta` and `gate.alpha`: 2,319 rows at a delta of 0.02, 1,031 at 0.03, 371 at 0.05.
    """
    min_holdout: int = Field(50, ge=1)
    """Held out however few the gate needs or the share allows; never more than half of all rows."""
    max_holdout: int = Field(2500, ge=1)
    """Held out at most, however many the gate needs: a margin of 0.01 needs 9,274. Each costs evaluation time."""
    generate_at_most: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Hold-out rows that are answered by generation; the likelihood is measured on all of them.

    auto: as many as the gate needs where it decides by generated answers (2,319 at a delta of 0.02), else
    `SHOWN_ANSWERS`, for people to read.
    """
    slices: tuple[str, ...] = ()
    """Fields of `meta` by which results are also reported."""
    judge: Judge | None = None
    """A model that compares answers, for the metric `judge_preference`; none by default."""


class Gate(Section):
    """What a candidate must show. All bounds are one-sided at `alpha`."""

    primary: str = "nll_per_byte"
    """The metric in which the candidate must be better than the base model.

    With method dpo `preference_accuracy` where none is named: DPO lowers the likelihood of both answers, of the rejected
    one more, so that the loss of the chosen one says little (arXiv 2410.08847).
    """
    guarded: tuple[str, ...] = ()
    """Metrics that must not be worse than the champion's by more than `delta`."""
    minimum: Mapping[str, float] = {}
    """Absolute thresholds: the metric's lower confidence bound must reach this."""
    delta: float = Field(0.02, ge=0, lt=1)
    """Margin of non-inferiority to the champion, in units of the metric."""
    alpha: float = Field(0.05, gt=0, lt=0.5)
    min_examples: int = Field(30, ge=1)
    """Fewer held-out examples than this are INCONCLUSIVE, never PASS."""
    slice_delta: float | None = Field(None, ge=0, lt=1)
    """Harm up to which no slice blocks; None is `delta`."""
    canary: Annotated[str, StringConstraints(min_length=1, max_length=128)] = "canary"
    """Field of `meta` that marks a held-out row as one that must be answered right."""
    forgetting: (
        Annotated[float, Field(gt=0, lt=1)] | Annotated[Literal["report", "off"], BeforeValidator(_off)]
    ) = "report"
    """Drop in right answers to general questions, from base to candidate, up to which a candidate may pass.

    report: they are asked and told, and decide nothing; off: they are not asked.
    """
    max_holdout_uses: int = Field(20, ge=1)
    """Decisions of one model that may rest on the same hold-out; one more is INCONCLUSIVE, never PASS.

    Each useless candidate passes with a chance of up to alpha: after 1 / alpha of them one is to be expected.
    """
    on_pass: Literal["Approved", "PendingManualApproval"] = "PendingManualApproval"  # noqa: S105  # no password
    """The approval status of a package that passed."""
    on_inconclusive: Literal["PendingManualApproval", "nothing"] = "PendingManualApproval"


class Compute(Section):
    instance_types: Annotated[tuple[InstanceType, ...], Field(min_length=1)] = (
        "ml.g6.xlarge",
        "ml.g5.xlarge",
        "ml.g6e.xlarge",
        "ml.g6e.2xlarge",
        "ml.p5.4xlarge",
    )
    """Allowed types in order of preference; the plan takes the first that fits, capacity faults the next.

    The training image has kernels for GPUs up to Hopper: of g7e and p6 (Blackwell) none is taken.
    """
    evaluation_instance_types: Annotated[tuple[InstanceType, ...], Field(min_length=1)] = (
        "ml.g5.xlarge",
        "ml.g6.xlarge",
        "ml.g5.2xlarge",
    )
    """Batch transform has no p5, g7e; g6e only in newer service models."""
    instance_count: int = Field(1, ge=1, le=16)
    """Instances of a training job. They train together, as do the GPUs of one."""
    spot: bool = True
    instance_preferences: bool = False
    """With spot off: all suitable types are in one request, in order, and SageMaker starts the first with capacity."""
    keep_alive_s: int = Field(0, ge=0, le=3600)
    """How long a training job's instances are kept warm (and billed) for a next one of the same kind; not on spot."""
    input_mode: Literal["File", "FastFile"] = "FastFile"
    """FastFile streams base model and data from S3 while they are read; File copies them before the job starts."""
    max_cost_usd: float = Field(25.0, gt=0)
    """The cap of one run; it becomes MaxRuntimeInSeconds."""
    max_hours: float = Field(24.0, gt=0, le=28 * 24)


class DatasetRules(Section):
    min_rows: int = Field(10, ge=1)
    max_rows: int = Field(5_000_000, ge=1)
    on_invalid: Literal["reject", "drop"] = "reject"
    max_dropped_share: float = Field(0.02, ge=0, lt=1)
    near_duplicate_similarity: float = Field(0.8, ge=0.6, le=1)
    """Jaccard similarity of two prompts' words from which on they are near: NEAR_DUPLICATE, LEAKAGE_NEAR."""
    second_language_share: float = Field(0.02, gt=0, le=1)
    """LANGUAGE_MIX from this share on. Far above the identifier's errors (0.05 %) and the odd quotation, and enough
    to teach a model to change languages."""
    frequent_answer_share: float = Field(0.9, gt=0, le=1)
    """ANSWER_IMBALANCE where one answer has more than this share of the rows."""
    long_rows_share: float = Field(0.5, gt=0, le=1)
    """LENGTH_IMBALANCE where the longest hundredth of the rows has more than this share of all text."""
    near_duplicates: Strictness = "warning"
    duplicates: Strictness = "warning"
    leakage: Strictness = "error"
    pii: Strictness = "warning"
    checks: Mapping[str, Strictness] = {}
    """Severity of single checks by their code (docs/error-codes.md); it has the last word."""

    @field_validator("checks")
    @classmethod
    def _known_codes(cls, value: Mapping[str, Severity]) -> Mapping[str, Severity]:
        for code in value:
            if code not in CODES:
                raise ValueError(f"codes of docs/error-codes.md; there is no {code[:40]!r}")
            if not CODES[code].adjustable:
                raise ValueError(f"checks that may be changed; what {code} finds can't be trained")
        return value


class Approval(Section):
    spend: Literal["never", "over_cap", "always"] = "never"
    """When a person must approve before money is spent."""
    expires_hours: float = Field(72.0, gt=0, le=24 * 30)


class Tracking(Section):
    """Where a run's metrics also go."""

    tensorboard: bool = False
    """Event files in the job's output, under `tensorboard/`."""
    mlflow_uri: (
        Annotated[str, StringConstraints(pattern=r"^https?://[A-Za-z0-9.-]+(:\d+)?(/[\w./-]*)?$")] | None
    ) = None
    """An MLflow tracking server. On SageMaker the stack tells it, where its parameter `MlflowTrackingUri` is the same;
    a job that has a network tells it live, with the job's `MLFLOW_TRACKING_TOKEN`. No secret is part of a recipe."""
    mlflow_experiment: Annotated[str, StringConstraints(pattern=r"^[\w ./-]{1,128}$")] = "dropforge"

    @field_validator("mlflow_uri")
    @classmethod
    def _without_end(cls, value: str | None) -> str | None:
        return None if value is None else value.rstrip("/")

    def may_tell(self, allowed: str) -> bool:
        """Whether the recipe's server is the one that a stack's owner allows; a function calls no other address."""
        return bool(allowed) and self.mlflow_uri == allowed.rstrip("/")


class Recipe(Section):
    base_model: BaseModelRef
    method: Literal["sft", "dpo"] = "sft"
    quantization: Literal["nf4", "none"] = "nf4"
    adapter: Adapter = Adapter()
    chat_template: str | None = Field(None, min_length=1, max_length=49_152)
    """Jinja text in place of the tokenizer's chat template; needed where the base model brings none."""
    training: Training = Training()
    dataset: DatasetRules = DatasetRules()
    evaluation: Evaluation = Evaluation()
    gate: Gate = Gate()
    compute: Compute = Compute()
    approval: Approval = Approval()
    tracking: Tracking = Tracking()
    tags: Mapping[TagText, TagText] = {}

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if faults := [(path, _shown(self, path), wanted) for path, wanted in _conflicts(self)]:
            raise PydanticCustomError("recipe_conflicts", "fields that agree", {"faults": faults})
        if self.method == "dpo" and self.training.packing:
            object.__setattr__(self, "training", self.training.model_copy(update={"packing": False}))
        if self.method == "dpo" and "primary" not in self.gate.model_fields_set:
            object.__setattr__(self, "gate", self.gate.model_copy(update={"primary": "preference_accuracy"}))
        return self

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of the canonical JSON: two spellings of one recipe have one digest.

        Tags and tracking are left out: they change nothing about what is trained.
        """
        canonical = self.model_dump_json(exclude={"tags", "tracking"})
        return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


def _conflicts(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(path, what would agree and why) of every pair of fields that can't both be meant."""
    yield from _measuring_conflicts(recipe.evaluation, recipe.gate)
    yield from _compute_conflicts(recipe.compute)
    yield from _adapter_conflicts(recipe.adapter, recipe.training.learning_rate)
    if recipe.method == "dpo" and recipe.training.packing and "packing" in recipe.training.model_fields_set:
        yield "training.packing", "false with method dpo: pairs are compared row by row"
    if recipe.method == "sft" and recipe.training.dpo_beta is not None:
        yield (
            "training.dpo_beta",
            "nothing with method sft: it weighs preference pairs against the base model",
        )
    if recipe.dataset.min_rows > recipe.dataset.max_rows:
        yield "dataset.min_rows", f"at most max_rows, which is {recipe.dataset.max_rows}"
    if len(recipe.tags) > MAX_TAGS:
        yield "tags", f"at most {MAX_TAGS} tags"
    if any(not name or name.lower().startswith("aws:") for name in recipe.tags):
        yield "tags", "names that are not empty and don't begin with 'aws:', which AWS keeps for itself"


def _measuring_conflicts(evaluation: Evaluation, gate: Gate) -> Iterator[tuple[str, str]]:
    yield from _unknown_metrics(evaluation, gate)
    most = evaluation.max_holdout
    if evaluation.min_holdout > most:
        yield "evaluation.min_holdout", f"at most max_holdout, which is {most}"
    if gate.min_examples > most:
        yield "gate.min_examples", f"at most evaluation.max_holdout ({most}), or no candidate could ever pass"
    at_most = evaluation.generate_at_most
    if _needs(gate.primary) == "generation" and at_most != "auto" and at_most < gate.min_examples:
        yield (
            "evaluation.generate_at_most",
            f"at least gate.min_examples ({gate.min_examples}): '{gate.primary}' is measured on generated answers",
        )


def _needs(metric: str) -> str:
    return REGISTRY[metric].needs if metric in REGISTRY else "generation"


def _unknown_metrics(evaluation: Evaluation, gate: Gate) -> Iterator[tuple[str, str]]:
    named = [("gate.primary", gate.primary)]
    named += [(f"gate.guarded.{place}", name) for place, name in enumerate(gate.guarded)]
    named += [("gate.minimum", name) for name in gate.minimum]
    if evaluation.metrics != "auto":
        named += [(f"evaluation.metrics.{place}", name) for place, name in enumerate(evaluation.metrics)]
    for path, name in named:
        if name == "regex_match" and evaluation.metric_options.regex is None:
            yield path, "a metric that can be computed: regex_match needs evaluation.metric_options.regex"
        if name == JUDGE_PREFERENCE and evaluation.judge is None:
            yield path, f"a metric that can be computed: {name} needs evaluation.judge"
        if name == JUDGE_PREFERENCE and path == "gate.minimum":
            yield (
                path,
                f"an absolute metric: {name} compares two answers, so name it in gate.primary or guarded",
            )
        if name not in REGISTRY and name not in installed_names():
            close = difflib.get_close_matches(name, REGISTRY, n=1)
            wanted = f"the metric '{close[0]}'" if close else "one of " + ", ".join(REGISTRY)
            yield path, f"{wanted}; {ascii(name)[:60]} is no metric"


def _adapter_conflicts(adapter: Adapter, learning_rate: float) -> Iterator[tuple[str, str]]:
    ratio = adapter.lora_plus_ratio
    if ratio is not None and ratio * learning_rate > 1:
        yield (
            "adapter.lora_plus_ratio",
            f"at most {1 / learning_rate:g}, which is 1 / training.learning_rate: B learns at their product",
        )
    if adapter.targets == "all-linear":
        return
    if len(set(adapter.targets)) < len(adapter.targets):
        yield "adapter.targets", "each module once"
    for place, target in enumerate(adapter.targets):
        if target.rsplit(".", 1)[-1] in FROZEN_MODULES:
            yield (
                f"adapter.targets.{place}",
                "a linear layer of the blocks: the loss goes through an output head that stays frozen",
            )


def _compute_conflicts(compute: Compute) -> Iterator[tuple[str, str]]:
    if compute.keep_alive_s and compute.spot:
        yield "compute.keep_alive_s", "0, or compute.spot false: SageMaker keeps no spot instances warm"
    if compute.instance_preferences and compute.spot:
        yield (
            "compute.instance_preferences",
            "false, or compute.spot false: SageMaker takes a list of types on demand only",
        )
    if compute.instance_preferences and compute.keep_alive_s:
        yield "compute.instance_preferences", "false, or compute.keep_alive_s 0: a warm pool is of one type"
    for place, instance in enumerate(compute.evaluation_instance_types):
        if instance.split(".")[1] not in TRANSFORM_FAMILIES:
            families = ", ".join(sorted(TRANSFORM_FAMILIES))
            yield (
                f"compute.evaluation_instance_types.{place}",
                f"a family that batch transform has: {families}",
            )
    if len(set(compute.instance_types)) < len(compute.instance_types):
        yield "compute.instance_types", "each type once: the list is an order of preference"


def parse_recipe(text: str | None, default: str | None = None) -> Recipe:
    """A recipe from its YAML, laid over the stack's default recipe's YAML.

    Raises:
        RecipeInvalid: with all faults: path (dotted), line in the YAML where it can be told.
    """
    lines: dict[str, int] = {}
    merged: dict[str, Any] = {}
    for source in (default, text):
        if source is not None and source.strip():
            layer, lines = load_yaml(source)
            merged = _overlay(merged, layer)
    faults: list[RecipeFault] = []
    while True:
        try:
            recipe = Recipe.model_validate(merged)
        except ValidationError as error:
            found = error.errors(include_url=False)
            # What was taken out for a fault is not missing.
            told = {fault.path for fault in faults}
            faults += [
                fault for detail in found for fault in _faults(detail, lines) if fault.path not in told
            ]
            # Conflicts show only where every field is well: look again without the fields that are not.
            if any(detail["type"] == "recipe_conflicts" for detail in found):
                break
            merged = _without([detail["loc"] for detail in found], merged)
        else:
            faults += _schema_faults(recipe, lines)
            break
    if faults:
        raise RecipeInvalid(list(dict.fromkeys(faults)))
    return recipe


def _schema_faults(recipe: "Recipe", lines: Mapping[str, int]) -> Iterator[RecipeFault]:
    """Told of a recipe's text only: who reads a recipe back need not have the library that knows schemas."""
    schema = recipe.evaluation.metric_options.json_schema
    wanted = schema_fault(schema) if schema is not None else None
    if wanted:
        path = "evaluation.metric_options.json_schema"
        line = _line_of(path.split("."), lines)
        yield RecipeFault(path=path, line=line, found=ascii(dict(schema or {}))[:120], expected=wanted)


def _without(places: Sequence[tuple[int | str, ...]], merged: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe less its faulty fields; lists and references go whole, and so do sections that lack a field."""
    out: dict[str, Any] = json.loads(json.dumps(merged, default=str))
    for place in places:
        above: tuple[Any, str] = (out, "")
        level: Any = out
        for part in place[:-1]:
            under = level.get(str(part)) if isinstance(level, dict) else None
            if not isinstance(under, dict) or part == "base_model":
                break
            above, level = (level, str(part)), under
        else:
            part = place[-1]
        if isinstance(level, dict) and str(part) in level:
            del level[str(part)]
        else:
            above[0].pop(above[1], None)
    out.setdefault("base_model", "not/given")
    return out


def _faults(detail: Any, lines: Mapping[str, int]) -> Iterator[RecipeFault]:
    if detail["type"] == "recipe_conflicts":
        for path, found, wanted in detail["ctx"]["faults"]:
            yield RecipeFault(
                path=path,
                line=_line_of(path.split("."), lines),
                found=found,
                expected=wanted,
                code="RECIPE_CONFLICT",
            )
        return
    place = [str(part) for part in detail["loc"]]
    codes = {"missing": "RECIPE_MISSING", "extra_forbidden": "RECIPE_FIELD_UNKNOWN"}
    if detail["type"] == "missing":
        found, expected = "nothing", "a value"
    elif detail["type"] == "extra_forbidden":
        found, expected = "an unknown field", _nearest(place)
    else:
        found = ascii(detail.get("input"))[:120]
        expected = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    yield RecipeFault(
        path=".".join(place),
        line=_line_of(place, lines),
        found=found,
        expected=expected,
        code=codes.get(detail["type"], "RECIPE_VALUE"),
    )


def _shown(recipe: "Recipe", path: str) -> str:
    value: Any = recipe
    for part in path.split("."):
        value = value[int(part)] if part.isdigit() else getattr(value, part)
    return f"{len(value)} entries" if isinstance(value, tuple | Mapping) else ascii(value)[:120]


def _line_of(place: Sequence[str], lines: Mapping[str, int]) -> int | None:
    for depth in range(len(place), 0, -1):
        if (line := lines.get(".".join(place[:depth]))) is not None:
            return line
    return None


def _nearest(place: Sequence[str]) -> str:
    """What a misspelt field may have meant."""
    section: type[BaseModel] = Recipe
    for part in place[:-1]:
        kind = section.model_fields[part].annotation if part in section.model_fields else None
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            break
        section = kind
    close = difflib.get_close_matches(place[-1], section.model_fields, n=1)
    return f"'{close[0]}'" if close else "one of " + ", ".join(section.model_fields)


def _overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(below)
    for key, value in above.items():
        under = out.get(key)
        # A base model is replaced whole: half of one reference and half of another names nothing.
        if key != "base_model" and isinstance(value, Mapping) and isinstance(under, Mapping):
            out[key] = _overlay(under, value)
        else:
            out[key] = value
    if "training" in out and isinstance(out["training"], dict) and isinstance(above.get("training"), Mapping):
        for mine, other in (("epochs", "steps"), ("steps", "epochs")):
            if mine in above["training"] and other not in above["training"]:
                out["training"].pop(other, None)
    return out


__all__: Sequence[str] = (
    "Adapter",
    "Approval",
    "BaseModelRef",
    "Compute",
    "DatasetRules",
    "Evaluation",
    "Gate",
    "Generation",
    "Recipe",
    "RecipeFault",
    "RecipeInvalid",
    "Tracking",
    "Training",
    "parse_recipe",
)
