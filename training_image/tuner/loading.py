"""The base model's weights, from files onto the device: read once, hashed on the way, quantised layer by layer.

Three ways lead to the same model, the first that can be gone is taken:

- the quantised copy in `nf4/` beside the original, where it is whole and this image's quantiser made it;
- the original's shards, streamed: one tensor at a time reaches the device and is quantised there;
- transformers' own loader, for architectures whose weights don't lie in files as they lie in the model
  (experts that are fused while loading, transposed matrices). It reads the shards once more, after their hashes.
"""

import json
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from dropforge_core.contracts import BaseModelManifest
from dropforge_core.model import Tolerant
from tuner.contract import Say
from tuner.failure import Failure, is_out_of_memory
from tuner.integrity import MANIFEST, compare, file_digest
from tuner.quantise import PARTS, quantised, quantiser_digest
from tuner.shards import Shard
from tuner.skeleton import NotStreamable, Skeleton, nf4_config

COPY: Final = "nf4"
"""Folder of the quantised copy, beside the original's files."""
INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"

BROKEN: Final = (OSError, ValueError, KeyError, RuntimeError, AssertionError, SafetensorError)
"""What reading a file with altered bytes may end in, before its hash is known."""

Way = Literal["quantised copy", "streamed", "transformers"]


class QuantisedManifest(Tolerant):
    """`nf4/MANIFEST.json`: the quantised copy of one original; written last."""

    quantiser: str
    """`quantise.quantiser_digest` of who made it."""
    original: Mapping[str, str]
    """The shards it was made of, by name, with their sha256 hex."""
    files: Mapping[str, str]
    """Its own shards, below `nf4/`."""
    bytes: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model whose weights are on the device."""

    causal: Any
    way: Way
    quantiser: str | None
    """Digest of the quantiser whose bits these are; None where nothing is quantised."""
    bytes_read: int
    """Of files with weights."""


class NotUsable(Exception):
    """There is no quantised copy, or not one for this image and this original."""


def load_weights(  # noqa: PLR0913, PLR0917  # what is loaded, how, and onto what
    folder: Path,
    manifest: BaseModelManifest,
    quantization: str,
    device: torch.device,
    dtype: torch.dtype,
    say: Say,
) -> Loaded:
    """A causal model from a local or mounted copy; the hash of every shard is compared while it is read.

    Args:
        folder: the copy; its other files were verified already.
        manifest: of the original.
        quantization: `nf4` or `none`.
        device: where it computes.
        dtype: of the computation, and of everything that is not packed.
        say: prints a line.

    Raises:
        Failure: BASE_MODEL naming the shard that is not what the manifest says, or what is missing in it.
        OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError: where transformers can't load it.
    """
    if quantization == "nf4":
        try:
            return _from_copy(folder, copy_of(folder, manifest), device, dtype)
        except (NotUsable, NotStreamable, Failure) as reason:
            say(f"quantised_copy=unused {getattr(reason, 'message', reason)}")
        except BROKEN as error:
            if is_out_of_memory(error):
                raise
            say(f"quantised_copy=unused {type(error).__name__}: {error}")
    try:
        return _streamed(folder, manifest, quantization, device, dtype)
    except NotStreamable as reason:
        say(f"phase=loading_by_transformers {reason}")
    return _by_transformers(folder, manifest, quantization, device, dtype)


def copy_of(folder: Path, manifest: BaseModelManifest) -> QuantisedManifest:
    """The manifest of the quantised copy, where it is of this original and of this image's quantiser.

    Raises:
        NotUsable: with the reason.
    """
    try:
        copy = QuantisedManifest.model_validate_json((folder / COPY / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise NotUsable("there is none") from None
    except ValidationError:
        raise NotUsable("its manifest can't be read") from None
    if copy.quantiser != quantiser_digest("cpu"):
        raise NotUsable("another version of the quantiser made it")
    if any(manifest.files.get(name) != digest for name, digest in copy.original.items()):
        raise NotUsable("it was made of other weights")
    return copy


def shards_of(folder: Path) -> list[str]:
    """Names of the shards that the model consists of; a repository may hold the same weights in others, too.

    Raises:
        NotStreamable: where the names are not known.
    """
    if (folder / INDEX).is_file():
        return sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
    return [SINGLE]


def peaks() -> str:
    """The most memory that this process has held so far, on the host and on the GPU."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    told = f"host_peak_gib={host:.2f}"
    if torch.cuda.is_available():
        told += f" device_peak_gib={torch.cuda.max_memory_allocated() / 2**30:.2f}"
    return told


