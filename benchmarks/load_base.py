"""What a start reads and holds until the base model is in NF4: from its quantised copy, from its shards, and elsewhere.

    python benchmarks/load_base.py [--quick] [--json]

The base has random bf16 weights in shards of half a gigabyte, in the shape of Llama 3.2 1B; `--quick` takes a
smaller one. Three ways lead to the same model, each in a process of its own:

- transformers: `from_pretrained` with bitsandbytes' configuration, which quantises what it reads;
- streamed: the image's loader on the original, which hashes while it reads;
- copy: the image's loader on the quantised copy that the caching job keeps beside the original.

Bytes are what the process had the disk read (`read_bytes` of /proc/self/io), after the pages of all files were
dropped; so mapped files count as well, and every page of the weights is looked at before the clock stops. The peak
is the process's resident memory above what it held with its libraries loaded; here the device is the host, so the
model itself is in it. Everything computes in bf16, as on a GPU.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Self

# The scripts beside this one come last: their names are not to hide a library's.
sys.path.append(sys.path.pop(0))
sys.path.insert(0, str(Path(__file__).parents[1] / "functions"))
sys.path.insert(0, str(Path(__file__).parents[1] / "training_image"))
# Before torch is imported: spinning threads would measure the neighbours.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.utils import logging as transformers_logging

from dropforge_core.contracts import BaseModelManifest
from tuner.cache_base_model import Place
from tuner.integrity import MANIFEST, file_digest, verify_copy
from tuner.loading import COPY, INDEX, load_weights
from tuner.quantised_copy import write_quantised_copy
from tuner.signals import StopRequest
from tuner.skeleton import nf4_config

SHAPES: Final[dict[str, dict[str, Any]]] = {
    "0.2B": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 10, "vocab_size": 32_000},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 128_256},
}
HEADS: Final = {"num_attention_heads": 16, "num_key_value_heads": 4, "tie_word_embeddings": True}
SHARD_BYTES: Final = {"0.2B": 100_000_000, "1B": 500_000_000}
WAYS: Final = ("transformers", "streamed", "copy")
SAMPLE_S: Final = 0.005


class FolderBucket:
    """The four calls of an S3 client that the caching job makes, over a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def get_object(self, Key: str, Range: str = "", **_: Any) -> dict[str, Any]:  # noqa: N803  # S3's names
        with (self._root / Key).open("rb") as stream:
            if Range:
                start, end = map(int, Range.removeprefix("bytes=").split("-"))
                stream.seek(start)
                content = stream.read(end - start + 1)
            else:
                content = stream.read()
        return {"Body": _Body(content)}

    def head_object(self, **_: Any) -> dict[str, Any]:
        return {"ContentLength": 0, "Metadata": {}}

    def download_file(self, _bucket: str, key: str, path: str) -> None:
        Path(path).unlink(missing_ok=True)
        os.link(self._root / key, path)

    def upload_file(self, path: str, _bucket: str, key: str, **_: Any) -> None:
        (self._root / key).parent.mkdir(exist_ok=True)
        shutil.move(path, self._root / key)
        Path(path).touch()

    def put_object(self, Key: str, Body: bytes, **_: Any) -> None:  # noqa: N803  # S3's names
        (self._root / Key).write_bytes(Body)


class _Body:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self) -> bytes:
        return self._content


def make_base(folder: Path, size: str) -> dict[str, int]:
    """Random weights, shards, index, manifest and the quantised copy; answers the bytes of both forms."""
    config = LlamaConfig(**SHAPES[size], **HEADS, architectures=["LlamaForCausalLM"], dtype="bfloat16")
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {
            name: tuple(tensor.shape)
            for name, tensor in AutoModelForCausalLM.from_config(config).state_dict().items()
            if name != "lm_head.weight"
        }
    generator = torch.Generator().manual_seed(17)
    index: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    digests: dict[str, str] = {}

    def close() -> None:
        name = f"model-{len(digests) + 1:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        digests[name] = file_digest(folder / name)
        index.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, shape in shapes.items():
        shard[name] = (torch.randn(shape, generator=generator) * 0.02).bfloat16()
        if sum(tensor.nbytes for tensor in shard.values()) >= SHARD_BYTES[size]:
            close()
    if shard:
        close()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    original = sum((folder / name).stat().st_size for name in digests)
    digests |= {name: file_digest(folder / name) for name in ("config.json", INDEX)}
    manifest = BaseModelManifest(
        name="random", revision="0" * 40, source="made", files=digests, bytes=original
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = write_quantised_copy(
            Place(FolderBucket(folder), "none", ""), digests, Path(scratch), StopRequest(), _quiet
        )
    if made is None:
        raise SystemExit("the quantised copy could not be made")
    return {"original": original, "copy": made.bytes}


def _quiet(_: str) -> None:
    """The loader's lines are not what is measured."""


def load_one(way: str, folder: Path) -> dict[str, Any]:
    """One way, in this process."""
    transformers_logging.disable_progress_bar()
    import bitsandbytes  # noqa: F401, PLC0415  # part of the libraries, not of the loading

    cpu, dtype = torch.device("cpu"), torch.bfloat16
    with Peak() as peak:
        began, read = time.monotonic(), disk_bytes()
        if way == "transformers":
            causal: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                quantization_config=nf4_config(dtype),
                device_map={"": cpu},
                use_safetensors=True,
                local_files_only=True,
            )
        else:
            manifest = verify_copy(folder, weights=False)
            loaded = load_weights(folder, manifest, "nf4", cpu, dtype, _quiet)
            expected = {"streamed": "streamed", "copy": "quantised copy"}[way]
            if loaded.way != expected:
                raise SystemExit(f"{way}: loaded another way, {loaded.way}")
            causal = loaded.causal
        touch(causal)
        seconds, read = time.monotonic() - began, disk_bytes() - read
    return {
        "bytes_read": read,
        "host_peak_bytes": peak.bytes,
        "model_bytes": sum(p.nbytes for p in causal.parameters()),
        "seconds": round(seconds, 2),
        "weights_sha256": digest_of(causal),
    }


