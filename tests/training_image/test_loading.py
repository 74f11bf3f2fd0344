"""Three ways from files to one model: the quantised copy, the streamed original, transformers' own loader."""

import json
import re
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny_jobs import seal

from tuner import loading, quantised_copy, shards
from tuner.cache_base_model import cache_base_model
from tuner.failure import Failure
from tuner.integrity import verify_copy
from tuner.loading import load_weights
from tuner.model import load_base
from tuner.quantise import quantised
from tuner.serve import fetch_base
from tuner.shards import Shard
from tuner.signals import Stopped, StopRequest
from tuner.storage import download_prefix

CPU = torch.device("cpu")
REVISION = "b" * 40
DESTINATION = f"s3://runs/base-models/tiny/{REVISION}/"


def load(
    folder: Path, quantization: str = "nf4", dtype: torch.dtype = torch.float32
) -> tuple[Any, list[str]]:
    lines: list[str] = []
    manifest = verify_copy(folder, weights=False)
    return load_weights(folder, manifest, quantization, CPU, dtype, lines.append), lines


def by_transformers(folder: Path, quantization: str = "nf4", dtype: torch.dtype = torch.float32) -> Any:
    """The reference: `from_pretrained`, quantising what it reads."""
    manifest = verify_copy(folder, weights=False)
    return loading._by_transformers(folder, manifest, quantization, CPU, dtype).causal


def assert_same(found: Any, expected: Any) -> None:
    """Bit for bit: packed weights with all that belongs to them, everything else, and buffers that are in no file."""
    for kind in ("state_dict", "named_buffers"):
        one, other = dict(getattr(found, kind)()), dict(getattr(expected, kind)())
        assert one.keys() == other.keys()
        for name, tensor in other.items():
            assert one[name].dtype == tensor.dtype
            assert torch.equal(one[name], tensor), name


