"""PrepareEvaluation: find the champion, and write what is asked of whom; who answered before is not asked again."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Final

from aws_lambda_powertools.utilities.typing import LambdaContext

from dropforge_core.aws import Bucket, Ledger, ObjectVanished, newest_approved_package
from dropforge_core.contracts import EvaluationSetup, Plan, PredictionKey, PrepareEvaluationInput
from dropforge_core.evaluation.cache import (
    EntryUnusable,
    PromptSet,
    artifact_identity,
    is_pinned,
    object_key,
    prompt_set,
    recall,
    series_of,
)
from dropforge_core.evaluation.champion import Here, champion_of
from dropforge_core.evaluation.join import REJECTED
from dropforge_core.evaluation.prompts import SHARD_PROMPTS, Variant, generated_ids, shard_length, shards
from dropforge_core.evaluation.rows import (
    HoldoutBroken,
    HoldoutRow,
    Question,
    holdout_rows,
    lines,
    question_of,
    rejected_question_of,
)
from dropforge_core.gate.checks import as_canary
from dropforge_core.gate.general import general_shards
from dropforge_core.gate.sampling import answers_wanted
from dropforge_core.identity import job_name
from dropforge_core.ladder.steps import LONGEST_EVALUATION_S
from dropforge_core.layout import RunLayout, split_s3_uri
from dropforge_core.ledger import Status
from dropforge_core.planning.duration import START_SECONDS
from dropforge_core.planning.plan import affordable_seconds
from dropforge_core.recipe import Recipe
from jobs import Jobs
from money import left_for_evaluation
from pricing import catalogue
from runtime import Settings, instrumented, logger

LEAST_S: Final = round(START_SECONDS[-1])
JOB_S: Final = 3600
PROMPT_S: Final = 15
"""The longest that a prompt takes, of all that are answered together."""


class Env(Settings):
    run_table: str
    run_bucket: str
    image_uri: str = "unknown"


@instrumented
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """PrepareEvaluationInput to EvaluationSetup. Running it again writes the same shards."""
    env, order = Env.load(), PrepareEvaluationInput.model_validate(event)
    Ledger(env.run_table).move(order.run_id, Status.EVALUATING, redrive=order.redrive)
    runs = Bucket(env.run_bucket)
    setup = prepare(
        runs,
        order,
        newest_approved_package(order.model),
        image=env.image_uri,
        affordable_s=_affordable_s(runs, order),
    )
    for note in setup.cache_notes:
        logger.info(note)
    return setup.model_dump(mode="json")


def _affordable_s(runs: Bucket, order: PrepareEvaluationInput) -> int:
    """What is left of the run's limit, as run time of the transform job; 0 where its type has no price any more."""
    layout, table = RunLayout(run_id=order.run_id), catalogue(runs)
    left = left_for_evaluation(
        Jobs.connect(),
        Plan.model_validate_json(runs.read(layout.plan)),
        Recipe.model_validate_json(runs.read(layout.recipe)),
        table,
        datetime.now(UTC),
    )
    price = table.price(order.evaluation_instance_type, "evaluation")
    return affordable_seconds(left, LONGEST_EVALUATION_S / 3600, price)


def prepare(
    bucket: Bucket,
    order: PrepareEvaluationInput,
    approved: Mapping[str, Any] | None,
    *,
    image: str,
    affordable_s: int,
) -> EvaluationSetup:
    """Write the shards, the kept predictions that serve again, and `evaluation/setup.json`.

    The job may take an hour and a quarter of a minute a prompt, as far as `affordable_s` goes, and never less than
    `LEAST_S`, which the plan has put aside.

    Raises:
        HoldoutBroken: when the hold-out is unreadable, or has no row with an answer.
        ObjectVanished: when the run's recipe is not there.
    """
    layout = RunLayout(run_id=order.run_id)
    recipe = Recipe.model_validate_json(bucket.read(layout.recipe))
    champion = champion_of(
        approved,
        Here(order.model_data, order.base_model_prefix, recipe.quantization, bucket.name),
        lambda key: bucket.head(key) is not None,
    )
    variants: tuple[Variant, ...] = (
        ("base", "champion", "candidate") if champion.model_data else ("base", "candidate")
    )
    generation = recipe.evaluation.generation
    # Three times over the hold-out, so that memory holds ids and never rows.
    chosen = generated_ids((row.id for row, _ in _questions(bucket, layout)), answers_wanted(recipe))
    holdout = prompt_set(
        line
        for shard in shards(
            _questions_by_id(bucket, layout, recipe.gate.canary), ("base",), chosen, SHARD_PROMPTS
        )
        for line in shard.body.splitlines()
    )
    if not holdout.generated:
        raise HoldoutBroken("The hold-out has no row with an answer: there is nothing to judge by.")
    general = tuple(general_shards(recipe.gate))
    asked: dict[str, PromptSet] = dict.fromkeys(variants, holdout)
    asked |= {series_of(shard.name): prompt_set(shard.body.splitlines()) for shard in general}
    memory = _Memory(bucket, layout)
    keys = _keys(bucket, order, recipe, champion.model_data, image)
    for series, prompts in asked.items():
        memory.look_up(series, prompts, keys)
    count = 0
    length = shard_length(generation.max_new_tokens, len(holdout.generated))
    every = shards(_questions_by_id(bucket, layout, recipe.gate.canary), variants, chosen, length)
    for shard in chain(every, general):
        known = series_of(shard.name) in memory.reused
        prefix = layout.reused if known else layout.prompts
        bucket.write(prefix + shard.name, shard.body, "application/jsonlines")
        count += 0 if known else shard.prompts
    name = job_name(order.model, order.run_id, 1, "e")
    setup = EvaluationSetup(
        job_name=name,
        sagemaker_model_name=name,
        prompts=count,
        variants=variants,
        reused=tuple(memory.reused),
        kept_as=memory.to_keep,
        cache_notes=tuple(memory.notes),
        champion_package_arn=champion.package_arn,
        champion_model_data=champion.model_data,
        champion_comparable=champion.comparable,
        champion_note=champion.note,
        max_new_tokens=generation.max_new_tokens,
        temperature=generation.temperature,
        max_runtime_s=max(LEAST_S, min(affordable_s, JOB_S + PROMPT_S * count)),
        partial_training=order.partial_training,
        training_job_name=order.training_job_name,
        model_data=order.model_data,
        base_model_prefix=order.base_model_prefix,
    )
    bucket.write(layout.evaluation_setup, setup.model_dump_json(indent=2).encode())
    return setup


