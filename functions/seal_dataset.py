"""SealDataset: the shards of all parts of a large dataset become the one copy that training reads."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal

from aws_lambda_powertools.utilities.typing import LambdaContext

from dataset_parts import read_division
from dataset_run import load_dataset, seal
from dropforge_core.aws import Bucket, Ledger
from dropforge_core.contracts import SealInput, ValidationReport
from dropforge_core.dataset.writing import PartShards, manifest
from dropforge_core.layout import RunLayout, ValidationWork
from runtime import Settings, instrumented

AT_ONCE: Final = 8
"""Small objects read at once."""


class Env(Settings):
    run_table: str
    run_bucket: str


@instrumented
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Input `SealInput`, output nothing; writes the recipe and, last, the manifest.

    Raises:
        ObjectVanished: when a part was not written.
        ValueError: when the recipe can't be read, which ReduceFindings lets through to nobody.
    """
    seal_dataset(SealInput.model_validate(event), Env.load())
    return {}


def seal_dataset(asked: SealInput, env: Env) -> None:
    """See `handler`."""
    runs, work, layout = (
        Bucket(env.run_bucket),
        ValidationWork(run_id=asked.run_id),
        RunLayout(run_id=asked.run_id),
    )
    recipe = load_dataset(asked.run_id, runs).recipe
    if recipe is None:
        raise ValueError("only a dataset with a recipe can be sealed")
    parts = read_division(asked.run_id, runs).parts
    with ThreadPoolExecutor(AT_ONCE) as several:
        documents = several.map(lambda part: runs.read(work.shards(part.index)), parts)
        shards = [PartShards.model_validate_json(document) for document in documents]
    report = ValidationReport.model_validate_json(runs.read(layout.validation))
    source: Literal["given", "cut"] = "given" if report.holdout["basis"] == "given" else "cut"
    seal(manifest(asked.dataset, source, shards), recipe, asked.run_id, runs, Ledger(env.run_table))
