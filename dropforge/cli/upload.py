"""Upload a dataset as a person would, only in parallel, with checksums, and the marker last."""

import hashlib
import io
import select
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, cast

import boto3
from boto3.s3.transfer import TransferConfig, create_transfer_manager
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from s3transfer.manager import TransferManager
from s3transfer.subscribers import BaseSubscriber
from s3transfer.utils import OSUtils

from dropforge.cli.console import CommandFailed
from dropforge.cli.files import STDIN, DataFiles
from dropforge.cli.interrupt import interruptible
from dropforge_core import aws
from dropforge_core.identity import DATASETS, READY_MARKER, RECIPE_NAME, KeyRefused, parse_dataset_key
from dropforge_core.model import Frozen
from dropforge_core.uploads import AGAIN

PARALLEL: Final = 8
"""Requests at a time, over all files."""
PART_BYTES: Final = 16 << 20
"""Size of a part. S3 takes 10,000 parts an object, so that standard input may bring 167 GB; of files, whose
size is known, parts grow as needed."""
PARTS_IN_MEMORY: Final = 4
"""Parts of standard input that are held at a time: a stream can't be read twice."""
_READ: Final = 1 << 20
_GRACE_S: Final = 0.25
"""How long the end of standard input is mistrusted. ^C ends all programs of a pipe, and the first one's end
must not look like the end of the data."""

Progress = Callable[[int], None]


class Item(Frozen):
    """One object to upload."""

    path: Path
    """`STDIN` for standard input."""
    key: str
    size: int | None
    """Bytes; None where that is known at the end only."""


class UploadPlan(Frozen):
    """What goes where. `marker` is written when everything else is there."""

    items: tuple[Item, ...]
    marker: str | None
    version: str | None

    @property
    def bytes(self) -> int | None:
        sizes = [item.size for item in self.items if item.size is not None]
        return sum(sizes) if len(sizes) == len(self.items) else None

    @property
    def starter(self) -> str:
        """The key whose arrival starts the run."""
        return self.marker or self.items[0].key

    @property
    def folder(self) -> str | None:
        """The version's prefix with its final slash; None where one object is the dataset."""
        return self.marker.removesuffix(READY_MARKER) if self.marker else None


class Pushed(Frozen):
    """What was uploaded; `version_ids` pins it."""

    bucket: str
    model: str
    version: str | None
    keys: tuple[str, ...]
    version_ids: tuple[str, ...]
    bytes: int
    uri: str
    """The object whose arrival starts the run."""
    removed: tuple[str, ...] = ()
    """Keys of the version that were there before and are not part of it any more."""
    left_out: tuple[str, ...] = ()
    """Names beside the data that were not uploaded."""


class Interrupted(Exception):
    """The upload was told to stop while it waited for standard input."""


def plan_upload(
    found: DataFiles, model: str, version: str | None, progress: Progress | None = None
) -> UploadPlan:
    """Which file becomes which object.

    A single file without a recipe lies directly under the model and starts the run itself. Everything else
    is a version folder: its files, its recipe, and `_READY` at the end. Where no version is named it is
    called after its content, so that the same folder pushed twice is the same version.

    Args:
        found: the dataset's files.
        model: whose dataset it is.
        version: the version's name, or None.
        progress: called with bytes as the content is read for the version's name.

    Raises:
        CommandFailed: when a file is empty or can't be read, or a name can't be a key.
    """
    for file in found.files:
        if file.size == 0:
            raise CommandFailed(f"{file.path} is empty. Nothing was uploaded.")
    if found.is_one_file and found.recipe is None and version is None:
        only = found.files[0]
        item = Item(path=only.path, key=f"{DATASETS}{model}/{only.name}", size=only.size)
        plan = UploadPlan(items=(item,), marker=None, version=None)
    else:
        named = version or _content_name(found, progress or (lambda _: None))
        folder = f"{DATASETS}{model}/{named}/"
        items = [Item(path=file.path, key=folder + file.name, size=file.size) for file in found.files]
        if found.recipe:
            size = found.recipe.stat().st_size
            items.append(Item(path=found.recipe, key=folder + RECIPE_NAME, size=size))
        plan = UploadPlan(items=tuple(items), marker=folder + READY_MARKER, version=named)
    try:
        for key in (*(item.key for item in plan.items), plan.starter):
            parse_dataset_key(key)
    except KeyRefused as refused:
        raise CommandFailed(str(refused)) from refused
    return plan


