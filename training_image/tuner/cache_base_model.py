"""Copy a base model once into the run bucket: safetensors and JSON only, hashed, the manifest last."""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol

import boto3
from botocore.exceptions import ClientError

from dropforge_core.contracts import BaseModelManifest
from dropforge_core.layout import split_s3_uri
from tuner.contract import Say
from tuner.failure import Failure
from tuner.integrity import MANIFEST, file_digest, read_manifest
from tuner.signals import StopRequest
from tuner.storage import download, list_prefix

WANTED: Final = re.compile(
    r"[^/]+\.safetensors|[^/]+\.json|[^/]+\.jinja|tokenizer\.model|spiece\.model|(?:merges|vocab)\.txt"
    r"|(?:LICEN[CS]E|NOTICE|USE_POLICY)[^/]*",
    re.IGNORECASE,
)
"""Files of the repository's top folder that loading needs, and its terms. No code, no pickles."""

COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of the source; `fingerprint` changes with its content."""

    name: str
    size: int
    fingerprint: str


class Source(Protocol):
    """Where a base model comes from."""

    revision: str | None
    """The commit, where the source has one."""
    licence: str | None

    def files(self) -> Sequence[SourceFile]:
        """What there is, at one revision."""

    def fetch(self, file: SourceFile, folder: Path) -> Path:
        """One file into a folder."""


def cache_base_model(
    source: str,
    destination: str,
    stop: StopRequest,
    say: Say,
    environment: Mapping[str, str] = os.environ,
) -> BaseModelManifest:
    """Copy the source; what a broken-off copy left and still matches is not copied again.

    Args:
        source: `hub:<repo>@<revision>` or `s3://<bucket>/<prefix>/`.
        destination: `s3://<bucket>/base-models/<name>/<revision>/`.
        stop: asked between files.
        say: prints a line.
        environment: `HUB_TOKEN_SECRET_ARN` is read from it.

    Raises:
        Failure: BASE_MODEL, saying what was found and what to do.
        Stopped: between files; a later call goes on from there.
    """
    s3 = boto3.client("s3")
    bucket, prefix = split_s3_uri(destination if destination.endswith("/") else destination + "/")
    found = open_source(source, s3, environment)
    files = wanted_files(found.files())
    done = _head(s3, bucket, prefix + MANIFEST)
    if done is not None:
        manifest = read_manifest(s3.get_object(Bucket=bucket, Key=prefix + MANIFEST)["Body"].read())
        if manifest.source == source and set(manifest.files) == {file.name for file in files}:
            say("phase=cached_already")
            return manifest
    digests: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="dropforge-") as scratch:
        for number, file in enumerate(files, start=1):
            stop.check()
            kept = _kept_digest(s3, bucket, prefix, file)
            if kept is None:
                path = found.fetch(file, Path(scratch))
                refuse_code(file.name, path)
                kept = file_digest(path)
                s3.upload_file(
                    str(path),
                    bucket,
                    prefix + file.name,
                    ExtraArgs={"Metadata": {"sha256": kept, "source": file.fingerprint}},
                )
                path.unlink()
            digests[file.name] = kept
            say(f"file={file.name} bytes={file.size} files={number}/{len(files)}")
    name, folder = _name_and_revision(prefix)
    manifest = BaseModelManifest(
        name=name,
        revision=found.revision or folder,
        source=source,
        files=digests,
        bytes=sum(file.size for file in files),
        licence=found.licence,
    )
    s3.put_object(Bucket=bucket, Key=prefix + MANIFEST, Body=manifest.model_dump_json().encode())
    say("phase=cached")
    return manifest


def wanted_files(files: Sequence[SourceFile]) -> list[SourceFile]:
    """What is copied, small files first so that what must be refused is refused before gigabytes move.

    Raises:
        Failure: BASE_MODEL where configuration or safetensors are missing.
    """
    chosen = [file for file in files if WANTED.fullmatch(file.name) and file.name != MANIFEST]
    names = {file.name for file in chosen}
    if "config.json" not in names:
        raise Failure("BASE_MODEL", "the source has no config.json; it must be a transformers model folder")
    if not any(name.endswith(".safetensors") for name in names):
        others = sorted({PurePosixPath(file.name).suffix for file in files} - {""})
        raise Failure(
            "BASE_MODEL",
            f"the source has no .safetensors weights (it has {', '.join(others)}); "
            "other formats can run code when loaded and are refused",
        )
    return sorted(chosen, key=lambda file: (file.size, file.name))


def refuse_code(name: str, path: Path) -> None:
    """Refuse a configuration that points to code in the repository.

    Raises:
        Failure: BASE_MODEL.
    """
    if not name.endswith(".json"):
        return
    try:
        document = json.loads(path.read_bytes())
    except ValueError:
        raise Failure("BASE_MODEL", f"{name} is not JSON") from None
    if isinstance(document, dict) and document.get("auto_map"):
        raise Failure(
            "BASE_MODEL",
            f"{name} has 'auto_map': the model needs code from its repository, which is never run here; "
            "choose a model that transformers knows",
        )


def open_source(source: str, s3: Any, environment: Mapping[str, str]) -> Source:
    """The source that a reference names.

    Raises:
        Failure: BASE_MODEL where it names none.
    """
    if source.startswith("s3://"):
        return BucketSource(source, s3)
    scheme, _, reference = source.partition(":")
    repo, _, revision = reference.partition("@")
    if scheme != "hub" or not repo:
        raise Failure(
            "BASE_MODEL", f"{source!r} is neither hub:<repo>@<revision> nor s3://<bucket>/<prefix>/"
        )
    from tuner.hub import HubSource, hub_token  # noqa: PLC0415  # a copy from S3 needs no hub client

    return HubSource(repo, revision or "main", hub_token(environment))


class BucketSource:
    """A prefix that somebody filled with a transformers model folder."""

    revision: str | None = None
    licence: str | None = None

    def __init__(self, uri: str, s3: Any) -> None:
        self._s3 = s3
        self._bucket, self._prefix = split_s3_uri(uri if uri.endswith("/") else uri + "/")

    def files(self) -> Sequence[SourceFile]:
        return list(self._entries())

    def _entries(self) -> Iterator[SourceFile]:
        for key, size, etag in list_prefix(self._s3, self._bucket, self._prefix):
            yield SourceFile(key.removeprefix(self._prefix), size, etag)

    def fetch(self, file: SourceFile, folder: Path) -> Path:
        path = folder / file.name
        download(self._s3, self._bucket, self._prefix + file.name, path)
        return path


def _kept_digest(s3: Any, bucket: str, prefix: str, file: SourceFile) -> str | None:
    """The digest of a file that an earlier, broken-off copy brought over from the same content."""
    head = _head(s3, bucket, prefix + file.name)
    if head is None or head["ContentLength"] != file.size:
        return None
    metadata = head.get("Metadata", {})
    return metadata.get("sha256") if metadata.get("source") == file.fingerprint else None


def _head(s3: Any, bucket: str, key: str) -> Mapping[str, Any] | None:
    try:
        return dict(s3.head_object(Bucket=bucket, Key=key))
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in {"404", "NoSuchKey", "NotFound"}:
            return None
        raise Failure("BASE_MODEL", f"s3://{bucket}/{key} can't be read: {error}") from None


def _name_and_revision(prefix: str) -> tuple[str, str]:
    """`base-models/<name, which may hold a slash>/<40 hex>/` to (name, revision)."""
    parts = prefix.strip("/").split("/")
    if len(parts) < 3 or not COMMIT.fullmatch(parts[-1]):
        raise Failure("BASE_MODEL", f"the destination {prefix!r} is not base-models/<name>/<40 hex digits>/")
    return "/".join(parts[1:-1]), parts[-1]
