"""A base model's chat template, rendered as transformers does, but safely and without a clock."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_SOME_DAY: Final = datetime(2026, 9, 30, 12, tzinfo=UTC)
"""The day of templates that write the date: a Wednesday in September, whose names are the longest."""


class TemplateRefused(Exception):
    """The chat template does not accept the row; the text is the template's own."""


class _Generation(Extension):
    """`{% generation %}`, by which templates mark what is to be learnt; rendered as if it were not there."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class ChatTemplate:
    """Messages to the text that the model reads.

    Raises:
        ValueError: where the template is no template.
    """

    def __init__(self, template: str, names: Mapping[str, str]) -> None:
        self.source = template
        self.names = dict(names)
        """What templates write by name: `bos_token`, `eos_token` and the like."""
        # A template comes from whoever published the model: it runs in a sandbox without attributes.
        sandbox = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], autoescape=False
        )  # nosec  # the output is counted, never shown as HTML
        sandbox.filters["tojson"] = _to_json
        sandbox.globals |= {"raise_exception": _refuse, "strftime_now": _SOME_DAY.strftime}
        try:
            self._template = sandbox.from_string(template)
        except TemplateError as error:
            raise ValueError(f"the chat template can't be used: {error}") from None

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> str:
        """The text of a conversation, without a prompt for another answer.

        Raises:
            TemplateRefused: when the template does.
        """
        try:
            return self._template.render(
                messages=messages, tools=tools, add_generation_prompt=False, **self.names
            )
        except (TemplateError, TypeError, KeyError, AttributeError, ValueError) as error:
            raise TemplateRefused(str(error)[:120]) from None


def template_of(config: Mapping[str, Any]) -> str | None:
    """The template of a `tokenizer_config.json`: the only one, the one named `default`, or the first."""
    template = config.get("chat_template")
    if not template or isinstance(template, str):
        return template or None
    named = {entry["name"]: entry["template"] for entry in template}
    return str(named.get("default", next(iter(named.values()))))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML. The arguments are those that transformers offers to templates.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> None:
    raise TemplateRefused(str(message)[:120])
