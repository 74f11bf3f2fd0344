"""The model hub, by HTTPS: which commit a revision is, which files it has, what its config says.

Only these small documents are read here; weights are fetched by the caching job.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException, HTTPMessage
from typing import IO, Any, Final
from urllib.parse import quote, urlsplit

from dropforge_core.identity import printable
from dropforge_core.model import Frozen
from dropforge_core.planning.base import COMMIT

ANSWER_BYTES: Final = 8 * 1024 * 1024
"""More than the listing of any repository with a thousand shards."""
RETRIED: Final = frozenset({408, 429, 500, 502, 503, 504})


class BaseModelUnavailable(Exception):
    """The base model can't be had: it does not exist, is gated, or may not be read. Trying again is useless."""


class HubUnreachable(Exception):
    """The hub did not answer, or not sensibly. Trying again later may help."""


class HubModel(Frozen):
    """One commit of a repository."""

    commit: str
    files: dict[str, int]
    """File name to size in bytes."""


class _SameHostAuthorization(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but takes the token to no other host."""

    def redirect_request(  # noqa: PLR0913, PLR0917  # the signature is urllib's
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        target = super().redirect_request(req, fp, code, msg, headers, newurl)
        if target is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            target.remove_header("Authorization")
        return target


class Hub:
    """A hub that speaks the Hugging Face API. `sleep` is called with seconds between tries."""

    def __init__(
        self,
        endpoint: str,
        token: str = "",
        *,
        timeout_s: float = 10.0,
        tries: int = 3,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if urlsplit(endpoint).scheme not in {"http", "https"}:
            raise ValueError(f"HF_ENDPOINT is {printable(endpoint)!r}, expected an http(s) address")
        self._endpoint = endpoint.rstrip("/")
        self._token = token
        self._timeout_s = timeout_s
        self._tries = tries
        self._sleep = sleep
        self._opener = urllib.request.build_opener(_SameHostAuthorization())

    def resolve(self, repo: str, revision: str) -> HubModel:
        """The commit behind a branch, tag or commit, with its files.

        Raises:
            BaseModelUnavailable: when there is no such repository or revision, or no access to it.
            HubUnreachable: when the hub does not answer.
        """
        answer = self._get(
            f"/api/models/{repo}/revision/{quote(revision, safe='')}?blobs=true", repo, revision
        )
        commit, siblings = answer.get("sha"), answer.get("siblings")
        if not isinstance(commit, str) or not COMMIT.fullmatch(commit) or not isinstance(siblings, list):
            raise HubUnreachable(
                f"the hub's answer for {repo} has no commit and file list; is HF_ENDPOINT a model hub?"
            )
        files = {
            entry["rfilename"]: entry["size"] if isinstance(entry.get("size"), int) else 0
            for entry in siblings
            if isinstance(entry, dict) and isinstance(entry.get("rfilename"), str)
        }
        return HubModel(commit=commit, files=files)

    def config(self, repo: str, commit: str) -> Mapping[str, Any]:
        """The parsed `config.json` at a commit.

        Raises:
            BaseModelUnavailable: when it is not there, or the repository is gated.
            HubUnreachable: when the hub does not answer.
        """
        return self._get(f"/{repo}/resolve/{commit}/config.json", repo, commit)

    def _get(self, path: str, repo: str, revision: str) -> dict[str, Any]:
        why = ""
        for attempt in range(self._tries):
            if attempt:
                self._sleep(2.0 ** (attempt - 1))
            try:
                return self._once(path)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code not in RETRIED:
                    raise BaseModelUnavailable(_refusal(error.code, repo, revision)) from None
                why = f"HTTP {error.code}"
            except (OSError, HTTPException, ValueError) as error:
                why = printable(str(getattr(error, "reason", error)))
        raise HubUnreachable(
            f"the model hub at {self._endpoint} did not answer for {repo} ({why}, {self._tries} tries). Redrive the "
            "run later, or give the base model as an S3 prefix."
        )

    def _once(self, path: str) -> dict[str, Any]:
        headers = {
            "Accept": "application/json",
            **({"Authorization": f"Bearer {self._token}"} if self._token else {}),
        }
        request = urllib.request.Request(self._endpoint + path, headers=headers)  # noqa: S310  # checked in __init__
        with self._opener.open(request, timeout=self._timeout_s) as answer:
            body = answer.read(ANSWER_BYTES + 1)
        if len(body) > ANSWER_BYTES:
            raise ValueError("the answer is larger than 8 MiB")
        parsed = json.loads(body)
        if not isinstance(parsed, dict):
            raise ValueError("the answer is no JSON object")  # noqa: TRY004  # a wrong answer, no wrong call
        return parsed


def _refusal(code: int, repo: str, revision: str) -> str:
    if code in {401, 403}:
        return (
            f"the hub refuses {repo} (HTTP {code}): it is gated or private, or there is no such repository. Check the "
            "name in 'base_model'; for a gated model accept its licence on the hub and store an access token in the "
            "stack's hub-token secret; or copy the model to S3 and give that prefix."
        )
    if code == 404:
        return f"the hub has no {repo} at revision '{printable(revision)}', or no config.json there. Check 'base_model'."
    return f"the hub refuses {repo} at revision '{printable(revision)}' (HTTP {code})."
