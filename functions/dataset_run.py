"""What the functions that check a run's dataset share: its files, recipe and tokenizer, and what follows a verdict."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Final

from botocore.exceptions import ClientError

from announce import announce
from dropforge_core.aws import Bucket, Bus, Ledger, ObjectVanished
from dropforge_core.contracts import (
    DatasetFacts,
    DatasetManifest,
    Problem,
    RunRequest,
    UploadedObject,
    ValidationReport,
    ValidationVerdict,
)
from dropforge_core.dataset.faults import Fault, FileFault
from dropforge_core.dataset.reading.source import SourceFile
from dropforge_core.dataset.recipe_problems import read_recipe
from dropforge_core.dataset.tokens import TokenCounter, load_tokenizer
from dropforge_core.events import RunEvent
from dropforge_core.layout import RunLayout, base_model_prefix, s3_uri, split_s3_uri
from dropforge_core.ledger import KEEPS_CONTENT_CLAIM, Status
from dropforge_core.recipe import Recipe
from runtime import logger

FIRST_FAULTS: Final = 5
"""Faults that a notification shows."""

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class RunDataset:
    """What intake accepted, and how it is to be checked."""

    request: RunRequest
    recipe: Recipe | None
    """None where it can't be read."""
    recipe_problems: tuple[Problem, ...]


def load_dataset(run_id: str, runs: Bucket) -> RunDataset:
    """The run's request, its recipe parsed.

    Raises:
        ObjectVanished: when the request is not there.
    """
    request = RunRequest.model_validate_json(runs.read(RunLayout(run_id=run_id).request))
    recipe, problems = read_recipe(
        request.recipe_text, request.recipe_default, request.recipe_key or "recipe.yaml"
    )
    return RunDataset(request, recipe, tuple(problems))


def source_files(request: RunRequest) -> list[SourceFile]:
    """The uploaded objects, each at the version that intake saw."""
    bucket = Bucket(request.bucket)
    return [
        SourceFile(
            name=pinned.key.rsplit("/", 1)[-1],
            open=partial(_from_bucket, bucket, pinned),
            size=pinned.size,
            only=len(request.objects) == 1,
        )
        for pinned in request.objects
    ]


def _from_bucket(bucket: Bucket, pinned: UploadedObject, start: int) -> Iterator[bytes]:
    try:
        with closing(bucket.stream(pinned.key, pinned.version_id, start)) as chunks:
            yield from chunks
    except ObjectVanished:
        raise FileFault(Fault("FILE_VANISHED", "", "nothing at the version that was uploaded")) from None


def tokenizer_of(recipe: Recipe, runs: Bucket) -> TokenCounter | None:
    """The base model's tokenizer where the run bucket has it; None where lengths must be estimated.

    Rows are rendered by the recipe's chat template where it gives one, as training renders them.
    """
    base = recipe.base_model
    if base.s3 is not None:
        bucket, prefix = split_s3_uri(base.s3)
        if bucket != runs.name:
            return None
    elif base.repo is not None and _COMMIT.fullmatch(base.revision):
        prefix = base_model_prefix(base.repo, base.revision)
    else:
        # A branch is resolved when the base is cached, which comes later.
        return None
    try:
        vocabulary, config = (
            runs.read(prefix + name) for name in ("tokenizer.json", "tokenizer_config.json")
        )
        template = recipe.chat_template
        if template is None and runs.head(prefix + "chat_template.jinja"):
            template = runs.read(prefix + "chat_template.jinja").decode()
        return load_tokenizer(vocabulary, config, template)
    except (ObjectVanished, ClientError, ValueError):
        logger.info("lengths are estimated: no usable tokenizer", prefix=prefix, exc_info=True)
        return None


