"""The Model Registry: package groups, numbered packages, approval."""

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from dropforge.local.sagemaker import listing
from dropforge.local.sagemaker.constraints import service_model
from dropforge.local.sagemaker.errors import ApiError

_CREATED_BY: Final[dict[str, str]] = {}
_TOKENS_KEPT: Final = 10_000

Changed = Callable[[Mapping[str, Any], tuple[str, ...]], None]
"""Gets a package's Describe response and the members that an update changed."""


class PackageBook:
    """Groups and their packages. A package is Completed at once: there is nothing here that scans images."""

    def __init__(self, arn_prefix: str, clock: Callable[[], float], on_change: Changed) -> None:
        self._arn_prefix, self._clock, self._on_change = arn_prefix, clock, on_change
        self._groups: dict[str, dict[str, Any]] = {}
        self._packages: dict[str, dict[str, Any]] = {}
        self._versions: dict[str, int] = {}
        self._tokens: dict[str, tuple[Mapping[str, Any], str]] = {}
        self._lock = threading.RLock()

    # --- groups -------------------------------------------------------------------------------------

    def group_arn(self, name_or_arn: str) -> str:
        return f"{self._arn_prefix}:model-package-group/{name_or_arn.rpartition('/')[2]}"

    def create_group(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Raises ApiError (ValidationException) where the name is taken."""
        name = request["ModelPackageGroupName"]
        with self._lock:
            if name in self._groups:
                raise ApiError.invalid(f"Model Package Group already exists: {self.group_arn(name)}")
            self._groups[name] = {
                **{member: value for member, value in request.items() if member != "Tags"},
                "ModelPackageGroupArn": self.group_arn(name),
                "CreationTime": self._clock(),
                "CreatedBy": _CREATED_BY,
                "ModelPackageGroupStatus": "Completed",
            }
        return {"ModelPackageGroupArn": self.group_arn(name)}

    def describe_group(self, name_or_arn: str) -> dict[str, Any]:
        """Raises ApiError (ValidationException) where there is none."""
        with self._lock:
            return dict(self._group(name_or_arn))

    def delete_group(self, name_or_arn: str) -> str:
        """Delete an empty group; returns its ARN.

        Raises:
            ApiError: ValidationException where there is none, ConflictException where it has packages.
        """
        with self._lock:
            name = self._group(name_or_arn)["ModelPackageGroupName"]
            if any(package["ModelPackageGroupName"] == name for package in self._packages.values()):
                raise ApiError.conflict(
                    f"Model Package Group {self.group_arn(name)} cannot be deleted because it still contains "
                    "Model Packages. Delete all Model Packages in the group first."
                )
            del self._groups[name]
            self._versions.pop(name, None)
        return self.group_arn(name)

    def list_groups(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock:
            summaries = [_only(group, "ModelPackageGroupSummary") for group in self._groups.values()]
        found = listing.page(summaries, request, name="ModelPackageGroupName")
        return listing.answer("ModelPackageGroupSummaryList", found)

    # --- packages -----------------------------------------------------------------------------------

    def create(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The next version of a group; the same ClientToken with the same request is the same package.

        Raises:
            ApiError: ValidationException; ConflictException where the token came with another request.
        """
        if "ModelPackageGroupName" not in request:
            raise ApiError.only_in_the_cloud("unversioned model packages; name a ModelPackageGroupName")
        if "ModelPackageName" in request or "Tags" in request:
            raise ApiError.invalid(
                "ModelPackageName and Tags can't be given for a versioned model package; tag its group."
            )
        with self._lock:
            group = self._group(request["ModelPackageGroupName"])["ModelPackageGroupName"]
            token = request.get("ClientToken")
            if token in self._tokens:
                first, arn = self._tokens[token]
                if first != request:
                    raise ApiError.conflict(f"ClientToken {token} was used with a different request.")
                return {"ModelPackageArn": arn}
            version = self._versions[group] = self._versions.get(group, 0) + 1
            arn = f"{self._arn_prefix}:model-package/{group}/{version}"
            now = self._clock()
            package = {
                "ModelApprovalStatus": "PendingManualApproval",
                **{member: value for member, value in request.items() if member != "ClientToken"},
                "ModelPackageName": f"{group}/{version}",
                "ModelPackageGroupName": group,
                "ModelPackageVersion": version,
                "ModelPackageArn": arn,
                "CreationTime": now,
                "LastModifiedTime": now,
                "CreatedBy": _CREATED_BY,
                "ModelPackageStatus": "Completed",
                "ModelPackageStatusDetails": {"ValidationStatuses": [], "ImageScanStatuses": []},
            }
            self._packages[arn] = package
            if token is not None:
                self._remember(token, request, arn)
            self._on_change(package, ())
        return {"ModelPackageArn": arn}

    def describe(self, name_or_arn: str) -> dict[str, Any]:
        """Raises ApiError (ValidationException) where there is none."""
        with self._lock:
            return _only(self._package(name_or_arn), "DescribeModelPackageOutput")

    def update(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Change approval, description, metadata, life cycle and the like.

        Raises:
            ApiError: ValidationException where there is none.
        """
        with self._lock:
            package = self._package(request["ModelPackageArn"])
            if "AdditionalInferenceSpecificationsToAdd" in request:
                raise ApiError.only_in_the_cloud("additional inference specifications on an update")
            removed = request.get("CustomerMetadataPropertiesToRemove", [])
            metadata = {
                key: value
                for key, value in {
                    **package.get("CustomerMetadataProperties", {}),
                    **request.get("CustomerMetadataProperties", {}),
                }.items()
                if key not in removed
            }
            new = {
                member: value
                for member, value in request.items()
                if member not in {"ModelPackageArn", "ClientToken", "CustomerMetadataPropertiesToRemove"}
            }
            if metadata or removed:
                new["CustomerMetadataProperties"] = metadata
            changed = tuple(member for member, value in new.items() if package.get(member) != value)
            package.update(new, LastModifiedTime=self._clock(), LastModifiedBy=_CREATED_BY)
            self._on_change(package, changed)
            return {"ModelPackageArn": package["ModelPackageArn"]}

    def delete(self, name_or_arn: str) -> str:
        """Delete a package; its version number is not given again. Returns its ARN.

        Raises:
            ApiError: ValidationException where there is none.
        """
        with self._lock:
            arn: str = self._package(name_or_arn)["ModelPackageArn"]
            del self._packages[arn]
            return arn

    def list(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Raises ApiError (ValidationException) where the group asked for does not exist."""
        with self._lock:
            name = request.get("ModelPackageGroupName")
            group = self._group(name)["ModelPackageGroupName"] if name else None
            approval = request.get("ModelApprovalStatus")
            summaries = [
                _only(package, "ModelPackageSummary")
                for package in self._packages.values()
                # Without a group AWS lists unversioned packages, of which there are none here.
                if (group or request.get("ModelPackageType") in {"Versioned", "Both"})
                and group in {None, package["ModelPackageGroupName"]}
                and approval in {None, package["ModelApprovalStatus"]}
            ]
        found = listing.page(summaries, request, name="ModelPackageName")
        return listing.answer("ModelPackageSummaryList", found)

    def exists(self, arn: str) -> bool:
        """Whether a group or a package has this ARN."""
        with self._lock:
            return arn in self._packages or arn in map(self.group_arn, self._groups)

    def _group(self, name_or_arn: str) -> dict[str, Any]:
        try:
            return self._groups[name_or_arn.rpartition("/")[2]]
        except KeyError:
            raise ApiError.invalid(
                f"ModelPackageGroup {self.group_arn(name_or_arn)} does not exist."
            ) from None

    def _package(self, name_or_arn: str) -> dict[str, Any]:
        name = name_or_arn.rpartition("model-package/")[2]
        arn = f"{self._arn_prefix}:model-package/{name}"
        try:
            return self._packages[arn]
        except KeyError:
            raise ApiError.invalid(f"ModelPackage {arn} does not exist.") from None

    def _remember(self, token: str, request: Mapping[str, Any], arn: str) -> None:
        if len(self._tokens) >= _TOKENS_KEPT:
            del self._tokens[next(iter(self._tokens))]
        self._tokens[token] = (request, arn)


def _only(record: Mapping[str, Any], shape_name: str) -> dict[str, Any]:
    """The members of a record that a response shape has."""
    shape: Any = service_model().shape_for(shape_name)
    return {member: record[member] for member in shape.members if member in record}
