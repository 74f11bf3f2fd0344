"""What the functions that check a large dataset in parts hand to one another, through the run bucket."""

import msgspec

from dataset_run import RunDataset, tokenizer_of
from dropforge_core.aws import Bucket
from dropforge_core.dataset.outline import Outline
from dropforge_core.dataset.reading.parts import Part
from dropforge_core.dataset.tokens import TokenCounter
from dropforge_core.layout import ValidationWork


class Division(msgspec.Struct, frozen=True):
    """`division.json`: what every part of the work is done by."""

    outline: Outline
    parts: tuple[Part, ...]
    exact: bool
    """Whether the base model's tokenizer counts."""


class TokenizerGone(Exception):
    """The base model's tokenizer was there when the dataset was divided and is not now. Start the run again."""


def write_division(division: Division, run_id: str, runs: Bucket) -> None:
    """Hand the division on."""
    runs.write(ValidationWork(run_id=run_id).division, msgspec.json.encode(division))


def read_division(run_id: str, runs: Bucket) -> Division:
    """What `write_division` wrote.

    Raises:
        ObjectVanished: when it was not written, or has expired.
    """
    return msgspec.json.decode(runs.read(ValidationWork(run_id=run_id).division), type=Division)


def tokenizer_for(division: Division, data: RunDataset, runs: Bucket) -> TokenCounter | None:
    """The tokenizer that the division was made with: parts counted in two ways could not be added up.

    Raises:
        TokenizerGone: when there was one and there is none now.
    """
    if not division.exact or data.recipe is None:
        return None
    tokenizer = tokenizer_of(data.recipe, runs)
    if tokenizer is None:
        raise TokenizerGone(f"the tokenizer of {data.recipe.base_model} can't be read any more")
    return tokenizer
