"""Who must be matched: the newest approved package of the model, where it can be answered for here."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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


class Here(NamedTuple):
    """What a champion is to stand beside."""

    candidate_model_data: str
    """S3 URI of the candidate's artifact."""
    base_model_prefix: str
    """The base model that is resident in this evaluation."""
    quantization: str
    """Of that base model."""
    run_bucket: str
    """The only bucket that the evaluation may read."""


def champion_of(package: Mapping[str, Any] | None, here: Here, exists: Callable[[str], bool]) -> Champion:
    """What to make of the newest approved package.

    Args:
        package: DescribeModelPackage's answer, or None.
        here: the evaluation.
        exists: whether a key of the run bucket exists.
    """
    if package is None:
        return Champion(note="No package of this model is approved yet.")
    arn = str(package.get("ModelPackageArn", ""))
    artifact = _artifact(package)
    if artifact == here.candidate_model_data:
        return Champion(note=f"The approved package {arn} is this very artifact; there is no other to match.")
    unknown = _unreachable(artifact, here.run_bucket, exists) or _differs(
        package.get("CustomerMetadataProperties", {}), here
    )
    if unknown:
        note = (
            f"The approved package {arn} {unknown}: whether the candidate is worse is not known. Approve a package "
            "that can be asked, or reject this one if it serves no more."
        )
        return Champion(package_arn=arn, comparable=False, note=note)
    return Champion(package_arn=arn, model_data=artifact)


def _unreachable(artifact: str, run_bucket: str, exists: Callable[[str], bool]) -> str:
    """Why the artifact can't be loaded; empty where it can."""
    if not artifact.startswith("s3://"):
        return "names no artifact in S3"
    bucket, key = split_s3_uri(artifact)
    if bucket != run_bucket:
        return "lies in another bucket, which the evaluation must not read"
    return "" if exists(key) else "names an artifact that is gone"


def _differs(recorded: Mapping[str, str], here: Here) -> str:
    """Why the package is another model on the base of this evaluation than where it serves; empty where it is not."""
    prefix = recorded.get("base_model_prefix", "")
    if prefix != here.base_model_prefix:
        return (
            f"adapts another base model ({prefix or 'not recorded'}) than {here.base_model_prefix}, "
            "and an evaluation holds one base model"
        )
    # Packages of earlier versions do not say how their base was quantised.
    if recorded.get("quantization", here.quantization) != here.quantization:
        return (
            f"was trained on the base model quantised otherwise ({recorded['quantization']}) than here ({here.quantization}), "
            "where it would not be the model that serves"
        )
    return ""


def _artifact(package: Mapping[str, Any]) -> str:
    containers = package.get("InferenceSpecification", {}).get("Containers") or [{}]
    direct = containers[0].get("ModelDataUrl")
    if direct:
        return str(direct)
    return str(containers[0].get("ModelDataSource", {}).get("S3DataSource", {}).get("S3Uri", ""))
