"""How many tokens rows have under the base model: exactly where its tokenizer is at hand, else estimated."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from dropforge_core.dataset.faults import Fault
from dropforge_core.dataset.rows.formats import Canonical

BYTES_PER_TOKEN: Final = 3.6
"""UTF-8 bytes of mixed English text and code per token of a vocabulary of 32k-128k; an estimate."""

SYNTAX_BYTES: Final = 30
"""JSON around one message, `{"role":"user","content":""},`; more than a template puts there in tokens."""

EXACT_BYTES: Final = 8 << 20
"""Rows are all counted up to this much JSON; a tokenizer reads 2-3 MB/s."""

SAMPLE: Final = 64
"""Beyond, one row in so many is counted, and every row that may be too long."""


class TemplateRefused(Exception):
    """The chat template does not accept the row; the text is the template's own."""


class TokenCounter(Protocol):
    """The base model's tokenizer and chat template."""

    special: frozenset[str]
    """Control tokens, which text must not contain."""
    bounded: bool
    """Whether a text never has more tokens than UTF-8 bytes."""
    overhead: int
    """Most tokens that the template adds once a row."""

    def count(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> int:
        """Tokens of a rendered conversation.

        Raises:
            TemplateRefused: when the template does.
        """
        ...


class ChatTokenizer:
    """`tokenizer.json` and the chat template of `tokenizer_config.json`, rendered as transformers does."""

    def __init__(self, tokenizer_json: bytes, config: Mapping[str, Any]) -> None:
        self._tokenizer = Tokenizer.from_buffer(tokenizer_json)
        layout = json.loads(tokenizer_json)
        self.special = frozenset(
            token["content"]
            for token in layout.get("added_tokens", [])
            if token.get("special") and len(token["content"]) >= 3 and not token["content"].isspace()
        )
        self.bounded = _never_expands(layout)
        self._names = {
            name: token.get("content") if isinstance(token, Mapping) else token
            for name in ("bos_token", "eos_token", "unk_token", "pad_token")
            if (token := config.get(name)) is not None
        }
        # A template comes from whoever published the model: it runs in a sandbox without attributes.
        sandbox = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], autoescape=False
        )  # nosec  # the output is counted, never shown as HTML
        sandbox.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
        sandbox.globals |= {"raise_exception": _refuse, "strftime_now": _today}
        self._template = sandbox.from_string(_template_of(config))
        self.overhead = len(self._render([{"role": "user", "content": "-"}], None).encode())

    def _render(self, messages: Sequence[Mapping[str, Any]], tools: Any) -> str:
        try:
            return self._template.render(
                messages=messages, tools=tools, add_generation_prompt=False, **self._names
            )
        except (TemplateError, TypeError, KeyError, AttributeError) as error:
            raise TemplateRefused(str(error)[:120]) from None

    def count(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> int:
        """Tokens of a rendered conversation, control tokens included."""
        return len(self._tokenizer.encode(self._render(messages, tools), add_special_tokens=False))


def load_tokenizer(
    tokenizer_json: bytes, tokenizer_config: bytes, template: str | None = None
) -> TokenCounter | None:
    """A counter, or None where the model has no chat template (then token counts stay estimates).

    `template` is the text of `chat_template.jinja`, which newer models keep in a file of its own.

    Raises:
        ValueError: where the files are no tokenizer.
    """
    config = json.loads(tokenizer_config)
    if template:
        config["chat_template"] = template
    if not config.get("chat_template"):
        return None
    try:
        return ChatTokenizer(tokenizer_json, config)
    except (TemplateError, TemplateRefused) as error:
        raise ValueError(f"the chat template can't be used: {error}") from None


def _template_of(config: Mapping[str, Any]) -> str:
    template = config["chat_template"]
    if isinstance(template, str):
        return template
    named = {entry["name"]: entry["template"] for entry in template}
    return str(named.get("default", next(iter(named.values()))))


def _never_expands(layout: Mapping[str, Any]) -> bool:
    """Byte-level BPE without a normaliser that may lengthen text."""
    before = json.dumps(layout.get("pre_tokenizer") or {})
    normalizer = layout.get("normalizer") or {}
    return "ByteLevel" in before and normalizer.get("type", "NFC") in ("NFC", "Lowercase", "Strip")


def _refuse(message: str) -> None:
    raise TemplateRefused(message[:120])


def _today(form: str) -> str:
    return datetime.now(UTC).strftime(form)


class TokenTally:
    """Counts row by row: the verdict on each row's length, and totals with how sure they are."""

    def __init__(self, limit: int | None, counter: TokenCounter | None) -> None:
        self._limit = limit
        self._counter = counter
        self._rows = 0
        self._counted = [0, 0, 0]
        """Rows, bytes and tokens that were counted exactly."""
        self._bytes = 0
        self._longest = 0
        self._longest_exact = True

    @staticmethod
    def estimate(size: int, messages: int) -> int:
        """Tokens of a row of `size` bytes of JSON."""
        return int((size - SYNTAX_BYTES * messages) / BYTES_PER_TOKEN) + 5 * messages + 1

    def add(self, row: Canonical, size: int) -> Fault | None:
        """Take a row of `size` bytes of canonical JSON; answers what is wrong with its length."""
        self._rows += 1
        self._bytes += size
        counter = self._counter
        if counter is None:
            tokens = self.estimate(size, len(row.messages))
            if tokens > self._longest:
                self._longest, self._longest_exact = tokens, False
            if self._limit is None or tokens <= self._limit:
                return None
            return Fault("OVER_LENGTH_ESTIMATED", "", f"about {tokens:,} tokens", f"at most {self._limit:,}")
        surely_fits = self._limit is None or (counter.bounded and size + counter.overhead <= self._limit)
        if surely_fits and self._counted[1] > EXACT_BYTES and self._rows % SAMPLE:
            return None
        try:
            tokens = self._count(counter, row)
        except TemplateRefused as refused:
            return Fault("TEMPLATE_REFUSED", "", f"a refusal of the template: {ascii(str(refused))[1:-1]}")
        self._counted = [self._counted[0] + 1, self._counted[1] + size, self._counted[2] + tokens]
        self._longest = max(self._longest, tokens)
        if self._limit is None or tokens <= self._limit:
            return None
        return Fault("OVER_LENGTH", "", f"{tokens:,} tokens", f"at most {self._limit:,}")

    @staticmethod
    def _count(counter: TokenCounter, row: Canonical) -> int:
        tools = row.meta.get("tools")
        tokens = counter.count(row.messages, tools)
        if row.rejected is not None:
            tokens = max(tokens, counter.count([*row.prompt, row.rejected], tools))
        return tokens

    @property
    def exact(self) -> bool:
        """Whether every row was counted."""
        return self._counter is not None and self._counted[0] == self._rows

    @property
    def longest(self) -> int:
        return self._longest

    def total(self, size: int | None = None, rows: int | None = None, messages: int = 3) -> int:
        """Tokens of rows of so many bytes together, at the rate of all rows."""
        size = self._bytes if size is None else size
        if self._counted[1]:
            return round(size * self._counted[2] / self._counted[1])
        return self.estimate(size, messages * (self._rows if rows is None else rows)) if size else 0

    def summary(self) -> dict[str, Any]:
        """What the report says."""
        return {
            "total": self.total(),
            "exact": self.exact,
            "rows_counted": self._counted[0],
            "longest": self._longest,
            "limit": self._limit,
            "method": "the base model's tokenizer and chat template"
            if self._counter
            else f"estimate at {BYTES_PER_TOKEN} bytes a token",
        }
