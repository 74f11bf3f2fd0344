"""The recipe: everything a person may decide about a run, and nothing else.

A recipe is YAML. It is laid over the stack's default recipe, key by key, and every fault is
reported at once. Units stand in the names or the docstrings.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import Field, StringConstraints, ValidationError, model_validator

from dropforge_core.model import Frozen

HubRepo = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$")
]
Revision = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]{1,128}$")]
S3Prefix = Annotated[
    str, StringConstraints(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[A-Za-z0-9._/=-]*/$")
]
InstanceType = Annotated[str, StringConstraints(pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9]+$")]
TagText = Annotated[str, StringConstraints(pattern=r"^[\w .:/=+\-@]*$", max_length=256)]


class BaseModelRef(Frozen):
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


class Adapter(Frozen):
    """LoRA (arXiv 2106.09685) on the base model's linear layers."""

    r: int = Field(16, ge=1, le=256)
    """Rank."""
    alpha: float = Field(32.0, gt=0, le=1024)
    """Scale: the update is multiplied by alpha / r (or alpha / sqrt(r) with rslora)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the modules to adapt; all-linear leaves out only the output head."""
    rslora: bool = False
    """Rank-stabilised scale (arXiv 2312.03732)."""
    dora: bool = False
    """Weight-decomposed LoRA (arXiv 2402.09353)."""


class Training(Frozen):
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
    seed: int = Field(17, ge=0, le=2**31 - 1)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give 'epochs' or 'steps', not both")
        return self


class Generation(Frozen):
    max_new_tokens: int = Field(256, ge=1, le=8192)
    temperature: float = Field(0.0, ge=0, le=2)
    """0 is greedy: the same prompts give the same answers."""


class Evaluation(Frozen):
    metrics: Literal["auto"] | tuple[str, ...] = "auto"
    """Names from `dropforge_core.metrics`; auto chooses from the data and says why."""
    generation: Generation = Generation()
    holdout_fraction: float = Field(0.1, gt=0, le=0.5)
    """Share of the rows held out where no eval file is given; see min_holdout and max_holdout."""
    min_holdout: int = Field(50, ge=1)
    max_holdout: int = Field(500, ge=1)
    generate_at_most: int = Field(200, ge=0)
    """Hold-out rows that are answered by generation; the likelihood is measured on all of them."""
    slices: tuple[str, ...] = ()
    """Fields of `meta` by which results are also reported."""


class Gate(Frozen):
    """What a candidate must show. All bounds are one-sided at `alpha`."""

    primary: str = "nll_per_byte"
    """The metric in which the candidate must be better than the base model."""
    guarded: tuple[str, ...] = ()
    """Metrics that must not be worse than the champion's by more than `delta`."""
    minimum: Mapping[str, float] = {}
    """Absolute thresholds: the metric's lower confidence bound must reach this."""
    delta: float = Field(0.02, ge=0, lt=1)
    """Margin of non-inferiority to the champion, in units of the metric."""
    alpha: float = Field(0.05, gt=0, lt=0.5)
    min_examples: int = Field(30, ge=1)
    """Fewer held-out examples than this are INCONCLUSIVE, never PASS."""
    on_pass: Literal["Approved", "PendingManualApproval"] = "PendingManualApproval"  # noqa: S105  # no password
    """The approval status of a package that passed."""
    on_inconclusive: Literal["PendingManualApproval", "nothing"] = "PendingManualApproval"


class Compute(Frozen):
    instance_types: tuple[InstanceType, ...] = (
        "ml.g6.xlarge",
        "ml.g5.xlarge",
        "ml.g6e.xlarge",
        "ml.g6e.2xlarge",
        "ml.g7e.2xlarge",
        "ml.p5.4xlarge",
    )
    """Allowed types in order of preference; the plan takes the first that fits, capacity faults the next."""
    evaluation_instance_types: tuple[InstanceType, ...] = ("ml.g5.xlarge", "ml.g6.xlarge", "ml.g5.2xlarge")
    """Batch transform has no p5, g7e; g6e only in newer service models."""
    spot: bool = True
    max_cost_usd: float = Field(25.0, gt=0)
    """The cap of one run; it becomes MaxRuntimeInSeconds."""
    max_hours: float = Field(24.0, gt=0, le=28 * 24)


