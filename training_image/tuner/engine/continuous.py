"""Continuous batching with transformers: a row that ends leaves, and a waiting one takes its place.

One adapter is on at a time. Questions are answered in the order they came, and those of a variant join
the rows of the same variant; for another variant the rows that are left are finished first, and the adapter
is switched. What the prompts of a lot begin with is computed once.
"""

import contextlib
import copy
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Final, TypeVar

import numpy as np
import torch

from tuner.adapters import Variants
from tuner.batching import SHARED_LEAST
from tuner.contract import Say
from tuner.conversation import Document
from tuner.engine.protocol import Completion, Engine, Question
from tuner.engine.slots import SlotCache, can_take_rows, use_grouped_attention
from tuner.failure import is_out_of_memory
from tuner.generation import (
    Answer,
    Decoding,
    batches_by_tokens,
    choose,
    chooser,
    common_prefix,
    generate,
    pad_left,
    prefill,
    reference_nll,
)
from tuner.model import LanguageModel

PASS_TOKENS: Final = {"cpu": 2_048, "cuda": 32_768}
"""Of one pass that measures references or reads prompts: the rows that are being answered wait for it."""
MOST_ROWS: Final = {"cpu": 64, "cuda": 256}
CPU_CACHE_BYTES: Final = 2 * 1024**3
CPU_CACHE_SHARE: Final = 1 / 16
"""Of the machine's memory."""
GPU_CACHE_SHARE: Final = 1 / 3
"""Of the memory that is free once base and adapters are loaded."""
JOIN_SHARE: Final = 8
"""Rows wait to join until they are one for this many: reading one prompt costs a pass over all weights."""
TURNS_BETWEEN_LINES: Final = 32
TOO_LARGE: Final = "the record does not fit into memory, even alone"

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Limits:
    """Rows that are answered together, and tokens that they may come to, answers counted in full."""

    rows: int
    tokens: int

    @classmethod
    def of(cls, model: LanguageModel) -> "Limits":
        """What this machine bears."""
        kind = model.device.type
        if kind == "cuda":
            room = torch.cuda.mem_get_info(model.device)[0] * GPU_CACHE_SHARE
        else:
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            room = min(memory * CPU_CACHE_SHARE, CPU_CACHE_BYTES)
        return cls(MOST_ROWS[kind], max(1, int(room / _cache_bytes(model))))


def _cache_bytes(model: LanguageModel) -> int:
    """Keys and values of one token in all layers."""
    config = model.causal.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(
        2 * config.num_hidden_layers * heads * size * torch.empty((), dtype=model.dtype).element_size()
    )


@dataclass(slots=True)
class _Row:
    """A question that is being answered."""

    question: Question
    nll: float | None
    chooser: torch.Generator
    tokens: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Lot:
    """Questions of one variant that came together."""

    variant: str
    unmeasured: deque[list[tuple[Question, Document]]]
    waiting: deque[tuple[Question, float | None]]
    """To be answered, with what was measured."""
    prefix: tuple[int, ...]
    """Tokens that all prompts begin with."""
    cache: Any = None
    """Keys and values of the prefix, one row; None until they are needed."""


