"""Intake: an upload becomes a run, once, however often and in whatever order its events arrive."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aws_lambda_powertools.utilities.typing import LambdaContext

from announce import announce
from dropforge_core.aws import Bucket, Bus, Executions, Ledger, parameter
from dropforge_core.contracts import ExecutionInput, RunRequest, UploadedObject
from dropforge_core.events import DetailType, RunEvent
from dropforge_core.identity import (
    DATASETS,
    READY_MARKER,
    RECIPE_NAME,
    DatasetKey,
    KeyRefused,
    model_of,
    parse_dataset_key,
    printable,
    run_id_of,
    short_digest,
)
from dropforge_core.layout import RunLayout
from dropforge_core.ledger import KEEPS_CONTENT_CLAIM, Status
from dropforge_core.recipe_yaml import MAX_RECIPE_BYTES
from dropforge_core.uploads import (
    ObjectCreated,
    is_older,
    sequence_claim,
    upload_claim,
    version_of,
    wants_again,
)
from runtime import Settings, count, instrumented, logger


class Env(Settings):
    run_table: str
    run_bucket: str
    event_bus: str
    state_machine_arn: str
    default_recipe: str = ""
    intake_switch: str = ""


OPEN: Final = "open"
"""Value of the kill switch under which uploads start runs; under any other they do not."""
PINS_KEPT: Final = 20_000
"""Files of a version that the ledger remembers, so that one that comes too late can be told. An item of the
table has room for 400 KB."""


class NotTold(Exception):
    """A refusal could not be published. Invoked again, intake will publish it then."""


@instrumented
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Input: S3's `Object Created`. Output: `outcome`, in words for the log, and `run_id` where there is one.

    Raises:
        NotTold: when the bus did not take the news of a refusal; the event is tried again.
        ExecutionConflict: when the run's name is taken by another execution.
    """
    env = Env.load()
    created = ObjectCreated.model_validate(event)
    desk = Desk(
        datasets=Bucket(created.bucket),
        runs=Bucket(env.run_bucket),
        ledger=Ledger(env.run_table),
        bus=Bus(env.event_bus),
        executions=Executions(env.state_machine_arn),
        default_recipe=env.default_recipe,
        is_open=lambda: not env.intake_switch or parameter(env.intake_switch) == OPEN,
    )
    received = desk.receive(created)
    logger.info(received.outcome, key=printable(created.object.key))
    return {"outcome": received.outcome, "run_id": received.run_id}


@dataclass(frozen=True, slots=True)
class Received:
    """What came of an event."""

    outcome: str
    run_id: str | None = None


@dataclass(frozen=True, slots=True)
class Upload:
    """A dataset that is there as a whole."""

    key: DatasetKey
    uploaded_as: str
    """The object's key, or the folder with its final slash."""
    objects: tuple[UploadedObject, ...]
    versions: tuple[str, ...]
    """What makes this upload another one than the last."""
    claim: str
    again: bool

    def fields(self, received_at: str) -> dict[str, str]:
        """What the ledger's item says of it."""
        files, size = len(self.objects), sum(pinned.size for pinned in self.objects)
        return {
            "received_at": received_at,
            "message": f"Received {self.uploaded_as} ({files} file{'s'[: files > 1]}, {size:,} bytes).",
            "uploaded_as": self.uploaded_as,
            "objects": str(files),
            "bytes": str(size),
        }


@dataclass(frozen=True, slots=True)
class End:
    """An upload that can't become a run, and why."""

    status: Status
    message: str
    code: str = ""
    """Of `dataset.codes`, where the upload is refused."""
    duplicate_of: str = ""

    @classmethod
    def refused(cls, code: str, message: str) -> "End":
        """The person who uploaded has something to mend."""
        return cls(Status.DATASET_REJECTED, message, code)


