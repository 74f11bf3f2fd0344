"""Everything that a run left in its bucket, read for whoever tells of it: the report, and a tracking server."""

import hashlib
from collections.abc import Iterable
from itertools import chain

from dropforge_core.aws import Bucket, ObjectVanished
from dropforge_core.contracts import ReportInput
from dropforge_core.layout import RunLayout
from dropforge_core.report import RunDocuments, collect


def gather(bucket: Bucket, order: ReportInput, ledger_message: str) -> RunDocuments:
    """Read what the run left; whatever is not there stays None."""
    at = RunLayout(run_id=order.run_id)
    gate = _read(bucket, at.gate)
    about = {
        "run_id": order.run_id,
        "model": order.model,
        "status": order.status,
        "message": order.message or ledger_message,
        "package_arn": order.package_arn,
        "bucket": bucket.name,
        "gate_sha256": hashlib.sha256(gate).hexdigest() if gate else "",
    }
    listed = (str(entry["Key"]) for entry in bucket.list(at.training_output))
    return collect(about, lambda key: _read(bucket, key), lambda key: _stream(bucket, key), listed)


def _read(bucket: Bucket, key: str) -> bytes | None:
    try:
        return bucket.read(key)
    except ObjectVanished:
        return None


def _stream(bucket: Bucket, key: str) -> Iterable[bytes] | None:
    """The object's chunks, or None where there is none; nothing is read before the first chunk is taken."""
    chunks = bucket.stream(key)
    try:
        first = next(chunks, b"")
    except ObjectVanished:
        return None
    return chain((first,), chunks)
