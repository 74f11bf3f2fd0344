"""SageMaker's container contract as typed objects. Every path hangs under one root, an argument."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dropforge_core.contracts import Parallelism, Residency, TrainingConfig
from dropforge_core.model import Tolerant
from dropforge_core.recipe import Recipe
from tuner.failure import Failure

Say = Callable[[str], None]
"""Prints one line for a person; the stream is the caller's choice."""


@dataclass(frozen=True, slots=True)
class Container:
    """The tree that SageMaker mounts, `/opt/ml` in the cloud."""

    root: Path

    def channel(self, name: str) -> Path:
        return self.root / "input" / "data" / name

    @property
    def hyperparameters(self) -> Path:
        return self.root / "input" / "config" / "hyperparameters.json"

    @property
    def resource_config(self) -> Path:
        """The hosts of the job."""
        return self.root / "input" / "config" / "resourceconfig.json"

    @property
    def checkpoints(self) -> Path:
        """Synced to S3 while the job runs, and restored before the next attempt starts."""
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        """Becomes model.tar.gz; in a serving container it is the extracted artifact."""
        return self.root / "model"

    @property
    def output_data(self) -> Path:
        return self.root / "output" / "data"

    @property
    def failure(self) -> Path:
        """Its first 1,024 characters become the job's FailureReason."""
        return self.root / "output" / "failure"

    @property
    def message(self) -> Path:
        """Its first 1,024 characters become a processing job's ExitMessage; those jobs have no `failure`."""
        return self.root / "output" / "message"


class Hyperparameters(Tolerant):
    """What the ladder may change between attempts. SageMaker delivers every value as a string."""

    run_id: str
    attempt: int = 1
    micro_batch_tokens: int = 0
    """Upper bound of tokens, padding counted, in one forward pass; 0 lets the trainer choose."""
    residency: Residency | None = None
    """In place of the plan's."""
    parallelism: Parallelism = "dp"
    """How several processes share the work; without meaning for one."""


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """Everything a training attempt was told."""

    config: TrainingConfig
    recipe: Recipe
    hyperparameters: Hyperparameters


def read_training_job(container: Container) -> TrainingJob:
    """The job from its hyperparameters and `training.json` in the `config` channel.

    Raises:
        Failure: CODE, naming the file and every field that is wrong.
    """
    given = _document(container.hyperparameters)
    settings = _document(container.channel("config") / "training.json")
    try:
        config = TrainingConfig.model_validate(settings)
        recipe = Recipe.model_validate(dict(config.recipe))
        hyperparameters = Hyperparameters.model_validate(given)
    except ValidationError as error:
        faults = "; ".join(
            f"{error.title}.{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
        )
        raise Failure("CODE", f"the job's settings are not what this image expects: {faults}") from None
    if hyperparameters.run_id != config.run_id:
        raise Failure(
            "CODE",
            f"the hyperparameters speak of run {hyperparameters.run_id}, training.json of {config.run_id}; "
            "both must come from one plan",
        )
    return TrainingJob(config, recipe, hyperparameters)


def _document(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Failure("CODE", f"{path}: a JSON object was expected, found {type(error).__name__}") from None
    if not isinstance(document, dict):
        raise Failure("CODE", f"{path}: a JSON object was expected, found {type(document).__name__}")
    return document
