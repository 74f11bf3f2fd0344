"""Metrics of answers that are JSON. A bare value or one fenced as Markdown code counts; prose around it does not."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from dropforge_core.model import Frozen

_FENCE: Final = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```\Z", re.DOTALL | re.IGNORECASE)
_MISSING: Final = object()
MAX_DEPTH: Final = 64
"""Deeper nesting is read as no JSON: an answer must not exhaust the stack."""


KEYS_AT_MOST: Final = 1000
"""Keys of one object whose values a schema describes: an object with more is a table, not a record."""


class FieldScore(Frozen):
    """How well one field of the JSON answers was filled, over all rows."""

    field: str
    """Dotted path; elements of a list share the path of the list with `[]`."""
    expected: int
    """Values that the references have."""
    given: int
    """Values that the answers have."""
    right: int
    """Values that are equal."""
    f1: float


def parse_json(text: str) -> Any:
    """The JSON value that the text is, or the marker for none; `is_json` tells them apart.

    NaN and Infinity are no JSON (RFC 8259), and neither is nesting beyond `MAX_DEPTH`.
    """
    stripped = text.strip()
    fenced = _FENCE.match(stripped)
    try:
        value = json.loads(fenced.group(1) if fenced else stripped, parse_constant=_refuse)
        _check(value, MAX_DEPTH)
    except (ValueError, RecursionError):
        return _MISSING
    return value


def is_json(value: Any) -> bool:
    """Whether `parse_json` found a value."""
    return value is not _MISSING


def is_json_object(text: str) -> bool:
    """Whether the text is a JSON object."""
    return isinstance(parse_json(text), dict)


def json_valid(reference: str, text: str) -> float:
    """1 where the answer parses as JSON (RFC 8259) and is an object or a list where the reference is one."""
    value, wanted = parse_json(text), parse_json(reference)
    if not is_json(value):
        return 0.0
    return float(not isinstance(wanted, dict | list) or type(value) is type(wanted))


def field_f1(reference: str, text: str) -> float:
    """F1 over the (path, value) pairs of two JSON values, nested objects and lists flattened to their leaves.

    Micro-averaged within a row, as slot filling is scored. Text values are compared trimmed; an answer
    that is no JSON has no pairs. Two values without leaves, such as `{}` and `{}`, agree: 1.
    """
    wanted, value = parse_json(reference), parse_json(text)
    if not is_json(value):
        return 0.0
    expected, got = Counter(leaves(wanted)), Counter(leaves(value))
    if not expected or not got:
        return float(expected == got)
    return 2 * (expected & got).total() / (expected.total() + got.total())


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, canonical value) of every leaf; nothing for what is no JSON."""
    if value is _MISSING:
        return
    if isinstance(value, Mapping):
        for key in sorted(value):
            yield from leaves(value[key], f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for element in value:
            yield from leaves(element, f"{path}[]")
    elif isinstance(value, str):
        yield path, json.dumps(value.strip())
    elif isinstance(value, float) and value.is_integer():
        # 1.0 and 1 are one number in JSON.
        yield path, str(int(value))
    else:
        yield path, json.dumps(value)


def shared_schema(references: Sequence[str]) -> dict[str, Any]:
    """The JSON schema (2020-12) that all references fit: the types of each value, and the keys that none lacks.

    References that are no JSON are left out. Keys that no reference has stay allowed: `field_f1` counts them.
    """
    return _schema_of([value for value in map(parse_json, references) if is_json(value)])


def _schema_of(values: Sequence[Any]) -> dict[str, Any]:
    if not values:
        return {}
    found: dict[str, Any] = {"type": sorted({_type_of(value) for value in values})}
    if "integer" in found["type"] and "number" in found["type"]:
        found["type"].remove("integer")
    if objects := [value for value in values if isinstance(value, dict)]:
        keys = sorted({key for value in objects for key in value})
        found["required"] = [key for key in keys if all(key in value for value in objects)]
        found["properties"] = {
            key: _schema_of([value[key] for value in objects if key in value]) for key in keys[:KEYS_AT_MOST]
        }
    if elements := [element for value in values if isinstance(value, list) for element in value]:
        found["items"] = _schema_of(elements)
    return found


def _type_of(value: Any) -> str:
    for kind, name in (
        (bool, "boolean"),
        (str, "string"),
        (int, "integer"),
        (float, "number"),
        (dict, "object"),
    ):
        if isinstance(value, kind):
            return name
    return "null" if value is None else "array"


def field_scores(pairs: Sequence[tuple[str, str]]) -> tuple[FieldScore, ...]:
    """F1 by field over (reference, answer) pairs, most frequent field first."""
    expected: Counter[str] = Counter()
    given: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for reference, text in pairs:
        wanted, got = Counter(leaves(parse_json(reference))), Counter(leaves(parse_json(text)))
        for tally, found in ((expected, wanted), (given, got), (right, wanted & got)):
            for (path, _), count in found.items():
                tally[path] += count
    order = sorted(expected, key=lambda field: (-expected[field], field))
    return tuple(
        FieldScore(
            field=field,
            expected=expected[field],
            given=given[field],
            right=right[field],
            f1=2 * right[field] / (expected[field] + given[field]),
        )
        for field in order
    )


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _check(value: Any, depth: int) -> None:
    if depth == 0:
        raise ValueError("nested too deeply")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number too large for JSON's readers")
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check(child, depth - 1)
