"""S3 as the image needs it: whole prefixes down, hashed objects up."""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from tuner.failure import Failure


def list_prefix(s3: Any, bucket: str, prefix: str) -> Iterator[tuple[str, int, str]]:
    """(key, bytes, ETag) of every object under a prefix.

    Raises:
        Failure: BASE_MODEL where the bucket refuses.
    """
    try:
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for entry in page.get("Contents", []):
                yield entry["Key"], int(entry["Size"]), str(entry["ETag"]).strip('"')
    except (ClientError, BotoCoreError) as error:
        raise Failure("BASE_MODEL", f"s3://{bucket}/{prefix} can't be listed: {error}") from None


def download(s3: Any, bucket: str, key: str, path: Path) -> None:
    """One object into a file.

    Raises:
        Failure: BASE_MODEL where it can't be had.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        s3.download_file(bucket, key, str(path))
    except (ClientError, BotoCoreError) as error:
        raise Failure("BASE_MODEL", f"s3://{bucket}/{key} can't be read: {error}") from None


def download_prefix(
    s3: Any, bucket: str, prefix: str, folder: Path, wanted: Callable[[str], bool] = lambda _: True
) -> None:
    """Every object under a prefix whose name below it is wanted, into a folder of the same names.

    Raises:
        Failure: BASE_MODEL where there is nothing, or a name would leave the folder.
    """
    count = 0
    for key, _, _ in list_prefix(s3, bucket, prefix):
        name = key.removeprefix(prefix)
        if not name or name.endswith("/"):
            continue
        count += 1
        if not wanted(name):
            continue
        if ".." in PurePosixPath(name).parts or name.startswith("/"):
            raise Failure("BASE_MODEL", f"s3://{bucket}/{prefix} holds a name that leaves its folder")
        download(s3, bucket, key, folder / name)
    if not count:
        raise Failure("BASE_MODEL", f"s3://{bucket}/{prefix} is empty; the base was never cached there")
