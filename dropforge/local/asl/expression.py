"""JSONata as Step Functions evaluates it: `{% ... %}` in any string, `$states`, variables, six functions more."""

import hashlib
import json
import math
import random
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from jsonata import Jsonata
from jsonata.utils import Utils

from dropforge.local.asl.failure import QUERY_EVALUATION_ERROR, Failure

TIME_LIMIT_MS: Final = 1000
_HASHES: Final = {
    "MD5": "md5",
    "SHA-1": "sha1",
    "SHA-256": "sha256",
    "SHA-384": "sha384",
    "SHA-512": "sha512",
}


def expression_in(text: str) -> str | None:
    """The JSONata between `{%` and `%}`; None where the string is no expression."""
    return text[2:-2].strip() if text.startswith("{%") and text.endswith("%}") else None


def expressions(template: Any) -> Iterator[str]:
    """Every expression of a template, for a check before anything runs."""
    if isinstance(template, str):
        found = expression_in(template)
        if found is not None:
            yield found
    elif isinstance(template, Mapping):
        for value in template.values():
            yield from expressions(value)
    elif isinstance(template, list):
        for value in template:
            yield from expressions(value)


def syntax_error(expression: str) -> str | None:
    """What is wrong with an expression, or None."""
    try:
        Jsonata(expression)
    except Exception as error:  # noqa: BLE001  # the parser raises what it likes; each means "not JSONata"
        return _message(error)
    return None


class Evaluator:
    """Evaluates the templates of one execution. For one thread: the library keeps its state by thread."""

    def __init__(self) -> None:
        self._compiled: dict[str, Jsonata] = {}

    def fill(self, template: Any, states: Mapping[str, Any], variables: Mapping[str, Any]) -> Any:
        """The template with each expression replaced by its value.

        Args:
            template: any JSON value.
            states: what `$states` offers here: input, context, and result or errorOutput.
            variables: the workflow's variables, by bare name.

        Raises:
            Failure: States.QueryEvaluationError, where an expression fails or yields nothing.
        """
        if isinstance(template, str):
            expression = expression_in(template)
            return template if expression is None else self._value(expression, states, variables)
        if isinstance(template, Mapping):
            return {key: self.fill(value, states, variables) for key, value in template.items()}
        if isinstance(template, list):
            return [self.fill(value, states, variables) for value in template]
        return template

    def _value(self, expression: str, states: Mapping[str, Any], variables: Mapping[str, Any]) -> Any:
        bindings = {name: Utils.NULL_VALUE if value is None else value for name, value in variables.items()}
        try:
            compiled = self._compile(expression)
            compiled.environment.set_runtime_bounds(TIME_LIMIT_MS, None)
            # The functions of the library ask this thread's current expression for the time of day.
            Jsonata.CURRENT.jsonata = compiled
            value = compiled.evaluate(None, {**bindings, "states": dict(states)})
        except Failure:
            raise
        except Exception as error:
            raise Failure(
                QUERY_EVALUATION_ERROR, f"{_message(error)} in the expression '{expression}'"
            ) from error
        if value is None:
            raise Failure(
                QUERY_EVALUATION_ERROR,
                f"The JSONata expression '{expression}' returned nothing (undefined); guard it with $exists(...)",
            )
        return _plain(value, expression)

    def _compile(self, expression: str) -> Jsonata:
        found = self._compiled.get(expression)
        if found is None:
            found = Jsonata(expression)
            # Tells null (a value) from undefined (an error).
            found.set_output_convert_nulls(False)
            for name, function in _FUNCTIONS.items():
                found.register_lambda(name, function)
            self._compiled[expression] = found
        return found


def _plain(value: Any, expression: str) -> Any:
    """JSON as Step Functions would write it: 4.0 is 4, sequences are lists."""
    if value is Utils.NULL_VALUE or value is None:
        return None
    if isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, expression) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(item, expression) for item in value]
    raise Failure(
        QUERY_EVALUATION_ERROR,
        f"The JSONata expression '{expression}' returned a function, which JSON can't hold",
    )


def _message(error: Exception) -> str:
    code = getattr(error, "error", None)
    return f"{code}: {error}" if isinstance(code, str) and code else f"{type(error).__name__}: {error}"


def _partition(array: list[Any], size: float) -> list[list[Any]]:
    step = math.floor(size)
    if step < 1:
        raise ValueError("$partition: the size must be a positive integer")
    return [array[at : at + step] for at in range(0, len(array), step)]


def _range(start: float, end: float, step: float) -> list[int]:
    first, last, by = math.floor(start), math.floor(end), math.floor(step)
    if by == 0:
        raise ValueError("$range: the step must not be zero")
    return list(range(first, last + (1 if by > 0 else -1), by))


def _hash(text: str, algorithm: str) -> str:
    if algorithm not in _HASHES:
        raise ValueError(f"$hash: {algorithm} is not one of {', '.join(_HASHES)}")
    return hashlib.new(_HASHES[algorithm], text.encode()).hexdigest()


def _random(seed: float | None = None) -> float:
    return random.random() if seed is None else random.Random(math.floor(seed)).random()  # noqa: S311  # $random of the language is no secret


def _parse(text: str) -> Any:
    return json.loads(text)


def _eval(*_: Any) -> Any:
    raise ValueError("$eval is not available in Step Functions; use $parse")


_FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "partition": _partition,
    "range": _range,
    "hash": _hash,
    "random": _random,
    "uuid": lambda: str(uuid.uuid4()),
    "parse": _parse,
    "eval": _eval,
}
