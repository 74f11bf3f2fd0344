"""SurveyPart: one part of a large dataset, every row checked by itself."""

import tempfile
from pathlib import Path
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from dataset_parts import read_division, tokenizer_for
from dataset_run import load_dataset, source_files
from dropforge_core.aws import Bucket
from dropforge_core.contracts import PartInput
from dropforge_core.dataset.survey import survey
from dropforge_core.layout import ValidationWork
from runtime import Settings, instrumented


class Env(Settings):
    run_bucket: str


@instrumented
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Input `PartInput`, output nothing; writes the part's findings.

    Raises:
        ObjectVanished: when the request or the division is not there.
        TokenizerGone: when lengths can't be counted as they were to be.
    """
    survey_part(PartInput.model_validate(event), Env.load())
    return {}


def survey_part(asked: PartInput, env: Env) -> None:
    """See `handler`."""
    runs = Bucket(env.run_bucket)
    data, division = load_dataset(asked.run_id, runs), read_division(asked.run_id, runs)
    found = survey(
        division.parts[asked.part],
        source_files(data.request),
        division.outline,
        data.recipe,
        tokenizer=tokenizer_for(division, data, runs),
    )
    with tempfile.TemporaryDirectory() as folder:
        file = found.save(Path(folder))
        runs.upload(ValidationWork(run_id=asked.run_id).findings(asked.part), file)