def reject(
    report: ValidationReport, request: RunRequest, runs: Bucket, ledger: Ledger, bus: Bus
) -> ValidationVerdict:
    """Write and tell what is wrong. The state machine records the outcome."""
    key = RunLayout(run_id=request.run_id).validation
    runs.write(key, report.model_dump_json(indent=2).encode())
    first = report.errors[0]
    where = first.file + (f", line {first.line}" if first.line else "")
    more = f" And {report.error_count - 1:,} more." if report.error_count > 1 else ""
    summary = f"The dataset has {report.error_count:,} error{'s'[: report.error_count > 1]}: {where}: {first.message}{more}"
    ledger.annotate(request.run_id, {"error_count": str(report.error_count)})
    shown = [
        problem.model_dump(include={"file", "line", "code", "message", "count"})
        for problem in report.errors[:FIRST_FAULTS]
    ]
    data = {
        "error_count": report.error_count,
        "first": shown,
        "validation_uri": s3_uri(runs.name, key),
        # The page is written next, by the state machine.
        "report_uri": s3_uri(runs.name, RunLayout(run_id=request.run_id).report),
    }
    announce(
        bus,
        "DatasetRejected",
        RunEvent(
            run_id=request.run_id,
            model=request.model,
            status=Status.DATASET_REJECTED,
            message=summary,
            data=data,
        ),
    )
    return ValidationVerdict(outcome="INVALID", error_count=report.error_count, summary=summary)


def claim(
    facts: DatasetFacts, recipe: Recipe, request: RunRequest, ledger: Ledger
) -> ValidationVerdict | None:
    """Claim rows and recipe for this run; the verdict where a run has them that came to a judgement.

    Before anything is written: a duplicate costs one pass over the data, not two.
    """
    content = hashlib.sha256(f"{facts.digest}\0{recipe.digest}\0{request.model}".encode()).hexdigest()
    first = _claim(ledger, f"CONTENT#{content}", request.run_id, again=request.again)
    if first is None:
        return None
    return ValidationVerdict(
        outcome="DUPLICATE",
        duplicate_of=first,
        summary=f"Run {first} has the same rows and the same recipe; nothing was trained.",
        dataset=facts,
        recipe_digest=recipe.digest,
    )


def _claim(ledger: Ledger, name: str, run_id: str, *, again: bool) -> str | None:
    """Returns the run that has the claim, where it keeps it."""
    while True:
        holder = ledger.claim(name, run_id)
        if holder == run_id:
            return None
        run = ledger.run(holder)
        if not again and run is not None and Status(run["status"]) in KEEPS_CONTENT_CLAIM:
            return holder
        if ledger.take_over(name, holder, run_id):
            return None


def valid(report: ValidationReport, facts: DatasetFacts, recipe: Recipe) -> ValidationVerdict:
    """The verdict on data that may be trained on."""
    warned = sum(problem.count for problem in report.warnings)
    return ValidationVerdict(
        outcome="VALID",
        summary=f"{facts.rows_train:,} rows to train on, {facts.rows_eval:,} held out, {warned:,} warnings.",
        dataset=facts,
        recipe_digest=recipe.digest,
    )


def seal(manifest: DatasetManifest, recipe: Recipe, run_id: str, runs: Bucket, ledger: Ledger) -> None:
    """Close the copy that training reads: its recipe, its manifest, and what the ledger says of both."""
    layout = RunLayout(run_id=run_id)
    named = {entry.key for entry in (*manifest.train, *manifest.holdout)}
    for prefix in (layout.train, layout.holdout):
        # Training reads whole prefixes. An earlier attempt that was divided otherwise has left other names.
        for left in [entry["Key"] for entry in runs.list(prefix) if entry["Key"] not in named]:
            runs.delete(left)
    runs.write(layout.recipe, recipe.model_dump_json(indent=2).encode())
    # Last: where it is, all it names is.
    runs.write(layout.manifest, manifest.model_dump_json(indent=2).encode())
    ledger.annotate(run_id, {"dataset_digest": manifest.digest, "recipe_digest": recipe.digest})


class RunShards:
    """Shards in the run bucket: a `RowSink`."""

    def __init__(self, runs: Bucket, run_id: str) -> None:
        self._runs = runs
        layout = RunLayout(run_id=run_id)
        self._prefixes = {"train": layout.train, "eval": layout.holdout}

    def put(self, side: str, name: str, body: bytes) -> str:
        """Store one shard; answers its key."""
        key = self._prefixes[side] + name
        self._runs.write(key, body, content_type="application/jsonl")
        return key
