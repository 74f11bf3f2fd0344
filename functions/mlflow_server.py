"""MLflow's REST interface with the standard library: no dependency, no redirects, short time-outs, bounded answers."""

import base64
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPException
from typing import Any, Final, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import HTTPRedirectHandler, Request, build_opener

from pydantic import Field, ValidationError

from dropforge_core.model import Tolerant
from dropforge_core.tracking import RUN_TAG, FoundRun, RunRecord, log_batches, tags_of

TIMEOUT_S: Final = 10.0
"""Of one answer."""
PATIENCE_S: Final = 90.0
"""Of all requests of one run together, below the function's time-out."""
ANSWER_MAX: Final = 1 << 20
"""Bytes of an answer that are read; a run with thousands of metrics stays far below."""
_HEALING: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})

Answer = TypeVar("Answer", bound=Tolerant)


class TrackingUnavailable(Exception):
    """The server did not take it this time; trying later may help."""


class TrackingRefused(Exception):
    """The server will never take it: the address, the token or the experiment is wrong."""


class _NoRedirect(HTTPRedirectHandler):
    # A redirect would carry the token to a host that nobody allowed.
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER: Final = build_opener(_NoRedirect)


class _Login(Tolerant):
    username: str = Field(min_length=1)
    password: str


class _Nothing(Tolerant):
    pass


class _Created(Tolerant):
    experiment_id: str


class _Experiment(Tolerant):
    experiment: _Created


class _Run(Tolerant):
    run: FoundRun


class _Runs(Tolerant):
    runs: tuple[FoundRun, ...] = ()


def authorization(secret: str) -> dict[str, str]:
    """The header of a secret's text: a bearer token, or JSON with `username` and `password`. Empty for no secret.

    Raises:
        TrackingRefused: when it can't stand in a header. Its text is never shown.
    """
    token = secret.strip()
    if not token:
        return {}
    try:
        login = _Login.model_validate_json(token)
    except ValidationError:
        if not (token.isascii() and token.isprintable()):
            raise TrackingRefused(
                "the secret of MlflowTokenSecretArn must be a token on one line, or JSON: "
                '{"username": "...", "password": "..."}. Put a new value into Secrets Manager.'
            ) from None
        return {"Authorization": f"Bearer {token}"}
    pair = base64.b64encode(f"{login.username}:{login.password}".encode()).decode()
    return {"Authorization": f"Basic {pair}"}


@dataclass(frozen=True)
class MlflowServer:
    """A tracking server. Every method raises TrackingUnavailable or TrackingRefused where it does not answer as one."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    clock: Callable[[], float] = time.monotonic
    deadline: float = field(default_factory=lambda: time.monotonic() + PATIENCE_S)
    """In seconds of `clock`; no request begins after it."""

    def tell(self, experiment: str, told: RunRecord) -> str:
        """Bring the server's run up to what is told of it; make it where there is none. Returns MLflow's run id."""
        number = self._experiment(experiment)
        run = self._found(number, told.tags[RUN_TAG]) or self._made(number, told)
        run_id = run.info.run_id
        for body in log_batches(told, run):
            self._post("runs/log-batch", {"run_id": run_id, **body}, _Nothing)
        end = {"run_id": run_id, "status": told.status, "end_time": told.ended_ms}
        self._post("runs/update", end, _Nothing)
        return run_id

    def _experiment(self, name: str) -> str:
        known = self._named(name)
        if known is None:
            try:
                return self._post("experiments/create", {"name": name}, _Created).experiment_id
            except TrackingRefused:
                # Another run's end may have made it in the meantime.
                known = self._named(name)
                if known is None:
                    raise
        return known

    def _named(self, name: str) -> str | None:
        query = f"experiments/get-by-name?experiment_name={quote(name, safe='')}"
        answer = self._call(query, None, _Experiment, absent=HTTPStatus.NOT_FOUND)
        return answer.experiment.experiment_id if answer else None

    def _found(self, experiment: str, run_id: str) -> FoundRun | None:
        body = {
            "experiment_ids": [experiment],
            "filter": f"tags.`{RUN_TAG}` = '{run_id}'",
            "max_results": 1,
        }
        return next(iter(self._post("runs/search", body, _Runs).runs), None)

    def _made(self, experiment: str, told: RunRecord) -> FoundRun:
        body = {
            "experiment_id": experiment,
            "run_name": told.name,
            "start_time": told.started_ms,
            "tags": tags_of([(RUN_TAG, told.tags[RUN_TAG])]),
        }
        return self._post("runs/create", body, _Run).run

    def _post(self, path: str, body: Mapping[str, Any], kind: type[Answer]) -> Answer:
        answer = self._call(path, json.dumps(body, allow_nan=False).encode(), kind)
        if answer is None:
            raise TrackingRefused(f"MLflow answered {path} with nothing")
        return answer

    def _call(
        self, path: str, body: bytes | None, kind: type[Answer], absent: HTTPStatus | None = None
    ) -> Answer | None:
        about = path.partition("?")[0]
        if self.clock() > self.deadline:
            raise TrackingUnavailable(f"MLflow took longer than {PATIENCE_S:.0f} s, up to {about}")
        # The address is the stack's own parameter, and redirects are not followed.
        request = Request(  # noqa: S310
            f"{self.url.rstrip('/')}/api/2.0/mlflow/{path}",
            body,
            {"Content-Type": "application/json", **self.headers},
            method="GET" if body is None else "POST",
        )
        try:
            with _OPENER.open(request, timeout=TIMEOUT_S) as answer:
                raw = bytes(answer.read(ANSWER_MAX))
        except HTTPError as error:
            error.close()
            if error.code == absent:
                return None
            healing = error.code in _HEALING or error.code >= HTTPStatus.INTERNAL_SERVER_ERROR
            kind_of = TrackingUnavailable if healing else TrackingRefused
            raise kind_of(f"MLflow answered {about} with HTTP {error.code}") from None
        except (URLError, TimeoutError, ConnectionError, HTTPException) as error:
            reason = error.reason if isinstance(error, URLError) else error
            raise TrackingUnavailable(
                f"MLflow could not be reached for {about}: {type(reason).__name__}"
            ) from error
        try:
            return kind.model_validate_json(raw)
        except ValidationError:
            raise TrackingRefused(
                f"what answered {about} is no MLflow server: its answer is another document"
            ) from None
