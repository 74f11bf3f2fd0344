"""Tags of every resource, by ARN."""

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from dropforge.local.sagemaker.errors import ApiError

_MOST: Final = 50


class TagBook:
    """`exists` says whether an ARN names a resource."""

    def __init__(self, exists: Callable[[str], bool]) -> None:
        self._exists = exists
        self._tags: dict[str, dict[str, str]] = {}
        self._lock = threading.Lock()

    def of(self, arn: str) -> dict[str, str]:
        with self._lock:
            return dict(self._tags.get(arn, {}))

    def put(self, arn: str, tags: Iterable[Mapping[str, str]]) -> None:
        """Add or replace tags of a resource that is being made.

        Raises:
            ApiError: ValidationException for more than 50.
        """
        with self._lock:
            merged = {**self._tags.get(arn, {}), **{tag["Key"]: tag["Value"] for tag in tags}}
            if len(merged) > _MOST:
                raise ApiError.invalid(f"{arn} would have {len(merged)} tags; at most {_MOST} are allowed.")
            if merged:
                self._tags[arn] = merged

    def forget(self, arn: str) -> None:
        with self._lock:
            self._tags.pop(arn, None)

    def add(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._check(request["ResourceArn"])
        self.put(request["ResourceArn"], request["Tags"])
        return self.list(request)

    def delete(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._check(request["ResourceArn"])
        with self._lock:
            for key in request["TagKeys"]:
                self._tags.get(request["ResourceArn"], {}).pop(key, None)
        return {}

    def list(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """All tags in one page; there are never more than 50."""
        self._check(request["ResourceArn"])
        return {
            "Tags": [{"Key": key, "Value": value} for key, value in self.of(request["ResourceArn"]).items()]
        }

    def _check(self, arn: str) -> None:
        if not self._exists(arn):
            raise ApiError.invalid(f"Resource {arn} does not exist.")
