"""One training run: what it is made of before its first step."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from dropforge_core.recipe import Recipe
from tuner.batching import Schedule, plan_steps
from tuner.checkpoint import Checkpoint, TrainingState, random_state
from tuner.contract import Container, Say, TrainingJob
from tuner.data import Example
from tuner.distributed.ranks import ALONE, Ranks
from tuner.failure import Failure
from tuner.fusing import fuse
from tuner.layouts import Layouts, layouts_of
from tuner.model import LanguageModel, attach_adapter, snapshot, trainable
from tuner.objective import AnswerLikelihood, Objective, Preference
from tuner.optimise import make_optimizer, optimizer_tensors
from tuner.progress import Progress
from tuner.residency import Resident
from tuner.tokenising import encode_channel
from tuner.tracking import open_trackers

CPU_MICRO_BATCH: Final = 1024
GPU_MICRO_BATCH: Final = 16_384
"""Tokens of a forward pass where the plan names none; the GPU's is halved until it fits."""

EVALUATION_SHARE: Final = 0.1
"""Of the training's compute that all its held-out measurements together may take."""


@dataclass(slots=True)
class Run:
    """One training run in flight."""

    job: TrainingJob
    base: LanguageModel
    adapted: Any
    """The peft model around `base`."""
    residency: Resident
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    objective: Objective
    examples: Sequence[Example]
    holdout: Sequence[Example]
    schedule: Schedule
    evaluate_every: int
    state: TrainingState
    best: dict[str, Tensor]
    progress: Progress
    layouts: Layouts
    """How documents may lie in a pass."""
    ranks: Ranks = ALONE
    recomputes: bool = False
    """Whether the backward pass computes activations again, in place of keeping them."""

    @property
    def recipe(self) -> Recipe:
        return self.job.recipe

    @property
    def may_share(self) -> bool:
        """Whether rows may share a beginning: dropout must differ between them.

        Side by side they share it as a pass of its own, which must keep its keys; recomputed layers keep none.
        """
        kept = self.layouts.end_to_end or not self.recomputes
        return self.layouts.shared and kept and not self.recipe.adapter.dropout

    def owes_evaluation(self) -> bool:
        """Whether the hold-out is to be measured at this step and was not yet."""
        step, curve = self.state.step, self.state.eval_curve
        due = step % self.evaluate_every == 0 or step == self.schedule.steps
        return bool(self.holdout) and due and (not curve or curve[-1][0] < step)

    def has_stopped_improving(self) -> bool:
        patience = self.recipe.training.early_stopping_patience
        return patience is not None and self.state.worse_evaluations >= patience

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(
            state=self.state,
            adapter=snapshot(self.parameters),
            best=self.best,
            optimizer=optimizer_tensors(self.optimizer, self.parameters),
            rng=random_state(),
        )


def prepare(  # noqa: PLR0913, PLR0917  # what a run is made of
    job: TrainingJob,
    base: LanguageModel,
    residency: Resident,
    container: Container,
    say: Say,
    ranks: Ranks = ALONE,
) -> Run:
    """Data as tokens, the adapter, the optimizer and the plan of the steps, before the first step.

    Raises:
        Failure: BAD_DATA or BASE_MODEL.
    """
    training = job.recipe.training
    say("phase=tokenising")
    examples, holdout = (
        encode_channel(container.channel(name), base.codec, job.recipe.method, training.max_seq_len, say)
        for name in ("train", "eval")
    )
    if not examples:
        raise Failure("BAD_DATA", "the train channel has no rows")
    schedule = plan_steps(
        [example.length for example in examples],
        training.effective_batch_tokens,
        epochs=training.epochs,
        steps=training.steps,
        seed=training.seed,
    )
    evaluate_every = max(1, round(schedule.steps_per_epoch / training.evals_per_epoch))
    recomputes = job.config.gradient_checkpointing
    adapted = attach_adapter(base, job.recipe, gradient_checkpointing=recomputes)
    if base.device.type == "cuda" and not base.lockstep:
        say("fused " + " ".join(f"{name}={count}" for name, count in fuse(base.causal).items()))
    longest = max(document.length for example in (*examples, *holdout) for document in example.documents)
    layouts = layouts_of(base, packing=training.packing, longest=longest, say=say)
    say(str(layouts))
    parameters = trainable(base.causal)
    ranks.equalise(parameters)
    chosen = choose_holdout(
        holdout,
        budget=evaluation_budget(schedule, evaluate_every, training.effective_batch_tokens),
        seed=training.seed,
    )
    say(
        f"rows={len(examples)} tokens={int(schedule.lengths.sum())} steps={schedule.steps} "
        f"trainable={sum(p.numel() for p in parameters.values())} held_out={len(chosen)}/{len(holdout)}"
    )
    objective: Objective = (
        AnswerLikelihood()
        if job.recipe.method == "sft"
        else Preference(adapted.disable_adapter, training.dpo_beta)
    )
    return Run(
        job=job,
        base=base,
        adapted=adapted,
        residency=residency,
        parameters=parameters,
        optimizer=make_optimizer(parameters, training, job.recipe.adapter.lora_plus_ratio),
        objective=objective,
        examples=examples,
        holdout=chosen,
        schedule=schedule,
        evaluate_every=evaluate_every,
        state=TrainingState(micro_batch_tokens=first_micro_batch(job, base)),
        best={},
        progress=Progress(
            say,
            container.output_data / "progress.json" if ranks.leads else None,
            schedule.steps,
            open_trackers(job, container, say) if ranks.leads else (),
        ),
        layouts=layouts,
        ranks=ranks,
        recomputes=recomputes,
    )


def first_micro_batch(job: TrainingJob, base: LanguageModel) -> int:
    asked = job.hyperparameters.micro_batch_tokens
    return asked or (GPU_MICRO_BATCH if base.device.type == "cuda" else CPU_MICRO_BATCH)


def evaluation_budget(schedule: Schedule, evaluate_every: int, effective_batch_tokens: int) -> int:
    """Tokens of one held-out measurement: a tenth of the training's compute over all of them.

    A forward pass costs a third of a training step; one effective batch is the least that says anything.
    """
    tokens = float(schedule.lengths.sum()) * schedule.epoch_at(schedule.steps)
    measurements = 1 + math.ceil(schedule.steps / evaluate_every)
    return max(effective_batch_tokens, int(3 * EVALUATION_SHARE * tokens / measurements))


def choose_holdout(holdout: Sequence[Example], *, budget: int, seed: int) -> list[Example]:
    """A fixed sample of the hold-out within `budget` tokens, at least one row where there is one."""
    chosen: list[Example] = []
    spent = 0
    for index in np.random.default_rng(seed).permutation(len(holdout)):
        example = holdout[int(index)]
        if chosen and spent + example.length > budget:
            break
        chosen.append(example)
        spent += example.length
    return chosen


def identity_of(job: TrainingJob, base: LanguageModel) -> str:
    """Digest of what is trained on what: a checkpoint of anything else must not be resumed."""
    parts = [job.config.recipe_digest, job.config.dataset_digest, base.manifest.name, base.manifest.revision]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
