"""Checks a request against the service model, including what AWS enforces and botocore does not.

botocore checks types, required members and minima before it sends; the service also checks `max`,
`pattern` and `enum`. The texts are those of AWS's JSON services ("1 validation error detected: ...").
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

import regex
from botocore.loaders import Loader
from botocore.model import ListShape, MapShape, ServiceModel, Shape, StringShape, StructureShape

from dropforge.local.sagemaker.errors import ApiError

_SHOWN: Final = 256
"""Characters of a refused value that are quoted."""


@cache
def service_model() -> ServiceModel:
    """SageMaker as botocore of this environment knows it."""
    return ServiceModel(Loader().load_service_model("sagemaker", "service-2"), "sagemaker")


def check(operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """The request without its nulls, or a ValidationException that lists every constraint it breaks.

    Raises:
        ApiError: ValidationException, or SerializationException where a value has the wrong JSON type.
    """
    shape = service_model().operation_model(operation).input_shape
    if not isinstance(shape, StructureShape):
        return {}
    faults = list(_structure(shape, request, ""))
    if faults:
        count = f"{len(faults)} validation error{'s' if len(faults) > 1 else ''} detected: "
        raise ApiError.invalid(count + "; ".join(faults))
    cleaned: dict[str, Any] = _without_nulls(request)
    return cleaned


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _fault(value: Any, path: str, constraint: str) -> str:
    shown = "null" if value is None else f"'{_shown(value)}'"
    return f"Value {shown} at '{path}' failed to satisfy constraint: {constraint}"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        text = "{" + ", ".join(f"{key}={item}" for key, item in value.items()) + "}"
    else:
        text = "[" + ", ".join(map(str, value)) + "]" if isinstance(value, list) else str(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _dig(shape: Shape, value: Any, path: str) -> Iterator[str]:
    """The faults of one value and of all below it."""
    if isinstance(shape, StructureShape):
        yield from _structure(shape, value, path)
    elif isinstance(shape, ListShape):
        yield from _list(shape, value, path)
    elif isinstance(shape, MapShape):
        yield from _map(shape, value, path)
    else:
        for constraint in _scalar(shape, value, path):
            yield _fault("******" if shape.metadata.get("sensitive") else value, path, constraint)


def _structure(shape: StructureShape, value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        raise _wrong_type(path, "an object", value)
    for name in value:
        if name not in shape.members:
            # AWS ignores what it does not know; here it is a typo, or a newer SDK than this environment's.
            raise ApiError.invalid(
                f"Unknown parameter '{name}' in {path or 'the request'}. Known: {', '.join(shape.members)}"
            )
    for name, member in shape.members.items():
        here = f"{path}.{_camel(name)}" if path else _camel(name)
        if value.get(name) is None:
            if name in shape.required_members:
                yield _fault(None, here, "Member must not be null")
            continue
        yield from _dig(member, value[name], here)


def _list(shape: ListShape, value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, list):
        raise _wrong_type(path, "a list", value)
    for constraint in _length(shape, len(value)):
        yield _fault(value, path, constraint)
    inner: dict[str, None] = {}
    for position, item in enumerate(value, start=1):
        if isinstance(shape.member, StructureShape | ListShape | MapShape):
            yield from _dig(shape.member, item, f"{path}.{position}.member")
        else:
            inner.update(dict.fromkeys(_scalar(shape.member, item, path)))
    if inner:
        yield _fault(value, path, f"Member must satisfy constraint: [{', '.join(inner)}]")


def _map(shape: MapShape, value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        raise _wrong_type(path, "an object", value)
    for constraint in _length(shape, len(value)):
        yield _fault(value, path, constraint)
    keys: dict[str, None] = {}
    values: dict[str, None] = {}
    for key, item in value.items():
        keys.update(dict.fromkeys(_scalar(shape.key, key, path)))
        if isinstance(shape.value, StructureShape | ListShape | MapShape):
            yield from _dig(shape.value, item, f"{path}.{key}.member")
        else:
            values.update(dict.fromkeys(_scalar(shape.value, item, path)))
    if keys:
        yield _fault(value, path, f"Map keys must satisfy constraint: [{', '.join(keys)}]")
    if values:
        yield _fault(value, path, f"Map value must satisfy constraint: [{', '.join(values)}]")


def _scalar(shape: Shape, value: Any, path: str) -> Iterator[str]:
    """The constraints that a string, number or boolean breaks."""
    if shape.type_name == "string":
        if not isinstance(value, str):
            raise _wrong_type(path, "a string", value)
        yield from _string(shape, value)
    elif shape.type_name in {"integer", "long"}:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong_type(path, "a whole number", value)
        yield from _range(shape, value)
    elif shape.type_name in {"float", "double", "timestamp"}:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong_type(path, "a number", value)
        yield from _range(shape, value)
    elif shape.type_name == "boolean" and not isinstance(value, bool):
        raise _wrong_type(path, "true or false", value)


def _string(shape: Shape, value: str) -> Iterator[str]:
    yield from _length(shape, len(value))
    pattern = shape.metadata.get("pattern")
    if pattern and not _compiled(pattern).fullmatch(value):
        yield f"Member must satisfy regular expression pattern: {pattern}"
    if isinstance(shape, StringShape) and shape.enum and value not in shape.enum:
        yield f"Member must satisfy enum value set: [{', '.join(shape.enum)}]"


def _length(shape: Shape, length: int) -> Iterator[str]:
    yield from _bounds(shape, length, "have length")


def _range(shape: Shape, value: float) -> Iterator[str]:
    yield from _bounds(shape, value, "have value")


def _bounds(shape: Shape, size: float, verb: str) -> Iterator[str]:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if high is not None and size > high:
        yield f"Member must {verb} less than or equal to {high}"
    if low is not None and size < low:
        yield f"Member must {verb} greater than or equal to {low}"


@cache
def _compiled(pattern: str) -> regex.Pattern[str]:
    """Java's dialect: `regex` has its property classes, but not surrogate pairs written as escapes."""
    return regex.compile(pattern.replace(r"\uD800\uDC00-\uDBFF\uDFFF", "\U00010000-\U0010ffff"))


def _camel(name: str) -> str:
    return name[:1].lower() + name[1:]


def _wrong_type(path: str, expected: str, found: Any) -> ApiError:
    return ApiError(
        "SerializationException",
        f"'{path or 'the request'}' must be {expected}, found {type(found).__name__}",
    )