def _content_name(found: DataFiles, progress: Progress) -> str:
    if found.has_stdin:
        raise CommandFailed("Standard input can't be named by its content. Name the version with --version.")
    whole = hashlib.sha256()
    named = [(file.name, file.path) for file in found.files]
    for name, path in [*named, *([(RECIPE_NAME, found.recipe)] if found.recipe else [])]:
        part = hashlib.sha256()
        with _told(path), path.open("rb") as stream:
            while chunk := stream.read(_READ):
                part.update(chunk)
                progress(len(chunk))
        whole.update(f"{name}\0{part.hexdigest()}\n".encode())
    return f"v-{whole.hexdigest()[:12]}"


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """A file that can't be read as a sentence."""
    try:
        yield
    except BotoCoreError as error:
        # Some of them are OSErrors too. What went wrong while a body was read is what they came from.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, CommandFailed):
            cause = cause.__cause__ or cause.__context__
        raise cause or error from None
    except OSError as error:
        raise CommandFailed(f"{path} can't be read: {error.strerror or error}.") from error


def make_room(plan: UploadPlan, bucket: str, *, replace: bool, add: bool) -> tuple[str, ...]:
    """Make the version ready for these files: no marker, and no file of an earlier upload that nobody meant.

    Args:
        plan: what will be uploaded.
        bucket: the dataset bucket.
        replace: delete the version's other files.
        add: keep them; the dataset is both.

    Returns:
        The keys that were deleted, the marker not among them.

    Raises:
        CommandFailed: when there are other files, and neither `replace` nor `add` says what to do.
        ClientError: when the bucket can't be listed, or its objects can't be deleted.
    """
    if plan.folder is None:
        return ()
    there = [str(entry["Key"]) for entry in aws.Bucket(bucket).list(plan.folder)]
    others = sorted(set(there) - {item.key for item in plan.items} - {plan.marker})
    if others and not (replace or add):
        names = ", ".join(key.rsplit("/", 1)[-1] for key in others[:5])
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        raise CommandFailed(
            f"The version {plan.version} holds other files already: {names}{more}. The run would train on them "
            "too. --replace deletes them, --add keeps them, another --version leaves that one as it is. "
            "Nothing was uploaded."
        )
    gone = tuple(others) if replace else ()
    # The old marker first: with it there, a run could start when the first file arrives.
    for key in (*(key for key in there if key == plan.marker), *gone):
        aws.client("s3").delete_object(Bucket=bucket, Key=key)
    return gone


def upload(
    plan: UploadPlan,
    bucket: str,
    *,
    model: str,
    again: bool = False,
    progress: Progress = lambda _: None,
) -> Pushed:
    """Upload the plan. S3 verifies every part's SHA-256; the marker follows when all the rest has arrived.

    Interrupted or failed, it leaves no marker and no unfinished object, so that nothing starts.

    Args:
        plan: what goes where.
        bucket: the dataset bucket.
        model: whose dataset it is.
        again: train even where the same content was trained before.
        progress: called with bytes as they go, from several threads; negative where a request is repeated.

    Raises:
        CommandFailed: when a file can't be read, or was changed on the way.
        ClientError, BotoCoreError: when S3 refuses or can't be reached.
    """
    flag = {"Metadata": {AGAIN: "true"}} if again else {}
    before = [_state(item.path) for item in plan.items]
    source = _Stream(sys.stdin.buffer)
    extra = {"ChecksumAlgorithm": "SHA256", **(flag if plan.marker is None else {})}
    with interruptible(), _manager() as manager:
        try:
            futures = [
                manager.upload(
                    cast("IO[bytes]", source) if item.path == STDIN else str(item.path),
                    bucket,
                    item.key,
                    extra_args=extra,
                    subscribers=[_Subscriber(progress)],
                )
                for item in plan.items
            ]
            for item, future in zip(plan.items, futures, strict=True):
                with _told(item.path):
                    future.result()
        except BaseException:
            source.stop()
            raise
    sent = [source.bytes if item.size is None else item.size for item in plan.items]
    version_ids = [
        _arrived(bucket, item, size, state)
        for item, size, state in zip(plan.items, sent, before, strict=True)
    ]
    if plan.marker:
        aws.client("s3").put_object(Bucket=bucket, Key=plan.marker, Body=b"", **flag)
    return Pushed(
        bucket=bucket,
        model=model,
        version=plan.version,
        keys=tuple(item.key for item in plan.items) + ((plan.marker,) if plan.marker else ()),
        version_ids=tuple(version_ids),
        bytes=sum(sent),
        uri=f"s3://{bucket}/{plan.starter}",
    )


