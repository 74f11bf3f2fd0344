"""Predictions that are kept for the next run: what is unchanged is not generated again.

The key says everything that an answer follows from, and not which part the adapter plays: a candidate's
predictions serve when it has become the champion.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import ValidationError

from dropforge_core.contracts import EvaluationPrompt, Prediction, PredictionKey
from dropforge_core.layout import PREDICTION_CACHE
from dropforge_core.model import Frozen

_BY_DIGEST: Final = "@sha256:"
_ENDING: Final = re.compile(r"(-[0-9]+|-kept)?\.jsonl(\.out)?$")


def object_key(key: PredictionKey) -> str:
    """Where predictions of this key are kept in the run bucket."""
    canonical = json.dumps(key.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return f"{PREDICTION_CACHE}{hashlib.sha256(canonical.encode()).hexdigest()}.jsonl"


class _Header(Frozen):
    """First line of a cache entry."""

    schema_version: Literal[1] = 1
    key: PredictionKey
    rows: int
    sha256: str
    """Hex, over all that follows the first line."""


class EntryUnusable(ValueError):
    """A cache entry is not what was written, or not the answers to these questions. Says why."""


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Questions that one variant is asked, whichever it is."""

    digest: str
    """`sha256:<hex>` over the questions in their order, without the variant's name."""
    generated: Mapping[str, bool]
    """Id to whether an answer is generated, in the order of the questions."""


def prompt_set(lines: Iterable[bytes]) -> PromptSet:
    """What lines of the transform's input ask.

    Raises:
        pydantic.ValidationError: when a line is no prompt; we wrote those ourselves.
    """
    found, generated = hashlib.sha256(), dict[str, bool]()
    for line in lines:
        prompt = EvaluationPrompt.model_validate_json(line)
        found.update(prompt.model_copy(update={"variant": "base"}).model_dump_json().encode() + b"\n")
        generated[prompt.id] = prompt.generate
    return PromptSet(f"sha256:{found.hexdigest()}", generated)


def series_of(name: str) -> str:
    """To which series a shard, or the answers to it, belong: `base` of `base-00001.jsonl`, `general-base` likewise."""
    return _ENDING.sub("", name)


def is_pinned(image: str) -> bool:
    """Whether the image is named by digest; a tag may name another one tomorrow."""
    return _BY_DIGEST in image


def artifact_identity(uri: str, head: Mapping[str, Any]) -> str | None:
    """Digest of the place, version, ETag and size of an artifact; None where the bucket keeps no versions.

    A version of an object never changes, so equal identities are equal bytes.

    Args:
        uri: of the artifact.
        head: S3's HeadObject answer.
    """
    version = head.get("VersionId")
    if not version or version == "null":
        return None
    parts = [uri, str(version), str(head.get("ETag", "")), str(head.get("ContentLength", ""))]
    return f"sha256:{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}"


def entry(key: PredictionKey, predictions: Iterable[Prediction]) -> bytes:
    """A cache entry: a header line, then the predictions by id, without the variant's name."""
    lines = sorted(_line(prediction, "") for prediction in predictions)
    body = b"".join(lines)
    header = _Header(key=key, rows=len(lines), sha256=hashlib.sha256(body).hexdigest())
    return header.model_dump_json().encode() + b"\n" + body


def recall(found: bytes, key: PredictionKey, asked: PromptSet, variant: str) -> bytes:
    """The lines of an entry as the variant's predictions, in the order of the questions.

    Args:
        found: the entry.
        key: under which it was looked for.
        asked: what the variant is asked.
        variant: base or champion.

    Raises:
        EntryUnusable: unless the entry is whole, of this key, and answers exactly these questions.
    """
    questions = asked.generated
    first, _, body = found.partition(b"\n")
    try:
        header = _Header.model_validate_json(first)
        predictions = [Prediction.model_validate_json(line) for line in body.splitlines()]
    except (ValidationError, UnicodeDecodeError) as error:
        raise EntryUnusable("it can't be read") from error
    if header.key != key:
        raise EntryUnusable("it was written for something else")
    if hashlib.sha256(body).hexdigest() != header.sha256 or len(predictions) != header.rows:
        raise EntryUnusable("its content is not what was written")
    answered = {prediction.id: prediction for prediction in predictions}
    if len(answered) != len(predictions) or answered.keys() != questions.keys():
        raise EntryUnusable("it answers other questions")
    if not all(_is_whole(answered[row_id], generate=wanted) for row_id, wanted in questions.items()):
        raise EntryUnusable("an answer in it is not whole")
    return b"".join(_line(answered[row_id], variant) for row_id in questions)


def worth_keeping(asked: PromptSet, predictions: Iterable[bytes]) -> list[Prediction] | None:
    """The predictions of one variant, or None unless each of its questions has exactly one, and that a whole one."""
    try:
        found = [Prediction.model_validate_json(line) for line in predictions]
    except (ValidationError, UnicodeDecodeError):
        return None
    questions = asked.generated
    if not questions or len(found) != len(questions) or {one.id for one in found} != questions.keys():
        return None
    if len({one.variant for one in found}) > 1:
        return None
    return found if all(_is_whole(one, generate=questions[one.id]) for one in found) else None


def _is_whole(prediction: Prediction, *, generate: bool) -> bool:
    return (
        prediction.error is None
        and prediction.nll is not None
        and (prediction.text is not None or not generate)
    )


def _line(prediction: Prediction, variant: str) -> bytes:
    named = prediction.model_copy(update={"variant": variant})
    return named.model_dump_json(exclude_none=True).encode() + b"\n"
