"""An MLflow tracking server over HTTP with the six requests that a run makes, and the limits of the real one."""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

MOST = {"metrics": 1000, "params": 100, "tags": 100}


class StubMlflow:
    """What was said to it, what it keeps, and what it answers instead."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.said: list[tuple[str, dict[str, Any]]] = []
        """Path and body of every POST, in order."""
        self.authorizations: set[str] = set()
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        """By id: experiment, tags, params, metrics (every value that was logged), status."""
        self.instead: dict[str, tuple[int, bytes]] = {}
        """By path: status and body of an answer that is none of MLflow's."""
        self.failing: list[tuple[str, int]] = []
        """Path and status of failures that are still to come, each once."""
        self.slow_s = 0.0

    def answer(self, path: str, query: dict[str, list[str]], body: dict[str, Any]) -> tuple[int, Any]:
        """Status and document of a request."""
        if path == "experiments/get-by-name":
            number = self.experiments.get(query["experiment_name"][0])
            return (200, {"experiment": {"experiment_id": number}}) if number else (404, {})
        known = {
            "experiments/create": self._create_experiment,
            "runs/search": self._search,
            "runs/create": self._create_run,
            "runs/log-batch": self._log_batch,
            "runs/update": self._update,
        }
        return known[path](body)

    def _create_experiment(self, body: dict[str, Any]) -> tuple[int, Any]:
        if body["name"] in self.experiments:
            return 400, {"error_code": "RESOURCE_ALREADY_EXISTS"}
        self.experiments[body["name"]] = str(len(self.experiments) + 7)
        return 200, {"experiment_id": self.experiments[body["name"]]}

    def _search(self, body: dict[str, Any]) -> tuple[int, Any]:
        found = self._found(body)
        return 200, {"runs": found} if found else {}

    def _create_run(self, body: dict[str, Any]) -> tuple[int, Any]:
        name = f"r{len(self.runs) + 1}"
        tags = {tag["key"]: tag["value"] for tag in body["tags"]}
        self.runs[name] = {**body, "tags": tags, "params": {}, "metrics": [], "status": "RUNNING"}
        return 200, {"run": self._seen(name)}

    def _update(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.runs[body["run_id"]] |= {key: value for key, value in body.items() if key != "run_id"}
        return 200, {"run_info": {}}

    def _log_batch(self, body: dict[str, Any]) -> tuple[int, Any]:
        run = self.runs[body["run_id"]]
        bad = any(len(body.get(kind, ())) > most for kind, most in MOST.items())
        for param in body.get("params", ()):
            bad |= run["params"].setdefault(param["key"], param["value"]) != param["value"]
        if bad:
            return 400, {"error_code": "INVALID_PARAMETER_VALUE"}
        run["tags"] |= {tag["key"]: tag["value"] for tag in body.get("tags", ())}
        run["metrics"] += body.get("metrics", ())
        return 200, {}

    def _found(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        wanted = re.fullmatch(r"tags\.`([\w.]+)` = '([\w-]+)'", body["filter"])
        assert wanted
        return [
            self._seen(name)
            for name, run in self.runs.items()
            if run["experiment_id"] in body["experiment_ids"] and run["tags"].get(wanted[1]) == wanted[2]
        ]

    def _seen(self, name: str) -> dict[str, Any]:
        run = self.runs[name]
        newest: dict[str, dict[str, Any]] = {}
        for one in run["metrics"]:
            old = newest.get(one["key"])
            if old is None or (one["step"], one["timestamp"]) >= (old["step"], old["timestamp"]):
                newest[one["key"]] = one
        params = [{"key": key, "value": value} for key, value in run["params"].items()]
        return {"info": {"run_id": name}, "data": {"metrics": list(newest.values()), "params": params}}


@contextmanager
def stub_mlflow() -> Iterator[StubMlflow]:
    """A server that answers until the block ends; its address ends in a folder, as behind a proxy."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the base class's name
            self._answer({})

        def do_POST(self) -> None:  # the base class's name
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stub.said.append((self._path(), body))
            self._answer(body)

        def _path(self) -> str:
            return urlsplit(self.path).path.removeprefix("/base/api/2.0/mlflow/")

        def _answer(self, body: dict[str, Any]) -> None:
            path = self._path()
            stub.authorizations.add(self.headers.get("Authorization", ""))
            time.sleep(stub.slow_s)
            if path in stub.instead:
                status, raw = stub.instead[path]
            elif (due := next((one for one in stub.failing if one[0] == path), None)) is not None:
                stub.failing.remove(due)
                status, raw = due[1], b"{}"
            else:
                status, said = stub.answer(path, parse_qs(urlsplit(self.path).query), body)
                raw = json.dumps(said).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                if 300 <= status < 400:
                    self.send_header("Location", f"{stub.url}/elsewhere")
                self.end_headers()
                self.wfile.write(raw)
            except ConnectionError:
                pass  # who asked has gone

        def log_message(self, *_: Any) -> None:
            """Silence."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False  # a slow answer is over before the next server begins
    stub = StubMlflow(f"http://127.0.0.1:{server.server_port}/base")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
