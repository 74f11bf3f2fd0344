"""State-change events in SageMaker's shapes, handed to EventBridge in the order in which things happened.

Each family writes times in its own way (as in AWS's samples): training as strings of epoch
milliseconds, transform as ISO 8601, processing as numbers of epoch milliseconds.
"""

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

_log = logging.getLogger(__name__)

Emit = Callable[[str, str, dict[str, Any]], None]
"""detail-type, ARN of the resource, detail."""

_TRAINING_MEMBERS: Final = (
    "TrainingJobName",
    "TrainingJobArn",
    "TrainingJobStatus",
    "SecondaryStatus",
    "FailureReason",
    "HyperParameters",
    "AlgorithmSpecification",
    "RoleArn",
    "InputDataConfig",
    "OutputDataConfig",
    "ModelArtifacts",
    "ResourceConfig",
    "VpcConfig",
    "StoppingCondition",
    "EnableManagedSpotTraining",
    "EnableNetworkIsolation",
    "CheckpointConfig",
    "Environment",
    "FinalMetricDataList",
    "CreationTime",
    "TrainingStartTime",
    "TrainingEndTime",
    "LastModifiedTime",
    "SecondaryStatusTransitions",
    "TrainingTimeInSeconds",
    "BillableTimeInSeconds",
)
_UPPER_CASE: Final = {"S3Prefix": "S3_PREFIX", "ManifestFile": "MANIFEST_FILE"}
_PROCESSING_ENUMS: Final = (
    "S3DataType",
    "S3InputMode",
    "S3DataDistributionType",
    "S3CompressionType",
    "S3UploadMode",
)


def training_detail(described: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, Any]:
    chosen = {name: described[name] for name in _TRAINING_MEMBERS if name in described}
    return {**_timed(chosen, lambda at: str(round(at * 1000))), "Tags": dict(tags)}


def transform_detail(described: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, Any]:
    return {**_timed(described, _iso), "Tags": dict(tags)}


def processing_detail(described: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, Any]:
    detail: dict[str, Any] = _shouted(_timed(described, lambda at: round(at * 1000)))
    return {**detail, "Tags": dict(tags)}


def package_detail(described: Mapping[str, Any], updated: tuple[str, ...]) -> dict[str, Any]:
    """`updated` are the members that an UpdateModelPackage changed."""
    detail: dict[str, Any] = _timed(described, _iso)
    return {**detail, "UpdatedModelPackageFields": list(updated)} if updated else detail


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _timed(value: Any, write: Callable[[float], Any]) -> Any:
    """A copy in which every member named `...Time` and `Timestamp` is written anew."""
    if isinstance(value, Mapping):
        return {
            name: write(item)
            if name.endswith(("Time", "Timestamp")) and isinstance(item, float)
            else _timed(item, write)
            for name, item in value.items()
        }
    return [_timed(item, write) for item in value] if isinstance(value, list) else value


def _shouted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            name: _UPPER_CASE.get(item, item.upper()) if name in _PROCESSING_ENUMS else _shouted(item)
            for name, item in value.items()
        }
    return [_shouted(item) for item in value] if isinstance(value, list) else value


class EventPublisher:
    """Delivers events one after the other, on a thread of its own: a slow or broken bus holds up no job."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._waiting: queue.SimpleQueue[tuple[str, str, dict[str, Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._deliver, name="sagemaker-events", daemon=True)
        self._thread.start()

    def publish(self, detail_type: str, arn: str, detail: dict[str, Any]) -> None:
        self._waiting.put((detail_type, arn, detail))

    def close(self) -> None:
        """Deliver what is waiting, for at most 5 seconds."""
        self._waiting.put(None)
        self._thread.join(timeout=5)

    def _deliver(self) -> None:
        while (event := self._waiting.get()) is not None:
            try:
                self._emit(*event)
            except Exception:  # noqa: BLE001  # whatever the bus does, the next event is still delivered
                _log.exception("event %s of %s is lost", event[0], event[1])
