"""Whether a tokenizer is the model's own: what its special tokens, its size and its chat template say about it.

A tokenizer of another model gives numbers that the model has embeddings for, so that nothing fails and
everything learnt is wrong. Three signs are sure enough to refuse it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tuner.failure import Failure

LEAST_SHARE: Final = 0.9
"""Of the embedding's rows that the tokenizer has tokens for. Rows beyond the tokens are padding; known models have
up to 2 % of it (Phi-2: 50,295 tokens, 51,200 rows)."""
MARKERS: Final = ("bos_token_id", "eos_token_id")


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Tokens that stand for no text: named ones, and all others that the tokenizer marks as special."""
    marked = (int(number) for number, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset([*map(int, tokenizer.all_special_ids), *marked])


def check_tokenizer(tokenizer: Any, folder: Path, rows: int, name: str) -> None:
    """Refuse a tokenizer that is another model's.

    Args:
        tokenizer: as it was loaded from the folder.
        folder: with the model's `config.json`.
        rows: of the model's embedding.
        name: of the model.

    Raises:
        Failure: BASE_MODEL, with what was found and what was expected.
    """
    if tokenizer.eos_token_id is None:
        raise Failure("BASE_MODEL", f"{name} has a tokenizer without an end-of-sequence token")
    if len(tokenizer) < LEAST_SHARE * rows:
        raise Failure(
            "BASE_MODEL",
            f"{name} has a tokenizer of {len(tokenizer)} tokens, the model has embeddings for {rows}: "
            "the tokenizer is not this model's; take both from one repository",
        )
    if tokenizer.eos_token_id >= rows:
        raise Failure(
            "BASE_MODEL",
            f"{name} has a tokenizer whose end-of-sequence token is {tokenizer.eos_token_id}, the model has "
            f"embeddings for {rows}: the tokenizer is not this model's; take both from one repository",
        )
    known = special_ids(tokenizer)
    for marker, number in _markers(folder):
        if number not in known:
            raise Failure(
                "BASE_MODEL",
                f"{name} has {marker} {number} in config.json, which is {_shown(tokenizer, number)} of its "
                "tokenizer and no special token: the tokenizer is not this model's; take both from one repository",
            )


def _markers(folder: Path) -> Iterator[tuple[str, int]]:
    """The markers that the file itself names: a class's defaults say nothing about this model."""
    document = json.loads((folder / "config.json").read_bytes())
    for part in (document, document.get("text_config")):
        for marker in MARKERS:
            value = part.get(marker) if isinstance(part, dict) else None
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, int) and number >= 0:
                    yield marker, number


def _shown(tokenizer: Any, number: int) -> str:
    if number >= len(tokenizer):
        return "beyond the tokens"
    return f"the token {str(tokenizer.convert_ids_to_tokens(number))[:20]!r}"
