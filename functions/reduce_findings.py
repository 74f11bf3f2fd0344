"""ReduceFindings: what was found in the parts of a large dataset becomes one verdict, and a decision for each row."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from aws_lambda_powertools.utilities.typing import LambdaContext

from dataset_parts import Division, read_division
from dataset_run import claim, load_dataset, reject, valid
from dropforge_core.aws import Bucket, Bus, Ledger
from dropforge_core.contracts import StateInput, ValidationVerdict
from dropforge_core.dataset.reading.parts import Part
from dropforge_core.dataset.reduction import Examination, reduce
from dropforge_core.layout import RunLayout, ValidationWork
from runtime import Settings, count, instrumented

AT_ONCE: Final = 8
"""Objects moved at once; one stream of S3 fills about a tenth of what a function's network carries."""


class Env(Settings):
    run_table: str
    run_bucket: str
    event_bus: str


@instrumented
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Input `StateInput`, output `ValidationVerdict`; writes `validation.json`, and for valid data the decisions.

    Raises:
        ObjectVanished: when the findings of a part are not there.
    """
    return reduce_findings(StateInput.model_validate(event), Env.load()).model_dump(mode="json")


def reduce_findings(asked: StateInput, env: Env) -> ValidationVerdict:
    """See `handler`."""
    runs, ledger, work = Bucket(env.run_bucket), Ledger(env.run_table), ValidationWork(run_id=asked.run_id)
    data, division = load_dataset(asked.run_id, runs), read_division(asked.run_id, runs)
    request, recipe = data.request, data.recipe
    with tempfile.TemporaryDirectory() as folder:
        fetch(division, work, runs, Path(folder))
        examined = reduce(
            division.outline, division.parts, Path(folder), recipe, recipe_problems=data.recipe_problems
        )
        report, facts = examined.report, examined.facts
        count("RowsValidated", report.rows)
        if recipe is None or facts is None:
            return reject(report, request, runs, ledger, Bus(env.event_bus))
        if duplicate := claim(facts, recipe, request, ledger):
            return duplicate
        with ThreadPoolExecutor(AT_ONCE) as several:
            list(several.map(lambda part: _decide(part, examined, work, runs), division.parts))
    runs.write(RunLayout(run_id=asked.run_id).validation, report.model_dump_json(indent=2).encode())
    return valid(report, facts, recipe)


def _decide(part: Part, examined: Examination, work: ValidationWork, runs: Bucket) -> None:
    runs.write(work.decision(part.index), examined.decision(part), "application/octet-stream")


def fetch(division: Division, work: ValidationWork, runs: Bucket, folder: Path) -> None:
    """All findings, into one folder.

    Raises:
        ObjectVanished: when the findings of a part are not there.
    """

    def one(part: int) -> None:
        key = work.findings(part)
        runs.download(key, folder / key.rpartition("/")[2])

    with ThreadPoolExecutor(AT_ONCE) as several:
        list(several.map(one, (part.index for part in division.parts)))
