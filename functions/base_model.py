"""Find the base model that a recipe names: its revision, its copy in the run bucket, its shape."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from botocore.exceptions import ClientError
from pydantic import ValidationError

from dropforge_core.aws import Bucket, ObjectVanished, error_code
from dropforge_core.layout import MODEL_SHAPE, base_model_prefix, split_s3_uri
from dropforge_core.planning import (
    BaseModelUnsuitable,
    BaseSource,
    CountedShape,
    ModelShape,
    refuse_unsuitable,
    shape_of,
    source_revision,
    weight_bytes_of,
)
from dropforge_core.planning.base import COMMIT
from dropforge_core.recipe import BaseModelRef
from hub import BaseModelUnavailable, Hub

MANIFEST: Final = "MANIFEST.json"
CONFIG: Final = "config.json"
CONFIG_BYTES: Final = 1024 * 1024


def locate(
    ref: BaseModelRef, runs: Bucket, hub: Hub, open_bucket: Callable[[str], Bucket] = Bucket
) -> tuple[BaseSource, ModelShape]:
    """The model's source, and its shape: counted when it was cached, else from `config.json` and its weights' sizes.

    A commit that is cached is read from the cache, without the hub.

    Raises:
        BaseModelUnavailable: when it is not there or may not be read.
        BaseModelUnsuitable: when it can't be tuned here.
        HubUnreachable: when the hub does not answer.
    """
    if ref.s3 is not None:
        return _from_s3(ref.s3, ref.name, runs, open_bucket)
    return _from_hub(str(ref.repo), ref.revision, runs, hub)


def _from_s3(
    uri: str, name: str, runs: Bucket, open_bucket: Callable[[str], Bucket]
) -> tuple[BaseSource, ModelShape]:
    bucket_name, prefix = split_s3_uri(uri)
    bucket = open_bucket(bucket_name)
    try:
        listing = [
            (str(entry["Key"]).removeprefix(prefix), int(entry["Size"]), str(entry["ETag"]))
            for entry in bucket.list(prefix)
            if not str(entry["Key"]).endswith("/")
        ]
    except ClientError as error:
        raise BaseModelUnavailable(
            f"the base model at {uri} can't be listed ({error_code(error)}). The plan function's role needs "
            "s3:ListBucket and s3:GetObject there."
        ) from error
    if not listing:
        raise BaseModelUnavailable(
            f"there is nothing under {uri}. 'base_model' must name a prefix that holds config.json, the tokenizer and "
            "safetensors."
        )
    target = base_model_prefix(name, source_revision(listing))
    source = BaseSource(name=name, source=uri, prefix=target, cached=_is_cached(runs, target))
    body = _read(bucket, prefix + CONFIG)
    counted = _counted_shape(runs, target, body) if source.cached else None
    config = _config(body, uri)
    return source, counted or _shape(config, {key: size for key, size, _ in listing}, uri)


def _from_hub(repo: str, revision: str, runs: Bucket, hub: Hub) -> tuple[BaseSource, ModelShape]:
    if COMMIT.fullmatch(revision):
        target = base_model_prefix(repo, revision)
        if _is_cached(runs, target):
            source = BaseSource(name=repo, source=f"hub:{repo}@{revision}", prefix=target, cached=True)
            return source, _cached_shape(runs, target)
    found = hub.resolve(repo, revision)
    target = base_model_prefix(repo, found.commit)
    source = BaseSource(
        name=repo, source=f"hub:{repo}@{found.commit}", prefix=target, cached=_is_cached(runs, target)
    )
    if source.cached:
        return source, _cached_shape(runs, target)
    return source, _shape(hub.config(repo, found.commit), found.files, source.source)


def _cached_shape(runs: Bucket, prefix: str) -> ModelShape:
    body = _read(runs, prefix + CONFIG)
    if counted := _counted_shape(runs, prefix, body):
        return counted
    files = {str(entry["Key"]).removeprefix(prefix): int(entry["Size"]) for entry in runs.list(prefix)}
    return _shape(_config(body, prefix), files, prefix)


def _counted_shape(runs: Bucket, prefix: str, config: bytes) -> ModelShape | None:
    """As it was counted of that `config.json`; None for a copy of a version that counted nothing, or otherwise."""
    try:
        counted = CountedShape.model_validate_json(runs.read(prefix + MODEL_SHAPE))
    except (ObjectVanished, ValidationError):
        return None
    if counted.config_sha256 != hashlib.sha256(config).hexdigest():
        return None
    refuse_unsuitable(_config(config, prefix))
    return counted.shape


def _is_cached(runs: Bucket, prefix: str) -> bool:
    """The manifest is written last: where it is, the copy is whole."""
    return runs.head(prefix + MANIFEST) is not None


def _shape(config: Mapping[str, Any], files: Mapping[str, int], where: str) -> ModelShape:
    size = weight_bytes_of(files)
    if size is None:
        raise BaseModelUnsuitable(
            f"{where} has no .safetensors files. Other formats can run code when they are loaded and are never read; "
            "save the model with safetensors."
        )
    return shape_of(config, size)


def _read(bucket: Bucket, key: str) -> bytes:
    try:
        body = bucket.read(key)
    except ObjectVanished as error:
        raise BaseModelUnavailable(f"the base model has no config.json at {error}.") from error
    except ClientError as error:
        raise BaseModelUnavailable(
            f"s3://{bucket.name}/{key} can't be read ({error_code(error)}). The plan function's role needs "
            "s3:GetObject there."
        ) from error
    if len(body) > CONFIG_BYTES:
        raise BaseModelUnsuitable(f"s3://{bucket.name}/{key} has {len(body)} bytes, expected at most 1 MiB.")
    return body


def _config(body: bytes, where: str) -> Mapping[str, Any]:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BaseModelUnsuitable(f"config.json of {where} is not JSON.") from error
    if not isinstance(parsed, dict):
        raise BaseModelUnsuitable(f"config.json of {where} is not a JSON object.")
    return parsed