@pytest.fixture(scope="module")
def sharded(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base in two bf16 shards, as large models come."""
    folder = tmp_path_factory.mktemp("sharded") / "tiny"
    shutil.copytree(tiny_base, folder)
    weights = {k: v.bfloat16() for k, v in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, mine in parts.items():
        save_file({name: weights[name] for name in mine}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, mine in parts.items() for name in mine}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    seal(folder)
    return folder


@pytest.fixture
def cached(sharded: Path, s3_endpoint: str, tmp_path: Path) -> Callable[..., Path]:
    """Cache the sharded base with its quantised copy, and bring everything into a folder."""
    s3 = boto3.client("s3", endpoint_url=s3_endpoint)
    s3.create_bucket(Bucket="runs")
    for path in sharded.iterdir():
        s3.upload_file(str(path), "runs", f"sources/tiny/{path.name}")

    def make(name: str = "cached", stop: StopRequest | None = None) -> Path:
        lines: list[str] = []
        cache_base_model(
            *("s3://runs/sources/tiny/", DESTINATION, stop or StopRequest(), lines.append, {}),
            quantise_from=0,
        )
        (tmp_path / "lines").write_text("\n".join(lines))
        folder = tmp_path / name
        download_prefix(s3, "runs", f"base-models/tiny/{REVISION}/", folder)
        return folder

    return make


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_streamed_is_what_transformers_loads(
    sharded: Path, quantization: str, dtype: torch.dtype
) -> None:
    """Every parameter, quantisation constant and buffer agrees bit for bit, and so do the logits."""
    loaded, _ = load(sharded, quantization, dtype)
    assert loaded.way == "streamed"
    reference = by_transformers(sharded, quantization, dtype)
    assert_same(loaded.causal, reference)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(loaded.causal(ids).logits, reference(ids).logits)


def test_the_whole_model_is_never_on_the_host(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a tensor is read, no more of the file's are left than the one before and the one in use."""
    real, made, left = shards._tensor, [], []

    def count(*arguments: Any) -> torch.Tensor:
        left.append(sum(ref() is not None for ref in made))
        tensor = real(*arguments)
        made.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(shards, "_tensor", count)
    loaded, _ = load(sharded)
    assert loaded.way == "streamed"
    assert len(made) > 10
    assert max(left) <= 2


def test_what_was_read_and_how_much_it_took_is_told(sharded: Path) -> None:
    """The log has the way, the bytes that were read, and the host's peak."""
    lines: list[str] = []
    load_base(sharded, "nf4", CPU, say=lines.append)
    told = re.fullmatch(
        r"base_model=loaded from='streamed' bytes_read=(\d+) host_peak_gib=(\d+\.\d\d)( device_peak_gib=.*)?",
        lines[-1],
    )
    assert told is not None
    assert int(told[1]) == sum(path.stat().st_size for path in sharded.glob("*.safetensors"))
    assert float(told[2]) > 0


def test_a_base_that_does_not_fit_asks_for_a_larger_instance(
    sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that runs out while loading is OOM_GPU, whichever of the ways was gone, and no fault of the base."""

    def refuse(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(loading, "quantised", refuse)
    with pytest.raises(Failure, match="OOM_GPU: the base model does not fit; choose a larger instance"):
        load_base(sharded, "nf4", CPU)


def test_the_quantised_copy_holds_the_bits_of_the_original(cached: Callable[..., Path]) -> None:
    """Loaded from the copy, the model is the one that quantising the original gives; less is read."""
    folder = cached()
    loaded, lines = load(folder)
    assert loaded.way == "quantised copy"
    assert lines == []
    assert_same(loaded.causal, by_transformers(folder))
    streamed = shutil.copytree(folder, folder.with_name("without"), ignore=shutil.ignore_patterns("nf4"))
    assert load(streamed)[0].bytes_read > loaded.bytes_read


def test_the_copy_can_be_read_by_the_library_that_names_its_form(cached: Callable[..., Path]) -> None:
    """Names and parts are those of bitsandbytes' packed state: its own reader makes the same weight of them."""
    from bitsandbytes.functional import QuantState, dequantize_4bit  # noqa: PLC0415  # three seconds to import

    folder = cached()
    tensors = load_file(folder / "nf4" / "a.safetensors") | load_file(folder / "nf4" / "b.safetensors")
    name = next(key for key in tensors if key.endswith("q_proj.weight"))
    state = {key: tensor for key, tensor in tensors.items() if key.startswith(name + ".")}
    full = dequantize_4bit(tensors[name], QuantState.from_dict(state, CPU))
    original = (load_file(folder / "a.safetensors") | load_file(folder / "b.safetensors"))[name]
    assert full.dtype == original.dtype
    assert torch.nn.functional.mse_loss(full.float(), original.float()) < 0.01 * original.float().var()


def test_a_large_weight_is_quantised_in_chunks_with_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are whole blocks, and the constants are quantised over the whole weight, whatever its length."""
    weight = torch.randn(33, 131, generator=torch.Generator().manual_seed(3)).bfloat16()
    whole = quantised(weight)
    monkeypatch.setattr("tuner.quantise.CHUNK", 128)
    chunked = quantised(weight)
    assert whole.keys() == chunked.keys()
    assert all(torch.equal(whole[part], chunked[part]) for part in whole)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def rewrite(**values: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        manifest = path.parent / "MANIFEST.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_bytes()), **values}))

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (flip, "quantised_copy=unused "),
        (truncate, "ends early"),
        (Path.unlink, "No such file"),
        (rewrite(quantiser="0" * 64), "another version of the quantiser made it"),
        (rewrite(original={"a.safetensors": "0" * 64}), "it was made of other weights"),
        (rewrite(files={}), "is not in the files"),
        (lambda path: (path.parent / "MANIFEST.json").write_text("{"), "its manifest can't be read"),
        (lambda path: shutil.rmtree(path.parent), "there is none"),
    ],
    ids=["flipped", "truncated", "gone", "other quantiser", "other original", "no files", "broken", "none"],
)  # fmt: skip
def test_a_copy_that_is_not_right_gives_way_to_the_original(
    cached: Callable[..., Path], change: Callable[[Path], None], told: str
) -> None:
    """The reason is told, and the model is the same: nothing of a copy that failed remains in it."""
    folder = cached()
    change(folder / "nf4" / "a.safetensors")
    loaded, lines = load(folder)
    assert loaded.way == "streamed"
    assert told in lines[0]
    assert_same(loaded.causal, by_transformers(folder))


def test_a_copy_that_broke_off_goes_on_shard_by_shard(
    cached: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was quantised stays; the second call quantises only the rest."""
    made: list[str] = []
    real = quantised_copy._quantise

    def record(shard: Shard, *rest: Any) -> Any:
        made.append(shard.path.name)
        return real(shard, *rest)

    monkeypatch.setattr(quantised_copy, "_quantise", record)

    class AfterOne(StopRequest):
        def check(self) -> None:
            if made:
                raise Stopped

    with pytest.raises(Stopped):
        cached(stop=AfterOne())
    folder = cached()
    assert made == ["a.safetensors", "b.safetensors"]
    assert load(folder)[0].way == "quantised copy"


def test_the_evaluation_fetches_one_form(
    cached: Callable[..., Path], s3_endpoint: str, tmp_path: Path
) -> None:
    """With a usable copy no shard of the original is fetched; with a broken one, none of the copy is kept."""
    cached()
    s3 = boto3.client("s3", endpoint_url=s3_endpoint)
    lines: list[str] = []
    fetch_base(s3, DESTINATION, tmp_path / "one", "nf4", lines.append)
    assert not list((tmp_path / "one").glob("*.safetensors"))
    assert load_base(tmp_path / "one", "nf4", CPU).quantiser
    fetch_base(s3, DESTINATION, tmp_path / "none", "none", lines.append)
    assert not list((tmp_path / "none" / "nf4").glob("*.safetensors"))
    assert load(tmp_path / "none", "none")[0].way == "streamed"
    assert lines == []
    key = f"base-models/tiny/{REVISION}/nf4/b.safetensors"
    s3.put_object(Bucket="runs", Key=key, Body=b"cut")
    fetch_base(s3, DESTINATION, tmp_path / "broken", "nf4", lines.append)
    assert lines[0].startswith("quantised_copy=unused b.safetensors: found")
    assert load(tmp_path / "broken")[0].way == "streamed"


def test_what_can_t_be_quantised_is_cached_all_the_same(s3_endpoint: str) -> None:
    """A copy is a help, never a condition: the reason is told, the manifest is written."""
    s3 = boto3.client("s3", endpoint_url=s3_endpoint)
    s3.create_bucket(Bucket="runs")
    for name, body in {"config.json": b'{"model_type": "nobody-knows"}', "model.safetensors": b"w"}.items():
        s3.put_object(Bucket="runs", Key=f"sources/tiny/{name}", Body=body)
    lines: list[str] = []
    cache_base_model(
        *("s3://runs/sources/tiny/", DESTINATION, StopRequest(), lines.append, {}), quantise_from=0
    )
    assert any(line.startswith("phase=not_quantised") for line in lines)
    assert s3.head_object(Bucket="runs", Key=f"base-models/tiny/{REVISION}/MANIFEST.json")


def test_transposed_matrices_are_left_to_transformers(tmp_path: Path, tiny_base: Path) -> None:
    """GPT-2 keeps its matrices transposed: it is loaded by the library, and says so."""
    from transformers import GPT2Config, GPT2LMHeadModel  # noqa: PLC0415  # seconds that other tests save

    folder = tmp_path / "gpt2"
    sizes = {"n_embd": 64, "n_layer": 1, "n_head": 2, "vocab_size": 512, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(folder)
    for path in tiny_base.glob("*token*"):
        shutil.copy(path, folder)
    seal(folder)
    loaded, lines = load(folder)
    assert loaded.way == "transformers"
    assert lines[-1] == "phase=loading_by_transformers its matrices are kept transposed"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        b"\xff" * 64,
        b"\x10" + b"\x00" * 7 + b"not json at all!",
        b"\x02" + b"\x00" * 7 + b"[]",
        b"\x02" + b"\x00" * 7 + b"{}" + b"extra",
        b'\x3f\x00\x00\x00\x00\x00\x00\x00{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}          1234',
        b'\x3f\x00\x00\x00\x00\x00\x00\x00{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}          1234',
    ],
)
def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    """Empty, cut, a header of any length, and tensors that are not where they say: one error, before any tensor."""
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(SafetensorError):
        Shard(tmp_path / "x.safetensors")


def test_a_shard_without_its_file_is_told(sharded: Path, tmp_path: Path) -> None:
    """A folder that lacks a shard is BASE_MODEL with the shard's name."""
    folder = shutil.copytree(sharded, tmp_path / "lacking")
    (folder / "b.safetensors").unlink()
    with pytest.raises(Failure, match=r"BASE_MODEL: b\.safetensors: found no file"):
        load(folder)
