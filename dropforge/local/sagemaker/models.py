"""Models: an image, an artifact and an environment under a name."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

from dropforge.local.sagemaker import listing
from dropforge.local.sagemaker.errors import ApiError
from dropforge.local.sagemaker.requests import ModelRequest
from dropforge.local.sagemaker.rules import check_model


class ModelBook:
    """Create, describe, delete, list. That the artifact exists is not checked, as by SageMaker."""

    def __init__(self, arn_prefix: str, clock: Callable[[], float]) -> None:
        self._arn_prefix, self._clock = arn_prefix, clock
        self._models: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def arn_of(self, name: str) -> str:
        return f"{self._arn_prefix}:model/{name}"

    def create(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Raises ApiError: ValidationException, also where the name is taken (not ResourceInUse)."""
        check_model(ModelRequest.model_validate(request))
        name = request["ModelName"]
        with self._lock:
            if name in self._models:
                raise ApiError.invalid(f'Cannot create already existing model "{self.arn_of(name)}".')
            self._models[name] = {
                **{member: value for member, value in request.items() if member != "Tags"},
                "ModelArn": self.arn_of(name),
                "CreationTime": self._clock(),
                "EnableNetworkIsolation": request.get("EnableNetworkIsolation", False),
            }
        return {"ModelArn": self.arn_of(name)}

    def describe(self, name: str) -> dict[str, Any]:
        """Raises ApiError (ValidationException) where there is none."""
        with self._lock:
            return dict(self._get(name))

    def get(self, name: str) -> ModelRequest:
        """Raises ApiError (ValidationException) where there is none."""
        return ModelRequest.model_validate(self.describe(name))

    def delete(self, name: str) -> None:
        """Raises ApiError (ValidationException) where there is none."""
        with self._lock:
            self._get(name)
            del self._models[name]

    def list(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock:
            summaries = [
                {member: model[member] for member in ("ModelName", "ModelArn", "CreationTime")}
                for model in self._models.values()
            ]
        return listing.answer("Models", listing.page(summaries, request, name="ModelName", descending=True))

    def _get(self, name: str) -> dict[str, Any]:
        try:
            return self._models[name]
        except KeyError:
            raise ApiError.invalid(f'Could not find model "{self.arn_of(name)}".') from None
