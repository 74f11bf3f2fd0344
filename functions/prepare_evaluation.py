"""PrepareEvaluation: write what base, champion and candidate are asked, and find the champion."""

from collections.abc import Iterator, Mapping
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from dropforge_core.aws import Bucket, Ledger, newest_approved_package
from dropforge_core.contracts import EvaluationSetup, PrepareEvaluationInput
from dropforge_core.evaluation.champion import champion_of
from dropforge_core.evaluation.join import REJECTED
from dropforge_core.evaluation.prompts import Variant, generated_ids, shards
from dropforge_core.evaluation.rows import (
    HoldoutBroken,
    HoldoutRow,
    Question,
    holdout_rows,
    lines,
    question_of,
    rejected_question_of,
)
from dropforge_core.gate.sampling import answers_wanted
from dropforge_core.identity import job_name
from dropforge_core.layout import RunLayout
from dropforge_core.ledger import Status
from dropforge_core.recipe import Recipe
from runtime import Settings, instrumented


class Env(Settings):
    run_table: str
    run_bucket: str


@instrumented
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """PrepareEvaluationInput to EvaluationSetup. Running it again writes the same shards."""
    env, order = Env.load(), PrepareEvaluationInput.model_validate(event)
    Ledger(env.run_table).move(order.run_id, Status.EVALUATING, redrive=order.redrive)
    setup = prepare(Bucket(env.run_bucket), order, newest_approved_package(order.model))
    return setup.model_dump(mode="json")


def prepare(
    bucket: Bucket, order: PrepareEvaluationInput, approved: Mapping[str, Any] | None
) -> EvaluationSetup:
    """Write the shards and `evaluation/setup.json`.

    Raises:
        HoldoutBroken: when the hold-out is unreadable, or has no row with an answer.
        ObjectVanished: when the run's recipe is not there.
    """
    layout = RunLayout(run_id=order.run_id)
    recipe = Recipe.model_validate_json(bucket.read(layout.recipe))
    champion = champion_of(
        approved,
        candidate_model_data=order.model_data,
        base_model_prefix=order.base_model_prefix,
        run_bucket=bucket.name,
        exists=lambda key: bucket.head(key) is not None,
    )
    variants: tuple[Variant, ...] = (
        ("base", "champion", "candidate") if champion.model_data else ("base", "candidate")
    )
    generation = recipe.evaluation.generation
    # Twice over the hold-out, so that memory holds ids and never rows.
    chosen = generated_ids((row.id for row, _ in _questions(bucket, layout)), answers_wanted(recipe))
    prompts = 0
    for shard in shards(_questions_by_id(bucket, layout), variants, chosen, generation.max_new_tokens):
        bucket.write(layout.prompts + shard.name, shard.body, "application/jsonlines")
        prompts += shard.prompts
    if not prompts:
        raise HoldoutBroken("The hold-out has no row with an answer: there is nothing to judge by.")
    name = job_name(order.model, order.run_id, 1, "e")
    setup = EvaluationSetup(
        job_name=name,
        sagemaker_model_name=name,
        prompts=prompts,
        variants=variants,
        champion_package_arn=champion.package_arn,
        champion_model_data=champion.model_data,
        champion_comparable=champion.comparable,
        champion_note=champion.note,
        max_new_tokens=generation.max_new_tokens,
        temperature=generation.temperature,
        partial_training=order.partial_training,
        training_job_name=order.training_job_name,
        model_data=order.model_data,
        base_model_prefix=order.base_model_prefix,
    )
    bucket.write(layout.evaluation_setup, setup.model_dump_json(indent=2).encode())
    return setup


def _questions(bucket: Bucket, layout: RunLayout) -> Iterator[tuple[HoldoutRow, Question]]:
    """The hold-out in the order of its shards; rows without an answer are left out."""
    keys = sorted(entry["Key"] for entry in bucket.list(layout.holdout) if entry["Key"].endswith(".jsonl"))
    for row in holdout_rows(line for key in keys for line in lines(bucket.stream(key))):
        if question := question_of(row):
            yield row, question


def _questions_by_id(bucket: Bucket, layout: RunLayout) -> Iterator[tuple[str, Question]]:
    for row, question in _questions(bucket, layout):
        yield row.id, question
        if rejected := rejected_question_of(row, question):
            yield row.id + REJECTED, rejected
