"""The base model that `plan` is for: its shape, found without a stack."""

import json
import os
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from dropforge.cli.console import USAGE, CommandFailed
from dropforge.cli.functions import BaseModelUnavailable, Hub, HubUnreachable, locate
from dropforge_core.aws import Bucket
from dropforge_core.layout import split_s3_uri
from dropforge_core.planning import (
    BaseModelUnsuitable,
    BaseSource,
    ModelShape,
    shape_of,
    source_revision,
    weight_bytes_of,
)
from dropforge_core.recipe import BaseModelRef

STACK_DEFAULT: Final = "stack-default"
"""The name that stands for a base model which the recipe leaves to the stack."""
HUB: Final = "https://huggingface.co"

Found = tuple[BaseSource, ModelShape]


def find(ref: BaseModelRef, given: Path | None, note: Callable[[str], None]) -> Found:
    """Source and shape: from `given`, else from where the recipe says, else the demo's model.

    Args:
        ref: the recipe's base model.
        given: a config.json, or the folder that holds it.
        note: told what a person should know of the choice.

    Raises:
        CommandFailed: when there is no model there, or none that can be trained.
    """
    try:
        if given is not None:
            return _from_folder(given, ref.name, note)
        if ref.repo == STACK_DEFAULT:
            return _demo_model(note)
        if ref.s3 is not None:
            # Where a copy would be counted as cached: the bucket that the model lies in.
            name, prefix = split_s3_uri(ref.s3)
            source, shape = locate(ref, Bucket(name), _hub())
            return source, _counted(Bucket(name).read(prefix + "config.json"), shape, note)
        return _from_hub(ref, note)
    except BaseModelUnsuitable as error:
        raise CommandFailed(f"The base model can't be trained: {error}", 1) from error
    except (BaseModelUnavailable, HubUnreachable, ClientError, BotoCoreError) as error:
        raise CommandFailed(
            f"The base model's shape can't be had: {error} Name its config.json with --base-config.", USAGE
        ) from error


def _hub() -> Hub:
    return Hub(os.environ.get("HF_ENDPOINT", HUB), os.environ.get("HF_TOKEN", ""), tries=2)


def _counted(config: bytes, otherwise: ModelShape, note: Callable[[str], None]) -> ModelShape:
    """The shape counted on the modules that transformers builds, where it is installed; `otherwise` where it is not."""
    if find_spec("torch") is None or find_spec("transformers") is None:
        return otherwise
    from tuner.model_shape import NotCountable, counted_shape  # noqa: PLC0415  # seconds: it needs torch

    with tempfile.TemporaryDirectory(prefix="dropforge-") as folder:
        Path(folder, "config.json").write_bytes(config)
        try:
            return counted_shape(Path(folder)).shape
        except NotCountable as error:
            note(f"The base model's layers can't be counted here: {error}")
    return otherwise


def _from_hub(ref: BaseModelRef, note: Callable[[str], None]) -> Found:
    hub, repo = _hub(), str(ref.repo)
    found = hub.resolve(repo, ref.revision)
    config = hub.config(repo, found.commit)
    shape = shape_of(config, weight_bytes_of(found.files))
    return _source(repo, found.commit, cached=False), _counted(json.dumps(config).encode(), shape, note)


def _demo_model(note: Callable[[str], None]) -> Found:
    # Only here: preparing a model is the local AWS's business, and slow to import.
    from dropforge.local import base_models  # noqa: PLC0415
    from dropforge.local.stack import cache_dir  # noqa: PLC0415

    def tell(what: str, share: float) -> None:
        if share < 1:
            note(what)

    try:
        folder = base_models.prepare(fast=False, cache_dir=cache_dir(), on_progress=tell)
    except base_models.PreparationFailed as error:
        raise CommandFailed(
            f"The recipe names no base model, and the demo's can't be had: {error} Name one with --base-config.",
            USAGE,
        ) from error
    note(f"The recipe names no base model; this is the plan for {folder.name}, the default of a local stack.")
    return _from_folder(folder, folder.name, note)


def _from_folder(given: Path, name: str, note: Callable[[str], None]) -> Found:
    config = given / "config.json" if given.is_dir() else given
    try:
        text = config.read_bytes()
        described: dict[str, Any] = json.loads(text)
        weights = {file.name: file.stat().st_size for file in config.parent.glob("*.safetensors")}
        shape = shape_of(described, weight_bytes_of(weights) if weights else None)
    except (OSError, ValueError) as error:
        # BaseModelUnsuitable is a ValueError too; its message says what is wrong with the model.
        raise CommandFailed(f"The base model's config can't be used: {config}: {error}", 1) from error
    revision = source_revision([(config.name, len(text), config.name)])
    return _source(name, revision, cached=True), _counted(text, shape, note)


def _source(name: str, revision: str, *, cached: bool) -> BaseSource:
    return BaseSource(
        name=name, source=f"hub:{name}@{revision}", prefix=f"base-models/{name}/{revision}/", cached=cached
    )
