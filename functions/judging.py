"""A run's evaluation as it lies in the run bucket, judged: what decides once can be decided again from the same objects."""

import hashlib
from collections.abc import Callable, Iterator

from dropforge_core.aws import Bucket, ObjectVanished
from dropforge_core.contracts import DatasetManifest, EvaluationPrompt, EvaluationSetup, Plan
from dropforge_core.evaluation.cache import series_of
from dropforge_core.evaluation.join import Joined, join
from dropforge_core.evaluation.judge import JudgeRecord, Pair, conclude, conversation, pairs_of
from dropforge_core.evaluation.rows import holdout_rows, lines
from dropforge_core.gate.documents import GateReport
from dropforge_core.gate.judgement import Judgement, Subject, judge
from dropforge_core.gate.slices import Slicing
from dropforge_core.layout import RunLayout
from dropforge_core.metrics.given import Given
from dropforge_core.model import Frozen
from dropforge_core.recipe import Judge, Recipe


class Recomputed(Frozen):
    """A stored decision beside the one that follows from the stored answers today."""

    run_id: str
    same: bool
    """Whether gate.json is the same, bit for bit."""
    stored_verdict: str
    verdict: str
    stored_digest: str
    """sha256 hex of gate.json; the registered package carries it as `gate_digest`."""
    digest: str
    differs: tuple[str, ...]
    """Fields of gate.json that are not the same."""


def answers(bucket: Bucket, run_id: str, setup: EvaluationSetup) -> Joined:
    """What was asked and answered, joined by id."""
    layout = RunLayout(run_id=run_id)
    return join(
        lines_of(bucket, layout, ".jsonl", setup), lines_of(bucket, layout, ".out", setup), setup.variants
    )


def judged(  # noqa: PLR0913  # by name only; what a decision rests on
    bucket: Bucket,
    *,
    run_id: str,
    model: str,
    setup: EvaluationSetup,
    recipe: Recipe,
    joined: Joined,
    use: int,
) -> Judgement:
    """The decision.

    Args:
        bucket: the run bucket.
        run_id: whose evaluation it is.
        model: the run's.
        setup: of the evaluation.
        recipe: the run's.
        joined: from `answers`.
        use: place of this decision among those of the model on this hold-out.

    Raises:
        ObjectVanished: when the run's plan or manifest is not there.
        pydantic.ValidationError: when one of them is not what this version writes.
    """
    layout = RunLayout(run_id=run_id)
    subject = Subject(
        run_id=run_id,
        model=model,
        dataset_digest=DatasetManifest.model_validate_json(bucket.read(layout.manifest)).digest,
        base_model=Plan.model_validate_json(bucket.read(layout.plan)).base_model.name,
        setup=setup,
        use=use,
    )
    slicing = Slicing()
    if recipe.evaluation.slices:
        rows = holdout_rows(stored_lines(bucket, layout.holdout, ".jsonl"))
        slicing = Slicing(recipe.evaluation.slices, {row.id: row.meta for row in rows})
    return judge(joined, recipe, subject, slicing, tuple(_given(bucket, layout, setup, recipe, joined)))


def _given(
    bucket: Bucket, layout: RunLayout, setup: EvaluationSetup, recipe: Recipe, joined: Joined
) -> Iterator[Given]:
    """Scores that were measured elsewhere, as they are kept: nobody is asked here."""
    if asked := recipe.evaluation.judge:
        pairs = judged_pairs(bucket, layout, setup, asked, joined)
        yield conclude(pairs, asked, judge_record(bucket, layout))


def judged_pairs(
    bucket: Bucket, layout: RunLayout, setup: EvaluationSetup, asked: Judge, joined: Joined
) -> tuple[Pair, ...]:
    """What the recipe's judge compares, each row with its whole conversation."""
    chosen = {pair.row for pair in pairs_of(joined.measured, asked, {})}
    questions = {
        prompt.id: conversation(prompt.messages)
        for prompt in map(EvaluationPrompt.model_validate_json, lines_of(bucket, layout, ".jsonl", setup))
        if prompt.variant == "candidate" and prompt.id in chosen
    }
    return pairs_of(joined.measured, asked, questions)


def judge_record(bucket: Bucket, layout: RunLayout) -> JudgeRecord:
    """The verdicts that are kept; none where nothing was asked."""
    try:
        return JudgeRecord.model_validate_json(bucket.read(layout.judge))
    except ObjectVanished:
        return JudgeRecord()


def recompute(bucket: Bucket, run_id: str) -> Recomputed:
    """Decide once more from the stored prompts, answers, recipe and setup, and compare with the stored gate.json.

    How often the hold-out had decided is taken from gate.json: it is the ledger's, and grows.

    Raises:
        ObjectVanished: when the run was not decided, or what it was decided by is gone.
        pydantic.ValidationError: when a document is not what this version writes.
    """
    layout = RunLayout(run_id=run_id)
    stored = bucket.read(layout.gate)
    before = GateReport.model_validate_json(stored)
    setup = EvaluationSetup.model_validate_json(bucket.read(layout.evaluation_setup))
    judgement = judged(
        bucket,
        run_id=run_id,
        model=before.model,
        setup=setup,
        recipe=Recipe.model_validate_json(bucket.read(layout.recipe)),
        joined=answers(bucket, run_id, setup),
        use=before.holdout.use if before.holdout else 1,
    )
    again = judgement.gate_json
    one, other = before.model_dump(), judgement.gate.model_dump()
    return Recomputed(
        run_id=run_id,
        same=again == stored,
        stored_verdict=before.verdict,
        verdict=judgement.gate.verdict,
        stored_digest=hashlib.sha256(stored).hexdigest(),
        digest=hashlib.sha256(again).hexdigest(),
        differs=tuple(name for name in one if one[name] != other[name]),
    )


def lines_of(bucket: Bucket, layout: RunLayout, suffix: str, setup: EvaluationSetup) -> Iterator[bytes]:
    """Questions (`.jsonl`) or answers (`.out`) of this evaluation, asked and reused.

    An earlier attempt of this run may have asked what this one reuses, or the other way round.
    """
    place = layout.prompts if suffix == ".jsonl" else layout.predictions
    yield from stored_lines(bucket, place, suffix, lambda name: series_of(name) not in setup.reused)
    yield from stored_lines(bucket, layout.reused, suffix, lambda name: series_of(name) in setup.reused)


def stored_lines(
    bucket: Bucket, prefix: str, suffix: str, wanted: Callable[[str], bool] = lambda _: True
) -> Iterator[bytes]:
    """Lines of the objects under a prefix whose names (behind it) are wanted."""
    for found in bucket.list(prefix):
        key = str(found["Key"])
        if key.endswith(suffix) and wanted(key.removeprefix(prefix)):
            yield from lines(bucket.stream(key))
