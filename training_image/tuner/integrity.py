"""Hashes of files and the manifest of a cached base model. No torch here: caching a base needs none."""

import hashlib
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from dropforge_core.contracts import BaseModelManifest
from tuner.failure import Failure

MANIFEST: Final = "MANIFEST.json"
HASH_CHUNK: Final = 8 * 1024 * 1024


def file_digest(path: Path) -> str:
    """sha256 hex."""
    hasher = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(HASH_CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


def read_manifest(document: bytes) -> BaseModelManifest:
    """`MANIFEST.json` of a cached base model.

    Raises:
        Failure: BASE_MODEL where it is not one.
    """
    try:
        return BaseModelManifest.model_validate_json(document)
    except ValidationError as error:
        raise Failure("BASE_MODEL", f"{MANIFEST}: {error.error_count()} fields are wrong") from None


def compare(path: Path, found: str, expected: str) -> None:
    """One file's sha256 hex with the manifest's.

    Raises:
        Failure: BASE_MODEL naming the file, what was found and what was expected.
    """
    if found != expected:
        raise Failure(
            "BASE_MODEL", f"{path.name}: found {found[:12]}, expected {expected[:12]}; cache the base again"
        )


def verify_copy(folder: Path, *, weights: bool = True) -> BaseModelManifest:
    """The manifest of a cached base model, after its files were hashed.

    Args:
        folder: the copy.
        weights: False leaves out the safetensors, for who hashes them while reading them.

    Raises:
        Failure: BASE_MODEL naming the file, what was found and what was expected.
    """
    try:
        manifest = read_manifest((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise Failure(
            "BASE_MODEL",
            f"the base model's copy has no {MANIFEST}, so it is not whole; cache the base again",
        ) from None
    for name, expected in sorted(manifest.files.items()):
        if weights or not name.endswith(".safetensors"):
            path = folder / name
            compare(path, file_digest(path) if path.is_file() else "no file", expected)
    return manifest
