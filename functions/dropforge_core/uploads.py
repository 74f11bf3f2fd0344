"""What S3 tells about an upload, and how two events of one key are ordered."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import Field

from dropforge_core.identity import short_digest
from dropforge_core.model import Tolerant

AGAIN: Final = "dropforge-again"
"""User metadata (`x-amz-meta-dropforge-again: true`) that asks for a run although the content is known."""


class _Object(Tolerant):
    key: str
    """Raw, not URL-decoded."""
    size: int = 0
    etag: str = ""
    version_id: str = Field("null", alias="version-id")
    sequencer: str = ""

    @property
    def is_versioned(self) -> bool:
        """Whether the bucket keeps versions; a stack's does."""
        return self.version_id != "null"

    @property
    def version(self) -> str:
        """What tells this upload of the key from every other."""
        return self.version_id if self.is_versioned else self.etag


class _Bucket(Tolerant):
    name: str


class _Detail(Tolerant):
    bucket: _Bucket
    object: _Object
    requester: str = "unknown"


class ObjectCreated(Tolerant):
    """EventBridge's `Object Created` of source `aws.s3`. Comes at least once, late and in any order."""

    time: str
    """ISO 8601, UTC."""
    detail: _Detail

    @property
    def bucket(self) -> str:
        return self.detail.bucket.name

    @property
    def object(self) -> _Object:
        return self.detail.object


def is_older(sequencer: str, other: str) -> bool:
    """Whether an event comes before another one of the same key: hexadecimal, of any length."""
    width = max(len(sequencer), len(other))
    return sequencer.lower().rjust(width, "0") < other.lower().rjust(width, "0")


def wants_again(head: Mapping[str, Any]) -> bool:
    """Whether the uploader asked for another run of known content."""
    return str(head.get("Metadata", {}).get(AGAIN, "")).lower() == "true"


def version_of(head: Mapping[str, Any], is_versioned: bool) -> str:
    """What `version` is to an event, of the object that is there now (HeadObject)."""
    return str(head.get("VersionId") or "null") if is_versioned else str(head.get("ETag", "")).strip('"')


def upload_claim(bucket: str, key: str, version_id: str) -> str:
    """Name of the ledger's claim that one version of one object starts one run."""
    return f"UPLOAD#{short_digest(bucket, key, version_id)}"


def sequence_claim(bucket: str, key: str) -> str:
    """Name of the ledger's note of the newest event seen of a key."""
    return f"SEQUENCE#{short_digest(bucket, key)}"
