"""Which AWS actions a function's code can reach, read from its source.

From `handler` on, every call is followed through the modules beside it and the gateways of
`dropforge_core.aws`, the only modules that may hold an AWS client. A method counts where its class is
made somewhere on the way (rapid type analysis), so that `answer.read()` of a socket is no `Bucket.read`.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

import botocore.session
from botocore import xform_name

FUNCTIONS: Final = Path(__file__).resolve().parents[2] / "functions"
SERVICES: Final = (
    "bedrock-runtime",
    "dynamodb",
    "events",
    "logs",
    "s3",
    "sagemaker",
    "secretsmanager",
    "sns",
    "ssm",
    "stepfunctions",
)
PREFIX: Final = {"stepfunctions": "states"}
OF_S3: Final = {
    # Who may not list is told 'forbidden' where there is nothing, and the code expects 'not found'.
    "GetObject": {"s3:GetObject", "s3:ListBucket", "kms:Decrypt"},
    "HeadObject": {"s3:GetObject", "s3:ListBucket", "kms:Decrypt"},
    "PutObject": {"s3:PutObject", "kms:GenerateDataKey", "kms:Decrypt"},
    "DeleteObject": {"s3:DeleteObject"},
    "ListObjectsV2": {"s3:ListBucket"},
}
# Each item of a transaction is a write of its own (DynamoDB guide, "Using IAM with DynamoDB transactions").
OF_TRANSACTIONS: Final = {"dynamodb:PutItem", "dynamodb:UpdateItem"}
KMS_TOO: Final = {"sns:Publish": {"kms:GenerateDataKey", "kms:Decrypt"}}

Key = tuple[str, str]
"""Module and qualified name of a function."""


@cache
def api() -> Mapping[str, tuple[tuple[str, str], ...]]:
    """boto3 method name to the (service, operation) pairs that have it."""
    session = botocore.session.get_session()
    found: dict[str, list[tuple[str, str]]] = {}
    for service in SERVICES:
        for operation in session.get_service_model(service).operation_names:
            found.setdefault(xform_name(operation), []).append((service, operation))
    return {name: tuple(pairs) for name, pairs in found.items()}


def iam_actions(service: str, operation: str) -> set[str]:
    if service == "s3":
        return OF_S3[operation]
    if operation == "Converse":
        # Converse has no action of its own (Bedrock API reference, "Converse").
        return {"bedrock:InvokeModel"}
    if operation == "TransactWriteItems":
        return OF_TRANSACTIONS
    action = f"{PREFIX.get(service, service)}:{operation}"
    return {action, *KMS_TOO.get(action, set())}


@dataclass(frozen=True)
class Module:
    name: str
    functions: Mapping[str, ast.FunctionDef]
    """By qualified name."""
    classes: frozenset[str]
    imported: Mapping[str, tuple[str, str]]
    """Local name to module and name there; the name is empty where it is the module itself."""
    constants: Mapping[str, ast.expr]


@cache
def modules() -> Mapping[str, Module]:
    files = {path.stem: path for path in FUNCTIONS.glob("*.py")}
    files["dropforge_core.aws"] = FUNCTIONS / "dropforge_core" / "aws.py"
    return {name: _module(name, ast.parse(path.read_text())) for name, path in files.items()}


def _module(name: str, tree: ast.Module) -> Module:
    functions: dict[str, ast.FunctionDef] = {}
    classes: set[str] = set()
    imported: dict[str, tuple[str, str]] = {}
    constants: dict[str, ast.expr] = {}
    for node in tree.body:
        match node:
            case ast.FunctionDef():
                functions[node.name] = node
            case ast.ClassDef():
                classes.add(node.name)
                functions.update(
                    {
                        f"{node.name}.{item.name}": item
                        for item in node.body
                        if isinstance(item, ast.FunctionDef)
                    }
                )
            case ast.ImportFrom(module=str(source), names=names):
                for alias in names:
                    module = f"{source}.{alias.name}"
                    imported[alias.asname or alias.name] = (
                        (module, "") if module == "dropforge_core.aws" else (source, alias.name)
                    )
            case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value):
                constants[target] = value
            case _:
                pass
    return Module(name, functions, frozenset(classes), imported, constants)


def _texts(node: ast.AST) -> set[str]:
    return {
        item.value
        for item in ast.walk(node)
        if isinstance(item, ast.Constant) and isinstance(item.value, str)
    }


@dataclass
class Reach:
    """What one handler reaches. `needs` is complete once `follow` has nothing more to do."""

    needs: set[str] = field(default_factory=set)
    _seen: set[tuple[Key, frozenset[str]]] = field(default_factory=set)
    _made: set[Key] = field(default_factory=set)
    _wanted: set[tuple[str, frozenset[str]]] = field(default_factory=set)
    """Method names that were called, with the kinds of job they were called for."""

    def visit(self, key: Key, kinds: frozenset[str]) -> None:
        if (key, kinds) in self._seen:
            return
        self._seen.add((key, kinds))
        module = modules()[key[0]]
        body = module.functions[key[1]]
        scope = _Scope(module, body, kinds)
        for default in (*body.args.defaults, *[item for item in body.args.kw_defaults if item]):
            self._names(module, default)
        for statement in body.body:
            self._names(module, statement)
            called = {node.func for node in ast.walk(statement) if isinstance(node, ast.Call)}
            for node in ast.walk(statement):
                if isinstance(node, ast.Call):
                    self._call(module, node, scope)
                elif isinstance(node, ast.Attribute) and node not in called:
                    # A bound method that is handed on is called by somebody; of another module's class it would
                    # be taken for a field of the same name.
                    for owner in module.classes:
                        self._method((module.name, owner), node.attr, frozenset())

    def _names(self, module: Module, node: ast.AST) -> None:
        """A class that is named outside of an annotation may be made."""
        annotations = {
            inner
            for item in ast.walk(node)
            for annotation in _annotations(item)
            for inner in ast.walk(annotation)
        }
        for item in ast.walk(node):
            if isinstance(item, ast.Name) and item not in annotations:
                self._make(_resolve(module, item.id))
            if isinstance(item, ast.Attribute) and (source := _module_named(module, item.value)):
                self._make((source, item.attr))

    def _make(self, key: Key | None) -> None:
        if key is None or key in self._made or key[1] not in modules()[key[0]].classes:
            return
        self._made.add(key)
        for name in ("__init__", "__post_init__"):
            if f"{key[1]}.{name}" in modules()[key[0]].functions:
                self.visit((key[0], f"{key[1]}.{name}"), frozenset())
        for name, kinds in list(self._wanted):
            self._method(key, name, kinds)

    def _want(self, name: str, kinds: frozenset[str]) -> None:
        self._wanted.add((name, kinds))
        for owner in list(self._made):
            self._method(owner, name, kinds)

    def _method(self, owner: Key, name: str, kinds: frozenset[str]) -> None:
        if f"{owner[1]}.{name}" in modules()[owner[0]].functions:
            self.visit((owner[0], f"{owner[1]}.{name}"), kinds)

    def _call(self, module: Module, call: ast.Call, scope: "_Scope") -> None:
        match call.func:
            case ast.Name(id="getattr") if isinstance(call.args[1], ast.JoinedStr):
                for name in scope.attribute_names(call.args[1]):
                    self._operation(name)
            case ast.Name(id=name):
                self._function(_resolve(module, name), scope.kinds_given(call))
            case ast.Attribute(attr="get_paginator"):
                self._operation(str(ast.literal_eval(call.args[0])))
            case ast.Attribute() as method:
                self._method_call(module, method, scope.kinds_given(call))
            case _:
                pass

    def _function(self, key: Key | None, kinds: frozenset[str]) -> None:
        if key is not None and key[1] in modules()[key[0]].functions:
            self.visit(key, kinds)

    def _method_call(self, module: Module, method: ast.Attribute, kinds: frozenset[str]) -> None:
        service = _client_service(method.value)
        if service:
            self._operation(method.attr, service)
            return
        source = _module_named(module, method.value)
        if source:
            self._function((source, method.attr), kinds)
        elif _is_a_method(method.attr):
            self._want(method.attr, kinds)
        elif method.attr in api():
            self._operation(method.attr)

    def _operation(self, name: str, service: str | None = None) -> None:
        pairs = [pair for pair in api()[name] if service in {None, pair[0]}]
        assert len(pairs) == 1, f"{name} may be of {[pair[0] for pair in pairs]}"
        self.needs |= iam_actions(*pairs[0])


@cache
def _is_a_method(name: str) -> bool:
    return any(
        qualified.endswith(f".{name}") for module in modules().values() for qualified in module.functions
    )


def _annotations(node: ast.AST) -> Iterator[ast.expr]:
    match node:
        case ast.AnnAssign(annotation=annotation):
            yield annotation
        case ast.FunctionDef(args=arguments, returns=returns):
            yield from (
                item.annotation
                for item in ast.walk(arguments)
                if isinstance(item, ast.arg) and item.annotation
            )
            if returns:
                yield returns
        case _:
            pass


def _resolve(module: Module, name: str) -> Key | None:
    if name in module.functions or name in module.classes:
        return module.name, name
    source, original = module.imported.get(name, ("", ""))
    return (source, original) if source in modules() and original else None


def _module_named(module: Module, node: ast.expr) -> str | None:
    """The module that a name stands for, as in `aws.client`."""
    if not isinstance(node, ast.Name):
        return None
    source, name = module.imported.get(node.id, ("", ""))
    return source if source in modules() and not name else None


def _client_service(node: ast.expr) -> str | None:
    """The service of `client("sns")` and `aws.client("sns")`."""
    match node:
        case ast.Call(
            func=ast.Name(id="client") | ast.Attribute(attr="client"), args=[ast.Constant(value=str(service))]
        ):
            return service
        case _:
            return None


@dataclass(frozen=True)
class _Scope:
    """The kinds of job that names stand for in one function."""

    module: Module
    body: ast.FunctionDef
    kinds: frozenset[str]
    """What the parameter `kind` was given; empty where there is none."""

    def kinds_given(self, call: ast.Call) -> frozenset[str]:
        """The kinds among a call's arguments."""
        found: set[str] = set()
        for argument in (*call.args, *[keyword.value for keyword in call.keywords]):
            if isinstance(argument, ast.Constant) and argument.value in all_kinds():
                found.add(str(argument.value))
            elif isinstance(argument, ast.Name) and argument.id == "kind":
                found |= self._kinds_of("kind")
        return frozenset(found)

    def attribute_names(self, node: ast.JoinedStr) -> list[str]:
        """`f"stop_{KINDS[kind]}"` for each kind that it may be."""
        return [
            "".join(
                str(part.value) if isinstance(part, ast.Constant) else all_kinds()[kind]
                for part in node.values
            )
            for kind in sorted(self._kinds_of("kind"))
        ]

    def _kinds_of(self, name: str) -> frozenset[str]:
        if self.kinds:
            return self.kinds
        found: set[str] = set()
        for node in ast.walk(self.body):
            match node:
                case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                    found |= self._texts_of(value)
                case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value) if target == name:
                    found |= self._texts_of(value)
                case ast.For(target=target, iter=value) if name in {
                    item.id for item in ast.walk(target) if isinstance(item, ast.Name)
                }:
                    found |= self._texts_of(value)
                case _:
                    pass
        return frozenset(found & set(all_kinds())) or frozenset(all_kinds())

    def _texts_of(self, value: ast.expr) -> set[str]:
        found = _texts(value)
        for item in ast.walk(value):
            if isinstance(item, ast.Name):
                if item.id in self.module.constants:
                    found |= _texts(self.module.constants[item.id])
                for node in ast.walk(self.body):
                    match node:
                        case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as given) if (
                            target == item.id
                        ):
                            found |= _texts(given)
                        case _:
                            pass
        return found


@cache
def all_kinds() -> Mapping[str, str]:
    """`jobs.KINDS`: "TrainingJob" to "training_job"."""
    found: Mapping[str, str] = ast.literal_eval(modules()["jobs"].constants["KINDS"])
    return found


def needs(module: str) -> set[str]:
    """The IAM actions that a handler's code can reach."""
    reach = Reach()
    reach.visit((module, "handler"), frozenset())
    return reach.needs
