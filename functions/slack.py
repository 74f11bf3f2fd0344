"""Slack over HTTP with the standard library: no dependency, short time-outs, polite retries."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

TIMEOUT_S: Final = 5.0
PATIENCE_S: Final = 15.0
"""Longest total wait on Retry-After in one delivery; beyond that Lambda's own retry is the better queue."""
TRIES: Final = 3
_RETRY_S = 1.0
ANSWER_MAX: Final = 1_000_000
PERMANENT: Final = frozenset(
    {
        "account_inactive",
        "channel_not_found",
        "invalid_auth",
        "invalid_blocks",
        "is_archived",
        "missing_scope",
        "msg_too_long",
        "not_authed",
        "not_in_channel",
        "token_expired",
        "token_revoked",
    }
)
"""Answers that no retry heals (Slack Web API, errors of chat.postMessage)."""


class SlackUnavailable(Exception):
    """Slack did not take it this time; trying later may help."""


class SlackRefused(Exception):
    """Slack will never take it: the token, the channel, the address or the message is wrong."""


class _NoRedirect(HTTPRedirectHandler):
    # A redirect would carry the token or the message to a host that nobody allowed.
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER: Final = build_opener(_NoRedirect)


@dataclass(frozen=True)
class SlackBot:
    """`chat.postMessage` and its relatives with a bot token (scope chat:write)."""

    token: str = field(repr=False)
    channel: str
    api_url: str
    sleep: Callable[[float], None] = time.sleep

    def post(self, body: Mapping[str, Any], thread_ts: str | None = None) -> str:
        """Post a message, or a reply in a thread; the `ts` that names it.

        Raises:
            SlackUnavailable: after the retries.
            SlackRefused: at once.
        """
        answer = self._call("chat.postMessage", {**body, **({"thread_ts": thread_ts} if thread_ts else {})})
        return str(answer.get("ts", ""))

    def update(self, ts: str, body: Mapping[str, Any]) -> None:
        """Replace a message. Raises as `post` does."""
        self._call("chat.update", {**body, "ts": ts})

    def delete(self, ts: str) -> None:
        """Take a message back. Raises as `post` does."""
        self._call("chat.delete", {"ts": ts})

    def _call(self, method: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        raw = _send(
            f"{self.api_url.rstrip('/')}/{method}",
            {**body, "channel": self.channel},
            {"Authorization": f"Bearer {self.token}"},
            self.sleep,
        )
        try:
            answer = json.loads(raw)
        except ValueError as error:
            raise SlackUnavailable(f"Slack answered {method} with something that is not JSON") from error
        if answer.get("ok"):
            return dict(answer)
        reason = str(answer.get("error", "unknown"))
        kind = SlackRefused if reason in PERMANENT else SlackUnavailable
        raise kind(f"Slack answered {method} with '{reason}'")


@dataclass(frozen=True)
class SlackWebhook:
    """An incoming webhook: it can only post, so every event is a message of its own."""

    url: str = field(repr=False)
    origin: str
    """The only origin (scheme and host) that `url` may have: `https://hooks.slack.com`."""
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        asked, allowed = urlsplit(self.url), urlsplit(self.origin)
        if (asked.scheme, asked.netloc) != (allowed.scheme, allowed.netloc):
            raise SlackRefused(
                f"the Slack secret's webhook_url goes to another place than {self.origin}; nothing was sent. "
                "Copy the address anew from Slack's Incoming Webhooks page."
            )

    def post(self, body: Mapping[str, Any]) -> None:
        """Post a message. Raises as `SlackBot.post` does."""
        _send(self.url, body, {}, self.sleep)


def _send(
    url: str, body: Mapping[str, Any], headers: Mapping[str, str], sleep: Callable[[float], None]
) -> bytes:
    data = json.dumps(body).encode()
    patience = PATIENCE_S
    trouble = "no attempt was made"
    for attempt in range(TRIES):
        # The origin is a setting or was checked against one, and redirects are not followed.
        request = Request(  # noqa: S310
            url, data, {"Content-Type": "application/json; charset=utf-8", **headers}, method="POST"
        )
        wait = _RETRY_S * 2**attempt
        try:
            with _OPENER.open(request, timeout=TIMEOUT_S) as answer:
                return bytes(answer.read(ANSWER_MAX))
        except HTTPError as error:
            error.close()
            trouble = f"HTTP {error.code}"
            if error.code == HTTPStatus.TOO_MANY_REQUESTS:
                wait = _retry_after(error.headers.get("Retry-After"))
            elif error.code < HTTPStatus.INTERNAL_SERVER_ERROR:
                raise SlackRefused(f"Slack answered {trouble}") from None
        except (URLError, TimeoutError, ConnectionError) as error:
            trouble = type(error).__name__
        patience -= wait
        if patience < 0:
            break
        if attempt + 1 < TRIES:
            sleep(wait)
    raise SlackUnavailable(f"Slack could not be reached: {trouble}")


def _retry_after(value: str | None) -> float:
    try:
        return max(0.0, float(value or 1))
    except ValueError:
        return 1.0
