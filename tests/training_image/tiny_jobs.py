"""Jobs over a tiny base model, laid out as SageMaker lays them out."""

import hashlib
import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dropforge_core.contracts import TrainingConfig
from dropforge_core.recipe import Recipe
from tuner.contract import Container

REPOSITORY = Path(__file__).parents[2]
IMAGE = REPOSITORY / "training_image"
REVISION = "a" * 40


def seal(folder: Path, name: str = "tiny-llama") -> None:
    """Write the manifest that caching would have written."""
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name not in {"MANIFEST.json", ".complete"}
    }
    document = {"name": name, "revision": REVISION, "source": "test", "files": files, "bytes": 1}
    (folder / "MANIFEST.json").write_text(json.dumps(document))


def chat_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Conversations of different lengths that begin alike, with an answer that can be learnt."""
    choose = random.Random(seed)
    rows = []
    for index in range(count):
        words = [
            choose.choice(("red", "green", "blue", "open", "closed")) for _ in range(choose.randint(1, 9))
        ]
        rows.append(
            {
                "id": f"row-{seed}-{index}",
                "messages": [
                    {"role": "system", "content": "Say the words again, and say how many there are."},
                    {"role": "user", "content": " ".join(words)},
                    {"role": "assistant", "content": f"{' '.join(words)}: {len(words)}"},
                ],
                "meta": {},
            }
        )
    return rows


def make_job(
    root: Path,
    base: Path,
    *,
    rows: Sequence[Mapping[str, Any]],
    holdout: Sequence[Mapping[str, Any]] = (),
    recipe: Mapping[str, Any] | None = None,
    **config: Any,
) -> Container:
    """Lay out a training job's tree as SageMaker would."""
    container = Container(root)
    for name in ("train", "eval", "config"):
        container.channel(name).mkdir(parents=True)
    container.hyperparameters.parent.mkdir(parents=True)
    container.channel("base").symlink_to(base)
    parsed = Recipe.model_validate({"base_model": "s3://some-bucket/sources/tiny-llama/", **(recipe or {})})
    settings = TrainingConfig(
        run_id="run1",
        model="echo",
        recipe=parsed.model_dump(mode="json"),
        recipe_digest=parsed.digest,
        dataset_digest="sha256:data",
        base_model_name="tiny-llama",
        base_model_revision=REVISION,
        **{"gradient_checkpointing": False, **config},
    )
    (container.channel("config") / "training.json").write_text(settings.model_dump_json())
    given = {"run_id": "run1", "attempt": "1", "micro_batch_tokens": "512"}
    container.hyperparameters.write_text(json.dumps(given))
    for name, part in (("train", rows), ("eval", holdout)):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (container.channel(name) / "part-00000.jsonl").write_text(lines)
    return container


SHORT = {
    "adapter": {"r": 8, "alpha": 16, "dropout": 0.0},
    "training": {"steps": 12, "effective_batch_tokens": 512, "learning_rate": 0.01, "max_seq_len": 512},
}


def environment(**extra: str) -> dict[str, str]:
    """A process environment in which `python -m tuner` is the image's."""
    return {**os.environ, "PYTHONPATH": f"{IMAGE}{os.pathsep}{REPOSITORY / 'functions'}", **extra}
