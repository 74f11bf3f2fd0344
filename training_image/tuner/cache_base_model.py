"""Copy a base model once into the run bucket: safetensors and JSON only, hashed, the manifest last."""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Final, Protocol

import boto3
from botocore.exceptions import ClientError

from dropforge_core.contracts import BaseModelManifest
from dropforge_core.layout import split_s3_uri
from tuner.claim import CLAIM, Claim, Pace
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

TERMS: Final = re.compile(r"LICEN[CS]E|NOTICE|USE_POLICY", re.IGNORECASE)

COMMIT: Final = re.compile(r"[0-9a-f]{40}")

WORTH_QUANTISING: Final = 1_000_000_000
"""Bytes of weights; smaller ones are loaded in seconds as they are."""


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
    terms: Mapping[str, str]

    def files(self) -> Sequence[SourceFile]:
        """What there is, at one revision."""

    def fetch(self, file: SourceFile, folder: Path) -> Path:
        """One file into a folder."""


def cache_base_model(  # noqa: PLR0913, PLR0917  # three are for tests alone
    source: str,
    destination: str,
    stop: StopRequest,
    say: Say,
    environment: Mapping[str, str] = os.environ,
    pace: Pace = Pace(),  # noqa: B008  # frozen
    quantise_from: int = WORTH_QUANTISING,
) -> BaseModelManifest:
    """Copy the source; what a broken-off copy left and still matches is not copied again.

    Where another job is copying to the same place, this one waits for it.

    Args:
        source: `hub:<repo>@<revision>` or `s3://<bucket>/<prefix>/`.
        destination: `s3://<bucket>/base-models/<name>/<revision>/`.
        stop: asked between files.
        say: prints a line.
        environment: `HUB_TOKEN_SECRET_ARN` is read from it.
        pace: of waiting for another job.
        quantise_from: bytes of weights from which on a quantised copy is kept beside the original.

    Raises:
        Failure: BASE_MODEL, saying what was found and what to do.
        Stopped: between files; a later call goes on from there.
    """
    s3 = boto3.client("s3")
    place = Place(s3, *split_s3_uri(destination if destination.endswith("/") else destination + "/"))
    if (cached := place.whole(source)) is not None and _names_a_commit(source):
        say("phase=cached_already")
        return cached
    found = open_source(source, s3, environment)
    files = wanted_files(found.files())

    def is_done() -> bool:
        manifest = place.whole(source)
        return manifest is not None and set(manifest.files) == {file.name for file in files}

    with Claim(s3, place.bucket, place.prefix + CLAIM, pace).held(is_done, stop, say) as mine:
        if mine:
            return copy_all(source, found, files, place, stop, say, quantise_from)
    say("phase=cached_already")
    return read_manifest(place.read(MANIFEST))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a copy lies or will lie."""

    s3: Any
    bucket: str
    prefix: str

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """An object's bytes, or `length` of them from `start`."""
        part = {} if length is None else {"Range": f"bytes={start}-{start + length - 1}"}
        body: bytes = self.s3.get_object(Bucket=self.bucket, Key=self.prefix + name, **part)["Body"].read()
        return body

    def head(self, name: str) -> Mapping[str, Any] | None:
        """What the bucket says of an object; None where there is none.

        Raises:
            Failure: BASE_MODEL where the bucket refuses.
        """
        return _head(self.s3, self.bucket, self.prefix + name)

    def whole(self, source: str) -> BaseModelManifest | None:
        """The manifest of a whole copy of that source, where there is one."""
        if self.head(MANIFEST) is None:
            return None
        manifest = read_manifest(self.read(MANIFEST))
        return manifest if manifest.source == source else None


def _names_a_commit(source: str) -> bool:
    """Then its content can't change, and neither the hub nor a token is needed to know that it is there."""
    return source.startswith("hub:") and bool(COMMIT.fullmatch(source.rpartition("@")[2]))


def copy_all(  # noqa: PLR0913, PLR0917  # what is copied, where to, and the process's two ears
    source: str,
    found: Source,
    files: Sequence[SourceFile],
    place: Place,
    stop: StopRequest,
    say: Say,
    quantise_from: int,
) -> BaseModelManifest:
    """Every file that is not there yet, the quantised copy where it is worth one, the shape, and the manifest.

    Raises:
        Failure: BASE_MODEL.
        Stopped: between files.
    """
    digests: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="dropforge-") as scratch:
        for number, file in enumerate(files, start=1):
            stop.check()
            digests[file.name] = bring(file, found, place, Path(scratch))
            say(f"file={file.name} bytes={file.size} files={number}/{len(files)}")
        if sum(file.size for file in files if file.name.endswith(".safetensors")) >= quantise_from:
            from tuner.quantised_copy import write_quantised_copy  # noqa: PLC0415  # ten seconds: it needs torch

            write_quantised_copy(place, digests, Path(scratch), stop, say)
        from tuner.model_shape import write_counted_shape  # noqa: PLC0415  # ten seconds: it needs torch

        write_counted_shape(place, Path(scratch), say)
    name, folder = _name_and_revision(place.prefix)
    texts = ", ".join(sorted(file.name for file in files if TERMS.match(file.name)))
    manifest = BaseModelManifest(
        name=name,
        revision=found.revision or folder,
        source=source,
        files=digests,
        bytes=sum(file.size for file in files),
        licence=found.licence,
        terms={**found.terms, **({"files": texts} if texts else {})},
    )
    place.s3.put_object(
        Bucket=place.bucket, Key=place.prefix + MANIFEST, Body=manifest.model_dump_json().encode()
    )
    say(f"phase=cached licence={found.licence or 'not told by the source'}")
    return manifest


def bring(file: SourceFile, found: Source, place: Place, scratch: Path) -> str:
    """One file into its place, unless an earlier copy brought the same content; answers its sha256."""
    kept = _kept_digest(place.s3, place.bucket, place.prefix, file)
    if kept is not None:
        return kept
    path = found.fetch(file, scratch)
    refuse_code(file.name, path)
    digest = file_digest(path)
    place.s3.upload_file(
        str(path),
        place.bucket,
        place.prefix + file.name,
        ExtraArgs={"Metadata": {"sha256": digest, "source": file.fingerprint}},
    )
    path.unlink()
    return digest


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
    terms: Mapping[str, str] = MappingProxyType({})

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
