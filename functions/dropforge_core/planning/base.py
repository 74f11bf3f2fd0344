"""Which base model, exactly: its name, its 40-hex revision, and where its copy lies."""

import hashlib
import re
from collections.abc import Iterable
from typing import Final

from dropforge_core.model import Frozen

COMMIT: Final = re.compile(r"[0-9a-f]{40}")


class BaseSource(Frozen):
    """A base model whose revision is settled."""

    name: str
    source: str
    """`hub:<repo>@<40 hex>` or `s3://bucket/prefix/`."""
    prefix: str
    """Key prefix of the copy in the run bucket, with final slash."""
    cached: bool
    """The copy is there and whole."""


def source_revision(listing: Iterable[tuple[str, int, str]]) -> str:
    """40 hex digits that change with the content of an S3 prefix.

    `listing` holds (key relative to the prefix, size in bytes, ETag) of every object; order does not matter.

    Raises:
        ValueError: when there is no object.
    """
    hasher = hashlib.sha256()
    empty = True
    for key, size, etag in sorted(listing):
        hasher.update(f"{key}\0{size}\0{etag.strip(chr(34))}\n".encode())
        empty = False
    if empty:
        raise ValueError("there is no object under the prefix")
    return hasher.hexdigest()[:40]
