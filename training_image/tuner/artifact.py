"""The artifact: an adapter that names what it was made from. Nothing in it depends on the clock."""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from safetensors.torch import save_file
from torch import Tensor

from dropforge_core.contracts import BaseModelManifest
from dropforge_core.model import Frozen
from tuner.contract import TrainingJob
from tuner.integrity import file_digest

WEIGHTS: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"
LIBRARIES: Final = ("torch", "transformers", "peft", "bitsandbytes", "safetensors", "tokenizers")


class TrainingSummary(Frozen):
    """`training_summary.json`: what the report draws."""

    steps: int
    epochs: float
    tokens: int
    """Useful tokens, padding not counted."""
    seconds: float
    tokens_per_s: float
    peak_memory_gib: float
    best_step: int
    best_eval_loss: float | None
    first_eval_loss: float | None
    """Held-out loss before the first step."""
    loss_curve: tuple[tuple[int, float], ...]
    eval_curve: tuple[tuple[int, float], ...]
    stopped_by: str
    """`end`, `early_stopping` or `time_limit`."""
    device: str = "unknown"
    """`cuda` or `cpu`: a speed or a peak of memory means nothing without it."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """What an adapter was made from, and how."""

    job: TrainingJob
    base: BaseModelManifest
    chat_template: str | None
    """Of the recipe; None where the tokenizer's own was used."""
    residency: str
    device: str
    micro_batch_tokens: int
    """At the end, after any halving."""
    data_order: str
    """`Schedule.digest`."""
    quantiser: str | None = None
    """`LanguageModel.quantiser`."""


def write_artifact(
    folder: Path,
    made_from: Provenance,
    *,
    adapter_config: Mapping[str, Any],
    adapter: Mapping[str, Tensor],
    summary: TrainingSummary,
) -> None:
    """Write the adapter, its configuration, the summary and, last, the manifest with their hashes."""
    job, base = made_from.job, made_from.base
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(adapter), folder / WEIGHTS, metadata={"format": "pt"})
    # The base is named as people know it; the path it was loaded from means nothing elsewhere.
    named = {**adapter_config, "base_model_name_or_path": base.name, "revision": base.revision}
    (folder / CONFIG).write_text(json.dumps(named, indent=1, sort_keys=True, default=_plain))
    (folder / "training_summary.json").write_text(summary.model_dump_json(indent=1))
    manifest = {
        "schema_version": 1,
        "run_id": job.config.run_id,
        "model": job.config.model,
        "method": job.recipe.method,
        "quantization": job.recipe.quantization,
        "quantiser": made_from.quantiser,
        "residency": made_from.residency,
        "recipe": job.recipe.model_dump(mode="json"),
        "recipe_digest": job.config.recipe_digest,
        "dataset_digest": job.config.dataset_digest,
        "base_model": {
            "name": base.name,
            "revision": base.revision,
            "licence": base.licence,
            "files": dict(base.files),
        },
        "source_commit": _commit(job),
        "image": job.config.image,
        "chat_template": made_from.chat_template,
        "seed": job.recipe.training.seed,
        "data_order": made_from.data_order,
        "micro_batch_tokens": made_from.micro_batch_tokens,
        "saved_step": summary.best_step,
        "last_step": summary.steps,
        "stopped_by": summary.stopped_by,
        "device": made_from.device,
        "libraries": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        "files": {name: file_digest(folder / name) for name in (WEIGHTS, CONFIG)},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))


def _commit(job: TrainingJob) -> str:
    """The plan's word for it, else what the image was built from."""
    told = job.config.source_commit
    return told if told != "unknown" else os.environ.get("DROPFORGE_COMMIT", told)


def _plain(value: object) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)