def _keys(
    bucket: Bucket, order: PrepareEvaluationInput, recipe: Recipe, champion: str, image: str
) -> dict[str, PredictionKey]:
    """By variant what its predictions follow from, the prompts left open.

    None where an image's tag may name another one tomorrow, or an artifact may be replaced.
    """
    if not is_pinned(image):
        return {}
    bare = PredictionKey(
        base_model_prefix=order.base_model_prefix,
        quantization=recipe.quantization,
        chat_template=recipe.chat_template,
        adapter=None,
        prompts_digest="",
        max_new_tokens=recipe.evaluation.generation.max_new_tokens,
        temperature=recipe.evaluation.generation.temperature,
        image=image,
    )
    keys = {"base": bare}
    for variant, uri in {"champion": champion, "candidate": order.model_data}.items():
        owner, key = split_s3_uri(uri) if uri else ("", "")
        head = bucket.head(key) if owner == bucket.name else None
        if head and (adapter := artifact_identity(uri, head)):
            keys[variant] = bare.model_copy(update={"adapter": adapter, "chat_template": None})
    return keys


class _Memory:
    """Which series of shards an earlier run answered, and as what the answers to the others are kept."""

    def __init__(self, bucket: Bucket, layout: RunLayout) -> None:
        self._bucket, self._layout = bucket, layout
        self.reused: list[str] = []
        self.to_keep: dict[str, PredictionKey] = {}
        self.notes: list[str] = []

    def look_up(self, series: str, asked: PromptSet, keys: Mapping[str, PredictionKey]) -> None:
        """Copy what is known of the series into the run, or note as what it is to be kept.

        Args:
            series: `base`, `general-base` and so on.
            asked: its questions.
            keys: by variant, the prompts left open.
        """
        variant = series.rpartition("-")[2]
        if variant not in keys:
            return
        key = keys[variant].model_copy(update={"prompts_digest": asked.digest})
        # The candidate is always asked: it is what the job is for, and a job without input fails.
        found = None if variant == "candidate" else self._recalled(series, key, asked, variant)
        if found is None:
            self.to_keep[series] = key
        else:
            self._bucket.write(
                f"{self._layout.reused}{series}-kept.jsonl.out", found, "application/jsonlines"
            )
            self.reused.append(series)

    def _recalled(self, series: str, key: PredictionKey, asked: PromptSet, variant: str) -> bytes | None:
        place = object_key(key)
        try:
            found = recall(self._bucket.read(place), key, asked, variant)
        except ObjectVanished:
            return None
        except EntryUnusable as error:
            self.notes.append(f"Kept predictions of {series} ({place}) were not used: {error}.")
            return None
        self.notes.append(
            f"{series}: the same {len(asked.generated)} prompts were answered in an earlier run and not asked again "
            f"({place})."
        )
        return found


def _questions(bucket: Bucket, layout: RunLayout) -> Iterator[tuple[HoldoutRow, Question]]:
    """The hold-out in the order of its shards; rows without an answer are left out."""
    keys = sorted(entry["Key"] for entry in bucket.list(layout.holdout) if entry["Key"].endswith(".jsonl"))
    for row in holdout_rows(line for key in keys for line in lines(bucket.stream(key))):
        if question := question_of(row):
            yield row, question


def _questions_by_id(bucket: Bucket, layout: RunLayout, canary: str) -> Iterator[tuple[str, Question]]:
    """The hold-out's questions, its canaries marked, and the rejected answers of pairs."""
    for row, question in _questions(bucket, layout):
        yield row.id, as_canary(question, row.meta.get(canary))
        if rejected := rejected_question_of(row, question):
            yield row.id + REJECTED, rejected
