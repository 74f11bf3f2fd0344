"""The Runtime API of one execution environment: `/2018-06-01/runtime/...`, as AWS documents it."""

import http.server
import queue
import re
import threading
import time
from dataclasses import dataclass
from typing import Final, Literal

_INVOCATION: Final = re.compile(r"/2018-06-01/runtime/invocation/(?P<id>[^/]+)/(?P<kind>response|error)")
_NEXT: Final = "/2018-06-01/runtime/invocation/next"
_INIT_ERROR: Final = "/2018-06-01/runtime/init/error"


@dataclass(frozen=True)
class Invocation:
    """One event on its way to the handler."""

    request_id: str
    payload: bytes
    function_arn: str
    timeout_s: float
    trace_id: str | None = None


@dataclass(frozen=True)
class Reply:
    """What the runtime told: the handler's answer, its error, or that it could not even start."""

    kind: Literal["response", "error", "init"]
    body: bytes
    request_id: str | None = None


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # One write a response and no Nagle: 40 ms of delayed acknowledgement otherwise.
    wbufsize = -1
    disable_nagle_algorithm = True
    server: "_Server"

    def do_GET(self) -> None:
        if self.path != _NEXT:
            self._answer(404)
            return
        found = self.server.waiting.get()
        self.server.fetched.set()
        headers = {
            "Content-Type": "application/json",
            "Lambda-Runtime-Aws-Request-Id": found.request_id,
            "Lambda-Runtime-Deadline-Ms": str(int((time.time() + found.timeout_s) * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": found.function_arn,
        }
        if found.trace_id:
            headers["Lambda-Runtime-Trace-Id"] = found.trace_id
        self._answer(200, found.payload, headers)

    def do_POST(self) -> None:
        body = self._body()
        match = _INVOCATION.fullmatch(self.path)
        if match is not None:
            kind: Literal["response", "error"] = "response" if match["kind"] == "response" else "error"
            self.server.replies.put(Reply(kind, body, match["id"]))
        elif self.path == _INIT_ERROR:
            self.server.replies.put(Reply("init", body))
        else:
            self._answer(404)
            return
        self._answer(202, b'{"status":"OK"}', {"Content-Type": "application/json"})

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
        """Keep requests out of the log."""

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.waiting: queue.Queue[Invocation] = queue.Queue()
        self.replies: queue.Queue[Reply] = queue.Queue()
        self.fetched = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """A runtime that was killed resets its connection; the worker learns of its end from the process."""


class RuntimeApi:
    """An HTTP server on the loopback interface that one runtime process polls."""

    def __init__(self) -> None:
        self._server = _Server()
        self.replies = self._server.replies
        self.fetched = self._server.fetched
        """Set once the runtime has taken the invocation: its initialisation is over, its time runs."""
        threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="runtime-api", daemon=True
        ).start()

    @property
    def address(self) -> str:
        """For AWS_LAMBDA_RUNTIME_API."""
        return f"127.0.0.1:{self._server.server_port}"

    def offer(self, invocation: Invocation) -> None:
        self.fetched.clear()
        self._server.waiting.put(invocation)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
