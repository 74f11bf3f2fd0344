"""A base model from the Hugging Face hub, at one commit."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import boto3
import httpx
from botocore.exceptions import BotoCoreError, ClientError

from tuner.cache_base_model import SourceFile
from tuner.failure import Failure
from tuner.integrity import file_digest

NO_ANSWER: Final = (OSError, httpx.HTTPError, RuntimeError)
"""What the hub's client raises where nobody answers: httpx's errors are no OSError, and after one of them the
client is closed and raises RuntimeError."""


def hub_token(environment: Mapping[str, str]) -> str | None:
    """The token from Secrets Manager, where the stack names a secret; it never travels in the environment.

    Raises:
        Failure: BASE_MODEL where the secret can't be read.
    """
    secret = environment.get("HUB_TOKEN_SECRET_ARN", "")
    if not secret:
        return None
    try:
        value = boto3.client("secretsmanager").get_secret_value(SecretId=secret)["SecretString"]
    except (ClientError, BotoCoreError) as error:
        raise Failure("BASE_MODEL", f"the hub's token can't be read from {secret}: {error}") from None
    return str(value).strip() or None


class HubSource:
    """A repository at the commit that its revision names now.

    Raises:
        Failure: BASE_MODEL where the hub does not give access.
    """

    def __init__(self, repo: str, revision: str, token: str | None) -> None:
        # The image is offline by default, and the client reads this only when it is imported.
        os.environ["HF_HUB_OFFLINE"] = "0"
        from huggingface_hub import HfApi  # noqa: PLC0415  # after the line above
        from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

        self._repo, self._token = repo, token
        self._api = HfApi(token=token or False)
        try:
            info = self._api.model_info(repo, revision=revision, files_metadata=True)
        except (HfHubHTTPError, *NO_ANSWER) as error:
            raise Failure("BASE_MODEL", _explain(repo, revision, error)) from None
        self.revision: str | None = info.sha
        self.licence = str(info.card_data.license) if info.card_data and info.card_data.license else None
        self.terms: Mapping[str, str] = _terms(info)
        self._siblings = info.siblings or []
        self._digests = {s.rfilename: s.lfs.sha256 for s in self._siblings if s.lfs is not None}

    def files(self) -> Sequence[SourceFile]:
        return [SourceFile(s.rfilename, s.size or 0, f"{self.revision}") for s in self._siblings]

    def fetch(self, file: SourceFile, folder: Path) -> Path:
        """One file, its digest compared with the hub's where the hub has one.

        Raises:
            Failure: BASE_MODEL.
        """
        from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415  # see the constructor

        try:
            path = Path(
                self._api.hf_hub_download(
                    self._repo, file.name, revision=self.revision, local_dir=folder / "hub"
                )
            )
        except (HfHubHTTPError, *NO_ANSWER) as error:
            raise Failure("BASE_MODEL", _explain(self._repo, str(self.revision), error)) from None
        expected = self._digests.get(file.name)
        if expected is not None and (found := file_digest(path)) != expected:
            raise Failure("BASE_MODEL", f"{file.name}: the hub says {expected[:12]}, received {found[:12]}")
        return path


def _explain(repo: str, revision: str, error: Exception) -> str:
    """What a person must do about the hub's refusal."""
    kind = type(error).__name__
    if kind == "GatedRepoError":
        return (
            f"{repo} is gated: accept its licence on the hub with the account whose token is in "
            "HUB_TOKEN_SECRET_ARN, then start again"
        )
    if kind in {"RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError"}:
        return f"the hub has no {repo}@{revision}, or the token may not see it"
    if isinstance(error, httpx.TransportError | ConnectionError | RuntimeError):
        return (
            f"the hub does not answer ({kind}), so {repo}@{revision} can't be copied; start again when it is "
            "reachable from the job's network: what was copied is kept"
        )
    return f"{repo}@{revision} can't be read from the hub: {kind}"


def _terms(info: Any) -> dict[str, str]:
    """What the model card and the hub say about its licence."""
    card = info.card_data
    told = {
        "name": getattr(card, "license_name", None),
        "link": getattr(card, "license_link", None),
        "gated": info.gated or None,
    }
    return {name: str(value) for name, value in told.items() if value}
