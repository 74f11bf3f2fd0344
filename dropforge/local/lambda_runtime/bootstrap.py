"""A Lambda runtime in the standard library alone, for where AWS's own (awslambdaric) has no wheel.

Run as `python bootstrap.py module.handler`, with the function's code on the import path. It speaks
the Runtime API; what it leaves out next to AWS's client: response streaming, client context, SnapStart.
"""

import http.client
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Final

_RUNTIME: Final = "/2018-06-01/runtime"


class Context:
    """What handlers get as `context`."""

    client_context = None
    identity = None

    def __init__(self, request_id: str, arn: str, deadline_ms: int) -> None:
        self.aws_request_id, self.invoked_function_arn, self._deadline_ms = request_id, arn, deadline_ms
        self.function_name = os.environ["AWS_LAMBDA_FUNCTION_NAME"]
        self.function_version = os.environ["AWS_LAMBDA_FUNCTION_VERSION"]
        self.memory_limit_in_mb = os.environ["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"]
        self.log_group_name = os.environ["AWS_LAMBDA_LOG_GROUP_NAME"]
        self.log_stream_name = os.environ["AWS_LAMBDA_LOG_STREAM_NAME"]

    def get_remaining_time_in_millis(self) -> int:
        return max(0, self._deadline_ms - int(time.time() * 1000))


def _error(error: BaseException, error_type: str, request_id: str = "") -> bytes:
    trace = traceback.format_list(traceback.extract_tb(error.__traceback__)[1:])
    print("".join(traceback.format_exception(error)), flush=True)  # noqa: T201  # stdout is a function's log
    return json.dumps(
        {"errorMessage": str(error), "errorType": error_type, "requestId": request_id, "stackTrace": trace}
    ).encode()


class RuntimeApi:
    """The far side of the Runtime API."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(address)

    def next(self) -> tuple[bytes, Mapping[str, str]]:
        """The next event and its headers; waits for it."""
        self._connection.request("GET", f"{_RUNTIME}/invocation/next")
        answer = self._connection.getresponse()
        return answer.read(), dict(answer.headers)

    def post(self, path: str, body: bytes) -> None:
        self._connection.request("POST", f"{_RUNTIME}{path}", body, {"Content-Type": "application/json"})
        self._connection.getresponse().read()


def _load(name: str) -> Callable[[Any, Context], Any]:
    module, _, function = name.rpartition(".")
    found: Callable[[Any, Context], Any] = getattr(
        importlib.import_module(module.replace("/", ".")), function
    )
    return found


def main(name: str) -> None:
    """Serve invocations until the Runtime API goes away."""
    api = RuntimeApi(os.environ["AWS_LAMBDA_RUNTIME_API"])
    try:
        handler = _load(name)
    except BaseException as error:  # noqa: BLE001  # whatever a module raises on import is told, then fatal
        kind = "ImportModuleError" if isinstance(error, ImportError) else "HandlerNotFound"
        api.post("/init/error", _error(error, f"Runtime.{kind}"))
        sys.exit(1)
    while True:
        payload, headers = api.next()
        request_id = headers["Lambda-Runtime-Aws-Request-Id"]
        context = Context(
            request_id,
            headers["Lambda-Runtime-Invoked-Function-Arn"],
            int(headers["Lambda-Runtime-Deadline-Ms"]),
        )
        try:
            result = handler(json.loads(payload), context)
        except Exception as error:  # noqa: BLE001  # the function's own
            api.post(f"/invocation/{request_id}/error", _error(error, type(error).__name__, request_id))
            continue
        try:
            body = json.dumps(result, ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:
            api.post(f"/invocation/{request_id}/error", _error(error, "Runtime.MarshalError", request_id))
            continue
        api.post(f"/invocation/{request_id}/response", body)


if __name__ == "__main__":
    # The script's own folder came first; the function's code takes its place.
    sys.path[0] = os.environ["LAMBDA_TASK_ROOT"]
    main(sys.argv[1])
