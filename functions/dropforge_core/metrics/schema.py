"""Whether a JSON answer fits a schema."""

from collections.abc import Mapping
from typing import Any

from jsonschema import validators
from referencing.jsonschema import EMPTY_REGISTRY

from dropforge_core.metrics.structured import is_json, parse_json


class SchemaCheck:
    """A schema, ready to be asked about answers."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        kind = validators.validator_for(schema, validators.Draft202012Validator)
        # Of an empty registry nothing is fetched; by default the library would ask the network.
        self._validator = kind(dict(schema), registry=EMPTY_REGISTRY)

    def __call__(self, _reference: str, answer: str) -> float:
        """1 where the answer is JSON and fits."""
        value = parse_json(answer)
        return float(is_json(value) and bool(self._validator.is_valid(value)))
