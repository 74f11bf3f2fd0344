"""Names. Every name derives from a digest, never from a key that a person chose.

The only human word in a name is the model's, and only after it passed `MODEL_NAME`.
"""

import hashlib
import re
import uuid
from base64 import b32encode
from collections.abc import Iterable, Sequence
from typing import Final, Literal

from dropforge_core.model import Frozen

MODEL_NAME: Final = re.compile(r"[a-z0-9](?:-?[a-z0-9]){0,39}")
"""Lower case, digits and single hyphens, at most 40 characters of alphabet and no hyphen at either end.

Narrower than SageMaker's `[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}` (CreateModelPackageGroup), so that
one word serves as prefix, package group and job-name part alike.
"""

SAFE_KEY: Final = re.compile(r"[A-Za-z0-9._/=-]+")
"""The characters in which the raw and the URL-decoded reading of an S3 key are equal."""

JOB_NAME_MAX: Final = 63
"""CreateTrainingJob, TrainingJobName: 1-63 of `[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}`."""

REDRIVE_ROOM: Final = 3
"""Characters kept free for the `r<count>` that the state machine appends when a run is redriven."""

READY_MARKER: Final = "_READY"
RECIPE_NAME: Final = "recipe.yaml"
DATASETS: Final = "datasets/"
DATA_SUFFIXES: Final = (
    ".jsonl",
    ".json",
    ".csv",
    ".tsv",
    ".parquet",
    ".jsonl.gz",
    ".json.gz",
    ".csv.gz",
    ".tsv.gz",
    ".jsonl.zst",
    ".json.zst",
    ".csv.zst",
    ".tsv.zst",
)

MISTAKEN_SUFFIXES: Final = (
    ".7z",
    ".arrow",
    ".avro",
    ".bz2",
    ".db",
    ".feather",
    ".h5",
    ".ndjson",
    ".npy",
    ".npz",
    ".ods",
    ".orc",
    ".pickle",
    ".pkl",
    ".rar",
    ".sqlite",
    ".tar",
    ".tar.gz",
    ".tgz",
    ".xls",
    ".xlsx",
    ".xz",
    ".zip",
)
"""What people upload for data and nothing here reads; other names, such as README.md, are no data to anybody."""

_DATA_STEM: Final = re.compile(r"(?:train|eval|test|valid|data)[^/]*\.txt", re.IGNORECASE)
_MARKER_ALIKE: Final = re.compile(r"_?ready(?:\.txt)?", re.IGNORECASE)
_RECIPE_ALIKE: Final = re.compile(r"recipe\.(?:ya?ml|json)", re.IGNORECASE)

_CLIENT_TOKENS: Final = uuid.UUID("6f0f6b9e-6a6d-5f0e-9a52-5d2f6c1d7a11")


class DatasetKey(Frozen):
    """What a key under `datasets/` says. `version` is None where one object is the whole dataset."""

    model: str
    version: str | None
    file: str

    @property
    def prefix(self) -> str:
        """The folder that the dataset's files share, with its final slash."""
        return f"{DATASETS}{self.model}/" + (f"{self.version}/" if self.version else "")

    @property
    def role(self) -> Literal["data", "ready", "recipe", "mistaken", "other"]:
        """What the object is to a run. `mistaken`: meant as one of the first three, and not usable as that."""
        if self.file == READY_MARKER:
            return "ready"
        if self.file == RECIPE_NAME:
            return "recipe"
        if is_data_name(self.file):
            return "data"
        return "mistaken" if self._is_mistaken else "other"

    @property
    def _is_mistaken(self) -> bool:
        alike = (_MARKER_ALIKE, _RECIPE_ALIKE, _DATA_STEM)
        return self.is_unreadable_kind or any(form.fullmatch(self.file) for form in alike)

    @property
    def is_unreadable_kind(self) -> bool:
        """Whether it is data of a kind that nothing here reads."""
        return self.file.lower().endswith(MISTAKEN_SUFFIXES) or bool(_DATA_STEM.fullmatch(self.file))

    @property
    def mistake(self) -> str:
        """A sentence for the person who uploaded something mistaken: why it is not used, what to do."""
        shown = printable(self.file)
        if _MARKER_ALIKE.fullmatch(self.file):
            return f"'{shown}' starts nothing: the marker of a whole version is called {READY_MARKER}."
        if _RECIPE_ALIKE.fullmatch(self.file):
            return f"'{shown}' is not used: a recipe is called {RECIPE_NAME}. Rename it and upload it again."
        return (
            f"'{shown}' is of a kind that can't be read, so no run will use it. Convert it to JSON Lines and "
            "upload train.jsonl, or rename it where only its name is another."
        )


