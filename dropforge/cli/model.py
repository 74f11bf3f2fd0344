"""What a run trained, on this machine: the adapter, unpacked and compared with its own manifest."""

import hashlib
import json
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dropforge.cli.console import RUN_FAILED, USAGE, CommandFailed
from dropforge.cli.stack import RunRecord, Stack
from dropforge_core.layout import RunLayout
from dropforge_core.model import Frozen

MODELS: Final = Path(".dropforge") / "models"
ARTIFACT: Final = "/output/model.tar.gz"


class FetchedModel(Frozen):
    """An adapter and what it belongs to; `--json` prints it."""

    run_id: str
    path: str
    base_model: str
    revision: str
    """Of the base model: 40 hex digits."""
    quantization: str


def fetch_model(stack: Stack, run: RunRecord, folder: Path | None = None) -> FetchedModel | None:
    """Fetch the adapter of the run's last training into a folder; None where it trained none.

    Raises:
        CommandFailed: where the folder has something in it, or the artifact is not what its manifest says.
    """
    outputs = stack.runs_bucket.list(RunLayout(run_id=run.run_id).training_output)
    newest = max(
        (found for found in outputs if found["Key"].endswith(ARTIFACT)),
        key=lambda found: found["LastModified"],
        default=None,
    )
    if newest is None:
        return None
    target = folder or MODELS / run.run_id
    if folder is not None and folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CommandFailed(f"{folder} is there already; --out takes a new folder.", USAGE)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as scratch:
        archive, unpacked = Path(scratch) / "model.tar.gz", Path(scratch) / "model"
        stack.runs_bucket.download(newest["Key"], archive)
        manifest = _unpack(archive, unpacked)
        if target.exists():
            shutil.rmtree(target)
        unpacked.rename(target)
    base = manifest["base_model"]
    return FetchedModel(
        run_id=run.run_id,
        path=str(target),
        base_model=base["name"],
        revision=base["revision"],
        quantization=manifest["quantization"],
    )


def _unpack(archive: Path, folder: Path) -> Mapping[str, Any]:
    """Unpack, and answer the manifest."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            # Nothing outside of the folder, no links out of it, no devices.
            tar.extractall(folder, filter="data")
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
        for name, wanted in manifest["files"].items():
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != wanted:
                    raise CommandFailed(f"{name} of the artifact is not what its manifest says.", RUN_FAILED)
    except (tarfile.TarError, EOFError, OSError, ValueError, KeyError) as error:
        raise CommandFailed(
            f"The run's artifact is not whole ({type(error).__name__}).", RUN_FAILED
        ) from error
    return manifest
