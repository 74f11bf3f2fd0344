"""Who must be matched: the newest approved package of the model, where it can be answered for here."""

from collections.abc import Callable, Mapping
from typing import Any

from dropforge_core.layout import split_s3_uri
from dropforge_core.model import Frozen


class Champion(Frozen):
    """The package that serves today, or why none takes part."""

    package_arn: str | None = None
    model_data: str = ""
    """S3 URI of its artifact; empty where it takes no part."""
    comparable: bool = True
    """False where a package is approved but cannot be judged beside the candidate."""
    note: str = ""


def champion_of(
    package: Mapping[str, Any] | None,
    *,
    candidate_model_data: str,
    base_model_prefix: str,
    run_bucket: str,
    exists: Callable[[str], bool],
) -> Champion:
    """What to make of the newest approved package.

    Args:
        package: DescribeModelPackage's answer, or None.
        candidate_model_data: S3 URI of the candidate's artifact.
        base_model_prefix: the base model that is resident in this evaluation.
        run_bucket: the only bucket that the evaluation may read.
        exists: whether a key of the run bucket exists.
    """
    if package is None:
        return Champion(note="No package of this model is approved yet.")
    arn = str(package.get("ModelPackageArn", ""))
    artifact = _artifact(package)
    if artifact == candidate_model_data:
        return Champion(note=f"The approved package {arn} is this very artifact; there is no other to match.")
    if unknown := _unknown(package, artifact, base_model_prefix, run_bucket, exists):
        note = (
            f"The approved package {arn} {unknown}: whether the candidate is worse is not known. Approve a package "
            "that can be asked, or reject this one if it serves no more."
        )
        return Champion(package_arn=arn, comparable=False, note=note)
    return Champion(package_arn=arn, model_data=artifact)


def _unknown(
    package: Mapping[str, Any],
    artifact: str,
    base_model_prefix: str,
    run_bucket: str,
    exists: Callable[[str], bool],
) -> str:
    """Why the package can't be asked; empty where it can."""
    if not artifact.startswith("s3://"):
        return "names no artifact in S3"
    bucket, key = split_s3_uri(artifact)
    if bucket != run_bucket:
        return "lies in another bucket, which the evaluation must not read"
    if not exists(key):
        return "names an artifact that is gone"
    prefix = package.get("CustomerMetadataProperties", {}).get("base_model_prefix", "")
    if prefix != base_model_prefix:
        return (
            f"adapts another base model ({prefix or 'not recorded'}) than {base_model_prefix}, "
            "and an evaluation holds one base model"
        )
    return ""


def _artifact(package: Mapping[str, Any]) -> str:
    containers = package.get("InferenceSpecification", {}).get("Containers") or [{}]
    direct = containers[0].get("ModelDataUrl")
    if direct:
        return str(direct)
    return str(containers[0].get("ModelDataSource", {}).get("S3DataSource", {}).get("S3Uri", ""))
