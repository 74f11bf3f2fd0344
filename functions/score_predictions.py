"""ScorePredictions: join the answers, measure them, decide, and write the decision down."""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.exceptions import ClientError

from announce import announce
from dropforge_core.aws import Bucket, Bus, Ledger, error_code
from dropforge_core.budget import JUDGE_FIELD
from dropforge_core.contracts import EvaluationSetup, GateOutcome, ScoreInput
from dropforge_core.evaluation.cache import entry, object_key, prompt_set, series_of, worth_keeping
from dropforge_core.events import RunEvent
from dropforge_core.gate.judgement import metrics_json, outcome
from dropforge_core.layout import RunLayout
from dropforge_core.ledger import Status
from dropforge_core.recipe import Recipe
from judging import answers, judged, stored_lines
from llm_judge import ask_judge
from runtime import Settings, count, instrumented, logger


class Env(Settings):
    run_table: str
    run_bucket: str
    event_bus: str


@instrumented
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """ScoreInput to GateOutcome. The same answers give the same gate.json, however often it runs."""
    env, order = Env.load(), ScoreInput.model_validate(event)
    ledger = Ledger(env.run_table)
    ledger.move(order.run_id, Status.GATING, redrive=order.redrive)
    result = score(Bucket(env.run_bucket), ledger, order.run_id, order.model, order.setup)
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


def score(bucket: Bucket, ledger: Ledger, run_id: str, model: str, setup: EvaluationSetup) -> GateOutcome:
    """Read prompts and answers, judge, write metrics.json, examples.json and, last, gate.json.

    Raises:
        ObjectVanished: when the run's recipe, plan or manifest is not there.
        pydantic.ValidationError: when one of them is not what this version writes.
    """
    layout = RunLayout(run_id=run_id)
    recipe = Recipe.model_validate_json(bucket.read(layout.recipe))
    joined = answers(bucket, run_id, setup)
    if judge_usd := ask_judge(bucket, layout, setup, recipe, joined):
        # Settled with the run's jobs: caps count it.
        ledger.annotate(run_id, {JUDGE_FIELD: f"{judge_usd:.6f}"})
    judgement = judged(
        bucket,
        run_id=run_id,
        model=model,
        setup=setup,
        recipe=recipe,
        joined=joined,
        use=use_of(ledger, model, joined.holdout_digest, run_id),
    )
    bucket.write(layout.metrics, metrics_json(judgement.metrics))
    if judgement.examples:
        bucket.write(layout.examples, judgement.examples.model_dump_json(indent=2).encode())
    bucket.write(layout.gate, judgement.gate_json)
    _keep(bucket, layout, setup)
    return outcome(judgement, recipe.gate, bucket.name)


def use_of(ledger: Ledger, model: str, holdout_digest: str, run_id: str) -> int:
    """Place of this run among those of the model that the hold-out decided on, from 1; the same however often asked."""
    name = f"HOLDOUT#{model}#{holdout_digest}"
    while True:
        seen = ledger.note(name)
        runs = seen.get("runs", "").split()
        if run_id in runs:
            return runs.index(run_id) + 1
        if ledger.write_note(name, {"runs": " ".join([*runs, run_id])}, seen):
            return len(runs) + 1


def _keep(bucket: Bucket, layout: RunLayout, setup: EvaluationSetup) -> None:
    """Keep whole predictions for later runs. Where that can't be done, the next run asks again."""
    for series, key in setup.kept_as.items():

        def mine(name: str, series: str = series) -> bool:
            return series_of(name) == series

        asked = prompt_set(stored_lines(bucket, layout.prompts, ".jsonl", mine))
        found = worth_keeping(asked, stored_lines(bucket, layout.predictions, ".out", mine))
        if found is None or asked.digest != key.prompts_digest:
            logger.warning("predictions are not whole, and are not kept", series=series)
            continue
        try:
            bucket.write(object_key(key), entry(key, found), "application/jsonlines")
        except ClientError as error:
            logger.warning("predictions could not be kept", series=series, reason=error_code(error))