def is_data_name(name: str) -> bool:
    """Whether a file of that name is data."""
    return name.lower().endswith(DATA_SUFFIXES)


def model_of(key: str) -> str | None:
    """The model that a key is for, even where the rest of the key can't be used."""
    name = key.removeprefix(DATASETS).partition("/")[0] if key.startswith(DATASETS) else ""
    return name if "/" in key.removeprefix(DATASETS) and is_model_name(name) else None


def is_model_name(name: str) -> bool:
    """Whether a model may have that name."""
    return MODEL_NAME.fullmatch(name) is not None and len(name) <= 40


class KeyRefused(ValueError):
    """The object's key can't be used. The message says why and what to do; it never quotes the key raw."""


def parse_dataset_key(key: str) -> DatasetKey:
    """Read a raw (not URL-decoded) S3 key.

    Raises:
        KeyRefused: with a sentence for the person who uploaded.
    """
    shown = printable(key)
    if not key.startswith(DATASETS):
        raise KeyRefused(f"'{shown}' is not under '{DATASETS}'. Upload to {DATASETS}<model>/<file>.jsonl.")
    if not SAFE_KEY.fullmatch(key):
        raise KeyRefused(
            f"'{shown}' has characters that are not allowed in a dataset's name. "
            "Use letters, digits, '.', '_', '=', '-' and '/' only, and upload again."
        )
    parts = key.removeprefix(DATASETS).split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise KeyRefused(
            f"'{shown}' has an empty, '.' or '..' folder or file name. Rename it and upload again."
        )
    if len(parts) < 2 or len(parts) > 3:
        raise KeyRefused(
            f"'{shown}' lies at the wrong depth. A dataset is {DATASETS}<model>/<file> or "
            f"{DATASETS}<model>/<version>/<file>."
        )
    model = parts[0]
    if not is_model_name(model):
        raise KeyRefused(
            f"'{printable(model)}' can't be a model's name. Use 1-40 lower-case letters, digits and single "
            "hyphens, beginning and ending with a letter or digit."
        )
    return DatasetKey(model=model, version=parts[1] if len(parts) == 3 else None, file=parts[-1])


def printable(text: str, limit: int = 120) -> str:
    """Text that is safe to show: ASCII, control characters escaped, cut to `limit` characters."""
    shown = text.encode("unicode_escape", "backslashreplace").decode("ascii")
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def short_digest(*parts: str | bytes, length: int = 26) -> str:
    """First `length` characters of lower-case base32(sha256) over NUL-separated parts."""
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part)
        hasher.update(b"\0")
    return b32encode(hasher.digest()).decode("ascii").lower().rstrip("=")[:length]


def run_id_of(bucket: str, key_or_prefix: str, version_ids: Sequence[str], recipe_digest: str) -> str:
    """26 characters of `[a-z2-7]`: the same upload under the same recipe is the same run."""
    return short_digest(bucket, key_or_prefix, *sorted(version_ids), recipe_digest)


def job_name(model: str, run_id: str, attempt: int, kind: Literal["t", "e", "b"] = "t") -> str:
    """`<model>-<run_id>-<kind><attempt>`, at most 60 characters; the model's part gives way, never the run's.

    `kind`: t for training, e for evaluation, b for caching the base model.
    """
    tail = f"-{run_id}-{kind}{attempt}"
    return model[: JOB_NAME_MAX - REDRIVE_ROOM - len(tail)].rstrip("-") + tail


def client_token(run_id: str) -> str:
    """36 characters, the same for the same run: CreateModelPackage's ClientToken (1-36 `[a-zA-Z0-9-]+`)."""
    return str(uuid.uuid5(_CLIENT_TOKENS, run_id))


def digest_of(chunks: Iterable[bytes]) -> str:
    """`sha256:<64 hex>` of a stream."""
    hasher = hashlib.sha256()
    for chunk in chunks:
        hasher.update(chunk)
    return f"sha256:{hasher.hexdigest()}"