def _manager() -> TransferManager:
    # Every part has its checksum in a signed header; to sign the body as well would read all of it twice.
    s3 = boto3.client(
        "s3",
        config=Config(
            retries={"mode": "adaptive", "max_attempts": 6},
            s3={"payload_signing_enabled": False},
            max_pool_connections=PARALLEL,
        ),
    )
    # The other client of boto3 (CRT) knows no SHA-256 of a stream, and is chosen by what happens to be installed.
    config = TransferConfig(
        max_concurrency=PARALLEL,
        multipart_threshold=PART_BYTES,
        multipart_chunksize=PART_BYTES,
        preferred_transfer_client="classic",
    )
    config.max_in_memory_upload_chunks = PARTS_IN_MEMORY
    manager: TransferManager = create_transfer_manager(s3, config, osutil=_Files())
    return manager


class _Files(OSUtils):
    """Files as s3transfer opens them; one that became shorter is told, where S3 would wait for the rest."""

    def open(self, filename: str, mode: str) -> Any:
        return _Whole(filename, mode)


class _Whole(io.FileIO):
    def read(self, size: int | None = -1) -> bytes:
        data = super().read(-1 if size is None else size) or b""
        if size is not None and len(data) < size:
            raise CommandFailed(_changed(self.name))
        return data


def _changed(path: object) -> str:
    return f"{path} was changed while it was uploaded. Push again when it stays as it is."


def _state(path: Path) -> tuple[int, int] | None:
    if path == STDIN:
        return None
    with _told(path):
        found = path.stat()
    return found.st_size, found.st_mtime_ns


def _arrived(bucket: str, item: Item, size: int, before: tuple[int, int] | None) -> str:
    """The version of an object that arrived whole, of a file that stayed what it was."""
    head: Mapping[str, Any] = aws.client("s3").head_object(Bucket=bucket, Key=item.key)
    if _state(item.path) != before:
        started = "" if item.key.count("/") > 2 else " The run that has started reads what was sent."
        raise CommandFailed(_changed(item.path) + started)
    if head["ContentLength"] != size:
        raise CommandFailed(
            f"{item.key} has {head['ContentLength']:,} bytes and should have {size:,}: somebody else is uploading it too."
        )
    return str(head.get("VersionId", ""))


class _Subscriber(BaseSubscriber):
    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_progress(self, future: Any, bytes_transferred: int, **_: Any) -> None:  # noqa: ARG002  # s3transfer's signature
        self._progress(bytes_transferred)


class _Stream:
    """Standard input, counted, whose end is not believed while somebody presses ^C."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._stopped = threading.Event()
        self.bytes = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, or all; fewer at the end only.

        Raises:
            Interrupted: when `stop` was called.
            CommandFailed: when there is nothing at all.
        """
        parts: list[bytes] = []
        missing = size if size >= 0 else sys.maxsize
        while missing and (piece := self._piece(min(missing, _READ))):
            parts.append(piece)
            missing -= len(piece)
        self.bytes += sum(map(len, parts))
        if not self.bytes:
            raise CommandFailed("Standard input is empty. Nothing was uploaded.")
        return b"".join(parts)

    def stop(self) -> None:
        """Make the next piece, and the end, an error."""
        self._stopped.set()

    def _piece(self, size: int) -> bytes:
        if sys.platform != "win32":
            # A read that waits for another program could not be interrupted; Windows can't wait for pipes.
            while not select.select([self._source], [], [], _GRACE_S)[0]:
                if self._stopped.is_set():
                    raise Interrupted
        piece = self._source.read1(size)  # type: ignore[attr-defined]  # of every buffered reader
        if not piece and self._stopped.wait(_GRACE_S):
            raise Interrupted
        return bytes(piece)
