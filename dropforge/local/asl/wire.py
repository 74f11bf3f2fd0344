"""Between the JSON of a task state and a boto3 call: names, shapes, timestamps, error names."""

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from typing import Any, Final

import botocore.session
from botocore.model import ListShape, MapShape, OperationModel, Shape, StructureShape

_BOTO_NAMES: Final = {
    "cloudwatchlogs": "logs",
    "eventbridge": "events",
    "sfn": "stepfunctions",
}
"""Services whose name in a Resource is that of the Java SDK, not boto3's."""


@cache
def operation(service: str, action: str) -> OperationModel | None:
    """The model of `sagemaker`, `createModel`; None where there is no such call."""
    session = botocore.session.get_session()
    name = _BOTO_NAMES.get(service, service)
    if name not in session.get_available_services():
        return None
    model = session.get_service_model(name)
    wanted = action.casefold()
    return next((model.operation_model(op) for op in model.operation_names if op.casefold() == wanted), None)


def boto_name(service: str) -> str:
    """The name that boto3.client takes."""
    return _BOTO_NAMES.get(service, service)


def java_name(service_id: str) -> str:
    """How error names call a service: `SFN` is Sfn, `DynamoDB` DynamoDb, `CloudWatch Logs` CloudWatchLogs."""
    return "".join(
        re.sub(r"[A-Z]{2,}", lambda found: found[0].capitalize(), word[:1].upper() + word[1:])
        for word in service_id.split()
    )


def to_api(value: Any, shape: Shape | None) -> Any:
    """A task's Arguments as boto3 wants them: members found whatever the case of their names.

    SDK integrations write every member in PascalCase; some APIs have camelCase.
    """
    if isinstance(shape, StructureShape) and isinstance(value, Mapping):
        members = {name.casefold(): name for name in shape.members}
        found = {members.get(str(key).casefold(), str(key)): item for key, item in value.items()}
        return {key: to_api(item, shape.members.get(key)) for key, item in found.items()}
    if isinstance(shape, ListShape) and isinstance(value, list):
        return [to_api(item, shape.member) for item in value]
    if isinstance(shape, MapShape) and isinstance(value, Mapping):
        return {key: to_api(item, shape.value) for key, item in value.items()}
    return value


def to_json(value: Any, moment: Callable[[datetime], Any], *, pascal: bool = False) -> Any:
    """A boto3 answer as JSON. `pascal`: member names begin with a capital, as SDK integrations give them."""
    if isinstance(value, Mapping):
        return {
            (key[:1].upper() + key[1:] if pascal else key): to_json(item, moment, pascal=pascal)
            for key, item in value.items()
            if key != "ResponseMetadata"
        }
    if isinstance(value, list | tuple):
        return [to_json(item, moment, pascal=pascal) for item in value]
    if isinstance(value, datetime):
        return moment(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if hasattr(value, "read"):
        return to_json(value.read(), moment)
    return value


def epoch_ms(moment: datetime) -> int:
    """How `.sync` writes times."""
    return round(moment.timestamp() * 1000)


def iso_time(moment: datetime) -> str:
    """How SDK integrations write times."""
    return moment.isoformat().replace("+00:00", "Z")
