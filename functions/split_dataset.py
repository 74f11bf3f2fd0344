"""SplitDataset: how a large dataset is read, and the parts in which it is checked."""

from typing import Any, Final

from aws_lambda_powertools.utilities.typing import LambdaContext

from dataset_parts import Division, write_division
from dataset_run import load_dataset, source_files, tokenizer_of
from dropforge_core.aws import Bucket, Ledger
from dropforge_core.contracts import DatasetSplit, StateInput
from dropforge_core.dataset.outline import outline
from dropforge_core.ledger import Status
from runtime import Settings, count, instrumented

PART_BYTES: Final = 256 << 20
"""Stored bytes of a part: seconds of work, many times what it costs to start one, and little to do again."""

MOST_PARTS: Final = 1000
"""Parts of one run. Beyond 250 GB parts grow instead, so that history, requests and the reduction stay bounded."""


class Env(Settings):
    run_table: str
    run_bucket: str
    part_bytes: int = PART_BYTES


@instrumented
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Input `StateInput`, output `DatasetSplit`; writes the division that the other functions work by.

    Raises:
        ObjectVanished: when intake's request is not there.
    """
    return split_dataset(StateInput.model_validate(event), Env.load()).model_dump(mode="json")


def split_dataset(asked: StateInput, env: Env) -> DatasetSplit:
    """See `handler`."""
    runs = Bucket(env.run_bucket)
    Ledger(env.run_table).move(asked.run_id, Status.VALIDATING, redrive=asked.redrive)
    data = load_dataset(asked.run_id, runs)
    files = source_files(data.request)
    outlined = outline(files, data.recipe)
    parts = outlined.parts(max(env.part_bytes, sum(file.size for file in files) // MOST_PARTS))
    exact = data.recipe is not None and tokenizer_of(data.recipe, runs) is not None
    write_division(Division(outlined, parts, exact), asked.run_id, runs)
    count("PartsPlanned", len(parts))
    return DatasetSplit(parts=len(parts))
