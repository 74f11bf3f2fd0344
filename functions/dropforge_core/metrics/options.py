"""What the metrics that need to know more are told by the recipe."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StringConstraints, field_validator

from dropforge_core.model import Frozen


class MetricOptions(Frozen):
    """`evaluation.metric_options`."""

    model_config = ConfigDict(allow_inf_nan=False)

    json_schema: Mapping[str, Any] | None = None
    """JSON Schema (2020-12 where `$schema` names no other) for `json_schema_valid`; the references' own where none
    is given."""
    regex: Annotated[str, StringConstraints(min_length=1, max_length=2000)] | None = None
    """Pattern for `regex_match`; it must fit the whole answer."""
    absolute_tolerance: float = Field(0.0, ge=0)
    """For `numeric_match`: numbers this far apart are equal."""
    relative_tolerance: float = Field(1e-6, ge=0, lt=1)
    """For `numeric_match`: share of the reference by which a number may be off."""

    @field_validator("regex")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"a regular expression; this is none: {error}") from None
        return value


def schema_fault(schema: Mapping[str, Any]) -> str | None:
    """What is wrong with a JSON schema; None where it can be used.

    References to elsewhere are refused: nothing is fetched while answers are scored.
    """
    # The library is loaded only where a recipe has a schema: every function reads recipes.
    from jsonschema import SchemaError, validators  # noqa: PLC0415
    from referencing import Registry, Resource  # noqa: PLC0415
    from referencing.exceptions import Unresolvable  # noqa: PLC0415
    from referencing.jsonschema import DRAFT202012  # noqa: PLC0415

    outside = next((ref for ref in _references(schema) if not ref.startswith("#")), None)
    if outside is not None:
        return f"references within the schema ('#/...'); {outside[:80]!r} lies outside of it"
    try:
        validators.validator_for(schema, validators.Draft202012Validator).check_schema(dict(schema))
    except SchemaError as error:
        return f"a JSON schema; at {error.json_path}: {error.message[:120]}"
    resource = Resource.from_contents(dict(schema), default_specification=DRAFT202012)
    resolver = Registry().resolver_with_root(resource)
    for ref in _references(schema):
        try:
            resolver.lookup(ref)
        except Unresolvable:
            return f"references that lead somewhere in the schema; {ref[:80]!r} leads nowhere"
    return None


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key in {"$ref", "$dynamicRef"} and isinstance(inner, str):
                yield inner
            yield from _references(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _references(inner)
