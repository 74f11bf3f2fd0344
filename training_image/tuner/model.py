"""The base model, quantised and frozen, and the adapter on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, DynamicCache
from transformers.utils import logging as transformers_logging

from dropforge_core.contracts import BaseModelManifest
from dropforge_core.recipe import Adapter, Recipe
from tuner.contract import Say
from tuner.conversation import ChatCodec
from tuner.failure import Failure, is_out_of_memory
from tuner.integrity import verify_copy
from tuner.loading import load_weights, peaks
from tuner.tokenizer import check_tokenizer

MAMBA_KINDS: Final = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"})
"""Model types in which peft refuses an adapter on `MAMBA_OUT` (0.21, `_check_lora_target_modules_mamba`)."""
MAMBA_OUT: Final = "out_proj"


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A causal model with its codec, on one device."""

    causal: Any
    """transformers' causal model; adapters are injected into it in place."""
    codec: ChatCodec
    pad_id: int
    device: torch.device
    manifest: BaseModelManifest
    quantiser: str | None = None
    """Digest of the quantiser whose bits the packed weights are; None where nothing is quantised."""
    lockstep: bool = False
    """Blocks are sharded over processes, so that all of them must make the same passes at the same time."""

    @property
    def hidden_size(self) -> int:
        return int(self.causal.config.get_text_config().hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        """Of the computation between the quantised weights."""
        return compute_dtype(self.device)

    def hidden(self, **inputs: Any) -> Tensor:
        """Last hidden states, [rows, width, hidden size], after the final norm."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.device.type == "cuda"):
            states: Tensor = self.causal.get_decoder()(use_cache=False, **inputs).last_hidden_state
            return states

    def decode(self, **inputs: Any) -> Tensor:
        """As `hidden`, appending keys and values to `past_key_values`."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.device.type == "cuda"):
            states: Tensor = self.causal.get_decoder()(use_cache=True, **inputs).last_hidden_state
            return states

    def shared_cache(self, prefix: Tensor, rows: int) -> Any:
        """Keys and values of a beginning [1, S], for `rows` rows; differentiable."""
        cache = DynamicCache(config=self.causal.config)
        if prefix.shape[1]:
            self.decode(input_ids=prefix, attention_mask=torch.ones_like(prefix), past_key_values=cache)
            cache.batch_repeat_interleave(rows)
        return cache

    @property
    def can_share(self) -> bool:
        """Whether every layer keeps all keys, so that a beginning may be computed once."""
        if self.lockstep:
            # A shared beginning is a pass of its own, and not every process has one.
            return False
        kinds = getattr(self.causal.config.get_text_config(), "layer_types", None)
        return kinds is None or set(kinds) == {"full_attention"}

    def logits(self, states: Tensor) -> Tensor:
        """Raw fp32 scores of the next token, [rows, vocabulary], from states [rows, hidden size]."""
        head = self.causal.get_output_embeddings()
        return self.logit_transform.apply(
            functional.linear(states.to(head.weight.dtype), head.weight, head.bias).float()
        )

    @property
    def logit_transform(self) -> "LogitTransform":
        return logit_transform(self.causal.config.get_text_config())


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """What some architectures do to logits after the head: cap * tanh(scale * raw / cap)."""

    scale: float
    cap: float | None

    def apply(self, logits: Tensor) -> Tensor:
        scaled = logits * self.scale if self.scale != 1.0 else logits
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap


def logit_transform(config: Any) -> LogitTransform:
    """Cohere multiplies by `logit_scale`, Granite divides by `logits_scaling`, Gemma caps softly."""
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    return LogitTransform(scale, getattr(config, "final_logit_softcapping", None))


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def refuse_unknown_gpu(device: torch.device) -> None:
    """End before gigabytes are read where the first kernel would fail.

    Raises:
        Failure: CODE, with what the GPU is and what this torch was built for.
    """
    if device.type != "cuda":
        return
    capability, built_for = torch.cuda.get_device_capability(device), torch.cuda.get_arch_list()
    if not has_kernels(capability, built_for):
        raise Failure(
            "CODE",
            f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}, and torch "
            f"{torch.__version__} was built for {', '.join(built_for)}; take another instance type",
        )


def has_kernels(capability: tuple[int, int], built_for: Sequence[str]) -> bool:
    """Whether code of `sm_<major><minor>` (same major, no newer minor) or `compute_<..>` (no newer) runs on a GPU.

    (CUDA C++ Programming Guide, section "Binary compatibility" and "PTX compatibility".)
    """
    for name in built_for:
        kind, _, digits = name.rstrip("af").partition("_")
        version = (int(digits[:-1]), int(digits[-1]))
        if version <= capability and (kind == "compute" or version[0] == capability[0]):
            return True
    return False


