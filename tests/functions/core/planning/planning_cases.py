"""Shapes, datasets and recipes to plan with."""

from typing import Any

from dropforge_core.contracts import DatasetFacts
from dropforge_core.planning import BaseSource, plan, shape_of
from dropforge_core.recipe import Recipe

LLAMA_3_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
RUN = "a" * 26


def facts(*, tokens: int = 100_000, rows: int = 500, held_out: int = 50) -> DatasetFacts:
    return DatasetFacts(
        digest="sha256:" + "0" * 64,
        rows_train=rows,
        rows_eval=held_out,
        bytes_train=tokens * 4,
        tokens_train=tokens,
        tokens_exact=True,
        longest_tokens=512,
        format="messages",
    )


def planned(
    recipe: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    *,
    cached: bool = False,
    known: dict[str, Any] | None = None,
    measured: Any = (),
    **sizes: int,
):
    """The plan of a recipe over a model's config and a dataset's sizes; `known` goes to the planner as it is."""
    return plan(
        recipe=Recipe.model_validate({"base_model": "org/model", **(recipe or {})}),
        dataset=facts(**sizes),
        shape=shape_of(config or LLAMA_3_8B),
        base=BaseSource(
            name="org/model",
            source="hub:org/model@" + "0" * 40,
            prefix="base-models/org/model/" + "0" * 40 + "/",
            cached=cached,
        ),
        run_id=RUN,
        model="support-bot",
        measured=measured,
        **(known or {}),
    )
