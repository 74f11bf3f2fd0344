"""ScorePredictions: join the answers, measure them, decide, and write the decision down."""

from collections.abc import Callable, Iterator
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.exceptions import ClientError

from announce import announce
from dropforge_core.aws import Bucket, Bus, Ledger, error_code
from dropforge_core.contracts import DatasetManifest, EvaluationSetup, GateOutcome, Plan, ScoreInput
from dropforge_core.evaluation.cache import entry, object_key, prompt_set, series_of, worth_keeping
from dropforge_core.evaluation.join import join
from dropforge_core.evaluation.rows import holdout_rows, lines
from dropforge_core.events import RunEvent
from dropforge_core.gate.judgement import Subject, judge, metrics_json, outcome
from dropforge_core.gate.slices import Slicing
from dropforge_core.layout import RunLayout
from dropforge_core.ledger import Status
from dropforge_core.recipe import Recipe
from runtime import Settings, count, instrumented, logger


class Env(Settings):
    run_table: str
    run_bucket: str
    event_bus: str


@instrumented
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """ScoreInput to GateOutcome. The same answers give the same gate.json, however often it runs."""
    env, order = Env.load(), ScoreInput.model_validate(event)
    Ledger(env.run_table).move(order.run_id, Status.GATING, redrive=order.redrive)
    result = score(Bucket(env.run_bucket), order.run_id, order.model, order.setup)
    count(f"Gate{result.verdict.title()}")
    told = RunEvent(
        run_id=order.run_id,
        model=order.model,
        status=Status.GATING,
        message=result.summary,
        data={"verdict": result.verdict, "summary": result.summary},
    )
    announce(Bus(env.event_bus), "GateDecided", told)
    return result.model_dump(mode="json")


def score(bucket: Bucket, run_id: str, model: str, setup: EvaluationSetup) -> GateOutcome:
    """Read prompts and answers, judge, write metrics.json, examples.json and, last, gate.json.

    Raises:
        ObjectVanished: when the run's recipe, plan or manifest is not there.
        pydantic.ValidationError: when one of them is not what this version writes.
    """
    layout = RunLayout(run_id=run_id)
    recipe = Recipe.model_validate_json(bucket.read(layout.recipe))
    subject = Subject(
        run_id=run_id,
        model=model,
        dataset_digest=DatasetManifest.model_validate_json(bucket.read(layout.manifest)).digest,
        base_model=Plan.model_validate_json(bucket.read(layout.plan)).base_model.name,
        setup=setup,
    )
    joined = join(
        _lines_of(bucket, layout, ".jsonl", setup), _lines_of(bucket, layout, ".out", setup), setup.variants
    )
    slicing = Slicing()
    if recipe.evaluation.slices:
        rows = holdout_rows(_lines(bucket, layout.holdout, ".jsonl"))
        slicing = Slicing(recipe.evaluation.slices, {row.id: row.meta for row in rows})
    judgement = judge(joined, recipe, subject, slicing)
    bucket.write(layout.metrics, metrics_json(judgement.metrics))
    if judgement.examples:
        bucket.write(layout.examples, judgement.examples.model_dump_json(indent=2).encode())
    bucket.write(layout.gate, judgement.gate_json)
    _keep(bucket, layout, setup)
    return outcome(judgement, recipe.gate, bucket.name)


def _keep(bucket: Bucket, layout: RunLayout, setup: EvaluationSetup) -> None:
    """Keep whole predictions for later runs. Where that can't be done, the next run asks again."""
    for series, key in setup.kept_as.items():

        def mine(name: str, series: str = series) -> bool:
            return series_of(name) == series

        asked = prompt_set(_lines(bucket, layout.prompts, ".jsonl", mine))
        found = worth_keeping(asked, _lines(bucket, layout.predictions, ".out", mine))
        if found is None or asked.digest != key.prompts_digest:
            logger.warning("predictions are not whole, and are not kept", series=series)
            continue
        try:
            bucket.write(object_key(key), entry(key, found), "application/jsonlines")
        except ClientError as error:
            logger.warning("predictions could not be kept", series=series, reason=error_code(error))


def _lines_of(bucket: Bucket, layout: RunLayout, suffix: str, setup: EvaluationSetup) -> Iterator[bytes]:
    """Questions (`.jsonl`) or answers (`.out`) of this evaluation, asked and reused.

    An earlier attempt of this run may have asked what this one reuses, or the other way round.
    """
    place = layout.prompts if suffix == ".jsonl" else layout.predictions
    yield from _lines(bucket, place, suffix, lambda name: series_of(name) not in setup.reused)
    yield from _lines(bucket, layout.reused, suffix, lambda name: series_of(name) in setup.reused)


def _lines(
    bucket: Bucket, prefix: str, suffix: str, wanted: Callable[[str], bool] = lambda _: True
) -> Iterator[bytes]:
    for found in bucket.list(prefix):
        key = str(found["Key"])
        if key.endswith(suffix) and wanted(key.removeprefix(prefix)):
            yield from lines(bucket.stream(key))
