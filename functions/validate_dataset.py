"""ValidateDataset: every row of a dataset checked in one go, and what is valid copied to where it never changes."""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from dataset_run import RunShards, claim, load_dataset, reject, seal, source_files, tokenizer_of, valid
from dropforge_core.aws import Bucket, Bus, Ledger
from dropforge_core.contracts import StateInput, ValidationVerdict
from dropforge_core.dataset.validation import examine
from dropforge_core.dataset.writing import write
from dropforge_core.layout import RunLayout
from dropforge_core.ledger import Status
from runtime import Settings, count, instrumented


class Env(Settings):
    run_table: str
    run_bucket: str
    event_bus: str


@instrumented
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Input `StateInput`, output `ValidationVerdict`; writes `validation.json`, and for valid data the shards.

    Raises:
        ObjectVanished: when intake's request is not there.
        DatasetChanged: when a file gave other rows when it was read again.
    """
    return validate(StateInput.model_validate(event), Env.load()).model_dump(mode="json")


def validate(asked: StateInput, env: Env) -> ValidationVerdict:
    """See `handler`."""
    runs, ledger = Bucket(env.run_bucket), Ledger(env.run_table)
    ledger.move(asked.run_id, Status.VALIDATING, redrive=asked.redrive)
    data = load_dataset(asked.run_id, runs)
    request, recipe = data.request, data.recipe
    files = source_files(request)
    examined = examine(
        files,
        recipe,
        tokenizer=tokenizer_of(recipe, runs) if recipe else None,
        recipe_problems=data.recipe_problems,
    )
    report, facts = examined.report, examined.facts
    count("RowsValidated", report.rows)
    if recipe is None or facts is None:
        return reject(report, request, runs, ledger, Bus(env.event_bus))
    if duplicate := claim(facts, recipe, request, ledger):
        return duplicate
    manifest = write(examined, files, RunShards(runs, asked.run_id))
    runs.write(RunLayout(run_id=asked.run_id).validation, report.model_dump_json(indent=2).encode())
    seal(manifest, recipe, asked.run_id, runs, ledger)
    return valid(report, facts, recipe)
