"""The client of a model server: /ping, /execution-parameters, /invocations with retries."""

import socket
import threading
from typing import Any

import httpx

from dropforge.local.sagemaker.requests import TransformRequest

_PING_TIMEOUT_S = 2.0
"""Batch transform gives /ping two seconds."""


class InvocationFailed(Exception):
    """The server's last word on one body: an HTTP status, or why there was none."""

    def __init__(self, fault: str, *, answered: bool) -> None:
        super().__init__(fault)
        self.answered = answered
        """Whether there was an HTTP status."""


class ModelServer:
    """A server on 127.0.0.1. `closing` ends the retries of requests that are under way."""

    def __init__(self, port: int, request: TransformRequest, closing: threading.Event) -> None:
        settings = request.model_client_config
        self._retries = settings.invocations_max_retries
        self._closing = closing
        self._headers = {
            "Content-Type": request.transform_input.content_type or "application/octet-stream",
            **({"Accept": request.transform_output.accept} if request.transform_output.accept else {}),
        }
        self._client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            timeout=float(settings.invocations_timeout_in_seconds),
            limits=httpx.Limits(max_connections=None),
            # A proxy of the environment must not see what is said on the loopback.
            trust_env=False,
        )

    def close(self) -> None:
        self._client.close()

    def is_ready(self) -> bool:
        try:
            return self._client.get("/ping", timeout=_PING_TIMEOUT_S).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def execution_parameters(self) -> dict[str, Any]:
        """What the container proposes (MaxConcurrentTransforms, BatchStrategy, MaxPayloadInMB); it need not."""
        try:
            answer = self._client.get("/execution-parameters", timeout=_PING_TIMEOUT_S)
            found = answer.json() if answer.status_code == httpx.codes.OK else {}
        except (httpx.TransportError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def invoke(self, body: bytes) -> bytes:
        """Answer one body. Time-outs, broken connections, 429 and 5xx are tried again; any other status is final.

        Raises:
            InvocationFailed: when there is no 2xx.
        """
        fault, answered = "not sent", False
        for _ in range(self._retries + 1):
            if self._closing.is_set():
                break
            try:
                answer = self._client.post("/invocations", content=body, headers=self._headers)
            except httpx.TransportError as error:
                fault, answered = f"{type(error).__name__}: {error}", False
                continue
            if answer.is_success:
                return answer.content
            answered = True
            fault = f"Bad HTTP status received from algorithm: {answer.status_code}: {answer.text[:200]}"
            if answer.status_code != httpx.codes.TOO_MANY_REQUESTS and not answer.is_server_error:
                break
        raise InvocationFailed(fault, answered=answered)


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
