"""What was forgotten: general questions that the base model and the candidate are asked beside the hold-out.

The questions are Dropforge's own and under its licence (Apache 2.0); they are fixed, so that figures of
different runs compare.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from typing import Final

from dropforge_core.contracts import AnswerCheck, EvaluationPrompt
from dropforge_core.evaluation.join import Joined
from dropforge_core.evaluation.prompts import GENERAL_ASKED, Shard, Variant
from dropforge_core.gate.checks import fault_of
from dropforge_core.gate.evidence import Comparison, Paired, compare
from dropforge_core.gate.rules import Rule, Verdict
from dropforge_core.gate.statistics import confidence
from dropforge_core.metrics.registry import Metric
from dropforge_core.model import Frozen
from dropforge_core.recipe import Gate

FILE: Final = "general_questions.jsonl"
MANNER: Final = "Answer in a few words."
"""Behind each question: the answers are short, and so are the minutes."""
ANSWER_TOKENS: Final = 24
"""Room for a short sentence around the word that counts."""
REPORTED_DELTA: Final = 0.05
"""Margin for which the needed number of questions is told where the recipe sets none."""
GENERAL: Final = Metric(
    name="general_questions",
    label="General questions",
    direction="higher",
    kind="binary",
    needs="generation",
    description="1 where the answer to a general question holds one of the accepted words.",
    worst=0.0,
)


class GeneralQuestion(Frozen):
    id: str
    topic: str
    ask: str
    accept: tuple[str, ...]
    """Words of which one must stand in the answer; the first is the reference."""


class Forgetting(Frozen):
    """General questions before and after."""

    questions: int
    """How many were asked."""
    questions_digest: str
    """`sha256:<hex>` over ids, questions and first answers."""
    base_right: int
    """Of them the base model has right."""
    candidate_right: int
    """Of them the candidate has right."""
    forgotten: tuple[str, ...]
    """Ids that only the base model has right."""
    learned: tuple[str, ...]
    """Ids that only the candidate has right."""
    comparison: Comparison
    """The candidate against the base model, question by question."""
    delta: float | None
    """The recipe's margin; None where the result is told and decides nothing."""


@cache
def questions() -> tuple[GeneralQuestion, ...]:
    """The shipped questions, in their order."""
    return tuple(GeneralQuestion.model_validate_json(line) for line in _file().splitlines())


def _file() -> bytes:
    return resources.files(__package__).joinpath(FILE).read_bytes()


def general_shards(gate: Gate) -> Iterator[Shard]:
    """One shard for each variant that is asked, `general-<variant>.jsonl`; none where the recipe turns them off."""
    if gate.forgetting == "off":
        return
    for variant in GENERAL_ASKED:
        lines = [_prompt(one, variant).model_dump_json().encode() + b"\n" for one in questions()]
        yield Shard(f"general-{variant}.jsonl", b"".join(lines), len(lines))


def _prompt(one: GeneralQuestion, variant: Variant) -> EvaluationPrompt:
    return EvaluationPrompt(
        id=one.id,
        variant=variant,
        messages=({"role": "user", "content": f"{one.ask} {MANNER}"},),
        reference=one.accept[0],
        generate=True,
        max_new_tokens=ANSWER_TOKENS,
        purpose="general",
        check=AnswerCheck(contains=one.accept),
    )


def forgetting_of(joined: Joined, gate: Gate) -> Forgetting | None:
    """The comparison on general questions; None where none was asked. A failed answer is wrong."""
    asked = [one for one in joined.asked if one.purpose == "general"]
    if not asked:
        return None
    right = {
        variant: {
            one.id: float(fault_of(one.check, answer.text) is None)
            for one in asked
            if (answer := joined.answers.get(variant, {}).get(one.id)) is not None
        }
        for variant in GENERAL_ASKED
    }
    before, after = right["base"], right["candidate"]
    ids = sorted(before.keys() & after.keys())
    changes = {row_id: after[row_id] - before[row_id] for row_id in ids}
    paired = Paired(metric=GENERAL, differences=tuple(changes.values()), clusters=tuple(ids))
    delta = gate.forgetting if isinstance(gate.forgetting, float) else None
    return Forgetting(
        questions=len(asked),
        questions_digest=f"sha256:{_digest([(one.id, one.prompt, one.reference) for one in asked])}",
        base_right=round(sum(before.values())),
        candidate_right=round(sum(after.values())),
        forgotten=tuple(row_id for row_id, change in changes.items() if change < 0),
        learned=tuple(row_id for row_id, change in changes.items() if change > 0),
        comparison=compare(paired, "base", gate.alpha, delta or REPORTED_DELTA),
        delta=delta,
    )


def _digest(asked: Sequence[tuple[str, str, str]]) -> str:
    return hashlib.sha256(json.dumps(asked, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def forgetting_rule(found: Forgetting, alpha: float) -> Rule | None:
    """The share of right answers dropped by no more than the recipe allows; None where it sets no margin.

    The set is fixed: where it is too small for the margin, the verdict stays open and says so.
    """
    if found.delta is None:
        return None
    seen = found.comparison
    lower, upper = seen.lower, seen.upper
    verdict: Verdict = "INCONCLUSIVE"
    if lower is None or upper is None or seen.n < found.questions or upper < -found.delta:
        verdict = "FAIL"
    elif lower >= -found.delta:
        verdict = "PASS"
    more = (
        f" The set has {found.questions} questions, too few to show it at this margin; a larger gate.forgetting or "
        "a person decides."
        if verdict == "INCONCLUSIVE"
        else ""
    )
    bound = "nothing is shown" if lower is None else f"a drop of at most {max(0.0, -lower):.3g} is shown"
    return Rule(
        name="not_forgotten",
        verdict=verdict,
        metric=GENERAL.name,
        against="base",
        n=seen.n,
        value=seen.difference,
        lower=lower,
        upper=upper,
        threshold=-found.delta,
        n_needed=seen.n_needed,
        method=seen.method,
        reason=f"Of {found.questions} general questions the base model has {found.base_right} right, the candidate "
        f"{found.candidate_right}; with {confidence(alpha)} confidence {bound}, and {found.delta:g} is allowed.{more}",
    )