def _from_copy(folder: Path, copy: QuantisedManifest, device: torch.device, dtype: torch.dtype) -> Loaded:
    skeleton = Skeleton(folder, "nf4", device, dtype)
    shards = [Shard(folder / COPY / name) for name in sorted(copy.files)]
    whole = [entry.name for shard in shards for entry in shard.entries]
    skeleton.check_complete(name for name in whole if (skeleton.packed_part(name) or ("", ""))[1] == "")
    waiting: dict[str, dict[str, Tensor]] = {}
    for shard in shards:
        for entry, tensor in shard.tensors():
            belongs = skeleton.packed_part(entry.name)
            if belongs is None:
                skeleton.put(entry.name, tensor)
                continue
            owner, part = belongs
            parts = waiting.setdefault(owner, {})
            parts[part] = tensor
            if len(parts) == 1 + len(PARTS):
                skeleton.put_packed(owner, waiting.pop(owner))
        compare(shard.path, shard.digest, copy.files[shard.path.name])
    if waiting:
        raise NotUsable(f"{min(waiting)} is not whole")
    return Loaded(skeleton.finish(), "quantised copy", copy.quantiser, copy.bytes)


def _streamed(
    folder: Path, manifest: BaseModelManifest, quantization: str, device: torch.device, dtype: torch.dtype
) -> Loaded:
    skeleton = Skeleton(folder, quantization, device, dtype)
    shards = [_open(folder / name, manifest) for name in shards_of(folder)]
    places = skeleton.places_of({e.name: e.shape for shard in shards for e in shard.entries})
    for shard in shards:
        for entry, tensor in shard.tensors():
            place = places.get(entry.name)
            if place in skeleton.packed:
                skeleton.put_packed(place, quantised(tensor.to(device)))
            elif place is not None:
                skeleton.put(place, tensor)
        compare(shard.path, shard.digest, manifest.files[shard.path.name])
    read = sum(shard.path.stat().st_size for shard in shards)
    return Loaded(skeleton.finish(), "streamed", _made_here(quantization, device), read)


def _open(path: Path, manifest: BaseModelManifest) -> Shard:
    """A shard of the original. One that can't be read is told by its hash, where that is wrong."""
    expected = manifest.files.get(path.name)
    if expected is None or not path.is_file():
        raise Failure(
            "BASE_MODEL", f"{path.name}: found no file, expected a shard of the model; cache the base again"
        )
    try:
        return Shard(path)
    except SafetensorError:
        compare(path, file_digest(path), expected)
        raise


def _made_here(quantization: str, device: torch.device) -> str | None:
    return quantiser_digest(device.type) if quantization == "nf4" else None


def _by_transformers(
    folder: Path, manifest: BaseModelManifest, quantization: str, device: torch.device, dtype: torch.dtype
) -> Loaded:
    names = [name for name in manifest.files if name.endswith(".safetensors")]
    for name in names:
        if (folder / name).is_file():
            compare(folder / name, file_digest(folder / name), manifest.files[name])
    answer: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        quantization_config=nf4_config(dtype) if quantization == "nf4" else None,
        device_map={"": device},
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    causal, loaded = answer
    # transformers fills what a copy lacks with random numbers and goes on.
    if unusable := sorted(loaded["missing_keys"]) or _misshapen(causal):
        raise Failure(
            "BASE_MODEL",
            f"{manifest.name} lacks {len(unusable)} of its weights, or has them in another shape, the first is "
            f"{unusable[0]}; its shards are not those of its configuration",
        )
    read = 2 * sum((folder / name).stat().st_size for name in names if (folder / name).is_file())
    return Loaded(causal, "transformers", _made_here(quantization, device), read)


def _misshapen(causal: Any) -> Sequence[str]:
    """Parameters whose shape is not the configuration's; loading quantised weights does not compare them."""
    with torch.device("meta"):
        planned: nn.Module = AutoModelForCausalLM.from_config(causal.config)  # type: ignore[no-untyped-call]
    found = dict(causal.named_parameters())
    return [
        name
        for name, parameter in planned.named_parameters()
        if name in found and tuple(parameter.shape) not in _shapes_of(found[name])
    ]


def _shapes_of(parameter: Any) -> Sequence[tuple[int, ...]]:
    """Its shape; a packed one's both ways, because transformers turns matrices that are kept transposed."""
    state = getattr(parameter, "quant_state", None)
    shape = tuple(parameter.shape if state is None else state.shape)
    return [shape] if state is None else [shape, shape[::-1]]
