"""Everything that a run left in its bucket, each part optional."""

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from dropforge_core.contracts import (
    BaseModelManifest,
    DatasetManifest,
    EvaluationSetup,
    Plan,
    RunRequest,
    ValidationReport,
)
from dropforge_core.gate.documents import GateReport, MetricsReport
from dropforge_core.gate.examples import ExampleAnswers
from dropforge_core.layout import RunLayout, split_s3_uri
from dropforge_core.model import Frozen, Tolerant
from dropforge_core.recipe import Recipe

SUMMARY: Final = "training_summary.json"
SUMMARY_AT_MOST: Final = 16 << 20
"""Bytes of a summary that are read; an archive may claim any size."""

Document = TypeVar("Document", bound=BaseModel)
Read = Callable[[str], bytes | None]
"""Key in the run bucket to its content, or None where there is none."""
Stream = Callable[[str], Iterable[bytes] | None]


class TrainingSummary(Tolerant):
    """`training_summary.json` in the artifact."""

    steps: int
    epochs: float
    tokens: int
    seconds: float
    tokens_per_s: float = 0.0
    peak_memory_gib: float = 0.0
    best_step: int = 0
    best_eval_loss: float | None = None
    first_eval_loss: float | None = None
    loss_curve: tuple[tuple[int, float], ...] = ()
    eval_curve: tuple[tuple[int, float], ...] = ()
    stopped_by: str = "end"
    device: str = "unknown"
    """On which it trained: `cuda` or `cpu`."""


class JobFacts(Frozen):
    """What the service measured of a job, where it still knows it."""

    name: str
    kind: str
    """`caching`, `training` or `evaluation`."""
    instance_type: str
    instances: int = 1
    billable_s: int
    """Seconds that are billed for each instance; spot savings are in them already."""
    warm_s: int = 0
    """Billed seconds in which each stayed warm after it."""
    usd_hour: float | None
    """On-demand price of one instance; None where it is not known."""


@dataclass(frozen=True, slots=True)
class RunDocuments:
    """The input of the report. A field is None where its document is not there."""

    run_id: str
    model: str
    status: str
    message: str = ""
    package_arn: str | None = None
    bucket: str = ""
    request: RunRequest | None = None
    recipe: Recipe | None = None
    validation: ValidationReport | None = None
    manifest: DatasetManifest | None = None
    plan: Plan | None = None
    training: TrainingSummary | None = None
    base_manifest: BaseModelManifest | None = None
    setup: EvaluationSetup | None = None
    metrics: MetricsReport | None = None
    gate: GateReport | None = None
    examples: ExampleAnswers | None = None
    jobs: tuple[JobFacts, ...] = ()
    gate_sha256: str = ""
    unreadable: tuple[str, ...] = field(default=())
    """Documents that are there and are not what this version writes."""


class Reader:
    """Parses documents, and remembers which could not be."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self.unreadable: list[str] = []

    def parse(self, key: str, kind: type[Document]) -> Document | None:
        """The document, or None where it is absent or not what it should be."""
        found = self._read(key)
        if found is None:
            return None
        try:
            return kind.model_validate_json(found)
        except ValidationError:
            self.unreadable.append(key)
            return None


def training_summary(archive: Iterable[bytes]) -> TrainingSummary | None:
    """The summary in a stream of a `.tar.gz`, read up to it and never unpacked to disk.

    Raises:
        tarfile.TarError, OSError, EOFError: when the archive is cut or no archive.
        pydantic.ValidationError: when the summary is another document.
    """
    with tarfile.open(fileobj=_Stream(iter(archive)), mode="r|gz") as members:
        for member in members:
            if (
                member.isfile()
                and member.name.rsplit("/", 1)[-1] == SUMMARY
                and member.size <= SUMMARY_AT_MOST
            ):
                body = members.extractfile(member)
                return TrainingSummary.model_validate_json(body.read()) if body else None
    return None


def summary_keys(setup: EvaluationSetup | None, listed: Iterable[str]) -> tuple[str, ...]:
    """Archives that may hold the summary, the small one first, of the judged job or else of the newest."""
    if setup and setup.model_data.startswith("s3://"):
        folders = [split_s3_uri(setup.model_data)[1].rsplit("/", 1)[0]]
    else:
        folders = sorted({key.rsplit("/", 1)[0] for key in listed if key.endswith(".tar.gz")}, reverse=True)
    return tuple(f"{folder}/{name}" for folder in folders for name in ("output.tar.gz", "model.tar.gz"))


def collect(about: dict[str, Any], read: Read, stream: Stream, listed: Iterable[str]) -> RunDocuments:
    """Read what there is of a run.

    Args:
        about: fields of RunDocuments that the caller knows: run_id, model, status, and more.
        read: small documents by key.
        stream: archives by key.
        listed: keys under the training output, in case the setup does not name the artifact.
    """
    at, reader = RunLayout(run_id=about["run_id"]), Reader(read)
    plan = reader.parse(at.plan, Plan)
    setup = reader.parse(at.evaluation_setup, EvaluationSetup)
    training = None
    for key in summary_keys(setup, listed):
        archive = stream(key)
        if archive is None:
            continue
        try:
            training = training_summary(archive)
        except (tarfile.TarError, OSError, EOFError, ValidationError):
            reader.unreadable.append(key)
        if training:
            break
    prefix = plan.base_model.prefix if plan else ""
    return RunDocuments(
        **about,
        request=reader.parse(at.request, RunRequest),
        recipe=reader.parse(at.recipe, Recipe),
        validation=reader.parse(at.validation, ValidationReport),
        manifest=reader.parse(at.manifest, DatasetManifest),
        plan=plan,
        training=training,
        base_manifest=reader.parse(prefix + "MANIFEST.json", BaseModelManifest) if prefix else None,
        setup=setup,
        metrics=reader.parse(at.metrics, MetricsReport),
        gate=reader.parse(at.gate, GateReport),
        examples=reader.parse(at.examples, ExampleAnswers),
        unreadable=tuple(reader.unreadable),
    )


class _Stream(io.RawIOBase):
    """Chunks as the file object that tarfile reads from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        parts: list[bytes] = []
        wanted = size
        while size < 0 or wanted > 0:
            if not self._rest:
                self._rest = next(self._chunks, b"")
                if not self._rest:
                    break
            taken = self._rest if size < 0 else self._rest[:wanted]
            self._rest = self._rest[len(taken) :]
            parts.append(taken)
            wanted -= len(taken)
        return b"".join(parts)
