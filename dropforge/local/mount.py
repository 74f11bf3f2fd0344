"""Puts our services in place of MiniStack's, through the private interfaces that `hooks` lists.

Call `hooks.check()` first, and these once in a process: they change modules.
"""

# ruff: noqa: SLF001  # private interfaces are what this file is about; hooks.py checks each of them

import asyncio
import contextvars
import json
from collections.abc import Mapping
from typing import Any, Protocol

from ministack import app
from ministack.core import router
from ministack.services import eventbridge, lambda_svc, s3, sns
from ministack.services.cloudformation import provisioners

from dropforge.local.email_outbox import Outbox
from dropforge.local.lambda_runtime.api import Invocation
from dropforge.local.lambda_runtime.pool import CodeStore, WorkerPool
from dropforge.local.lambda_runtime.worker import FunctionSpec

Reply = tuple[int, dict[str, str], bytes]


class WireService(Protocol):
    """A service that answers AWS's JSON protocol."""

    def handle(
        self, method: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]: ...


def publish(source: str, detail_type: str, arn: str, detail: Mapping[str, Any]) -> None:
    """Put an event on the default bus as an AWS service does; the public PutEvents refuses `aws.*` sources."""
    entry = {"Source": source, "DetailType": detail_type, "Resources": [arn], "Detail": json.dumps(detail)}
    eventbridge._put_events({"Entries": [entry]}, allow_aws_source=True)


def mount_sagemaker(service: WireService) -> None:
    """Answer SageMaker's calls; MiniStack has no such service."""

    async def handle(method: str, _path: str, headers: Mapping[str, str], body: bytes, _query: Any) -> Reply:
        return await asyncio.to_thread(service.handle, method, headers, body)

    app.SERVICE_HANDLERS["sagemaker"] = handle
    router.SERVICE_PATTERNS["sagemaker"] = {
        "target_prefixes": ["SageMaker"],
        "host_patterns": [r"api\.sagemaker\."],
        "credential_scope": "sagemaker",
    }


def mount_lambda(pool: WorkerPool, code: CodeStore) -> None:
    """Run functions in our workers; let EventBridge invoke them as AWS does, with retries and destinations."""

    def execute(func: dict[str, Any], event: Any, request_id: str) -> dict[str, Any]:
        config = func["config"]
        spec = FunctionSpec(
            name=config["FunctionName"],
            handler=config["Handler"],
            code=code.folder(func["code_zip"]),
            environment=tuple(sorted(((config.get("Environment") or {}).get("Variables") or {}).items())),
            timeout_s=float(config.get("Timeout", 3)),
            memory_mb=int(config.get("MemorySize", 128)),
            log_group=(config.get("LoggingConfig") or {}).get("LogGroup")
            or f"/aws/lambda/{config['FunctionName']}",
            version=config.get("Version", "$LATEST"),
        )
        payload = json.dumps(event, ensure_ascii=False).encode()
        result = pool.invoke(spec, Invocation(request_id, payload, config["FunctionArn"], spec.timeout_s))
        body = json.loads(result.payload or b"null")
        return {"body": body, "log": result.log, **({"error": True} if result.failed else {})}

    def deliver(arn: str, payload: str) -> None:
        func, config, _name = lambda_svc._get_func_record_for_ref(arn)
        if func and config:
            lambda_svc.invoke_async_with_retry(
                lambda_svc._execution_record_for_config(func, config), json.loads(payload)
            )

    lambda_svc._execute_function_warm = execute
    eventbridge._dispatch_to_lambda = deliver


def mount_object_versions() -> None:
    """Give S3's events the object's version, which MiniStack leaves out."""
    version: contextvars.ContextVar[str | None] = contextvars.ContextVar("version", default=None)
    fire, dispatch = s3._fire_s3_event, eventbridge._dispatch_event

    def fire_with_version(*args: Any, **named: Any) -> None:
        token = version.set(named.get("version_id"))
        try:
            fire(*args, **named)
        finally:
            version.reset(token)

    def dispatch_with_version(event: dict[str, Any], view: Any = None) -> None:
        version_id = version.get()
        if event.get("Source") == "aws.s3" and version_id:
            detail = json.loads(event["Detail"])
            detail["object"].setdefault("version-id", version_id)
            event, view = {**event, "Detail": json.dumps(detail)}, None
        dispatch(event, view)

    s3._fire_s3_event = fire_with_version
    eventbridge._dispatch_event = dispatch_with_version


def mount_ranges_of_versions() -> None:
    """Let a range of an object's version be read. MiniStack answers with the whole version."""
    get = s3._get_object

    def get_range(
        bucket_name: str, key: str, headers: dict[str, Any], query_params: dict[str, Any] | None = None
    ) -> Reply:
        reply: Reply = get(bucket_name, key, headers, query_params)
        status, told, body = reply
        wanted = headers.get("range", "")
        if status != 200 or not wanted or not (query_params or {}).get("versionId"):
            return reply
        span = s3._parse_range(wanted, len(body))
        if span is None:
            kind = {"Content-Type": "application/xml", "Content-Range": f"bytes */{len(body)}"}
            return 416, kind, b"<Error><Code>InvalidRange</Code><Message>Not satisfiable</Message></Error>"
        first, last = span
        # A checksum is of the whole object, and boto3 would hold the piece against it.
        kept = {name: value for name, value in told.items() if not name.lower().startswith("x-amz-checksum")}
        kept |= {
            "Content-Length": str(last + 1 - first),
            "Content-Range": f"bytes {first}-{last}/{len(body)}",
        }
        return 206, kept, body[first : last + 1]

    s3._get_object = get_range


def mount_email(outbox: Outbox) -> None:
    """Keep what SNS would mail. Subscriptions count as confirmed."""
    fanout = sns._fanout

    def fanout_and_keep(  # noqa: PLR0913, PLR0917  # the signature of what it replaces
        topic_arn: str,
        msg_id: str,
        message: str,
        subject: str,
        message_structure: str = "",
        message_attributes: dict[str, Any] | None = None,
        message_group_id: str = "",
        message_dedup_id: str = "",
    ) -> None:
        fanout(
            topic_arn,
            msg_id,
            message,
            subject,
            message_structure,
            message_attributes,
            message_group_id,
            message_dedup_id,
        )
        topic = sns._topic_by_arn_any_scope(topic_arn) or {"subscriptions": []}
        for subscription in topic["subscriptions"]:
            if subscription["protocol"] != "email":
                continue
            text = sns._resolve_message_for_protocol(message, message_structure, "email")
            if sns._matches_filter_policy(subscription, message_attributes or {}, text):
                outbox.put(subscription["endpoint"], subject, text, topic_arn)

    sns._fanout = fanout_and_keep


def mount_alarms(region: str, account: str) -> None:
    """Let stacks have alarms on metric math. MiniStack refuses them; here they exist by name and never fire."""
    put = provisioners._cw_metric_alarm_put

    def put_or_name(name: str, props: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
        if props.get("Metrics"):
            return name, {"Arn": f"arn:aws:cloudwatch:{region}:{account}:alarm:{name}"}
        alarm, attributes = put(name, props)
        return alarm, attributes

    provisioners._cw_metric_alarm_put = put_or_name
