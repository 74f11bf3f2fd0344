"""Canonical rows to tokens: what the model reads, and which tokens it is taught.

Only assistant tokens carry a weight, each message's own. An answer is tokenised the way serving
will meet it: after the tokens of its prompt, up to and with the end-of-turn token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from jinja2 import TemplateError, TemplateSyntaxError
from numpy.typing import NDArray

from tuner.failure import Failure
from tuner.tokenizer import special_ids

PROBE: Final = "Quxotic"
"""An answer that no template writes by itself."""

Message = Mapping[str, Any]
Tool = Mapping[str, Any]
"""A tool's definition, as the row has it; chat templates expect the JSON schema of a function."""


class NotTeachable(ValueError):
    """A row from which nothing can be learnt. The message says why, without quoting it."""


@dataclass(frozen=True, slots=True)
class Document:
    """One token sequence of a forward pass.

    Attributes:
        ids: int64 [n].
        weights: float32 [n]; weights[i] is the weight of predicting ids[i] from ids[:i], 0 for context.
    """

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]

    @property
    def length(self) -> int:
        return len(self.ids)


class ChatCodec:
    """A tokenizer and its chat template, seen as prompts and taught documents."""

    def __init__(
        self,
        tokenizer: Any,
        stop_ids: frozenset[int],
        *,
        template: str | None = None,
        vocabulary: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self.stop_ids = stop_ids
        """Tokens at which generation ends."""
        self.template = template
        """None where the tokenizer's own is used."""
        self._vocabulary = vocabulary
        """Rows of the model's embedding."""
        self._is_template_tried = False

    def under(self, template: str | None) -> Self:
        """The same tokenizer under another template."""
        return type(self)(self._tokenizer, self.stop_ids, template=template, vocabulary=self._vocabulary)

    def save(self, folder: Path) -> None:
        """Write tokenizer and template as transformers reads them."""
        if self.template is not None:
            self._tokenizer.chat_template = self.template
        self._tokenizer.save_pretrained(folder)

    def prompt(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """Tokens that ask for the next assistant message.

        Raises:
            NotTeachable: when the chat template refuses the conversation.
            Failure: BASE_MODEL where there is no template, or the tokenizer is not this model's.
        """
        return self._encode(self._render(messages, tools, ask=True)) if messages else self._begin()

    def decode(self, tokens: Sequence[int]) -> str:
        return str(
            self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def conversation(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[Document, ...]:
        """Documents that teach every assistant message of a conversation, each at its own weight.

        One document, unless the template rewrites earlier turns as the conversation goes on (some drop
        past reasoning): then one for each answer, as serving would see it.

        Raises:
            NotTeachable: when nothing carries a weight, or the template refuses.
            Failure: BASE_MODEL, see `prompt`.
        """
        taught = [
            (index, weight)
            for index, message in enumerate(messages)
            if message.get("role") == "assistant" and (weight := _weight(message)) > 0
        ]
        if not taught:
            raise NotTeachable("no assistant message carries a weight above 0")
        whole = self._teach(messages, taught, tools)
        if whole is not None:
            return (whole,)
        return tuple(
            self.answer(messages[:index], messages[index], weight, tools) for index, weight in taught
        )

    def answer(
        self,
        prompt: Sequence[Message],
        answer: Message,
        weight: float = 1.0,
        tools: Sequence[Tool] = (),
    ) -> Document:
        """The document that teaches one answer to one prompt.

        Raises:
            NotTeachable: when the template refuses, or does not continue its own generation prompt.
            Failure: BASE_MODEL, see `prompt`.
        """
        document = self._teach([*prompt, answer], [(len(prompt), weight)], tools)
        if document is None:
            raise NotTeachable("the chat template does not continue its own generation prompt")
        return document

    def _teach(
        self, messages: Sequence[Message], taught: Sequence[tuple[int, float]], tools: Sequence[Tool]
    ) -> Document | None:
        """One document for the given (message index, weight), or None where prefixes are not stable."""
        if len(messages) == 1:  # plain text: nobody asked, so there is no turn to render
            begin = self._begin()
            said = self._encode(str(messages[0].get("content") or ""))
            ids = [*begin, *said, self._end()]
            return _document(ids, [(len(begin), len(ids), taught[0][1])])
        text = self._render(messages[: taught[-1][0] + 1], tools, ask=False)
        ids = self._encode(text)
        spans: list[tuple[int, int, float]] = []
        for index, weight in taught:
            asked = self._render(messages[:index], tools, ask=True)
            done = self._render(messages[: index + 1], tools, ask=False)
            if not text.startswith(asked) or not text.startswith(done):
                return None
            before = self._encode(asked)
            if ids[: len(before)] != before:
                if len(taught) > 1:
                    return None
                # A token would straddle prompt and answer; serving never sees such a token.
                ids = [*before, *self._encode(text[len(asked) :])]
            upto = len(ids) if index == taught[-1][0] else len(self._encode(done))
            stop = next((at + 1 for at in range(len(before), upto) if ids[at] in self.stop_ids), upto)
            spans.append((len(before), stop, weight))
        return _document(ids, spans)

    def _begin(self) -> list[int]:
        start = self._tokenizer.bos_token_id
        return [self._end() if start is None else int(start)]

    def _end(self) -> int:
        return int(self._tokenizer.eos_token_id)

    def _encode(self, text: str) -> list[int]:
        ids = list(self._tokenizer.encode(text, add_special_tokens=False))
        if self._vocabulary is not None and ids and max(ids) >= self._vocabulary:
            raise Failure(
                "BASE_MODEL",
                f"the tokenizer gives token {max(ids)}, the model has embeddings for {self._vocabulary}: "
                "the tokenizer is not this model's",
            )
        return ids

    def _render(self, messages: Sequence[Message], tools: Sequence[Tool], *, ask: bool) -> str:
        if self.template is None and not self._tokenizer.chat_template:
            raise Failure(
                "BASE_MODEL",
                "the base model's tokenizer has no chat template, so it is not known how it reads a "
                "conversation; give one as 'chat_template' in the recipe, take the model's instruct "
                "variant, or train rows of plain text",
            )
        if not self._is_template_tried:
            self._is_template_tried = True
            self._try_template()
        shown = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    shown,
                    tools=[dict(tool) for tool in tools] or None,
                    chat_template=self.template,
                    tokenize=False,
                    add_generation_prompt=ask,
                )
            )
        except TemplateSyntaxError as error:
            raise Failure(
                "BASE_MODEL", f"the chat template can't be read, its line {error.lineno}: {error.message}"
            ) from None
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            # The template's own words may quote the row; its class does not.
            raise NotTeachable(
                f"the base model's chat template refuses this conversation ({type(error).__name__})"
            ) from None

    def _try_template(self) -> None:
        """Refuse a template that closes an answer by nothing that this tokenizer has a token for.

        Templates of other models do: their `<|im_end|>` is then seven pieces of text, and no answer ever ends.

        Raises:
            Failure: BASE_MODEL.
        """
        asked = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
        try:
            _, found, closing = self._render(asked, (), ask=False).rpartition(PROBE)
        except NotTeachable:
            return  # it wants other conversations; the rows will tell
        if found and not special_ids(self._tokenizer) & set(self._encode(closing)):
            raise Failure(
                "BASE_MODEL",
                f"the chat template closes an answer with {closing[:40]!r}, in which this tokenizer has no special "
                "token, so that no answer would end: the template is not this tokenizer's; give one that fits as "
                "'chat_template' in the recipe (it may close answers with {{ eos_token }})",
            )


def tools_of(meta: Mapping[str, Any]) -> tuple[Tool, ...]:
    """Tool definitions of a row's `meta`: a list of them, or one."""
    tools = meta.get("tools") or ()
    listed = [tools] if isinstance(tools, Mapping) else tools
    return tuple(tool for tool in listed if isinstance(tool, Mapping))


def _weight(message: Message) -> float:
    weight = message.get("weight")
    return 1.0 if weight is None else float(weight)


def _document(ids: Sequence[int], spans: Sequence[tuple[int, int, float]]) -> Document:
    """Tokens after the last taught one are cut off: they cost compute and teach nothing."""
    end = max(stop for _, stop, _ in spans)
    weights = np.zeros(end, dtype=np.float32)
    for start, stop, weight in spans:
        weights[start:stop] = weight
    if not weights.any():
        raise NotTeachable("the taught answer has no tokens")
    return Document(np.asarray(ids[:end], dtype=np.int64), weights)
