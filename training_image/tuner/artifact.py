"""The artifact: an adapter that names what it was made from. Nothing in it depends on the clock."""

import json
from collections.abc import Mapping
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


def write_artifact(  # noqa: PLR0913  # each is one file or one line of the manifest
    folder: Path,
    *,
    job: TrainingJob,
    base: BaseModelManifest,
    adapter_config: Mapping[str, Any],
    adapter: Mapping[str, Tensor],
    summary: TrainingSummary,
    chat_template: str | None,
) -> None:
    """Write the adapter, its configuration, the summary and, last, the manifest with their hashes."""
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
        "recipe_digest": job.config.recipe_digest,
        "dataset_digest": job.config.dataset_digest,
        "base_model": {"name": base.name, "revision": base.revision, "files": dict(base.files)},
        "source_commit": job.config.source_commit,
        "image": job.config.image,
        "chat_template": chat_template,
        "libraries": {name: version(name) for name in LIBRARIES},
        "files": {name: file_digest(folder / name) for name in (WEIGHTS, CONFIG)},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))


def _plain(value: object) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)
