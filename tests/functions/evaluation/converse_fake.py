"""A model that judges, behind Bedrock's Converse over HTTP.

It finds the parts of a request by the marker, and answers as a test tells it to: `says` gets (right answer, first
answer, second answer) and gives the text of the reply, or an error's status and code.
"""

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote


def fair(right: str, first: str, second: str) -> str:
    """Prefers the right answer, wherever it stands."""
    return "TIE" if (first == right) == (second == right) else "FIRST" if first == right else "SECOND"


class ConverseFake:
    """Serves until `close`. Keeps every request as (model, body)."""

    def __init__(self) -> None:
        self.says: Callable[[str, str, str], str | tuple[int, str]] = fair
        self.requests: list[tuple[str, dict[str, Any]]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                _, _, model, action = self.path.split("/")
                assert action == "converse"
                fake.requests.append((unquote(model), body))
                status, answer, headers = fake.answer(body)
                payload = json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(payload))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any], dict[str, str]]:
        text = body["messages"][0]["content"][0]["text"]
        marker = re.match(r"The marker is (\S+)", text)[1]
        _, right, first, second, _ = re.split(rf"\n?{marker} [A-Z ]+\n", text.split("\n\n", 1)[1])[1:]
        said = self.says(right, first, second)
        if not isinstance(said, str):
            status, code = said
            return status, {"message": "no"}, {"x-amzn-ErrorType": code}
        answer = {
            "output": {"message": {"role": "assistant", "content": [{"text": said}]}},
            "stopReason": "end_turn",
            "usage": {"inputTokens": 300, "outputTokens": 2, "totalTokens": 302},
            "metrics": {"latencyMs": 1},
        }
        return 200, answer, {}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
