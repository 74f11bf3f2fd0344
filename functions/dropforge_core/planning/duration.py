"""How long a run takes and what it costs, as intervals. Seconds, hours and US dollars stand in the names."""

import math
from collections.abc import Callable
from typing import Final

from dropforge_core.contracts import DatasetFacts, Interval
from dropforge_core.evaluation.judge import INSTRUCTIONS_TOKENS, priced
from dropforge_core.gate.sampling import answers_wanted
from dropforge_core.model import Frozen
from dropforge_core.planning.calibration import PRIOR_MFU
from dropforge_core.planning.catalogue import Gpu
from dropforge_core.planning.memory import (
    EVALUATION_BATCH,
    adapter_parameters,
    dense_adapter_parameters,
    weights_bytes,
)
from dropforge_core.planning.shape import ModelShape
from dropforge_core.recipe import Recipe

STOP_S: Final = 120
"""SageMaker lets a job that is at its limit save for so long, and bills that too."""
LEAST_RUNTIME_S: Final = 600
"""A job that may run for less than this can't load its model and save an adapter."""
MODEL_LOAD_GB_PER_S: Final = (0.4, 0.15, 0.05)
"""Fastest, planned, slowest: S3 to disk to quantised in GPU memory. Billed with the job."""
COPY_GB_PER_S: Final = (0.25, 0.08, 0.02)
"""Fastest, planned, slowest: hub to disk to the run bucket, on an instance of up to 10 Gbit/s."""
START_SECONDS: Final = (60.0, 180.0, 420.0)
"""Image download, imports, upload of the artifact, per job. Provisioning before it is not billed."""
DECODE_SECONDS: Final = (0.02, 0.05, 0.15)
"""One generated token of a whole batch, beside reading the weights once."""
ANSWER_SHARE: Final = (0.1, 0.5, 1.0)
"""Of the new tokens that an answer may have: few answers are as long as they may be."""
SPOT_SHARE: Final = (0.20, 0.35, 1.0)
"""Of the on-demand price. The documentation promises up to 80-90 % off; the ladder may end on demand."""
VERDICT_TOKENS: Final = 4
"""Of a judge's one word."""
ESTIMATE_ERROR: Final = 0.4
"""Of a count of tokens that was estimated from bytes: text has about three to six of them a token."""
EVALUATED_VARIANTS: Final = 3
"""Base, champion, candidate."""


class Workload(Frozen):
    """What is to be done, whatever it is done on."""

    recipe: Recipe
    dataset: DatasetFacts
    shape: ModelShape


def steps_and_tokens(recipe: Recipe, dataset: DatasetFacts) -> tuple[int, int]:
    """Optimiser steps, and training tokens that pass the model in them."""
    training = recipe.training
    if training.steps is not None:
        return training.steps, training.steps * training.effective_batch_tokens
    tokens = math.ceil((training.epochs or 3.0) * dataset.tokens_train)
    return max(1, math.ceil(tokens / training.effective_batch_tokens)), tokens


def flop_per_token(work: Workload, *, checkpointing: bool) -> float:
    """Floating-point operations per training token.

    Forward 2N; backward through frozen weights 2N, through the adapter's 4L (6L in all); recomputation
    another 2N; the reference of a preference pair another 2N (arXiv 2001.08361, section 2.1; LoRA needs
    no gradient of the base weights). Attention adds 2 * layers * width * length forward (causal).
    """
    shape, recipe = work.shape, work.recipe
    passes = 2 + int(checkpointing) + int(recipe.method == "dpo")
    attention = 2.0 * shape.layers * shape.heads * shape.head_dim * mean_length(work)
    # Backward of attention is twice its forward: one pass more than for frozen weights.
    return (
        2.0 * shape.matmul_parameters * passes
        + 6.0 * _passed_adapter(shape, recipe)
        + attention * (passes + 1)
    )


def _passed_adapter(shape: ModelShape, recipe: Recipe) -> float:
    """Adapter parameters that one token passes: of the experts' its share."""
    dense = dense_adapter_parameters(shape, recipe)
    share = shape.active_expert_parameters / shape.expert_parameters if shape.expert_parameters else 0.0
    return dense + (adapter_parameters(shape, recipe) - dense) * share


def training_seconds(work: Workload, gpu: Gpu, *, checkpointing: bool, mfu: Interval = PRIOR_MFU) -> Interval:
    """A training job from its first billed second to its last."""
    recipe, dataset = work.recipe, work.dataset
    _, tokens = steps_and_tokens(recipe, dataset)
    flop = tokens * flop_per_token(work, checkpointing=checkpointing)
    evaluations = 1 + tokens / max(1, dataset.tokens_train) * recipe.training.evals_per_epoch
    flop += evaluations * _forward_holdout(work)
    error = 0.0 if recipe.training.steps is not None else token_error(dataset)
    sizes = (1 - error, 1.0, 1 + error)
    return _interval(
        lambda i: (
            START_SECONDS[i] + load_seconds(work.shape, i) + _compute_seconds(flop * sizes[i], gpu, mfu, i)
        )
    )


