"""WritePart: one part of a large valid dataset, copied to where it never changes."""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from dataset_parts import read_division
from dataset_run import RunShards, load_dataset, source_files
from dropforge_core.aws import Bucket
from dropforge_core.contracts import PartInput
from dropforge_core.dataset.writing import write_part as written
from dropforge_core.layout import ValidationWork
from runtime import Settings, instrumented


class Env(Settings):
    run_bucket: str


@instrumented
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Input `PartInput`, output nothing; writes the part's shards, and what they are called.

    Raises:
        ObjectVanished: when the division or the part's decision is not there.
        DatasetChanged: when a file gave other rows when it was read again.
    """
    write_part(PartInput.model_validate(event), Env.load())
    return {}


def write_part(asked: PartInput, env: Env) -> None:
    """See `handler`."""
    runs, work = Bucket(env.run_bucket), ValidationWork(run_id=asked.run_id)
    data, division = load_dataset(asked.run_id, runs), read_division(asked.run_id, runs)
    shards = written(
        division.parts[asked.part],
        source_files(data.request),
        division.outline,
        runs.read(work.decision(asked.part)),
        RunShards(runs, asked.run_id),
    )
    runs.write(work.shards(asked.part), shards.model_dump_json().encode())
