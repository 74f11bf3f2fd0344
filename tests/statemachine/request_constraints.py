"""What AWS enforces of a request and botocore does not: maxima, patterns, enumerations.

botocore checks types, required members and minima. The rest stands in the service model all the same.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import regex
from botocore.loaders import Loader
from botocore.model import ListShape, MapShape, ServiceModel, Shape, StringShape, StructureShape
from botocore.validate import ParamValidator


@cache
def service(name: str) -> ServiceModel:
    return ServiceModel(Loader().load_service_model(name, "service-2"), name)


def operation(service_name: str, action: str) -> str:
    """`createTrainingJob` as the service spells it: `CreateTrainingJob`.

    Raises:
        KeyError: when the service has no such operation.
    """
    return {name.lower(): name for name in service(service_name).operation_names}[action.lower()]


def faults(service_name: str, action: str, request: Mapping[str, Any]) -> list[str]:
    """Everything that AWS would refuse in a request, with its place."""
    shape = service(service_name).operation_model(operation(service_name, action)).input_shape
    report = ParamValidator().validate(request, shape)
    botocore_says = report.generate_report().splitlines() if report.has_errors() else []
    return [*botocore_says, *_walk(shape, request, action)]


def _walk(shape: Shape, value: Any, path: str) -> Iterator[str]:
    yield from _own(shape, value, path)
    if isinstance(shape, StructureShape):
        for key, item in value.items():
            if key not in shape.members:
                yield f"{path}.{key}: the service knows no such member"
            else:
                yield from _walk(shape.members[key], item, f"{path}.{key}")
    elif isinstance(shape, ListShape):
        for index, item in enumerate(value):
            yield from _walk(shape.member, item, f"{path}[{index}]")
    elif isinstance(shape, MapShape):
        for key, item in value.items():
            yield from _walk(shape.key, key, f"{path} key {key!r}")
            yield from _walk(shape.value, item, f"{path}[{key!r}]")


def _own(shape: Shape, value: Any, path: str) -> Iterator[str]:
    size = len(value) if isinstance(value, str | list | dict) else value
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if isinstance(size, int | float):
        if low is not None and size < low:
            yield f"{path}: {size} is below {low}"
        if high is not None and size > high:
            yield f"{path}: {size} is above {high}"
    if isinstance(shape, StringShape):
        if shape.enum and value not in shape.enum:
            yield f"{path}: {value!r} is none of {shape.enum}"
        pattern = shape.metadata.get("pattern")
        if pattern and not _compiled(pattern).fullmatch(value):
            yield f"{path}: {value!r} does not match {pattern}"


@cache
def _compiled(pattern: str) -> regex.Pattern[str]:
    # The models write characters beyond the first plane as surrogates, which Python's strings don't have.
    return regex.compile(pattern.replace(r"\uD800\uDC00-\uDBFF\uDFFF", "\U00010000-\U0010ffff"))
