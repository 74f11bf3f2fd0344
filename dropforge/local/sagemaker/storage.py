"""S3 as a job sees it: prefixes to folders before it starts, folders to prefixes while it runs and when it ends."""

import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

from dropforge.local.sagemaker.errors import JobFailed
from dropforge_core.layout import split_s3_uri

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_log = logging.getLogger(__name__)

_FAULTS: Final = (Boto3Error, BotoCoreError, ClientError, OSError)
"""All that a transfer can raise; boto3's own transfer errors are no ClientErrors."""

CACHED_FROM_BYTES: Final = 1024 * 1024
"""Objects of this size and more are downloaded once and hard-linked into each job's folder."""


class Entry(NamedTuple):
    key: str
    size: int
    etag: str


class ObjectStore:
    """Downloads and uploads by URI. Large objects are kept in `cache`, at most `cache_bytes` of them."""

    def __init__(self, s3: "S3Client", cache: Path, cache_bytes: int = 8 * 2**30) -> None:
        self._s3, self._cache, self._cache_bytes = s3, cache, cache_bytes
        self._known: dict[Path, tuple[int, int]] = {}
        self._lock = threading.Lock()
        cache.mkdir(parents=True, exist_ok=True)

    def list(self, uri: str) -> Iterator[Entry]:
        """Objects under a prefix, in key order; folder markers are left out."""
        bucket, prefix = split_s3_uri(uri if "/" in uri[5:] else uri + "/")
        for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for found in page.get("Contents", []):
                if not found["Key"].endswith("/"):
                    yield Entry(found["Key"], found["Size"], found["ETag"])

    def download_prefix(self, uri: str, into: Path, *, shared: bool) -> int:
        """All objects under a prefix, with their folders. Returns the bytes.

        `shared` files may be hard links to the cache, read-only; the others are the job's own.

        Raises:
            JobFailed: ClientError, where there is none, it can't be read, or a key leaves the folder.
        """
        into.mkdir(parents=True, exist_ok=True)
        bucket, prefix = split_s3_uri(uri if "/" in uri[5:] else uri + "/")
        total = 0
        try:
            entries = list(self.list(uri))
            for entry in entries:
                target = into / relative_key(entry.key, prefix)
                if ".." in target.parts:
                    raise JobFailed.client(f"Data download failed: the key {entry.key!r} leaves its folder")
                self._download(bucket, entry, target, shared=shared)
                total += entry.size
        except _FAULTS as error:
            raise JobFailed.client(f"Data download failed: {uri}: {error}") from error
        if not entries:
            raise JobFailed.client(
                f'Data download failed: No S3 objects found under S3 URL "{uri}" given in input data source. '
                "Please ensure that the bucket exists and that objects exist under that S3 prefix."
            )
        return total

    def download(self, uri: str, target: Path) -> None:
        """One object.

        Raises:
            ClientError: where it is not there.
        """
        bucket, key = split_s3_uri(uri)
        head = self._s3.head_object(Bucket=bucket, Key=key)
        self._download(bucket, Entry(key, head["ContentLength"], head["ETag"]), target, shared=True)

    def upload(self, path: Path, uri: str) -> None:
        bucket, key = split_s3_uri(uri)
        self._s3.upload_file(str(path), bucket, key)

    def upload_folder(self, folder: Path, uri: str) -> None:
        for path in files_below(folder):
            self.upload(path, f"{uri.rstrip('/')}/{path.relative_to(folder).as_posix()}")

    def delete(self, uri: str) -> None:
        bucket, key = split_s3_uri(uri)
        self._s3.delete_object(Bucket=bucket, Key=key)

    def _download(self, bucket: str, entry: Entry, target: Path, *, shared: bool) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not shared or entry.size < CACHED_FROM_BYTES:
            self._s3.download_file(bucket, entry.key, str(target))
            return
        name = hashlib.sha256(
            "\0".join((bucket, entry.key, entry.etag, str(entry.size))).encode()
        ).hexdigest()
        kept = self._cache / name
        with self._lock:
            known = self._known.get(kept)
            if known is None or known != _identity(kept):
                # New, or a job wrote into its input, which is this very file.
                kept.unlink(missing_ok=True)
                self._make_room(entry.size)
                self._s3.download_file(bucket, entry.key, str(kept))
                kept.chmod(0o444)
                self._known[kept] = _identity(kept) or (0, 0)
            try:
                os.link(kept, target)
            except OSError:
                # Another file system, or one without hard links.
                shutil.copyfile(kept, target)

    def _make_room(self, size: int) -> None:
        kept = list(self._known)
        while kept and sum(known[0] for known in self._known.values()) + size > self._cache_bytes:
            oldest = kept.pop(0)
            oldest.unlink(missing_ok=True)
            del self._known[oldest]


class FolderMirror:
    """A folder whose changes and deletions follow into an S3 prefix every few seconds: one way, in no order.

    As with SageMaker, an upload may be cut at any byte and a rename is not atomic on the other side.
    """

    def __init__(self, store: ObjectStore, folder: Path, uri: str, every_s: float) -> None:
        self._store, self._folder, self._uri, self._every_s = store, folder, uri.rstrip("/") + "/", every_s
        self._seen: dict[str, tuple[int, int]] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"mirror-{folder.name}", daemon=True)

    def restore(self) -> int:
        """Bring back what the prefix has. Returns the number of files.

        Raises:
            JobFailed: ClientError, where the prefix can't be read.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            empty = next(self._store.list(self._uri), None) is None
        except _FAULTS as error:
            raise JobFailed.client(f"Checkpoint download failed: {self._uri}: {error}") from error
        if not empty:
            self._store.download_prefix(self._uri, self._folder, shared=False)
        self._seen = self._snapshot()
        return len(self._seen)

    def start(self) -> None:
        self._thread.start()

    def stop(self, *, final: bool) -> None:
        """End it; `final` copies once more what changed, a machine that was taken away can't."""
        self._stopped.set()
        self._thread.join()
        if final:
            self.sync()

    def sync(self) -> None:
        """Copy what changed since the last time. What can't be copied now is tried again the next time."""
        now = self._snapshot()
        for name, identity in now.items():
            if self._seen.get(name) == identity:
                continue
            try:
                self._store.upload(self._folder / name, self._uri + name)
                self._seen[name] = identity
            except _FAULTS as error:
                _log.debug("mirror of %s: %s", name, error)
        for name in self._seen.keys() - now.keys():
            try:
                self._store.delete(self._uri + name)
                del self._seen[name]
            except _FAULTS as error:
                _log.debug("mirror of %s: %s", name, error)

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            self.sync()

    def _snapshot(self) -> dict[str, tuple[int, int]]:
        found = {}
        for path in files_below(self._folder):
            identity = _identity(path)
            if identity:
                found[path.relative_to(self._folder).as_posix()] = identity
        return found


def files_below(folder: Path) -> list[Path]:
    """Regular files, sorted; links are not followed. Folders may vanish meanwhile, unlike for `Path.rglob`."""
    found = (Path(where, name) for where, _, names in os.walk(folder) for name in names)
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


def relative_key(key: str, prefix: str) -> str:
    """Where an object found under a prefix lies in the job's folder.

    A prefix is text, not a folder: `data/tr` finds `data/train.jsonl`, which is `train.jsonl` below it.
    """
    if key != prefix and (prefix.endswith("/") or key[len(prefix) :].startswith("/") or not prefix):
        return key[len(prefix) :].lstrip("/")
    return key[prefix.rfind("/") + 1 :]


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
