"""JSON Schemas of the documents that others read, and their fields as tables, written from the contracts.

`python -m dropforge.schemas docs` brings the schemas and the pages up to date; `make schemas` does so.
"""

import ast
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from dropforge_core import contracts
from dropforge_core.evaluation import join
from dropforge_core.gate import checks, documents, evidence, general, rules, slices
from dropforge_core.metrics import given

DOCUMENTS: Final[Mapping[str, tuple[type[BaseModel], str]]] = {
    "validation": (contracts.ValidationReport, "validate.md"),
    "gate": (documents.GateReport, "gate.md"),
}
"""Name of the schema's file to what it describes, and the page that has its fields."""
SOURCES: Final = (contracts, join, evidence, rules, slices, checks, general, given, documents)
"""Modules whose classes the documents are made of."""
BEGIN: Final = "<!-- fields: made by `make schemas` -->\n"
END: Final = "<!-- end of fields -->\n"
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def schema(model: type[BaseModel]) -> dict[str, Any]:
    """The schema of a document as it is written, each field described as in the contract's source."""
    made = model.model_json_schema(mode="serialization")
    described = dict(_descriptions())
    for name, part in {model.__name__: made, **made.get("$defs", {})}.items():
        for field, found in part.get("properties", {}).items():
            if text := described.get((name, field)):
                found["description"] = text
            found.pop("title", None)
        # Fields may be added; a reader's copy of the schema must not refuse them.
        if part.get("additionalProperties") is False:
            del part["additionalProperties"]
    return {"$schema": DIALECT, **made}


def _descriptions() -> Iterator[tuple[tuple[str, str], str]]:
    """Class and field of every string that stands below a field of the contracts."""
    for cls in (cls for module in SOURCES for cls in ast.parse(inspect.getsource(module)).body):
        if not isinstance(cls, ast.ClassDef):
            continue
        for field, below in zip(cls.body, cls.body[1:], strict=False):
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
                yield (cls.name, field.target.id), inspect.cleandoc(str(below.value.value))  # type: ignore[attr-defined]


def text(model: type[BaseModel]) -> str:
    """The schema as its file has it."""
    return json.dumps(schema(model), indent=2, ensure_ascii=False) + "\n"


def table(model: type[BaseModel]) -> str:
    """Every field of a document and its parts as a Markdown table."""
    made = schema(model)
    rows = [f"| `{path}` | {kind} | {told} |" for path, kind, told in _fields(made, made, "", {})]
    return "\n".join(["| field | type | what |", "|---|---|---|", *rows]) + "\n"


def _fields(
    part: Mapping[str, Any], whole: Mapping[str, Any], before: str, told: dict[int, str]
) -> Iterator[tuple[str, str, str]]:
    """Path, type and text of every field; what was `told` of an object at another path is not told again."""
    for name, field in part["properties"].items():
        kind, inner = _kind(field, whole)
        words = " ".join((field.get("description") or (inner or {}).get("description", "")).split())
        path = f"{before}{name}{'[]' if kind == 'list' and inner else ''}"
        if inner is None:
            yield path, kind, words
        elif id(inner) in told:
            yield path, kind, f"{words} Fields as of `{told[id(inner)]}`."
        else:
            told[id(inner)] = path
            yield path, kind, words
            yield from _fields(inner, whole, f"{path}.", told)


def _kind(field: Mapping[str, Any], whole: Mapping[str, Any]) -> tuple[str, Mapping[str, Any] | None]:
    """The type in a word, and the object that is described elsewhere."""
    if "$ref" in field:
        return "object", whole["$defs"][field["$ref"].rsplit("/", 1)[-1]]
    if "anyOf" in field:
        kinds = [_kind(one, whole) for one in field["anyOf"]]
        return " or ".join(kind for kind, _ in kinds), next((inner for _, inner in kinds if inner), None)
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"]), None
    if field["type"] == "array":
        return "list", _kind(field.get("items", {"type": "number"}), whole)[1]
    words = {"object": "object", "string": "text", "null": "null", "boolean": "true or false"}
    return words.get(field["type"], "number"), None


def page_with_table(page: str, model: type[BaseModel]) -> str:
    """The page with its table of fields brought up to date."""
    head, _, rest = page.partition(BEGIN)
    return head + BEGIN + table(model) + END + rest.partition(END)[2]


def main(docs: Path) -> None:
    """Write all schemas and tables."""
    (docs / "schemas").mkdir(parents=True, exist_ok=True)
    for name, (model, page) in DOCUMENTS.items():
        (docs / "schemas" / f"{name}.schema.json").write_text(text(model), encoding="utf-8")
        before = (docs / page).read_text(encoding="utf-8")
        (docs / page).write_text(page_with_table(before, model), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
