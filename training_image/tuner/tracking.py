"""Where else metrics go: TensorBoard's event files, and an MLflow server. Neither can change a run's outcome.

Both are spoken directly. An event file is a sequence of length-prefixed protocol buffers of five fields, and
MLflow's interface is five requests: their libraries would bring a hundred megabytes into the image.
"""

import os
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, Protocol

import httpx

from dropforge_core.recipe import Tracking
from tuner.contract import Container, Say, TrainingJob

TIMEOUT_S: Final = 5.0
BATCH: Final = 50
"""Metrics that wait for one request to MLflow, which takes at most 1,000."""
NO_ANSWER: Final = (
    *(httpx.HTTPError, httpx.InvalidURL),
    *(ValueError, LookupError, TypeError, AttributeError),
)
"""Nobody answers, or something does that is no MLflow: then it speaks of other things, or in another form."""


Ended = Literal["FINISHED", "SCHEDULED", "FAILED"]
"""MLflow's words; a stopped attempt is scheduled again under the same run."""


class Tracker(Protocol):
    """Somebody who is told metrics."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Numbers at a step."""

    def close(self, status: Ended) -> None:
        """Nothing follows in this attempt."""


def open_trackers(job: TrainingJob, container: Container, say: Say) -> list[Tracker]:
    """The trackers that the recipe asks for."""
    asked: Tracking = job.recipe.tracking
    trackers: list[Tracker] = []
    if asked.tensorboard:
        folder = container.output_data / "tensorboard"
        trackers.append(EventFile(folder, job.hyperparameters.attempt, say))
    if asked.mlflow_uri is not None:
        trackers.append(MlflowRun(asked, job, say))
    return trackers


# --- TensorBoard ------------------------------------------------------------------------------------


class EventFile:
    """`events.out.tfevents.*`: TFRecord framing around `tensorflow.Event` messages (event.proto).

    A disk that takes no more is told once in the log, and nothing is written from then on.
    """

    def __init__(self, folder: Path, attempt: int, say: Say, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._say = say
        self._stream: BinaryIO | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._stream = (folder / f"events.out.tfevents.{attempt:010d}.dropforge").open("wb", buffering=0)
        except OSError as error:
            self._give_up(error)
            return
        say(f"tracking=tensorboard folder={folder}")
        self._write(_text(3, b"brain.Event:2"))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        values = b"".join(
            _text(1, _text(1, name.encode()) + _key(2, 5) + struct.pack("<f", value))
            for name, value in metrics.items()
        )
        self._write(_key(2, 0) + _varint(step) + _text(5, values))

    def close(self, status: Ended) -> None:
        del status
        if self._stream is not None:
            self._stream.close()

    def _write(self, event: bytes) -> None:
        if self._stream is None:
            return
        body = _key(1, 1) + struct.pack("<d", self._wall()) + event
        length = struct.pack("<Q", len(body))
        try:
            self._stream.write(length + _masked(length) + body + _masked(body))
        except OSError as error:
            self._stream.close()
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._stream = None
        self._say(f"tracking=tensorboard gave up: {error.strerror}; training goes on without it")


def _key(field: int, wire: int) -> bytes:
    return _varint(field << 3 | wire)


def _text(field: int, content: bytes) -> bytes:
    return _key(field, 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _table() -> tuple[int, ...]:
    rows = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        rows.append(value)
    return tuple(rows)


_CRC: Final = _table()


def crc32c(data: bytes) -> int:
    """Castagnoli's checksum (RFC 3720, appendix B.4)."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _CRC[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def _masked(data: bytes) -> bytes:
    """Rotated and shifted, as TFRecord asks, so that checksums of checksums don't collide."""
    value = crc32c(data)
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


# --- MLflow -----------------------------------------------------------------------------------------


class MlflowRun:
    """One run of an MLflow experiment, found again by its tag when an attempt resumes.

    A server that does not answer is told once in the log and not asked again. A token is read from
    `MLFLOW_TRACKING_TOKEN`, never from the recipe.
    """

    def __init__(self, asked: Tracking, job: TrainingJob, say: Say) -> None:
        token = os.environ.get("MLFLOW_TRACKING_TOKEN")
        self._client = httpx.Client(
            timeout=TIMEOUT_S, headers={"Authorization": f"Bearer {token}"} if token else {}
        )
        self._say = say
        self._waiting: list[dict[str, Any]] = []
        self._run = ""
        try:
            self._client.base_url = httpx.URL(f"{asked.mlflow_uri}/api/2.0/mlflow/")
            self._run = self._open(asked.mlflow_experiment, job)
        except NO_ANSWER as error:
            self._give_up(error)
        else:
            say(f"tracking=mlflow run={self._run}")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if not self._run:
            return
        now = int(time.time() * 1000)
        self._waiting += [
            {"key": name, "value": value, "timestamp": now, "step": step} for name, value in metrics.items()
        ]
        if len(self._waiting) >= BATCH:
            self._flush()

    def close(self, status: Ended) -> None:
        if self._run:
            self._flush()
        if self._run:
            with suppress(*NO_ANSWER):
                self._post("runs/update", {"run_id": self._run, "status": status})
        self._client.close()

    def _open(self, experiment: str, job: TrainingJob) -> str:
        found = self._client.get("experiments/get-by-name", params={"experiment_name": experiment})
        if found.status_code == httpx.codes.NOT_FOUND:
            number = self._post("experiments/create", {"name": experiment})["experiment_id"]
        else:
            number = found.raise_for_status().json()["experiment"]["experiment_id"]
        config = job.config
        same = self._post(
            "runs/search",
            {"experiment_ids": [number], "filter": f"tags.`dropforge.run_id` = '{config.run_id}'"},
        ).get("runs", [])
        if same:
            return str(same[0]["info"]["run_id"])
        tags = {
            "dropforge.run_id": config.run_id,
            "dropforge.recipe_digest": config.recipe_digest,
            "dropforge.dataset_digest": config.dataset_digest,
            "dropforge.base_model": f"{config.base_model_name}@{config.base_model_revision}",
        }
        made = self._post(
            "runs/create",
            {
                "experiment_id": number,
                "run_name": f"{config.model}-{config.run_id}",
                "start_time": int(time.time() * 1000),
                "tags": [{"key": key, "value": value} for key, value in tags.items()],
            },
        )
        run = str(made["run"]["info"]["run_id"])
        training = job.recipe.training.model_dump(mode="json") | job.recipe.adapter.model_dump(mode="json")
        params = [{"key": key, "value": str(value)} for key, value in training.items()]
        self._post("runs/log-batch", {"run_id": run, "params": params})
        return run

    def _flush(self) -> None:
        metrics, self._waiting = self._waiting, []
        try:
            self._post("runs/log-batch", {"run_id": self._run, "metrics": metrics})
        except NO_ANSWER as error:
            self._give_up(error)

    def _post(self, path: str, document: Mapping[str, Any]) -> Mapping[str, Any]:
        answer: dict[str, Any] = self._client.post(path, json=document).raise_for_status().json()
        return answer

    def _give_up(self, error: Exception) -> None:
        self._run = ""
        self._say(f"tracking=mlflow gave up: {type(error).__name__}; training goes on without it")


def replay(trackers: Sequence[Tracker], curves: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """Tell what earlier attempts measured, so that an attempt's event file is whole by itself."""
    points: dict[int, dict[str, float]] = {}
    for name, curve in curves.items():
        for step, value in curve:
            points.setdefault(step, {})[name] = value
    for tracker in trackers:
        if isinstance(tracker, EventFile):
            for step in sorted(points):
                tracker.log(step, points[step])