class DatasetRules(Frozen):
    min_rows: int = Field(10, ge=1)
    max_rows: int = Field(5_000_000, ge=1)
    on_invalid: Literal["reject", "drop"] = "reject"
    max_dropped_share: float = Field(0.02, ge=0, lt=1)
    near_duplicates: Literal["error", "warning", "off"] = "warning"
    duplicates: Literal["error", "warning", "off"] = "warning"
    leakage: Literal["error", "warning", "off"] = "error"
    pii: Literal["error", "warning", "off"] = "warning"


class Approval(Frozen):
    spend: Literal["never", "over_cap", "always"] = "never"
    """When a person must approve before money is spent."""
    expires_hours: float = Field(72.0, gt=0, le=24 * 30)


class Recipe(Frozen):
    base_model: BaseModelRef
    method: Literal["sft", "dpo"] = "sft"
    quantization: Literal["nf4", "none"] = "nf4"
    adapter: Adapter = Adapter()
    training: Training = Training()
    dataset: DatasetRules = DatasetRules()
    evaluation: Evaluation = Evaluation()
    gate: Gate = Gate()
    compute: Compute = Compute()
    approval: Approval = Approval()
    tags: Mapping[TagText, TagText] = {}

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.method == "dpo" and self.training.packing:
            object.__setattr__(self, "training", self.training.model_copy(update={"packing": False}))
        return self

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of the canonical JSON: two spellings of one recipe have one digest."""
        canonical = self.model_dump_json(exclude={"tags"})
        return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


class RecipeFault(Frozen):
    """One thing that is wrong with a recipe."""

    path: str
    line: int | None
    found: str
    expected: str


class RecipeInvalid(ValueError):
    """Every fault of a recipe at once."""

    def __init__(self, faults: Sequence[RecipeFault]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(f"{f.path or 'recipe'}: {f.expected} (found {f.found})" for f in faults))


MAX_RECIPE_BYTES: Final = 65_536


def parse_recipe(text: str | None, default: str | None = None) -> Recipe:
    """A recipe from its YAML, laid over the stack's default recipe's YAML.

    Raises:
        RecipeInvalid: with all faults: path (dotted), line in the YAML where it can be told.
    """
    lines: dict[str, int] = {}
    layers: list[dict[str, Any]] = []
    for source in (default, text):
        if source is None or not source.strip():
            continue
        if len(source.encode("utf-8", "surrogatepass")) > MAX_RECIPE_BYTES:
            raise RecipeInvalid(
                [
                    RecipeFault(
                        path="",
                        line=None,
                        found=f"{len(source)} characters",
                        expected="at most 64 KiB of YAML",
                    )
                ]
            )
        loaded, where = _load_yaml(source)
        layers.append(loaded)
        lines = where
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _overlay(merged, layer)
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        raise RecipeInvalid([_fault(detail, lines) for detail in error.errors(include_url=False)]) from None


def _fault(detail: Any, lines: Mapping[str, int]) -> RecipeFault:
    path = ".".join(str(part) for part in detail["loc"])
    line = None
    for depth in range(len(detail["loc"]), 0, -1):
        line = lines.get(".".join(str(part) for part in detail["loc"][:depth]))
        if line is not None:
            break
    found = "nothing" if detail["type"] == "missing" else repr(detail.get("input"))
    return RecipeFault(path=path, line=line, found=found[:120], expected=str(detail["msg"]))


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


def _load_yaml(text: str) -> tuple[dict[str, Any], dict[str, int]]:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        loaded = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        raise RecipeInvalid(
            [
                RecipeFault(
                    path="",
                    line=mark.line + 1 if mark else None,
                    found=str(getattr(error, "problem", None) or error)[:120],
                    expected="YAML",
                )
            ]
        ) from None
    if loaded is None:
        return {}, {}
    if not isinstance(loaded, dict):
        raise RecipeInvalid(
            [
                RecipeFault(
                    path="", line=1, found=type(loaded).__name__, expected="keys and values at the top level"
                )
            ]
        )
    lines: dict[str, int] = {}
    _collect_lines(node, "", lines)
    return loaded, lines


def _collect_lines(node: yaml.Node | None, path: str, lines: dict[str, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = f"{path}.{key.value}" if path else str(key.value)
            lines[here] = key.start_mark.line + 1
            _collect_lines(value, here, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            here = f"{path}.{index}"
            lines[here] = value.start_mark.line + 1
            _collect_lines(value, here, lines)
