"""Models of a few thousand weights, and adapters on them that change what they say."""

from typing import Any

import torch

from dropforge_core.recipe import Recipe
from tuner.model import LanguageModel, attach_adapter, trainable

SMALL: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
"""Sizes by the names that most configurations have."""


def adapted(base: LanguageModel, **adapter: Any) -> LanguageModel:
    """The base with an adapter of random weights: a new one would change nothing."""
    recipe = Recipe.model_validate({"base_model": "s3://some-bucket/x/", "adapter": adapter})
    attach_adapter(base, recipe, gradient_checkpointing=False)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trainable(base.causal).values():
            parameter.normal_(std=0.05)
    return base
