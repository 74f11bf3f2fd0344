"""HTML and SVG that escape by default: text becomes markup in one place, and that place escapes it."""

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping
from typing import Final

_VOID: Final = frozenset({"meta", "br", "hr", "input"})
_SHAPES: Final = frozenset({"circle", "line", "path", "rect", "polyline"})
"""Closed with a slash: an open one would hold all that follows it."""


class Markup:
    """Finished markup. Only this module makes it; everything else that is put into a tag is text."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """`<name attributes>children</name>`.

    Children are Markup, text (escaped), numbers, None (nothing), or iterables of these. Attribute names
    have '_' for '-', and one trailing '_' for names that Python reserves; None and False leave an
    attribute out, True gives it no value.
    """
    opened = f"<{name}{''.join(_attribute(key, value) for key, value in attributes.items())}"
    if name in _SHAPES:
        return Markup(f"{opened}/>")
    return Markup(f"{opened}>" if name in _VOID else f"{opened}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Markup:
    """Children one after the other, without a tag around them."""
    return Markup("".join(_child(child) for child in children))


def document(page: Markup) -> str:
    return f"<!doctype html>\n{page}\n"


def stylesheet(css: str) -> Markup:
    """A style element from a style sheet of this package.

    Raises:
        ValueError: when it could close the element: style sheets are ours, never a person's.
    """
    if "</" in css:
        raise ValueError("a style sheet must not hold '</'")
    return Markup(f"<style>{css}</style>")


def script(source: str) -> Markup:
    """A script element from a file of this package.

    Raises:
        ValueError: when it could close the element: scripts are ours, never a person's.
    """
    if "</" in source or "<!--" in source:
        raise ValueError("a script must not hold '</' or '<!--'")
    return Markup(f"<script>{source}</script>")


def script_source(source: str) -> str:
    """What a content security policy says to allow this script and no other (CSP Level 3, hash-source)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def visible(text: str) -> str:
    """Text in which control characters and direction overrides can be seen, so that none hides or reorders."""
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    code = ord(character)
    if character in "\n\t":
        return character
    if code < 0x20 or code == 0x7F:
        return chr(0x2400 + code) if code < 0x20 else "\u2421"
    hidden = 0x80 <= code <= 0x9F or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069 or code == 0xFEFF
    if hidden or 0xD800 <= code <= 0xDFFF:
        return f"\\u{code:04x}"
    return character


def _child(child: object) -> str:
    if child is None or child is False:
        return ""
    if isinstance(child, Markup):
        return str(child)
    if isinstance(child, str | int | float):
        return html.escape(visible(str(child)), quote=True)
    if isinstance(child, Iterable) and not isinstance(child, bytes | Mapping):
        return str(join(child))
    raise TypeError(f"{type(child).__name__} is neither markup nor text nor an iterable of them")


def _attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = key.removesuffix("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(visible(str(value)), quote=True)}"'
