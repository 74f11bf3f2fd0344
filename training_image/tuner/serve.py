"""The evaluation server: SageMaker's batch-transform contract over HTTP.

`/ping` is green only when base and adapters are loaded; `/invocations` takes JSON lines and answers a
line for each. The records of all open requests are worked on together, so `/execution-parameters` asks for
requests that overlap: one request's last answers leave room that the next one's first ones take.
"""

import json
import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import boto3

from dropforge_core.evaluation.prompts import CONCURRENT_REQUESTS, PAYLOAD_MB
from dropforge_core.layout import split_s3_uri
from dropforge_core.model import Frozen
from tuner.adapters import Variants, extract_artifact, read_artifact_manifest
from tuner.answering import Answerer
from tuner.contract import Container, Say
from tuner.engine.continuous import ContinuousEngine
from tuner.failure import Failure
from tuner.generation import Decoding
from tuner.integrity import MANIFEST, compare, file_digest, read_manifest
from tuner.loading import COPY, NotUsable, copy_of
from tuner.model import load_base, pick_device
from tuner.residency import expand_quantized
from tuner.signals import StopRequest
from tuner.storage import download, download_prefix

EXECUTION_PARAMETERS: Final = {
    "MaxConcurrentTransforms": CONCURRENT_REQUESTS,
    "BatchStrategy": "MULTI_RECORD",
    "MaxPayloadInMB": PAYLOAD_MB,
}
POLL_S: Final = 0.2


class ServeSettings(Frozen):
    """The model's environment."""

    base_model_uri: str
    champion_model_uri: str = ""
    max_new_tokens: int = 256
    temperature: float = 0.0
    port: int = 8080

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "ServeSettings":
        """From environment variables, `SAGEMAKER_BIND_TO_PORT` among them.

        Raises:
            pydantic.ValidationError: naming every variable that is missing or wrong.
        """
        named = {"port": "SAGEMAKER_BIND_TO_PORT", **{f: f.upper() for f in cls.model_fields if f != "port"}}
        return cls.model_validate(
            {field: environment[name] for field, name in named.items() if name in environment}
        )


def serve(
    container: Container, stop: StopRequest, say: Say, environment: Mapping[str, str] = os.environ
) -> None:
    """Serve until a stop is asked for.

    Raises:
        Failure: where base or candidate can't be loaded.
        Stopped: when the process is asked to end.
    """
    settings = ServeSettings.read(environment)
    server = EvaluationServer(("", settings.port), say)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": POLL_S}, daemon=True)
    thread.start()
    try:
        with tempfile.TemporaryDirectory(prefix="dropforge-") as scratch:
            variants = load_variants(container, settings, Path(scratch), say)
            decoding = Decoding(settings.max_new_tokens, settings.temperature)
            engine = ContinuousEngine(variants, decoding, say)
            server.answerer = Answerer(variants, engine, settings.max_new_tokens, say)
            say("phase=ready")
            while thread.is_alive():
                thread.join(POLL_S)
                stop.check()
    finally:
        server.shutdown()
        server.server_close()


def load_variants(container: Container, settings: ServeSettings, scratch: Path, say: Say) -> Variants:
    """The base from its cache in S3, the candidate from the container, the champion from its artifact.

    A champion that can't be loaded is told in its predictions; it does not stop the candidate's evaluation.

    Raises:
        Failure: for base and candidate.
    """
    s3 = boto3.client("s3")
    say("phase=loading_base_model")
    candidate = read_artifact_manifest(container.model)
    fetch_base(s3, settings.base_model_uri, scratch / "base", candidate["quantization"], say)
    base = load_base(
        scratch / "base", candidate["quantization"], pick_device(), candidate.get("chat_template"), say
    )
    if (made_by := candidate.get("quantiser")) is not None and made_by != base.quantiser:
        say("base_model=rounded by another quantiser than in training; in ties of rounding it may differ")
    if base.device.type == "cpu":
        expand_quantized(base.causal)
    variants = Variants(base)
    say("phase=loading_adapters")
    variants.add("candidate", container.model)
    if settings.champion_model_uri:
        try:
            download(s3, *split_s3_uri(settings.champion_model_uri), scratch / "champion.tar.gz")
            extract_artifact(scratch / "champion.tar.gz", scratch / "champion")
            variants.add("champion", scratch / "champion")
        except Failure as failure:
            variants.refused["champion"] = failure.message
            say(f"champion refused: {failure.message}")
    return variants


def fetch_base(s3: Any, uri: str, folder: Path, quantization: str, say: Say) -> None:
    """The cached base model in one form: its quantised copy where that is usable, else the original's weights.

    Raises:
        Failure: BASE_MODEL where there is nothing, or the bucket refuses.
    """
    bucket, prefix = split_s3_uri(uri)

    def fetch(wanted: Callable[[str], bool]) -> None:
        download_prefix(s3, bucket, prefix, folder, wanted)

    fetch(lambda name: not name.endswith(".safetensors"))
    if quantization == "nf4":
        try:
            copy = copy_of(folder, read_manifest((folder / MANIFEST).read_bytes()))
            fetch(lambda name: name.startswith(f"{COPY}/"))
            for name, expected in copy.files.items():
                path = folder / COPY / name
                compare(path, file_digest(path) if path.is_file() else "no file", expected)
        except (NotUsable, Failure, FileNotFoundError) as reason:
            say(f"quantised_copy=unused {getattr(reason, 'message', reason)}")
        else:
            return
    fetch(lambda name: name.endswith(".safetensors") and not name.startswith(f"{COPY}/"))


class EvaluationServer(ThreadingHTTPServer):
    """Answers `/ping` while the model works."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], say: Say) -> None:
        super().__init__(address, _Requests)
        self.say = say
        self.answerer: Answerer | None = None
        """None until everything is loaded."""


class _Requests(BaseHTTPRequestHandler):
    server: EvaluationServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # the standard library's name
        if self.path == "/ping":
            ready = self.server.answerer is not None
            self._send(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, b"")
        elif self.path == "/execution-parameters":
            self._send(HTTPStatus.OK, json.dumps(EXECUTION_PARAMETERS).encode())
        else:
            self._send(HTTPStatus.NOT_FOUND, b"")

    def do_POST(self) -> None:  # the standard library's name
        body = self._body()
        answerer = self.server.answerer
        if self.path != "/invocations":
            self._send(HTTPStatus.NOT_FOUND, b"")
        elif answerer is None:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, b"the model is being loaded")
        else:
            try:
                answered = answerer.answer(body)
            except Exception as error:  # noqa: BLE001  # one request's failure must not end the server
                self.server.say(f"request failed: {type(error).__name__}: {error}")
                self._send(HTTPStatus.INTERNAL_SERVER_ERROR, type(error).__name__.encode())
                return
            self._send(HTTPStatus.OK, answered, "application/jsonlines")

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def _send(self, status: HTTPStatus, body: bytes, content_type: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """The health check every few seconds is no news."""