def token_error(dataset: DatasetFacts) -> float:
    """By how much of itself the count of tokens may be wrong, in 19 of 20 datasets."""
    if dataset.tokens_exact:
        return 0.0
    return ESTIMATE_ERROR if dataset.tokens_error is None else dataset.tokens_error


def tokens_per_second(work: Workload, gpu: Gpu, *, checkpointing: bool, mfu: Interval) -> Interval:
    """Tokens of the training rows that pass the model in a second of the training loop."""
    flop = flop_per_token(work, checkpointing=checkpointing)
    return scaled(mfu, gpu.bf16_tflops * 1e12 / flop)


def evaluation_seconds(work: Workload, gpu: Gpu, *, mfu: Interval = PRIOR_MFU) -> Interval:
    """A batch transform that judges base, champion and candidate on the hold-out."""
    recipe = work.recipe
    batches = math.ceil(min(work.dataset.rows_eval, answers_wanted(recipe)) / EVALUATION_BATCH)
    tokens = batches * recipe.evaluation.generation.max_new_tokens * EVALUATED_VARIANTS
    read = weights_bytes(work.shape, recipe.quantization) / (gpu.gb_per_s * 1e9)
    flop = EVALUATED_VARIANTS * _forward_holdout(work)
    return _interval(
        lambda i: (
            START_SECONDS[i]
            + load_seconds(work.shape, i)
            + tokens * (DECODE_SECONDS[i] + read) * ANSWER_SHARE[i]
            + _compute_seconds(flop, gpu, mfu, i)
        )
    )


def caching_seconds(shape: ModelShape) -> Interval:
    """The processing job that copies the base model into the run bucket: fetched, hashed, uploaded."""
    return _interval(lambda i: START_SECONDS[i] + shape.parameters * 2 / 1e9 / COPY_GB_PER_S[i])


def cost_usd(seconds: Interval, usd_hour: float, *, spot: bool) -> Interval:
    """What a job of that length costs."""
    low, expected, high = SPOT_SHARE if spot else (1.0, 1.0, 1.0)
    return Interval(
        low=seconds.low / 3600 * usd_hour * low,
        expected=seconds.expected / 3600 * usd_hour * expected,
        high=seconds.high / 3600 * usd_hour * high,
    )


def judge_usd(work: Workload) -> Interval:
    """What the recipe's judge costs, of base and champion; nothing without one.

    Each comparison is asked twice. The highest is `evaluation.judge.max_cost_usd`, which ends the asking.
    """
    evaluation = work.recipe.evaluation
    judge = evaluation.judge
    if judge is None:
        return Interval(low=0.0, expected=0.0, high=0.0)
    rows = min(judge.rows, work.dataset.rows_eval, answers_wanted(work.recipe))
    fixed = INSTRUCTIONS_TOKENS + len(judge.rubric) / 4 + mean_length(work)

    def usd(references: int, share: float) -> float:
        tokens = fixed + 2 * share * evaluation.generation.max_new_tokens
        return priced(judge, tokens * 2 * rows * references, VERDICT_TOKENS * 2 * rows * references)

    most = judge.max_cost_usd
    return Interval(
        low=min(usd(1, ANSWER_SHARE[0]), most), expected=min(usd(2, ANSWER_SHARE[1]), most), high=most
    )


def total(*parts: Interval) -> Interval:
    """Sums of the lows, the expected values and the highs."""
    return Interval(
        low=sum(p.low for p in parts),
        expected=sum(p.expected for p in parts),
        high=sum(p.high for p in parts),
    )


def scaled(interval: Interval, factor: float) -> Interval:
    return Interval(
        low=interval.low * factor, expected=interval.expected * factor, high=interval.high * factor
    )


def mean_length(work: Workload) -> float:
    """Tokens of a training row."""
    return min(
        float(work.recipe.training.max_seq_len), work.dataset.tokens_train / max(1, work.dataset.rows_train)
    )


def _forward_holdout(work: Workload) -> float:
    return work.dataset.rows_eval * mean_length(work) * 2.0 * work.shape.matmul_parameters


def _compute_seconds(flop: float, gpu: Gpu, mfu: Interval, case: int) -> float:
    share = (mfu.high, mfu.expected, mfu.low)[case]
    return flop / (share * gpu.bf16_tflops * 1e12)


def load_seconds(shape: ModelShape, case: int) -> float:
    """Best (0), planned (1), worst (2): the base model's way from S3 into GPU memory."""
    return shape.parameters * 2 / 1e9 / MODEL_LOAD_GB_PER_S[case]


def _interval(case: Callable[[int], float]) -> Interval:
    """Best, planned and worst case, which are numbered 0, 1, 2."""
    return Interval(low=case(0), expected=case(1), high=case(2))
