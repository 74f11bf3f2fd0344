"""Reads a SAM template and packages it as `sam package` does: local folders and files become S3 objects."""

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""Zip's first moment: the same files give the same archive, and so the same object."""

_SKIPPED: Final = frozenset({"__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"})


class _Loader(yaml.SafeLoader):
    """YAML with CloudFormation's short tags."""


def _short_tag(loader: _Loader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    value: Any
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
        if suffix == "GetAtt":
            value = value.split(".", 1)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    elif isinstance(node, yaml.MappingNode):
        value = loader.construct_mapping(node, deep=True)
    return {suffix if suffix in {"Ref", "Condition"} else f"Fn::{suffix}": value}


_Loader.add_multi_constructor("!", _short_tag)
# YAML 1.1 reads 2012-10-17 as a date; CloudFormation wants the text.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, expression) for tag, expression in found if tag != "tag:yaml.org,2002:timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load(path: Path) -> dict[str, Any]:
    """The template as plain JSON values, short tags spelt out.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    document: dict[str, Any] = yaml.load(path.read_text("utf-8"), _Loader)  # noqa: S506  # a safe loader with tags
    return document


def package(template: Mapping[str, Any], root: Path, upload: Callable[[str, bytes], str]) -> dict[str, Any]:
    """The template with every local CodeUri, ContentUri and DefinitionUri uploaded.

    Args:
        template: as `load` gives it.
        root: the folder that local paths start from.
        upload: takes an object's name and bytes, returns its S3 URI.

    Raises:
        FileNotFoundError: a local path that is not there.
    """
    kept: dict[str, str] = {}

    def uri(local: str) -> str:
        if local not in kept:
            path = root / local
            body = zipped(path) if path.is_dir() else path.read_bytes()
            kept[local] = upload(
                f"{hashlib.sha256(body).hexdigest()}{'.zip' if path.is_dir() else path.suffix}", body
            )
        return kept[local]

    packaged = {**template, "Resources": {}}
    shared = template.get("Globals", {}).get("Function", {})
    if is_local(shared.get("CodeUri")):
        functions = {**shared, "CodeUri": uri(shared["CodeUri"])}
        packaged["Globals"] = {**template["Globals"], "Function": functions}
    for name, resource in template["Resources"].items():
        properties = dict(resource.get("Properties", {}))
        for field in _LOCAL_FIELDS.get(resource["Type"], ()):
            if is_local(properties.get(field)):
                properties[field] = uri(properties[field])
        packaged["Resources"][name] = {**resource, **({"Properties": properties} if properties else {})}
    return packaged


_LOCAL_FIELDS: Final = {
    "AWS::Serverless::Function": ("CodeUri",),
    "AWS::Serverless::LayerVersion": ("ContentUri",),
    "AWS::Serverless::StateMachine": ("DefinitionUri",),
}


def is_local(value: Any) -> bool:
    """Whether a Uri names a file or folder of this machine."""
    return isinstance(value, str) and not value.startswith(("s3://", "https://"))


def zipped(folder: Path) -> bytes:
    """A folder as a zip archive, the same bytes for the same files."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not _SKIPPED & set(path.relative_to(folder).parts)
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in files:
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes())
    return buffer.getvalue()
