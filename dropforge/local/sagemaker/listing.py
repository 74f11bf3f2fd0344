"""List* operations: filter, sort, page."""

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from dropforge.local.sagemaker.errors import ApiError

_DEFAULT_PAGE: Final = 10
"""AWS does not say its default; this is what it answers with."""


def page(
    summaries: Iterable[Mapping[str, Any]],
    request: Mapping[str, Any],
    *,
    name: str,
    status: str = "",
    descending: bool = False,
) -> tuple[list[Mapping[str, Any]], str | None]:
    """The summaries of one page, and the token of the next.

    `name` and `status` are the members that NameContains, StatusEquals and SortBy are about;
    `descending` is the order where the request names none.

    Raises:
        ApiError: ValidationException for a token that is none of ours.
    """
    found = [summary for summary in summaries if _matches(summary, request, name, status)]
    by = {"Name": name, "Status": status}.get(request.get("SortBy", ""), "CreationTime")
    order = request.get("SortOrder", "Descending" if descending else "Ascending")
    # Position breaks ties: two made in one clock tick stay in the order in which they were made.
    ranked = sorted(enumerate(found), key=lambda item: (item[1][by], item[0]), reverse=order == "Descending")
    start = _offset(request.get("NextToken"))
    stop = start + int(request.get("MaxResults", _DEFAULT_PAGE))
    return [summary for _, summary in ranked[start:stop]], _token(stop) if stop < len(ranked) else None


def answer(member: str, found: tuple[Sequence[Mapping[str, Any]], str | None]) -> dict[str, Any]:
    """The response: `member` holds the page; NextToken only where there is more."""
    summaries, token = found
    return {member: list(summaries), **({"NextToken": token} if token else {})}


def _matches(summary: Mapping[str, Any], request: Mapping[str, Any], name: str, status: str) -> bool:
    created, modified = summary["CreationTime"], summary.get("LastModifiedTime", summary["CreationTime"])
    return (
        request.get("NameContains", "").lower() in str(summary.get(name, "")).lower()
        and request.get("StatusEquals") in {None, summary.get(status)}
        and created > request.get("CreationTimeAfter", float("-inf"))
        and created < request.get("CreationTimeBefore", float("inf"))
        and modified > request.get("LastModifiedTimeAfter", float("-inf"))
        and modified < request.get("LastModifiedTimeBefore", float("inf"))
    )


def _token(offset: int) -> str:
    return base64.urlsafe_b64encode(f"offset:{offset}".encode()).decode()


def _offset(token: str | None) -> int:
    if token is None:
        return 0
    try:
        word, _, number = base64.urlsafe_b64decode(token.encode()).decode().partition(":")
        if word == "offset":
            return int(number)
    except (binascii.Error, UnicodeError, ValueError):
        pass
    raise ApiError.invalid("Invalid NextToken")
