"""What the gate leaves behind: `evaluation/metrics.json` and `gate.json`."""

from collections.abc import Mapping
from typing import Literal

from dropforge_core.evaluation.join import Coverage
from dropforge_core.gate.checks import Canaries
from dropforge_core.gate.evidence import Comparison, Estimate
from dropforge_core.gate.general import Forgetting
from dropforge_core.gate.rules import Rule, Verdict
from dropforge_core.gate.slices import SliceResult
from dropforge_core.metrics.given import JudgeFacts
from dropforge_core.metrics.structured import FieldScore
from dropforge_core.metrics.summaries import ClassificationReport, CorpusScores, Lengths, Likelihood
from dropforge_core.model import Frozen

Reference = Literal["base", "champion"]


class MetricFacts(Frozen):
    """One metric with the estimate of every variant."""

    name: str
    label: str
    direction: Literal["higher", "lower"]
    kind: Literal["binary", "continuous"]
    description: str
    estimates: tuple[Estimate, ...]
    """Base, champion where there is one, candidate."""


class MetricsReport(Frozen):
    """`evaluation/metrics.json`: the numbers, without the verdict."""

    schema_version: Literal[1] = 1
    run_id: str
    model: str
    task: str
    reason: str
    """Why these metrics."""
    alpha: float
    variants: tuple[str, ...]
    metrics: tuple[MetricFacts, ...]
    comparisons: tuple[Comparison, ...]
    fields: Mapping[str, tuple[FieldScore, ...]]
    """By variant: F1 of each field of JSON answers; empty for other tasks."""
    likelihood: Mapping[str, Likelihood] = {}
    """By variant: perplexity and bits, over all held-out rows."""
    lengths: Mapping[str, Lengths] = {}
    """By variant, of generated answers."""
    classification: Mapping[str, ClassificationReport] = {}
    """By variant, where the answers are labels or letters of a choice."""
    corpus: Mapping[str, CorpusScores] = {}
    """By variant, where chrF or BLEU is measured."""


class Flips(Frozen):
    """Rows whose answer turned right or wrong, by id."""

    metric: str
    """By which an answer is right or wrong."""
    against: Reference
    """Whose answer it was before."""
    fixed: tuple[str, ...]
    """Ids that turned right."""
    broken: tuple[str, ...]
    """Ids that turned wrong."""


class Provenance(Frozen):
    """What was judged, by digest."""

    dataset_digest: str
    """Of the validated rows, both sides."""
    recipe_digest: str
    """Of the recipe in canonical form."""
    base_model: str
    """By its name."""
    base_model_prefix: str
    """Where its copy lies; it ends in the revision."""
    quantization: str = ""
    """How it was quantised in training and while it was judged on: `nf4` or `none`."""
    training_job_name: str
    """Which made the candidate."""
    model_data: str
    """S3 URI of the candidate's artifact."""
    champion_package_arn: str | None
    """Null where no package was approved."""
    prompts_digest: str
    """Of everything that was asked, in any order."""
    predictions_digest: str
    """Of everything that was answered, in any order."""


class HoldoutUse(Frozen):
    """How often this model's candidates were judged on the same rows: a test that is taken often is learned."""

    digest: str
    """`sha256:<hex>` over questions and reference answers of the hold-out."""
    use: int
    """Place of this decision among those of the model on this hold-out, from 1."""
    at_most: int
    """`gate.max_holdout_uses`."""
    chance_of_false_pass: float
    """That at least one of so many useless candidates would have passed: 1 - (1 - alpha)^use at most."""


class Policy(Frozen):
    """The recipe's gate as it was applied, defaults filled in."""

    primary: str
    """In this the candidate must be better than the base model."""
    guarded: tuple[str, ...]
    """In these it must not be worse than the champion."""
    minimum: Mapping[str, float]
    """By metric: what its bound must reach."""
    delta: float
    """Margin of non-inferiority."""
    alpha: float
    """One-sided error level of every bound."""
    power: float
    """With which delta is to be shown at `n_needed`."""
    min_examples: int
    """Fewer independent rows are never a pass."""
    slice_delta: float = 0.0
    """Harm up to which no part blocks."""
    canary: str = "canary"
    """Field of `meta` that marks a canary."""
    forgetting: float | Literal["report", "off"] = "off"
    """Margin, or whether general questions are only told or not asked."""


class GateReport(Frozen):
    """`gate.json`. The same answers under the same recipe give the same bytes, in any order of lines."""

    schema_version: Literal[1] = 1
    """Of this document; fields may be added to a version, none is renamed or removed."""
    run_id: str
    """Whose candidate it is."""
    model: str
    """The model's name."""
    verdict: Verdict
    """Of all rules together."""
    summary: str
    """A few sentences for a person."""
    policy: Policy
    """The recipe's gate with its defaults."""
    rules: tuple[Rule, ...]
    """Each rule as it was applied; all must pass."""
    coverage: Coverage
    """How whole the answers are."""
    flips: tuple[Flips, ...]
    """Which answers turned right or wrong, against base and champion."""
    slices: tuple[SliceResult, ...]
    """The same comparison within parts of the hold-out."""
    canaries: Canaries | None = None
    """None where no row of the hold-out is marked as one."""
    forgetting: Forgetting | None = None
    """None where general questions were not asked."""
    judge: JudgeFacts | None = None
    """None where the recipe has no judge."""
    holdout: HoldoutUse | None = None
    """Which rows decided, and how often."""
    notes: tuple[str, ...]
    """What a reader must know beside the numbers."""
    partial_training: bool
    """Whether training stopped at its cap."""
    provenance: Provenance
    """What was judged, by digest."""
    metrics_digest: str
    """`sha256:<hex>` of evaluation/metrics.json."""
    seed: None = None
    """Nothing is drawn at random: every bound is analytic."""
