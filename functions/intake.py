"""Intake: an upload becomes a run, once, however often and in whatever order its events arrive."""

import hashlib
from dataclasses import dataclass
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from announce import announce
from dropforge_core.aws import Bucket, Bus, Executions, Ledger
from dropforge_core.contracts import ExecutionInput, RunRequest, UploadedObject
from dropforge_core.events import DetailType, RunEvent
from dropforge_core.identity import (
    DATASETS,
    READY_MARKER,
    RECIPE_NAME,
    DatasetKey,
    KeyRefused,
    parse_dataset_key,
    printable,
    run_id_of,
)
from dropforge_core.layout import RunLayout
from dropforge_core.ledger import Status
from dropforge_core.recipe_yaml import MAX_RECIPE_BYTES
from dropforge_core.uploads import ObjectCreated, is_older, sequence_claim, upload_claim, wants_again
from runtime import Settings, count, instrumented, logger


class Env(Settings):
    run_table: str
    run_bucket: str
    event_bus: str
    state_machine_arn: str
    default_recipe: str = ""


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
class Desk:
    """Where uploads are received. Every step may be repeated after a crash at any point."""

    datasets: Bucket
    runs: Bucket
    ledger: Ledger
    bus: Bus
    executions: Executions
    default_recipe: str

    def receive(self, created: ObjectCreated) -> Received:
        """Start a run, or say why there is none to start."""
        if created.object.key.endswith("/"):
            return Received("a folder marker of a console, nothing to do")
        try:
            key = parse_dataset_key(created.object.key)
        except KeyRefused as refused:
            return self._end(created, "unknown", Status.DATASET_REJECTED, str(refused))
        logger.append_keys(model=key.model)
        if key.role == "ready" and key.version is not None:
            return self._receive_folder(created, key)
        if key.role != "data":
            return Received(f"'{key.role}' starts nothing")
        if key.version is not None:
            return self._receive_folder(created, key)
        return self._receive_object(created, key)

    def _receive_object(self, created: ObjectCreated, key: DatasetKey) -> Received:
        found = created.object
        claim = upload_claim(created.bucket, found.key, found.version_id)
        if known := self._resume(claim):
            return known
        if self._is_stale(created):
            return self._end(
                created,
                key.model,
                Status.STALE,
                f"A newer version of '{found.key}' was received before this one.",
            )
        head = self.datasets.head(found.key)
        if head is None:
            return self._end(
                created, key.model, Status.SUPERSEDED, f"'{found.key}' was gone before it could be read."
            )
        if found.size == 0:
            return self._end(
                created,
                key.model,
                Status.DATASET_REJECTED,
                f"'{found.key}' is empty. Upload it again with its rows.",
            )
        pinned = UploadedObject(key=found.key, version_id=found.version_id, size=found.size, etag=found.etag)
        version = found.version_id if found.version_id != "null" else found.etag
        return self._open(
            created, Upload(key, found.key, (pinned,), (version,), claim, again=wants_again(head))
        )

    def _receive_folder(self, created: ObjectCreated, key: DatasetKey) -> Received:
        marker_key = key.prefix + READY_MARKER
        marker = self.datasets.head(marker_key)
        if marker is None:
            if key.role == "ready":
                message = f"'{marker_key}' was gone before it could be read."
                return self._end(created, key.model, Status.SUPERSEDED, message)
            return Received("waits for the folder's _READY")
        marker_version = str(marker.get("VersionId") or marker.get("ETag"))
        claim = upload_claim(created.bucket, marker_key, marker_version)
        # One marker starts one run; a file that comes after it waits for the next marker.
        if known := self._resume(claim):
            return known
        objects = self._pinned(key.prefix)
        if not objects:
            return Received("_READY waits for data files")
        again = wants_again(marker)
        versions = [f"{pinned.key}\n{pinned.version_id}" for pinned in objects]
        if again:
            versions.append(marker_version)
        return self._open(created, Upload(key, key.prefix, objects, tuple(versions), claim, again=again))

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
        recipe_key, recipe_text = self._recipe(upload.key)
        recipe = hashlib.sha256(f"{recipe_text or ''}\0{self.default_recipe}".encode()).hexdigest()
        run_id = run_id_of(created.bucket, upload.uploaded_as, upload.versions, recipe)
        logger.append_keys(run_id=run_id)
        holder = self.ledger.claim(upload.claim, run_id)
        # A holder without a run crashed before it wrote anything that counts.
        if holder != run_id and not self.ledger.take_over(upload.claim, holder, run_id):
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
            self.ledger.open_run(run_id, upload.key.model, Status.RECEIVED, upload.fields(created.time))
        return self._start(run_id) or Received(
            "a run with the same upload and recipe is open already", run_id
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
        """What became of this upload before; a run that was opened but not started is started now."""
        holder = self.ledger.holder(claim)
        if holder is None or self.ledger.run(holder) is None:
            return None
        logger.append_keys(run_id=holder)
        return self._start(holder) or Received("this event was received before", holder)

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

    def _end(self, created: ObjectCreated, model: str, status: Status, message: str) -> Received:
        """Close an upload that can't become a run, and tell so once."""
        found = created.object
        run_id = run_id_of(created.bucket, found.key, [found.version_id, found.etag], status)
        logger.append_keys(run_id=run_id)
        fields = {"received_at": created.time, "message": message}
        if not self.ledger.open_run(run_id, model, status, fields) and "told" in (
            self.ledger.run(run_id) or {}
        ):
            return Received("this event was received before", run_id)
        told: list[tuple[DetailType, dict[str, Any]]] = [
            ("RunEnded", {"report_uri": "", "package_arn": "", "duplicate_of": "", "cost_usd": 0})
        ]
        if status == Status.DATASET_REJECTED:
            first = {"file": printable(found.key), "line": None, "code": "KEY_REFUSED", "message": message}
            if found.size == 0 and model != "unknown":
                first["code"] = "FILE_EMPTY"
            told.insert(0, ("DatasetRejected", {"error_count": 1, "first": [first], "validation_uri": ""}))
        for kind, data in told:
            event = RunEvent(run_id=run_id, model=model, status=status, message=message, data=data)
            if not announce(self.bus, kind, event):
                raise NotTold(f"{kind} of {run_id} was not published")
        self.ledger.annotate(run_id, {"told": created.time})
        count("UploadsRefused")
        return Received(f"{status}: {message}", run_id)