@dataclass(frozen=True, slots=True)
class Desk:
    """Where uploads are received. Every step may be repeated after a crash at any point."""

    datasets: Bucket
    runs: Bucket
    ledger: Ledger
    bus: Bus
    executions: Executions
    default_recipe: str
    is_open: Callable[[], bool]
    """The kill switch, asked before a run is opened. One that can't be read is an error: the event comes again."""

    def receive(self, created: ObjectCreated) -> Received:
        """Start a run, or say why there is none to start."""
        if created.object.key.endswith("/"):
            return Received("a folder marker of a console, nothing to do")
        try:
            key = parse_dataset_key(created.object.key)
        except KeyRefused as refused:
            model = model_of(created.object.key) or "unknown"
            return self._end(created, model, End.refused("KEY_REFUSED", str(refused)))
        logger.append_keys(model=key.model)
        if key.role == "mistaken":
            code = "FILE_KIND" if key.is_unreadable_kind else "KEY_REFUSED"
            return self._end(created, key.model, End.refused(code, key.mistake))
        if key.role in ("ready", "data") and key.version is not None:
            return self._receive_folder(created, key)
        if key.role == "data":
            return self._receive_object(created, key)
        return Received(f"'{key.role}' starts nothing")

    def _receive_object(self, created: ObjectCreated, key: DatasetKey) -> Received:
        found = created.object
        claim = upload_claim(created.bucket, found.key, found.version)
        if known := self._resume(claim):
            return known
        head = self.datasets.head(found.key)
        if head is None:
            message = f"'{found.key}' was gone before it could be read."
            return self._end(created, key.model, End(Status.SUPERSEDED, message))
        # The newest one's own event comes too, and starts the only run.
        if self._is_stale(created) or version_of(head, found.is_versioned) != found.version:
            message = f"A newer version of '{found.key}' was received before this one."
            return self._end(created, key.model, End(Status.STALE, message))
        if found.size == 0:
            message = f"'{found.key}' is empty. Upload it again with its rows."
            return self._end(created, key.model, End.refused("FILE_EMPTY", message))
        pinned = UploadedObject(key=found.key, version_id=found.version_id, size=found.size, etag=found.etag)
        again = wants_again(head)
        return self._open(created, Upload(key, found.key, (pinned,), (found.version,), claim, again=again))

    def _receive_folder(self, created: ObjectCreated, key: DatasetKey) -> Received:
        marker_key = key.prefix + READY_MARKER
        if key.role == "ready":
            claim = upload_claim(created.bucket, marker_key, created.object.version)
            if known := self._resume(claim):
                return known
        marker = self.datasets.head(marker_key)
        if marker is None:
            if key.role == "ready":
                message = f"'{marker_key}' was gone before it could be read."
                return self._end(created, key.model, End(Status.SUPERSEDED, message))
            return Received("waits for the folder's _READY")
        marker_version = version_of(marker, created.object.is_versioned)
        claim = upload_claim(created.bucket, marker_key, marker_version)
        # One marker starts one run; a file that comes after it waits for the next marker.
        if known := self._resume(claim):
            return self._late(created, key, claim, known) or known
        objects = self._pinned(key.prefix)
        if not objects:
            return Received("_READY waits for data files")
        again = wants_again(marker)
        versions = [f"{pinned.key}\n{_version(pinned)}" for pinned in objects]
        if again or self._failed_before(created, key, versions):
            versions.append(marker_version)
        return self._open(created, Upload(key, key.prefix, objects, tuple(versions), claim, again=again))

    def _failed_before(self, created: ObjectCreated, key: DatasetKey, versions: Sequence[str]) -> bool:
        """Whether these very files had a run that ended without an answer: a new marker asks for another."""
        run = self.ledger.run(self._run_id(created, key.prefix, versions, self._recipe(key)[1]))
        return run is not None and Status(run["status"]) not in KEEPS_CONTENT_CLAIM

    def _late(
        self, created: ObjectCreated, key: DatasetKey, marker_claim: str, known: Received
    ) -> Received | None:
        """Tell, once a marker, of a file that a run in progress goes without. None where there is nothing to tell.

        Before the next marker a version may be filled anew in silence, as soon as its run has ended.
        """
        found = created.object
        run_id = known.run_id or ""
        run = self.ledger.run(run_id) or {}
        taken = self.ledger.note(_pinned_note(run_id)).get("objects", "").split()
        if "objects" not in run or Status(run["status"]).is_terminal or not taken:
            return None
        if key.role != "data" or _pin(found.key, found.version) in taken:
            return None
        head = self.datasets.head(found.key)
        if head is None or version_of(head, found.is_versioned) != found.version:
            return None
        message = (
            f"'{found.key}' came after the version's {READY_MARKER}, and run {run_id} goes without it. When all "
            f"files are there, upload {READY_MARKER} again: a new run takes them all."
        )
        return self._end(created, key.model, End.refused("FILE_LATE", message), f"LATE#{marker_claim}")

    def _pinned(self, prefix: str) -> tuple[UploadedObject, ...]:
        """The folder's data files at their newest versions, by key."""
        objects = []
        for entry in self.datasets.list(prefix):
            try:
                role = parse_dataset_key(entry["Key"]).role
            except KeyRefused:
                # Its own event told the uploader.
                continue
            head = self.datasets.head(entry["Key"]) if role == "data" else None
            if head is not None:
                objects.append(
                    UploadedObject(
                        key=entry["Key"],
                        version_id=str(head.get("VersionId") or "null"),
                        size=int(head["ContentLength"]),
                        etag=str(head["ETag"]).strip('"'),
                    )
                )
        return tuple(sorted(objects, key=lambda pinned: pinned.key))

    def _is_stale(self, created: ObjectCreated) -> bool:
        """Whether a later event of the same key was seen; if not, this one is noted as the latest."""
        sequencer = created.object.sequencer
        name = sequence_claim(created.bucket, created.object.key)
        while sequencer:
            latest = self.ledger.claim(name, sequencer)
            if latest == sequencer:
                return False
            if is_older(sequencer, latest):
                return True
            if self.ledger.take_over(name, latest, sequencer):
                return False
        return False

    def _open(self, created: ObjectCreated, upload: Upload) -> Received:
        if not self.is_open():
            message = (
                f"New runs are stopped in this stack, so '{upload.uploaded_as}' started nothing and cost nothing. "
                f"When they are allowed again, upload {'the _READY' if upload.key.version else 'it'} once more."
            )
            return self._end(created, upload.key.model, End(Status.CANCELLED, message), upload.claim)
        recipe_key, recipe_text = self._recipe(upload.key)
        run_id = self._run_id(created, upload.uploaded_as, upload.versions, recipe_text)
        if self.ledger.holder(upload.claim) is None and self.ledger.run(run_id) is not None:
            message = (
                f"'{upload.uploaded_as}' has the same files and the same recipe as run {run_id}; nothing was "
                "started. `dropforge push --again` insists."
            )
            return self._end(
                created, upload.key.model, End(Status.DUPLICATE, message, duplicate_of=run_id), upload.claim
            )
        logger.append_keys(run_id=run_id)
        if not self._claim(upload.claim, run_id):
            return Received("another delivery of this event was faster")
        if self.ledger.run(run_id) is None:
            request = RunRequest(
                run_id=run_id,
                model=upload.key.model,
                version=upload.key.version,
                bucket=created.bucket,
                objects=upload.objects,
                recipe_key=recipe_key,
                recipe_text=recipe_text,
                recipe_default=self.default_recipe,
                received_at=created.time,
                requester=created.detail.requester,
                again=upload.again,
            )
            self.runs.write(RunLayout(run_id=run_id).request, request.model_dump_json(indent=2).encode())
            if upload.key.version is not None and len(upload.objects) <= PINS_KEPT:
                pins = " ".join(_pin(pinned.key, _version(pinned)) for pinned in upload.objects)
                self.ledger.write_note(_pinned_note(run_id), {"objects": pins}, {})
            self.ledger.open_run(run_id, upload.key.model, Status.RECEIVED, upload.fields(created.time))
        return self._start(run_id) or Received(
            "a run with the same upload and recipe is open already", run_id
        )

    def _run_id(
        self, created: ObjectCreated, uploaded_as: str, versions: Sequence[str], recipe_text: str | None
    ) -> str:
        recipe = hashlib.sha256(f"{recipe_text or ''}\0{self.default_recipe}".encode()).hexdigest()
        return run_id_of(created.bucket, uploaded_as, versions, recipe)

    def _claim(self, name: str, run_id: str) -> bool:
        """Whether the upload is this run's. A holder without a run crashed before it wrote anything that counts."""
        holder = self.ledger.claim(name, run_id)
        return holder == run_id or (
            self.ledger.run(holder) is None and self.ledger.take_over(name, holder, run_id)
        )

    def _recipe(self, key: DatasetKey) -> tuple[str | None, str | None]:
        """Key and text of the recipe beside the version, else beside the model; parsed by ValidateDataset."""
        for candidate in dict.fromkeys((key.prefix + RECIPE_NAME, f"{DATASETS}{key.model}/{RECIPE_NAME}")):
            if self.datasets.head(candidate) is None:
                continue
            body = b""
            for chunk in self.datasets.stream(candidate):
                body += chunk
                if len(body) > MAX_RECIPE_BYTES:
                    break
            # One byte more than allowed is enough to be refused for its length.
            return candidate, body[: MAX_RECIPE_BYTES + 1].decode("utf-8", "replace")
        return None, None

    def _resume(self, claim: str) -> Received | None:
        """What became of this upload before; what was begun and not finished is finished now."""
        holder = self.ledger.holder(claim)
        run = self.ledger.run(holder) if holder else None
        if holder is None or run is None:
            return None
        logger.append_keys(run_id=holder)
        finished = self._start(holder) if "objects" in run else self._tell_end(holder)
        return finished or Received("this event was received before", holder)

    def _start(self, run_id: str) -> Received | None:
        """Start the execution and tell so. None where that was done."""
        run = self.ledger.run(run_id) or {}
        if "execution_arn" in run:
            return None
        started = ExecutionInput(
            run_id=run_id,
            model=run["model"],
            started_at=run["received_at"],
            dataset_bytes=int(run["bytes"]),
        )
        arn = self.executions.start(run_id, started.model_dump_json())
        data = {"objects": int(run["objects"]), "bytes": int(run["bytes"]), "uploaded_as": run["uploaded_as"]}
        event = RunEvent(
            run_id=run_id, model=run["model"], status=Status.RECEIVED, message=run["message"], data=data
        )
        announce(self.bus, "RunReceived", event)
        self.ledger.annotate(run_id, {"execution_arn": arn})
        count("RunsReceived")
        return Received("a run was started", run_id)

    def _end(self, created: ObjectCreated, model: str, end: End, claim: str = "") -> Received:
        """Close an upload that can't become a run, and tell so once. `claim` is the object's own where it is empty."""
        found = created.object
        name = claim or upload_claim(created.bucket, found.key, found.version)
        run_id = run_id_of(created.bucket, found.key, [name], end.status)
        logger.append_keys(run_id=run_id)
        if not self._claim(name, run_id):
            return self._resume(name) or Received("another delivery of this event was faster")
        fields = {
            "received_at": created.time,
            "message": end.message,
            "code": end.code,
            "file": printable(found.key),
            "duplicate_of": end.duplicate_of,
        }
        self.ledger.open_run(run_id, model, end.status, fields)
        return self._tell_end(run_id) or Received("this event was received before", run_id)

    def _tell_end(self, run_id: str) -> Received | None:
        """Tell of a run that ended before it began. None where that was done."""
        run = self.ledger.run(run_id) or {}
        if "told" in run:
            return None
        status, message = Status(run["status"]), run["message"]
        ended = {
            "report_uri": "",
            "package_arn": "",
            "duplicate_of": run.get("duplicate_of", ""),
            "cost_usd": 0,
        }
        told: list[tuple[DetailType, dict[str, Any]]] = [("RunEnded", ended)]
        if status == Status.DATASET_REJECTED:
            first = {"file": run["file"], "line": None, "code": run["code"], "message": message, "count": 1}
            told.insert(0, ("DatasetRejected", {"error_count": 1, "first": [first], "validation_uri": ""}))
        for kind, data in told:
            event = RunEvent(run_id=run_id, model=run["model"], status=status, message=message, data=data)
            if not announce(self.bus, kind, event):
                raise NotTold(f"{kind} of {run_id} was not published")
        self.ledger.annotate(run_id, {"told": run["received_at"]})
        count("UploadsRefused")
        return Received(f"{status}: {message}", run_id)


def _version(pinned: UploadedObject) -> str:
    return pinned.version_id if pinned.version_id != "null" else pinned.etag


def _pinned_note(run_id: str) -> str:
    return f"PINNED#{run_id}"


def _pin(key: str, version: str) -> str:
    """A few characters that stand for one version of one object."""
    return short_digest(key, version, length=12)
