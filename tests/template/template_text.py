"""The template as plain values: `!Ref X` is `{"Ref": "X"}`, `!GetAtt A.B` is `{"Fn::GetAtt": ["A", "B"]}`."""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).resolve().parents[2]
TEMPLATE: Final = ROOT / "template.yaml"


class _Loader(yaml.SafeLoader):
    """YAML with CloudFormation's tags, in which a date is text."""


def _tag(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
        if suffix == "GetAtt":
            value = value.split(".", 1)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    return {suffix if suffix in {"Ref", "Condition"} else f"Fn::{suffix}": value}


_Loader.add_multi_constructor("!", _tag)
_Loader.yaml_implicit_resolvers = {
    first: [entry for entry in entries if entry[0] != "tag:yaml.org,2002:timestamp"]
    for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@cache
def template() -> dict[str, Any]:
    found: dict[str, Any] = yaml.load(TEMPLATE.read_text(), _Loader)  # a SafeLoader with tags
    return found


def resources(kind: str) -> dict[str, dict[str, Any]]:
    """Logical name to properties, of one type."""
    return {
        name: resource.get("Properties", {})
        for name, resource in template()["Resources"].items()
        if resource["Type"] == kind
    }


def functions() -> dict[str, dict[str, Any]]:
    """Module name (`validate_dataset`) to the function's properties."""
    return {
        properties["Handler"].removesuffix(".handler"): properties
        for properties in resources("AWS::Serverless::Function").values()
    }


def machine_states() -> dict[str, dict[str, Any]]:
    """Every state of the state machine by name, those that its Maps run for their items too."""
    machine = json.loads((ROOT / "statemachine" / "fine_tune.asl.json").read_text())
    found: dict[str, dict[str, Any]] = {}
    workflows = [machine]
    while workflows:
        states = workflows.pop()["States"]
        found |= states
        workflows += [state["ItemProcessor"] for state in states.values() if "ItemProcessor" in state]
    return found


def pascal(module: str) -> str:
    """`validate_dataset` to `ValidateDataset`."""
    return "".join(word.capitalize() for word in module.split("_"))


def statements(role: str) -> Iterator[dict[str, Any]]:
    """Every Allow of a role's own policies, those under a condition too."""
    for policy in template()["Resources"][role]["Properties"].get("Policies", []):
        for statement in policy["PolicyDocument"]["Statement"]:
            if "Fn::If" in statement:
                yield from (branch for branch in statement["Fn::If"][1:] if "Sid" in branch)
            else:
                yield statement


def actions(statement: dict[str, Any]) -> list[str]:
    found = statement["Action"]
    return [found] if isinstance(found, str) else list(found)


def granted(role: str) -> set[str]:
    return {action for statement in statements(role) for action in actions(statement)}


def targets(statement: dict[str, Any]) -> list[str]:
    """The resources of a statement as text: `!GetAtt X.Arn` and `!Ref X` are `${X}`."""
    found = statement["Resource"]
    return [_text(item) for item in (found if isinstance(found, list) else [found])]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if "Ref" in value:
        return "${" + str(value["Ref"]) + "}"
    if "Fn::GetAtt" in value:
        return "${" + str(value["Fn::GetAtt"][0]) + "}"
    return re.sub(r"\$\{(\w+)\.Arn\}", r"${\1}", str(value["Fn::Sub"]))