class ContinuousEngine:
    """The `Engine` of one resident base and its adapters."""

    def __init__(
        self, variants: Variants, decoding: Decoding, say: Say, limits: Limits | None = None
    ) -> None:
        base = variants.base
        self._variants, self._decoding, self._say = variants, decoding, say
        self._limits = limits or Limits.of(base)
        self._row_limit = self._limits.rows
        self._pass_tokens = PASS_TOKENS[base.device.type]
        self._takes_rows = can_take_rows(base)
        if self._takes_rows and base.device.type == "cpu":
            use_grouped_attention(base.causal)
        self._lots: deque[_Lot] = deque()
        self._rows: list[_Row] = []
        self._cache: SlotCache | None = None
        self._active: str | None = None
        self._adapter = contextlib.ExitStack()
        self._turns = 0

    def submit(self, questions: Sequence[Question]) -> None:
        """Take questions; each variant's form a lot, longest first, so that alike lengths are read together."""
        in_order = sorted(questions, key=lambda q: (q.variant, -len(q.prompt), q.ticket))
        for variant, found in groupby(in_order, key=lambda question: question.variant):
            lot = list(found)
            measured = [(question, question.document) for question in lot if question.document is not None]
            batches = batches_by_tokens([document.length for _, document in measured], self._pass_tokens)
            self._lots.append(
                _Lot(
                    variant,
                    deque([measured[index] for index in batch] for batch in batches),
                    deque((question, None) for question in lot if question.document is None),
                    self._shared([question.prompt for question in lot if question.generate]),
                )
            )

    def step(self) -> list[Completion]:
        """Measure some references or read some prompts, then a token more for every open answer."""
        done: list[Completion] = []
        with torch.inference_mode():
            if self._lots and (not self._rows or self._lots[0].variant == self._active):
                done += self._advance(self._lots[0])
            if self._rows:
                done += self._guarded(self._decode)
        return done

    def reset(self) -> None:
        self._lots.clear()
        self._rows, self._cache = [], None

    def _shared(self, prompts: Sequence[Sequence[int]]) -> tuple[int, ...]:
        if len(prompts) < 2 or not self._takes_rows:
            return ()
        length = common_prefix(prompts)
        return tuple(prompts[0][:length]) if length >= SHARED_LEAST else ()

    def _advance(self, lot: _Lot) -> list[Completion]:
        """The next piece of the first lot."""
        self._switch(lot.variant)
        if lot.unmeasured:
            done = self._measure(lot, lot.unmeasured.popleft())
        elif self._takes_rows:
            done = self._guarded(lambda: self._join(lot))
        else:
            done = self._answer_batch(lot)
        if not lot.unmeasured and not lot.waiting and self._lots and self._lots[0] is lot:
            self._lots.popleft()
        return done

    def _switch(self, variant: str) -> None:
        if variant != self._active:
            self._adapter.close()
            self._adapter.enter_context(self._variants.active(variant))
            self._active = variant

    @property
    def _model(self) -> LanguageModel:
        return self._variants.base

    def _measure(self, lot: _Lot, batch: Sequence[tuple[Question, Document]]) -> list[Completion]:
        done = []
        values = in_halves(batch, lambda part: reference_nll(self._model, [document for _, document in part]))
        for (question, _), nll in zip(batch, values, strict=True):
            if nll is None:
                done.append(Completion(question.ticket, fault=TOO_LARGE))
            elif question.generate:
                lot.waiting.append((question, nll))
            else:
                done.append(Completion(question.ticket, nll))
        self._say(f"variant={lot.variant} measured={len(batch)} batches_left={len(lot.unmeasured)}")
        return done

    def _fitting(self, lot: _Lot) -> int:
        """How many waiting questions may join now; one alone always may."""
        widest = max((_tokens(row.question) for row in self._rows), default=0)
        read = count = 0
        for question, _ in lot.waiting:
            widest = max(widest, _tokens(question))
            read = max(read, len(question.prompt) - len(lot.prefix))
            rows = len(self._rows) + count + 1
            too_many = rows > self._row_limit or rows * widest > self._limits.tokens
            if too_many or (count + 1) * read > self._pass_tokens:
                break
            count += 1
        return count if count or self._rows else min(1, len(lot.waiting))

    def _join(self, lot: _Lot) -> list[Completion]:
        count = self._fitting(lot)
        if not count or count < min(len(lot.waiting), 1 + len(self._rows) // JOIN_SHARE):
            return []
        new = []
        for _ in range(count):
            question, nll = lot.waiting.popleft()
            new.append(_Row(question, nll, chooser(self._model, self._decoding, question.record)))
        before = len(self._rows)
        self._rows += new
        prompts = [row.question.prompt for row in new]
        ids, mask = pad_left(self._model, prompts, len(lot.prefix))
        filled = self._begun(lot, count)
        states = prefill(self._model, ids, mask, len(lot.prefix), filled)[:, -1]
        if self._cache is None:
            self._cache = SlotCache(filled)
        self._cache.join(filled, len(lot.prefix), [len(prompt) for prompt in prompts])
        return self._take_tokens(before, states)

    def _begun(self, lot: _Lot, rows: int) -> Any:
        """A cache that holds the lot's prefix for each of the rows."""
        if lot.cache is None:
            ids = torch.from_numpy(np.asarray([lot.prefix], dtype=np.int64)).to(self._model.device)
            lot.cache = self._model.shared_cache(ids, 1)
        begun = copy.deepcopy(lot.cache)
        if lot.prefix:
            begun.batch_repeat_interleave(rows)
        return begun

    def _decode(self) -> list[Completion]:
        cache, device = self._cache, self._model.device
        if cache is None:
            raise RuntimeError("rows are open, and their keys are gone")
        cache.before_token()
        states = self._model.decode(
            input_ids=torch.tensor([[row.tokens[-1]] for row in self._rows], device=device),
            attention_mask=cache.mask(device),
            position_ids=torch.tensor(cache.lengths, device=device)[:, None],
            past_key_values=cache,
        )[:, -1]
        cache.after_token()
        self._turns += 1
        if self._turns % TURNS_BETWEEN_LINES == 0:
            waiting = sum(len(lot.waiting) for lot in self._lots)
            self._say(f"variant={self._active} answering={len(self._rows)} waiting={waiting}")
        return self._take_tokens(0, states)

    def _take_tokens(self, first: int, states: torch.Tensor) -> list[Completion]:
        """Give the rows from `first` on their next token; those that end leave."""
        rows = self._rows[first:]
        chosen = choose(self._model, states, self._decoding.temperature, [row.chooser for row in rows])
        done, gone = [], []
        for place, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True), start=first):
            stopped = token in self._model.codec.stop_ids
            if not stopped:
                row.tokens.append(token)
            if stopped or len(row.tokens) >= row.question.max_new_tokens:
                answer = Answer(tuple(row.tokens), "stop" if stopped else "length")
                done.append(Completion(row.question.ticket, row.nll, answer))
                gone.append(place)
        if gone and self._cache is not None:
            self._rows = [self._rows[place] for place in self._cache.leave(gone)]
        return done

    def _answer_batch(self, lot: _Lot) -> list[Completion]:
        """For models that keep more than keys, or fewer: a whole batch at once, into which none joins."""
        batch = [lot.waiting.popleft() for _ in range(self._fitting(lot))]
        answers = in_halves([question for question, _ in batch], self._generate)
        return [
            Completion(question.ticket, fault=TOO_LARGE)
            if answer is None
            else Completion(question.ticket, nll, answer)
            for (question, nll), answer in zip(batch, answers, strict=True)
        ]

    def _generate(self, questions: Sequence[Question]) -> list[Answer]:
        longest = replace(self._decoding, max_new_tokens=max(q.max_new_tokens for q in questions))
        answers = generate(self._model, [q.prompt for q in questions], longest, [q.record for q in questions])
        return [
            Answer(answer.tokens[: question.max_new_tokens], "length")
            if len(answer.tokens) >= question.max_new_tokens
            else answer
            for question, answer in zip(questions, answers, strict=True)
        ]

    def _guarded(self, work: Callable[[], list[Completion]]) -> list[Completion]:
        """`work`; where memory runs out, half as many rows begin anew, and one alone is given up."""
        try:
            return work()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Outside the except block: its traceback would keep the failed pass's tensors alive.
        rows, self._rows, self._cache = self._rows, [], None
        if len(rows) == 1:
            return [Completion(rows[0].question.ticket, fault=TOO_LARGE)]
        self._row_limit = max(1, len(rows) // 2)
        self._say(f"out of memory with {len(rows)} answers open; going on with {self._row_limit}")
        again: deque[tuple[Question, float | None]] = deque((row.question, row.nll) for row in rows)
        self._lots.appendleft(_Lot(rows[0].question.variant, deque(), again, ()))
        return []


def _tokens(question: Question) -> int:
    """What it may come to, the answer in full."""
    return len(question.prompt) + question.max_new_tokens


def in_halves(
    items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]
) -> list[Result | None]:
    """`work` over all items at once, or over halves where memory runs out; None for what fails alone."""
    try:
        return list(work(items))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    if len(items) == 1:
        return [None]
    # Outside the except block, as above.
    middle = len(items) // 2
    return in_halves(items[:middle], work) + in_halves(items[middle:], work)


def completions(engine: Engine, questions: Sequence[Question]) -> Iterator[Completion]:
    """Everything that the engine completes of these questions, for whoever has no other work meanwhile."""
    engine.submit(questions)
    left = len(questions)
    while left:
        for completion in engine.step():
            left -= 1
            yield completion
