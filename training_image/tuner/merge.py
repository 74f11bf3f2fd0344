"""Export: one model folder with the adapter merged into the base, for servers that take no adapters.

The only exact way is to dequantise first and to merge then. On the 4-bit grid the sum is rounded back to
where it was: an adapter's update is smaller than the distance between neighbours, and most of the training
is erased (held-out loss 0.059 became 0.775, the untrained base's was 0.860; docs/training.md).
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from tuner.adapters import Variants, extract_artifact, read_artifact_manifest
from tuner.contract import Say
from tuner.failure import Failure
from tuner.integrity import MANIFEST, file_digest
from tuner.model import LanguageModel, load_base, pick_device
from tuner.residency import dequantised, is_packed, unpacked
from tuner.signals import StopRequest

Weights = Literal["bf16", "fp32", "nf4"]
DTYPES: Final[Mapping[str, torch.dtype]] = {"bf16": torch.bfloat16, "fp32": torch.float32}
VARIANT: Final = "merged"


def merge(  # noqa: PLR0913  # each is one argument of the verb
    base_folder: Path, adapter: Path, target: Path, stop: StopRequest, say: Say, *, weights: Weights = "bf16"
) -> None:
    """Write a transformers folder that answers as base and adapter together do.

    Args:
        base_folder: the base model's cached copy, with its `MANIFEST.json`.
        adapter: the artifact of a training job, as a folder or as `model.tar.gz`.
        target: a folder that does not exist yet; its `MANIFEST.json` is written last.
        stop: where the process is asked to end, it ends at once.
        say: prints a line.
        weights: type of the merged weights; `nf4` is refused.

    Raises:
        Failure: CODE for what can't be merged, BASE_MODEL where base and adapter don't belong together,
            BAD_DATA where the artifact is not whole.
        Stopped: when a stop was asked for already.
    """
    if weights == "nf4":
        raise Failure(
            "CODE",
            "weights merged in 4 bits would lose the training: an adapter's update is smaller than a step of "
            "the NF4 grid and is rounded away; merge to bf16 or fp32, or serve the adapter unmerged",
        )
    if target.exists():
        raise Failure("CODE", f"{target} exists; a merged model is written into a new folder")
    with stop.at_once(), tempfile.TemporaryDirectory(prefix="dropforge-") as scratch:
        if adapter.is_file():
            extract_artifact(adapter, Path(scratch))
            adapter = Path(scratch)
        made_from = read_artifact_manifest(adapter)
        say("phase=loading_base_model")
        base = load_base(
            base_folder, made_from["quantization"], pick_device(), made_from.get("chat_template")
        )
        variants = Variants(base)
        variants.add(VARIANT, adapter)
        say(f"merged={merge_layers(base.causal, DTYPES[weights])}")
        save(base, made_from, target, DTYPES[weights])
    say("phase=saved")


def merge_layers(causal: nn.Module, dtype: torch.dtype) -> int:
    """Replace every adapted layer by its sum, and every quantised one by its numbers; say how many had an adapter.

    One layer at a time is held in fp32. The model has to carry the adapter of name `merged`.

    Raises:
        Failure: CODE where a layer is of a kind whose sum is not known.
    """
    from peft.tuners.lora import LoraLayer  # noqa: PLC0415  # five seconds that other verbs save

    adapted = [name for name, part in causal.named_modules() if isinstance(part, LoraLayer)]
    for name in adapted:
        causal.set_submodule(name, _merged(name, causal.get_submodule(name), dtype))
    for name in [name for name, part in causal.named_modules() if is_packed(part)]:
        causal.set_submodule(name, unpacked(causal.get_submodule(name), dtype))
    return len(adapted)


def _merged(name: str, layer: Any, dtype: torch.dtype) -> nn.Linear:
    """W + s B A, and with DoRA its rows scaled to the learnt lengths (arXiv 2402.09353, equation 5)."""
    base = layer.get_base_layer()
    if not isinstance(base, nn.Linear):
        raise Failure("CODE", f"{name} is a {type(base).__name__}; only linear layers can be merged")
    total = dequantised(base).float() + layer.get_delta_weight(VARIANT).float()
    if layer.use_dora.get(VARIANT):
        learnt: Tensor = layer.lora_magnitude_vector[VARIANT].weight.detach().float()
        total *= (learnt / total.norm(dim=1))[:, None]
    if not bool(torch.isfinite(total).all()):
        raise Failure("CODE", f"{name} has numbers that are not finite after merging")
    full = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
    full.weight = nn.Parameter(total.to(dtype), requires_grad=False)
    if base.bias is not None:
        full.bias = nn.Parameter(base.bias.data.to(dtype), requires_grad=False)
    return full


def save(base: LanguageModel, made_from: Mapping[str, Any], target: Path, dtype: torch.dtype) -> None:
    """Safetensors, configuration and tokenizer, then a manifest by which the folder can be a base model."""
    causal = base.causal
    for tensor in [*causal.parameters(), *causal.buffers()]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    # What transformers keeps about the quantised form would make it refuse to save plain weights.
    if hasattr(causal.config, "quantization_config"):
        del causal.config.quantization_config
    causal.hf_quantizer, causal.is_quantized, causal.is_loaded_in_4bit = None, False, False
    causal.config.dtype = dtype
    causal.save_pretrained(target)
    base.codec.save(target)
    files = {path.name: file_digest(path) for path in sorted(target.iterdir())}
    manifest = {
        "name": made_from["model"],
        "revision": hashlib.sha256(json.dumps(files).encode()).hexdigest()[:40],
        "source": f"merged:{made_from['run_id']}",
        "files": files,
        "bytes": sum(path.stat().st_size for path in target.iterdir()),
        "licence": base.manifest.licence,
        "merged_from": dict(made_from),
    }
    (target / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
