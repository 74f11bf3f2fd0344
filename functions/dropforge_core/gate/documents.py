"""What the gate leaves behind: `evaluation/metrics.json` and `gate.json`."""

from collections.abc import Mapping
from typing import Literal

from dropforge_core.evaluation.join import Coverage
from dropforge_core.gate.checks import Canaries
from dropforge_core.gate.evidence import Comparison, Estimate
from dropforge_core.gate.general import Forgetting
from dropforge_core.gate.rules import Rule, Verdict
from dropforge_core.gate.slices import SliceResult
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
    against: Reference
    fixed: tuple[str, ...]
    broken: tuple[str, ...]


class Provenance(Frozen):
    """What was judged, by digest."""

    dataset_digest: str
    recipe_digest: str
    base_model: str
    base_model_prefix: str
    training_job_name: str
    model_data: str
    champion_package_arn: str | None
    prompts_digest: str
    predictions_digest: str


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
    guarded: tuple[str, ...]
    minimum: Mapping[str, float]
    delta: float
    alpha: float
    power: float
    min_examples: int
    slice_delta: float = 0.0
    canary: str = "canary"
    forgetting: float | Literal["report", "off"] = "off"


class GateReport(Frozen):
    """`gate.json`. The same answers under the same recipe give the same bytes, in any order of lines."""

    schema_version: Literal[1] = 1
    run_id: str
    model: str
    verdict: Verdict
    summary: str
    policy: Policy
    rules: tuple[Rule, ...]
    coverage: Coverage
    flips: tuple[Flips, ...]
    slices: tuple[SliceResult, ...]
    canaries: Canaries | None = None
    """None where no row of the hold-out is marked as one."""
    forgetting: Forgetting | None = None
    """None where general questions were not asked."""
    holdout: HoldoutUse | None = None
    notes: tuple[str, ...]
    partial_training: bool
    provenance: Provenance
    metrics_digest: str
    """`sha256:<hex>` of evaluation/metrics.json."""
    seed: None = None
    """Nothing is drawn at random: every bound is analytic."""
