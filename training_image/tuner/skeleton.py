"""A causal model without weights, and where each tensor of a file belongs in it.

It is made and finished by the parts of transformers' own loader, so that buffers, tied matrices and types are what
`from_pretrained` makes of them; only the reading between is the caller's.
"""

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    set_param_for_module,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.utils.loading_report import LoadStateDictInfo

from tuner.quantise import PARTS, packed_parameter


class NotStreamable(Exception):
    """The files don't hold the weights as the model does; the message says what differs."""


def nf4_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """4-bit NormalFloat with double quantisation (QLoRA, arXiv 2305.14314, section 3)."""
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


class Skeleton:
    """A model on torch's `meta` device that is filled tensor by tensor.

    Args:
        folder: with `config.json`.
        quantization: `nf4` or `none`.
        device: where the weights will lie.
        dtype: of everything that is not packed.

    Raises:
        NotStreamable: where the model is put together in another way than its files are.
        OSError, ValueError, KeyError: where transformers does not know the model.
    """

    def __init__(self, folder: Path, quantization: str, device: torch.device, dtype: torch.dtype) -> None:
        self._folder, self.device, self.dtype = folder, device, dtype
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        mapping = AutoModelForCausalLM._model_mapping  # noqa: SLF001  # from_pretrained's own way to the class
        if type(config) not in mapping or config.sub_configs or hasattr(config, "quantization_config"):
            raise NotStreamable("its configuration has parts beside a language model's")
        kind: Any = mapping[type(config)]
        if isinstance(kind, tuple):
            raise NotStreamable("its configuration names several models")
        config.dtype, config.name_or_path = dtype, str(folder)
        self._quantizer: Any = (
            AutoHfQuantizer.from_config(nf4_config(dtype), pre_quantized=False)
            if quantization == "nf4"
            else None
        )
        with contextlib.ExitStack() as contexts:
            for context in kind.get_init_context(dtype, quantization == "nf4", False, False):
                contexts.enter_context(context)
            self.causal: Any = kind(config)
            if self._quantizer is not None:
                self._quantizer.preprocess_model(model=self.causal, dtype=dtype, device_map={"": device})
        if self.causal._get_dtype_plan(dtype):  # noqa: SLF001
            raise NotStreamable("some of its modules keep a type of their own")
        self._expected: Mapping[str, Tensor] = self.causal.state_dict()
        rules = get_model_conversion_mapping(self.causal)
        self._renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        self._info = LoadStateDictInfo(set(self._expected), set(), set(), [], {}, set())
        self.packed = frozenset(self._packed_names())
        """Weights that are kept in 4 bits."""

    def _packed_names(self) -> Iterable[str]:
        from bitsandbytes.nn.modules import Linear4bit  # noqa: PLC0415  # three seconds to import

        for name, part in self.causal.named_modules():
            if isinstance(part, Linear4bit):
                if part.source_cls is not nn.Linear:
                    raise NotStreamable("its matrices are kept transposed")
                yield f"{name}.weight"

    def place_of(self, key: str) -> str | None:
        """The parameter that a file's tensor is; None where the model has no use for it.

        Raises:
            NotStreamable: where transformers would compute something from it.
        """
        prefix = self.causal.base_model_prefix
        name, converted = rename_source_key(
            key, self._renamings, self._converters, prefix, dict(self._expected)
        )
        if converted is not None:
            raise NotStreamable(f"{key} is converted while it is loaded")
        if name not in self._expected and key in self._expected:
            name = key
        return name if name in self._expected else None

    def places_of(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
        """Parameters by the names that tensors have in files; what the model has no use for is left out.

        Args:
            shapes: of every tensor of every shard.

        Raises:
            NotStreamable: where they are not all that the model needs, each in its shape.
        """
        places = {key: place for key in shapes if (place := self.place_of(key)) is not None}
        self.check_complete(places.values())
        for key, place in places.items():
            if shapes[key] != self.shape_of(place):
                raise NotStreamable(f"{place} has another shape in the files")
        return places

    def check_complete(self, places: Iterable[str]) -> None:
        """Every parameter once, but for those that are tied to another.

        Raises:
            NotStreamable
        """
        listed = list(places)
        given = set(listed)
        if len(given) < len(listed):
            raise NotStreamable("two tensors are one parameter")
        if lacking := set(self._expected) - given - set(self.causal.all_tied_weights_keys):
            raise NotStreamable(f"{min(lacking)} is not in the files")

    def shape_of(self, place: str) -> tuple[int, ...]:
        if place in self.packed:
            part = self.causal.get_submodule(place.rpartition(".")[0])
            return (part.out_features, part.in_features)
        return tuple(self._expected[place].shape)

    def packed_part(self, key: str) -> tuple[str, str] | None:
        """(parameter, part of its packed form) of a tensor of a quantised copy; None where it is a whole one."""
        if key in self.packed:
            return key, ""
        for part in PARTS:
            owner = key.removesuffix(f".{part}")
            if owner != key and owner in self.packed:
                return owner, part
        return None

    def put(self, place: str, tensor: Tensor) -> None:
        """A tensor that is not packed, in the model's type and on its device."""
        expected = self._expected[place]
        dtype = expected.dtype if expected.is_floating_point() else tensor.dtype
        self._set(place, tensor.to(device=self.device, dtype=dtype))

    def put_packed(self, place: str, parts: Mapping[str, Tensor]) -> None:
        """A weight in 4 bits: what `quantise.quantised` answers."""
        module = self.causal.get_submodule(place.rpartition(".")[0])
        module._is_hf_initialized = True  # noqa: SLF001  # or transformers would fill it with random numbers
        self._set(place, packed_parameter(parts, module, self.device, self.dtype))

    def _set(self, place: str, value: Tensor) -> None:
        set_param_for_module(self.causal, place, value, self._info, self._quantizer)

    def finish(self) -> Any:
        """The model, when every tensor is in its place: buffers, tied matrices, generation settings."""
        places = LoadStateDictConfig(
            pretrained_model_name_or_path=str(self._folder),
            device_map={"": self.device},
            dtype=self.dtype,
            hf_quantizer=self._quantizer,
        )
        self.causal._finalize_model_loading(self.causal, places, self._info)  # noqa: SLF001
        self.causal.eval()
        with contextlib.suppress(OSError):
            self.causal.generation_config = GenerationConfig.from_pretrained(
                self._folder, local_files_only=True
            )
        if self._quantizer is not None:
            self.causal.hf_quantizer = self._quantizer
            self._quantizer.postprocess_model(self.causal)
        return self.causal