def compute_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies it; on a CPU without it bf16 is about 20 times slower than fp32."""
    if device.type == "cuda":
        return torch.bfloat16
    return torch.float32


def load_base(  # noqa: PLR0913  # a folder, a form, a device, and what few callers say
    folder: Path,
    quantization: str,
    device: torch.device,
    chat_template: str | None = None,
    say: Say = lambda _: None,
    *,
    onto: torch.device | None = None,
) -> LanguageModel:
    """A frozen base model from a verified local copy: safetensors only, no code from the repository.

    Args:
        folder: the copy.
        quantization: `nf4` or `none`.
        device: where it computes.
        chat_template: in place of the tokenizer's own, where given.
        say: prints a line.
        onto: the device on which it will compute, where that is another than the one it is loaded to.

    Raises:
        Failure: BASE_MODEL where it can't be loaded whole, OOM_GPU where it does not fit, CODE where this torch has no
            kernels for the GPU.
    """
    refuse_unknown_gpu(onto or device)
    manifest = verify_copy(folder, weights=False)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        loaded = load_weights(folder, manifest, quantization, device, compute_dtype(onto or device), say)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise Failure("OOM_GPU", "the base model does not fit; choose a larger instance") from error
        raise Failure("BASE_MODEL", f"{manifest.name} can't be loaded: {_why(folder, error)}") from error
    say(f"base_model=loaded from={loaded.way!r} bytes_read={loaded.bytes_read} {peaks()}")
    causal = loaded.causal
    causal.requires_grad_(requires_grad=False)
    causal.eval()
    keep_packed_form(causal)
    stops = stop_ids(causal, tokenizer)
    vocabulary = int(causal.get_input_embeddings().weight.shape[0])
    check_tokenizer(tokenizer, folder, vocabulary, manifest.name)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    codec = ChatCodec(tokenizer, stops, template=chat_template, vocabulary=vocabulary)
    # An embedding of its own may be missing for a pad token that nobody reads; any token will do.
    pad = int(pad) if pad < vocabulary else min(stops)
    return LanguageModel(causal, codec, pad, device, manifest, quantiser=loaded.quantiser)


def _why(folder: Path, error: Exception) -> str:
    config = folder / "config.json"
    if config.is_file() and b'"auto_map"' in config.read_bytes():
        return "it needs code from its repository, which is never run here; choose a model that transformers knows"
    return f"{type(error).__name__}: {error}"


def keep_packed_form(causal: nn.Module) -> None:
    """Keep the library from repacking weights at the first measurement on a CPU with AVX-512 BF16.

    That form is for inference alone: its product has no gradient, and training goes on after a measurement.
    """
    for part in causal.modules():
        if getattr(part, "support_avx512bf16_for_cpu", False):
            part.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # a plain attribute of Linear4bit


def stop_ids(causal: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a turn: the tokenizer's and those of the generation settings."""
    configured = getattr(causal.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(int(token) for token in [tokenizer.eos_token_id, *listed] if token is not None)


def attach_adapter(base: LanguageModel, recipe: Recipe, *, gradient_checkpointing: bool) -> Any:
    """Inject a fresh LoRA adapter (fp32) and return the peft model around the base.

    Raises:
        Failure: BASE_MODEL where the recipe's targets name no module of the model.
    """
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415  # five seconds that tests of the rest save

    if gradient_checkpointing:
        recompute_activations(base)
    try:
        adapted = get_peft_model(
            base.causal, LoraConfig(**_lora(recipe.adapter, base.causal)), autocast_adapter_dtype=True
        )
    except ValueError as error:
        known = linear_names(base.causal)
        raise Failure(
            "BASE_MODEL",
            f"adapter.targets {recipe.adapter.targets!r} fit no module of {base.manifest.name}; "
            f"its linear layers are {', '.join(known)} ({error})",
        ) from None
    if any(p.requires_grad for p in base.causal.get_output_embeddings().parameters()):
        raise Failure("BASE_MODEL", "adapter.targets names the output head, which stays frozen; leave it out")
    if base.device.type == "cuda" and not recipe.adapter.dora:
        keep_input_type(base.causal)
    adapted.train()
    return adapted


def keep_input_type(causal: nn.Module) -> None:
    """Give adapters their input as it is, for use under autocast, which casts it where a product needs it.

    peft would cast it up to the adapter's fp32 before autocast casts it down again: the same numbers, but a copy for
    each layer, of which the backward pass keeps one each, where q, k and v could share theirs.
    """
    from peft.tuners.lora import LoraLayer  # noqa: PLC0415  # see attach_adapter

    for part in causal.modules():
        if isinstance(part, LoraLayer):
            part.cast_input_dtype_enabled = False


def recompute_activations(base: LanguageModel) -> None:
    """Keep each block's input only; the backward pass computes the rest again, dropout included."""
    base.causal.gradient_checkpointing_enable({"use_reentrant": False})


def adapter_targets(adapter: Adapter, causal: Any) -> str | list[str]:
    """What the adapter library is given as its targets.

    It takes no adapter on the way out of a Mamba block, whose kernels read that weight themselves; all linear layers of
    such a model are all others.
    """
    if not isinstance(adapter.targets, str):
        return list(adapter.targets)
    if getattr(causal.config, "model_type", None) not in MAMBA_KINDS:
        return adapter.targets
    return [name for name in linear_names(causal) if name != MAMBA_OUT]


def linear_names(causal: Any) -> list[str]:
    """Last names of the linear layers, the output head's left out."""
    head = causal.get_output_embeddings()
    layers = (name for name, part in causal.named_modules() if _is_linear(part) and part is not head)
    # In a layer that has an adapter already, the linear ones are the adapter's.
    return sorted({name.rsplit(".", 1)[-1] for name in layers} - {"base_layer", "default"})


def _lora(adapter: Adapter, causal: Any) -> dict[str, Any]:
    return {
        "task_type": "CAUSAL_LM",
        "r": adapter.r,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": adapter_targets(adapter, causal),
        "use_rslora": adapter.rslora,
        "use_dora": adapter.dora,
        "bias": "none",
    }


def trainable(causal: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters by name, in a fixed order."""
    return {name: p for name, p in sorted(causal.named_parameters()) if p.requires_grad}


def snapshot(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """A copy on the host."""
    return {name: p.detach().to("cpu", copy=True).contiguous() for name, p in parameters.items()}


def restore(parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor]) -> None:
    """Put a snapshot's values back.

    Raises:
        KeyError, RuntimeError: when names or shapes are not those of the parameters.
    """
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def _is_linear(part: nn.Module) -> bool:
    return isinstance(part, nn.Linear)  # bitsandbytes' layers derive from it
