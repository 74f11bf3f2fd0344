"""Upload a dataset as a person would, only in parallel, with checksums, and the marker last."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from boto3.s3.transfer import TransferConfig

from dropforge.cli.console import CommandFailed
from dropforge_core import aws
from dropforge_core.identity import (
    DATA_SUFFIXES,
    DATASETS,
    READY_MARKER,
    RECIPE_NAME,
    KeyRefused,
    parse_dataset_key,
)
from dropforge_core.model import Frozen
from dropforge_core.uploads import AGAIN

PARALLEL_FILES: Final = 4
_READ: Final = 1 << 20


class Item(Frozen):
    """One object to upload."""

    path: Path
    key: str
    size: int
    """Bytes."""


class UploadPlan(Frozen):
    """What goes where. `marker` is written when everything else is there."""

    items: tuple[Item, ...]
    marker: str | None
    version: str | None

    @property
    def bytes(self) -> int:
        return sum(item.size for item in self.items)

    @property
    def starter(self) -> str:
        """The key whose arrival starts the run."""
        return self.marker or self.items[0].key


class Pushed(Frozen):
    """What was uploaded; `version_ids` pins it."""

    bucket: str
    model: str
    version: str | None
    keys: tuple[str, ...]
    version_ids: tuple[str, ...]
    bytes: int


def data_files(path: Path) -> list[Path]:
    """The data files of a file or folder, sorted by name.

    Raises:
        CommandFailed: when there is none, or one can't be read.
    """
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = sorted(child for child in path.iterdir() if child.is_file() and _is_data(child.name))
        if not found:
            raise CommandFailed(
                f"{path} holds no data file. Expected names that end in {', '.join(DATA_SUFFIXES)}."
            )
    else:
        raise CommandFailed(f"{path} is not there.")
    if not all(_is_data(one.name) for one in found):
        raise CommandFailed(
            f"{path.name} is no data file. Expected a name that ends in {', '.join(DATA_SUFFIXES)}."
        )
    return found


def _is_data(name: str) -> bool:
    return name.lower().endswith(DATA_SUFFIXES)


def recipe_of(path: Path, given: Path | None) -> Path | None:
    """The recipe that goes with a dataset: the one that was named, else the folder's own."""
    if given is not None:
        if not given.is_file():
            raise CommandFailed(f"The recipe {given} is not there.")
        return given
    own = path / RECIPE_NAME
    return own if path.is_dir() and own.is_file() else None


def plan_upload(path: Path, model: str, version: str | None, recipe: Path | None) -> UploadPlan:
    """Which file becomes which object.

    A single file without a recipe lies directly under the model and starts the run itself. Everything else
    is a version folder: its files, its recipe, and `_READY` at the end. Where no version is named it is
    called after its content, so that the same folder pushed twice is the same version.

    Raises:
        CommandFailed: when a name can't be a key.
    """
    files = data_files(path)
    if path.is_file() and recipe is None and version is None:
        plan = UploadPlan(
            items=(_item(files[0], f"{DATASETS}{model}/{files[0].name}"),), marker=None, version=None
        )
    else:
        named = version or _content_name([*files, *([recipe] if recipe else [])])
        folder = f"{DATASETS}{model}/{named}/"
        items = [_item(file, folder + file.name) for file in files]
        if recipe:
            items.append(_item(recipe, folder + RECIPE_NAME))
        plan = UploadPlan(items=tuple(items), marker=folder + READY_MARKER, version=named)
    try:
        for key in (*(item.key for item in plan.items), plan.starter):
            parse_dataset_key(key)
    except KeyRefused as refused:
        raise CommandFailed(str(refused)) from refused
    return plan


def _item(path: Path, key: str) -> Item:
    return Item(path=path, key=key, size=path.stat().st_size)


def _content_name(files: Sequence[Path]) -> str:
    whole = hashlib.sha256()
    for file in files:
        part = hashlib.sha256()
        with file.open("rb") as stream:
            while chunk := stream.read(_READ):
                part.update(chunk)
        whole.update(f"{file.name}\0{part.hexdigest()}\n".encode())
    return f"v-{whole.hexdigest()[:12]}"


def upload(
    plan: UploadPlan,
    bucket: str,
    *,
    model: str,
    again: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Pushed:
    """Upload the plan. S3 verifies every part's SHA-256; the marker follows when all the rest has arrived.

    Args:
        plan: what goes where.
        bucket: the dataset bucket.
        model: whose dataset it is.
        again: train even where the same content was trained before.
        progress: called with bytes as they go, from several threads.
    """
    s3: Any = aws.client("s3")
    flag = {"Metadata": {AGAIN: "true"}} if again else {}

    def send(item: Item) -> str:
        starts = plan.marker is None
        s3.upload_file(
            str(item.path),
            bucket,
            item.key,
            ExtraArgs={"ChecksumAlgorithm": "SHA256", **(flag if starts else {})},
            Callback=progress,
            Config=TransferConfig(max_concurrency=4),
        )
        return str(s3.head_object(Bucket=bucket, Key=item.key).get("VersionId", ""))

    with ThreadPoolExecutor(PARALLEL_FILES) as pool:
        version_ids = list(pool.map(send, plan.items))
    if plan.marker:
        s3.put_object(Bucket=bucket, Key=plan.marker, Body=b"", **flag)
    return Pushed(
        bucket=bucket,
        model=model,
        version=plan.version,
        keys=tuple(item.key for item in plan.items) + ((plan.marker,) if plan.marker else ()),
        version_ids=tuple(version_ids),
        bytes=plan.bytes,
    )
