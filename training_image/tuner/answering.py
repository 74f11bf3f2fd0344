"""From request lines to prediction lines: every record gets exactly one line, in the same order."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import msgspec
from pydantic import ValidationError

from dropforge_core.contracts import EvaluationPrompt, Prediction
from tuner.adapters import Variants
from tuner.contract import Say
from tuner.conversation import Document, NotTeachable
from tuner.failure import Failure, is_out_of_memory
from tuner.generation import Answer, Decoding, batches_by_tokens, generate, reference_nll
from tuner.model import LanguageModel

GENERATION_TOKENS: Final = {"cpu": 8_192, "cuda": 131_072}
"""Tokens, answers counted in full, of one generated batch; keys and values of all of them are held."""
LIKELIHOOD_TOKENS: Final = {"cpu": 2_048, "cuda": 32_768}
TURNS_BETWEEN_LINES: Final = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Task:
    """One readable record: where it stands in the request, and its tokens."""

    place: int
    ask: EvaluationPrompt
    prompt: list[int]
    document: Document


class Answerer:
    """Answers evaluation prompts, grouped by variant and batched by length."""

    def __init__(self, variants: Variants, decoding: Decoding, say: Say) -> None:
        self._variants = variants
        self._decoding = decoding
        self._say = say

    def answer(self, body: bytes) -> bytes:
        """JSON lines of `EvaluationPrompt` to JSON lines of `Prediction`, in the same order.

        A record that can't be answered gets a line with `error`; blank lines get none.
        """
        lines = [line for line in body.split(b"\n") if line.strip()]
        predictions: list[Prediction | None] = [None] * len(lines)
        tasks: list[_Task] = []
        for place, line in enumerate(lines):
            read = self._read(place, line)
            if isinstance(read, _Task):
                tasks.append(read)
            else:
                predictions[place] = read
        for variant in ("base", "champion", "candidate"):
            mine = [task for task in tasks if task.ask.variant == variant]
            for task, prediction in self._answer_variant(variant, mine):
                predictions[task.place] = prediction
        return b"".join(
            prediction.model_dump_json(exclude_none=True).encode() + b"\n"
            for prediction in predictions
            if prediction is not None
        )

    def _read(self, place: int, line: bytes) -> _Task | Prediction:
        """The record's task, or the line that says what is wrong with it."""
        about: dict[str, Any] = {}
        try:
            document = msgspec.json.decode(line)
            about = document if isinstance(document, dict) else {}
            ask = EvaluationPrompt.model_validate(document)
        except (msgspec.MsgspecError, ValidationError, RecursionError) as error:
            fault = (
                "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors()[:5])
                if isinstance(error, ValidationError)
                else "the line is not JSON"
            )
            return _refuse(
                str(about.get("id", f"line-{place + 1}")), str(about.get("variant", "unknown")), fault
            )
        if ask.variant != "base" and ask.variant not in self._variants.loaded:
            why = self._variants.refused.get(ask.variant, f"no {ask.variant} is loaded")
            return _refuse(ask.id, ask.variant, why)
        codec = self._variants.codec(ask.variant)
        try:
            answer = ask.answer or {"role": "assistant", "content": ask.reference}
            taught = codec.answer(ask.messages, answer, tools=ask.tools)
            return _Task(place, ask, codec.prompt(ask.messages, ask.tools), taught)
        except NotTeachable as fault:
            return _refuse(ask.id, ask.variant, str(fault))
        except Failure as failure:
            return _refuse(ask.id, ask.variant, failure.message)

    def _answer_variant(self, variant: str, tasks: Sequence[_Task]) -> Iterable[tuple[_Task, Prediction]]:
        if not tasks:
            return
        with self._variants.active(variant) as model:
            likelihoods = self._likelihoods(model, variant, tasks)
            answers = self._answers(model, variant, [task for task in tasks if task.ask.generate])
        for task in tasks:
            yield task, self._prediction(task, likelihoods[task.place], answers.get(task.place))

    def _likelihoods(self, model: LanguageModel, variant: str, tasks: Sequence[_Task]) -> dict[int, float]:
        found: dict[int, float] = {}
        limit = LIKELIHOOD_TOKENS[model.device.type]
        for batch in batches_by_tokens([task.document.length for task in tasks], limit):
            values = in_halves(
                [tasks[index] for index in batch],
                lambda part: reference_nll(model, [task.document for task in part]),
            )
            found.update(zip((tasks[index].place for index in batch), values, strict=True))
            self._say(f"variant={variant} measured={len(found)}/{len(tasks)}")
        return found

    def _answers(self, model: LanguageModel, variant: str, tasks: Sequence[_Task]) -> dict[int, Answer]:
        found: dict[int, Answer] = {}
        limits = [
            min(task.ask.max_new_tokens or sys.maxsize, self._decoding.max_new_tokens) for task in tasks
        ]
        for most in sorted(set(limits)):
            decoding = replace(self._decoding, max_new_tokens=most)
            mine = [task for task, limit in zip(tasks, limits, strict=True) if limit == most]
            for task, answer in self._generated(model, variant, mine, decoding):
                found[task.place] = answer
            self._say(f"variant={variant} answered={len(found)}/{len(tasks)}")
        return found

    def _generated(
        self, model: LanguageModel, variant: str, tasks: Sequence[_Task], decoding: Decoding
    ) -> Iterator[tuple[_Task, Answer]]:
        """The answers of tasks with one limit, batched by length."""
        most = decoding.max_new_tokens

        def tell(turn: int, alive: int) -> None:
            if turn % TURNS_BETWEEN_LINES == 0:
                self._say(f"variant={variant} answering token={turn}/{most} open={alive}")

        lengths = [len(task.prompt) + most for task in tasks]
        for batch in batches_by_tokens(lengths, GENERATION_TOKENS[model.device.type]):
            answers = in_halves(
                [tasks[index] for index in batch],
                lambda part: generate(model, [task.prompt for task in part], decoding, tell),
            )
            yield from zip((tasks[index] for index in batch), answers, strict=True)

    def _prediction(self, task: _Task, nll: float, answer: Answer | None) -> Prediction:
        said = None if answer is None else self._variants.base.codec.decode(answer.tokens)
        return Prediction(
            id=task.ask.id,
            variant=task.ask.variant,
            text=said,
            finish_reason=None if answer is None else answer.finish_reason,
            prompt_tokens=len(task.prompt),
            completion_tokens=None if answer is None else len(answer.tokens),
            nll=nll,
            reference_bytes=len(task.ask.reference.encode("utf-8", "surrogatepass")),
        )


def in_halves(items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]) -> list[Result]:
    """`work` over all items at once, or over halves of them where memory runs out."""
    try:
        return list(work(items))
    except Exception as error:
        if len(items) == 1 or not is_out_of_memory(error):
            raise
    # Outside the except block: its traceback would keep the failed pass's tensors alive.
    middle = len(items) // 2
    return in_halves(items[:middle], work) + in_halves(items[middle:], work)


def _refuse(record: str, variant: str, fault: str) -> Prediction:
    return Prediction(id=record, variant=variant, error=fault)