def touch(causal: Any) -> None:
    """Look at every page of the weights: some ways leave them in a mapped file until they are used."""
    for parameter in causal.parameters():
        parameter.detach().contiguous().view(torch.uint8).flatten()[::4096].sum()


def digest_of(causal: Any) -> str:
    """Over every tensor of the model, packed ones with what belongs to them."""
    hasher = sha256()
    for name, tensor in sorted(causal.state_dict().items()):
        if "quant_state" not in name:
            hasher.update(name.encode())
            hasher.update(tensor.contiguous().view(torch.uint8).numpy())
    return hasher.hexdigest()


class Peak:
    """The most resident memory above what there was on entering, sampled; pages of mapped files count."""

    def __enter__(self) -> Self:
        self._before, self.bytes, self._over = resident_bytes(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.bytes = max(self.bytes, resident_bytes() - self._before)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def disk_bytes() -> int:
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def drop_pages(folder: Path) -> None:
    """No file of the base lies in the page cache any more."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def measure(size: str) -> dict[str, Any]:
    """Every way, each in a fresh process."""
    figures: dict[str, Any] = {"shape": size}
    with tempfile.TemporaryDirectory(prefix="load-base-") as scratch:
        folder = Path(scratch) / "base"
        folder.mkdir()
        figures["bytes"] = make_base(folder, size)
        aside = Path(scratch) / COPY
        for way in WAYS:
            if way == "copy":
                aside.rename(folder / COPY)
            elif (folder / COPY).exists():
                (folder / COPY).rename(aside)
            drop_pages(folder)
            done = subprocess.run(  # this very file, with arguments made here
                [sys.executable, __file__, "--way", way, "--base", str(folder)],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            figures[way] = json.loads(done.stdout.splitlines()[-1])
    if len({figures[way]["weights_sha256"] for way in WAYS}) != 1:
        raise SystemExit(f"the ways lead to different weights: {json.dumps(figures)}")
    return figures


def ratios(figures: dict[str, Any]) -> dict[str, Any]:
    theirs, streamed, copy = (figures[way] for way in WAYS)
    peer = "transformers' from_pretrained with bitsandbytes"

    def at_least(value: float, goal: float) -> dict[str, Any]:
        return {"value": round(value, 2), "goal": goal, "met": value >= goal, "peer": peer}

    return {
        "bytes_read_less_from_copy": at_least(theirs["bytes_read"] / copy["bytes_read"], 2.2),
        "bytes_read_less_streamed": at_least(theirs["bytes_read"] / streamed["bytes_read"], 0.95),
        "host_peak_less_from_copy": at_least(theirs["host_peak_bytes"] / copy["host_peak_bytes"], 2.0),
        "host_peak_less_streamed": at_least(theirs["host_peak_bytes"] / streamed["host_peak_bytes"], 1.3),
        "sooner_from_copy": at_least(theirs["seconds"] / copy["seconds"], 2.0),
    }


def machine() -> dict[str, Any]:
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller base, within two minutes")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(load_one(options.way, options.base)))
        return 0
    figures = measure("0.2B" if options.quick else "1B")
    document = {
        "name": "load_base",
        "machine": machine(),
        "figures": figures,
        "ratios": ratios(figures),
    }
    if options.json:
        print(json.dumps(document))
    else:
        for way in WAYS:
            one = figures[way]
            print(
                f"{way:13} read {one['bytes_read'] / 1e9:.2f} GB, peak {one['host_peak_bytes'] / 1e9:.2f} GB, "
                f"{one['seconds']} s"
            )
        for name, ratio in document["ratios"].items():
            print(f"{name}: {ratio['value']} (goal {ratio['goal']}, {'met' if ratio['met'] else 'missed'})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
