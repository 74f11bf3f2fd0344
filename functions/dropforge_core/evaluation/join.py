"""Answers joined to their questions by id, and everything counted that stands in the way of a verdict."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from pydantic import ValidationError

from dropforge_core.contracts import AnswerCheck, EvaluationPrompt, Prediction
from dropforge_core.evaluation.prompts import GENERAL_ASKED
from dropforge_core.metrics.registry import nll_per_byte
from dropforge_core.model import Frozen

REJECTED: Final = "#rejected"
"""Behind a row's id: the question whose reference is the row's rejected answer."""
LISTED: Final = 20
"""How many faults are listed one by one."""


class Coverage(Frozen):
    """How whole the answers are. Everything but `expected`, `answered` and `cut_off` should be zero."""

    expected: int
    """Questions times variants."""
    answered: int
    """Expected answers of which exactly one good line came back."""
    missing: int
    """Expected answers without any line that could be read; a question that one variant was not asked is one of them."""
    duplicated: int
    """Lines beyond the first for one question and variant."""
    errors: int
    """Lines in which the model server reports an error."""
    garbled: int
    """Lines that are no prediction: cut short, no JSON, other fields."""
    unexpected: int
    """Answers to a question that was not asked, and questions that one variant was asked otherwise than another."""
    unmeasured: int
    """Lines whose likelihood is absent, not finite, negative, or of another reference's length."""
    failed_generations: Mapping[str, int]
    """By variant: lines without text where one was asked for. The candidate's score the worst value."""
    cut_off: Mapping[str, int]
    """By variant: answers that ended at the token limit. They are scored as they are."""
    listed: tuple[str, ...]
    """The first faults, sorted, as `variant id: what`."""

    @property
    def is_complete(self) -> bool:
        """Whether a verdict may rest on these answers.

        A failed generation of the candidate counts against it; one of a reference would count for the
        candidate, so it breaks the comparison.
        """
        return (
            self.expected > 0
            and self.answered == self.expected
            and not (self.duplicated or self.garbled or self.unexpected)
            and not any(count for variant, count in self.failed_generations.items() if variant != "candidate")
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """One question as it was put to every variant."""

    id: str
    reference: str
    generate: bool
    cluster: str
    """Rows that share it are no independent observations."""
    prompt: str
    """The last message before the answer, for people."""
    purpose: Literal["holdout", "canary", "general"] = "holdout"
    check: AnswerCheck | None = None


@dataclass(frozen=True, slots=True)
class Joined:
    """Questions sorted by id, and the one good answer of each variant."""

    asked: tuple[Asked, ...]
    variants: tuple[str, ...]
    answers: Mapping[str, Mapping[str, Prediction]]
    """Variant to row id to answer."""
    coverage: Coverage
    rejected: tuple[Asked, ...] = ()
    """Rejected answers of preference pairs, under their row's id; only their likelihood is measured."""
    rejected_answers: Mapping[str, Mapping[str, Prediction]] = field(default_factory=dict)
    """Variant to row id to what the model server says of the rejected answer."""
    prompts_digest: str = ""
    predictions_digest: str = ""
    """sha256 over the sorted lines: the same for any order and any sharding."""

    @property
    def measured(self) -> "Joined":
        """The hold-out alone, without canaries and general questions, which are no sample of anything."""
        asked = tuple(one for one in self.asked if one.purpose == "holdout")
        ids = {one.id for one in asked}
        answers = {
            variant: {row_id: one for row_id, one in found.items() if row_id in ids}
            for variant, found in self.answers.items()
        }
        rejected = tuple(one for one in self.rejected if one.id in ids)
        return replace(self, asked=asked, answers=answers, rejected=rejected)

    @property
    def holdout_digest(self) -> str:
        """sha256 over questions and reference answers, in any order and under any id."""
        asked = sorted(
            (one.cluster if one.prompt else "", one.reference)
            for one in self.asked
            if one.purpose != "general"
        )
        return f"sha256:{hashlib.sha256(json.dumps(asked).encode()).hexdigest()}"


def join(prompts: Iterable[bytes], predictions: Iterable[bytes], variants: Sequence[str]) -> Joined:
    """Join by (variant, id). The order of lines and their distribution over files make no difference.

    Args:
        prompts: lines of the transform's input.
        predictions: lines of its output.
        variants: who was asked; lines of others are left out on both sides.

    Raises:
        pydantic.ValidationError: when an input line is no prompt; we wrote those ourselves.
    """
    tally = _Tally(tuple(variants))
    for line in prompts:
        tally.expect(line)
    for line in predictions:
        tally.take(line)
    return tally.joined()


class _Tally:
    def __init__(self, variants: tuple[str, ...]) -> None:
        self._variants = variants
        self._asked: dict[str, Asked] = {}
        self._expected: set[tuple[str, str]] = set()
        self._found: dict[tuple[str, str], list[Prediction]] = {}
        self._faults: list[str] = []
        self._counts = dict.fromkeys(("errors", "garbled", "unexpected", "unmeasured"), 0)
        self._prompt_lines: list[bytes] = []
        self._prediction_lines: list[bytes] = []

    def expect(self, line: bytes) -> None:
        prompt = EvaluationPrompt.model_validate_json(line)
        if prompt.variant not in self._variants:
            return
        self._prompt_lines.append(line)
        asked = Asked(
            id=prompt.id,
            reference=prompt.reference,
            generate=prompt.generate,
            cluster=_cluster(prompt),
            prompt=_last_text(prompt),
            purpose=prompt.purpose,
            check=prompt.check,
        )
        if self._asked.setdefault(prompt.id, asked) != asked:
            self._fault("unexpected", f"{prompt.variant} {prompt.id}: was asked otherwise than the others")
        # A variant's questions may be lost together with their answers: then there is no line that misses one.
        for variant in GENERAL_ASKED if prompt.purpose == "general" else self._variants:
            self._expected.add((variant, prompt.id))

    def take(self, line: bytes) -> None:
        try:
            prediction = Prediction.model_validate_json(line)
        except (ValidationError, UnicodeDecodeError):
            self._prediction_lines.append(line)
            self._fault("garbled", f"a line of {len(line)} bytes is no prediction")
            return
        where = (prediction.variant, prediction.id)
        if prediction.variant not in self._variants and prediction.id in self._asked:
            return
        self._prediction_lines.append(line)
        if where not in self._expected:
            self._fault("unexpected", f"{prediction.variant} {prediction.id}: was not asked")
            return
        self._found.setdefault(where, []).append(prediction)

    def joined(self) -> Joined:
        answers: dict[str, dict[str, Prediction]] = {variant: {} for variant in self._variants}
        failed = dict.fromkeys(self._variants, 0)
        cut_off = dict.fromkeys(self._variants, 0)
        missing = duplicated = 0
        for variant, row_id in sorted(self._expected):
            found = self._found.get((variant, row_id), [])
            if len(found) != 1:
                missing += not found
                duplicated += max(0, len(found) - 1)
                self._faults.append(f"{variant} {row_id}: {len(found)} answers, one was expected")
                continue
            prediction, asked = found[0], self._asked[row_id]
            if fault := _fault_of(prediction, asked):
                self._fault(*fault)
                continue
            answers[variant][row_id] = prediction
            failed[variant] += asked.generate and prediction.text is None
            cut_off[variant] += asked.generate and prediction.finish_reason == "length"
        answered = sum(map(len, answers.values()))
        pairs = {row_id + REJECTED: row_id for row_id in self._asked if row_id + REJECTED in self._asked}
        return Joined(
            asked=tuple(self._asked[row_id] for row_id in sorted(self._asked) if row_id not in pairs),
            variants=self._variants,
            answers={
                variant: {row_id: one for row_id, one in found.items() if row_id not in pairs}
                for variant, found in answers.items()
            },
            rejected=tuple(replace(self._asked[other], id=pairs[other]) for other in sorted(pairs)),
            rejected_answers={
                variant: {pairs[row_id]: one for row_id, one in found.items() if row_id in pairs}
                for variant, found in answers.items()
            },
            coverage=Coverage(
                expected=len(self._expected),
                answered=answered,
                missing=missing,
                duplicated=duplicated,
                **self._counts,
                failed_generations=failed,
                cut_off=cut_off,
                listed=tuple(sorted(self._faults)[:LISTED]),
            ),
            prompts_digest=_digest(self._prompt_lines),
            predictions_digest=_digest(self._prediction_lines),
        )

    def _fault(self, kind: str, what: str) -> None:
        self._counts[kind] += 1
        self._faults.append(what)


def _fault_of(prediction: Prediction, asked: Asked) -> tuple[str, str] | None:
    who = f"{prediction.variant} {prediction.id}"
    if prediction.error is not None:
        # The server's message may quote the prompt: it is counted, and read in the output itself.
        return "errors", f"{who}: the model server reports an error"
    size = len(asked.reference.encode())
    if prediction.nll is None or not math.isfinite(prediction.nll):
        return "unmeasured", f"{who}: no finite likelihood"
    if prediction.reference_bytes is not None and prediction.reference_bytes != size:
        return "unmeasured", f"{who}: {prediction.reference_bytes} bytes measured, the reference has {size}"
    try:
        nll_per_byte(prediction.nll, size)
    except ValueError as error:
        return "unmeasured", f"{who}: {error}"
    return None


def _cluster(prompt: EvaluationPrompt) -> str:
    """Rows that ask the same depend on each other; plain texts, which ask nothing, stand alone."""
    if not prompt.messages:
        return prompt.id
    asked = json.dumps(prompt.messages, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(asked.encode()).hexdigest()


def _last_text(prompt: EvaluationPrompt) -> str:
    content = prompt.messages[-1].get("content") if prompt.messages else ""
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)


def _digest(lines: Sequence[bytes]) -> str:
    whole = hashlib.sha256()
    for line in sorted(lines):
        whole.update(line.strip() + b"\n")
    return f"sha256:{whole.hexdigest()}"
