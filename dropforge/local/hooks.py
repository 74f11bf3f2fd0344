"""Every private interface of MiniStack that the engine replaces or calls, and the check that it is still as it was.

MiniStack is pinned exactly, and the engine checks its hooks before it starts, so that an upgrade
fails at once and by name; tests/local/test_hooks.py uses each of them.
"""

import importlib
import importlib.metadata
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, Final

WRITTEN_FOR: Final = "1.5.33"

FUNCTIONS: Final[Mapping[str, str]] = {
    "app:app": "scope receive send",
    "services.cloudformation.provisioners:_cw_metric_alarm_put": "name props",
    "services.eventbridge:_dispatch_event": "event view",
    "services.eventbridge:_dispatch_to_lambda": "arn payload",
    "services.eventbridge:_put_events": "data allow_aws_source",
    "services.lambda_svc:_execute_function_warm": "func event request_id",
    "services.lambda_svc:_execution_record_for_config": "func config",
    "services.lambda_svc:_get_func_record_for_ref": "function_ref",
    "services.lambda_svc:invoke_async_with_retry": "func event",
    "services.s3:_fire_s3_event": (
        "bucket_name key event_name size etag deletion_type restore_event_data version_id "
        "sequencer object_extra record_extra"
    ),
    "services.s3:_get_object": "bucket_name key headers query_params",
    "services.s3:_parse_range": "range_header total",
    "services.sns:_fanout": (
        "topic_arn msg_id message subject message_structure message_attributes message_group_id message_dedup_id"
    ),
    "services.sns:_matches_filter_policy": "sub message_attributes message",
    "services.sns:_resolve_message_for_protocol": "message message_structure protocol",
    "services.sns:_topic_by_arn_any_scope": "topic_arn",
    "services.stepfunctions:_create_state_machine": "data",
    "services.stepfunctions:_describe_execution": "data",
    "services.stepfunctions:_emit_execution_status_event": "execution",
    "services.stepfunctions:_run_execution": "exec_arn",
    "services.stepfunctions:_send_task_failure": "data",
    "services.stepfunctions:_send_task_heartbeat": "data",
    "services.stepfunctions:_send_task_success": "data",
    "services.stepfunctions:_start_execution": "data",
    "services.stepfunctions:_stop_execution": "data",
    "services.stepfunctions:_update_state_machine": "data",
    "services.stepfunctions:handle_request": "method path headers body query_params",
}
"""Function to its parameters, in order."""

TABLES: Final = (
    "app:SERVICE_HANDLERS",
    "core.router:SERVICE_PATTERNS",
    "services.stepfunctions:_executions",
    "services.stepfunctions:_map_runs",
    "services.stepfunctions:_state_machines",
)
"""Mappings that are read or added to."""


class HookChanged(RuntimeError):
    """MiniStack is not the one that the engine was written for. The message lists what differs."""


def resolve(hook: str) -> tuple[Any, str]:
    """The module that holds a hook, and the hook's name in it."""
    module, _, name = hook.partition(":")
    return importlib.import_module(f"ministack.{module}"), name


def differences() -> Iterator[str]:
    """One sentence for each hook that is not as it was."""
    for hook, parameters in FUNCTIONS.items():
        module, name = resolve(hook)
        found = getattr(module, name, None)
        if not callable(found):
            yield f"ministack.{hook} is gone; the engine replaces or calls it"
            continue
        actual = " ".join(inspect.signature(found).parameters)
        if actual != parameters:
            yield f"ministack.{hook} takes ({actual}); the engine was written for ({parameters})"
    for hook in TABLES:
        module, name = resolve(hook)
        if not hasattr(getattr(module, name, None), "__setitem__"):
            yield f"ministack.{hook} is not a mapping any more; the engine reads or adds to it"


def check() -> None:
    """Refuse to run on a MiniStack whose private interfaces have changed.

    Raises:
        HookChanged: with every difference.
    """
    found = list(differences())
    if found:
        version = importlib.metadata.version("ministack")
        raise HookChanged(
            f"ministack {version} is installed; the local AWS was written for {WRITTEN_FOR}. "
            f"Install that one, or adapt dropforge/local/mount.py:\n" + "\n".join(found)
        )
