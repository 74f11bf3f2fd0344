"""The quantised copy beside a cached original: written once by the caching job, a shard at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tuner.contract import Say
from tuner.failure import Failure
from tuner.integrity import MANIFEST, compare, file_digest
from tuner.loading import COPY, INDEX, QuantisedManifest, shards_of
from tuner.quantise import quantised, quantiser_digest
from tuner.shards import HEADER_LIMIT, Shard, entries_of
from tuner.signals import StopRequest
from tuner.skeleton import NotStreamable, Skeleton
from tuner.storage import download

if TYPE_CHECKING:
    from tuner.cache_base_model import Place

CPU: Final = torch.device("cpu")
REFUSALS: Final = (
    *(NotStreamable, Failure, SafetensorError, OSError, ValueError, KeyError, RuntimeError, MemoryError),
    *(ClientError, BotoCoreError, Boto3Error),
)
"""Of the model's form, of the disk, of memory and of the bucket."""


def write_quantised_copy(
    place: "Place", digests: Mapping[str, str], scratch: Path, stop: StopRequest, say: Say
) -> QuantisedManifest | None:
    """Quantise every shard that lies in the cache; what an earlier call wrote by the same quantiser stays.

    Nothing depends on the copy: where it can't be made, the reason is told and None is answered. One shard and
    its quantised form are held at a time, on disk and in memory.

    Args:
        place: of the original.
        digests: sha256 hex of the original's files.
        scratch: an empty folder.
        stop: asked between shards.
        say: prints a line.

    Raises:
        Stopped: between shards; a later call goes on from there.
    """
    try:
        return _write(place, digests, scratch, stop, say)
    except REFUSALS as error:
        told = error.message if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
        say(f"phase=not_quantised {told}")
        return None


def _write(
    place: "Place", digests: Mapping[str, str], scratch: Path, stop: StopRequest, say: Say
) -> QuantisedManifest:
    maker = quantiser_digest("cpu")
    for name in {"config.json", INDEX} & digests.keys():
        (scratch / name).write_bytes(place.read(name))
    skeleton = Skeleton(scratch, "nf4", CPU, torch.float32)
    names = shards_of(scratch)
    if unknown := set(names) - digests.keys():
        raise NotStreamable(f"{min(unknown)} is not in the copy")
    places = skeleton.places_of(
        {e.name: e.shape for name in names for e in entries_of(name, _header(place, name))}
    )
    files: dict[str, str] = {}
    size = 0
    for number, name in enumerate(names, start=1):
        stop.check()
        target = Made(place, f"{COPY}/{name}", {"original": digests[name], "quantiser": maker})
        found = target.found()
        if found is None:
            download(place.s3, place.bucket, place.prefix + name, scratch / name)
            shard = Shard(scratch / name)
            save_file(_quantise(shard, places, skeleton), scratch / COPY, metadata={"format": "pt"})
            compare(shard.path, shard.digest, digests[name])
            found = target.keep(scratch / COPY)
            shard.path.unlink()
        files[name], length = found
        size += length
        say(f"quantised={name} shards={number}/{len(names)}")
    manifest = QuantisedManifest(
        quantiser=maker, original={name: digests[name] for name in names}, files=files, bytes=size
    )
    body = manifest.model_dump_json().encode()
    place.s3.put_object(Bucket=place.bucket, Key=f"{place.prefix}{COPY}/{MANIFEST}", Body=body)
    say(f"phase=quantised bytes={size}")
    return manifest


@dataclass(frozen=True, slots=True)
class Made:
    """One shard of the copy in the bucket, by name below the original's prefix, and what it is made of."""

    place: "Place"
    name: str
    made_of: Mapping[str, str]

    def found(self) -> tuple[str, int] | None:
        """(sha256 hex, bytes) of what an earlier call made of the same."""
        head = self.place.head(self.name)
        metadata = head.get("Metadata", {}) if head else {}
        if head is None or any(metadata.get(key) != value for key, value in self.made_of.items()):
            return None
        return metadata["sha256"], int(head["ContentLength"])

    def keep(self, path: Path) -> tuple[str, int]:
        """Move a file there; answers (sha256 hex, bytes)."""
        digest, size = file_digest(path), path.stat().st_size
        self.place.s3.upload_file(
            str(path),
            self.place.bucket,
            self.place.prefix + self.name,
            ExtraArgs={"Metadata": {**self.made_of, "sha256": digest}},
        )
        path.unlink()
        return digest, size


def _header(place: "Place", name: str) -> bytes:
    """The header of a shard that lies in the bucket."""
    length = int.from_bytes(place.read(name, 0, 8), "little")
    if length > HEADER_LIMIT:
        raise SafetensorError(f"{name} is not a safetensors file")
    return place.read(name, 8, length)


def _quantise(shard: Shard, places: Mapping[str, str], skeleton: Skeleton) -> dict[str, Tensor]:
    """Tensors of the copy by the model's own names; what is not quantised keeps the original's type."""
    kept: dict[str, Any] = {}
    for entry, tensor in shard.tensors():
        place = places.get(entry.name)
        if place in skeleton.packed:
            for part, packed in quantised(tensor).items():
                kept[f"{place}.{part}" if part else place] = packed
        elif place is not None:
            kept[place] = tensor
    return kept
