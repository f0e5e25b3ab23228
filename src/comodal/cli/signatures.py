"""Reads a function's signature and docstring from its source file, without importing the module.

Importing a command imports torch, which takes seconds. Help and usage errors only need names, types and defaults. These
are evaluated from the syntax tree: literals, arithmetic, builtins, names of a few standard modules, and names that
comodal's own modules define in the same ways. A parameter that is a dataclass is replaced by its fields, as by
`flatten_parameters`. The test suite compares the result with `inspect.signature` for every command.
"""

import ast
import builtins
import importlib
import importlib.util
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from comodal.flat_parameters import split_docstring
from comodal.registry import import_object

PACKAGE_NAME = "comodal"
STANDARD_MODULES = {"collections.abc", "pathlib", "typing"}
OPERATORS: dict[type[ast.operator], Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.BitOr: operator.or_,
}


class SignatureError(Exception):
    """A signature that cannot be read without importing the module."""


@dataclass(frozen=True)
class FunctionSignature:
    """The parts of a function that the command line needs.

    Attributes:
        parameters: Names, types and defaults, in order; keyword-only ones, such as the fields of dataclasses, are last.
        doc: The docstring, without indentation.
        helps: Descriptions of the fields of dataclasses.
    """

    parameters: tuple[inspect.Parameter, ...]
    doc: str
    helps: Mapping[str, str]


@dataclass(frozen=True)
class DataclassSource:
    """A dataclass, or an instance of it as a default.

    Attributes:
        fields: The fields as keyword-only parameters, in order.
        helps: Descriptions of the fields, from the docstring.
    """

    fields: Mapping[str, inspect.Parameter]
    helps: Mapping[str, str]

    def make_instance(self, values: Mapping[str, Any]) -> "DataclassSource":
        """The fields with these values as defaults."""
        changed = {name: self.fields[name].replace(default=value) for name, value in values.items()}
        return replace(self, fields={**self.fields, **changed})


@cache
def read_function(target: str, skip: frozenset[str] = frozenset()) -> FunctionSignature:
    """Read the signature of `package.module:function`.

    Args:
        target: The function, as `package.module:function`.
        skip: Parameters to leave out.

    Raises:
        SignatureError: An annotation or a default cannot be evaluated from the source text alone.
    """
    module, name = target.split(":")
    if module.partition(".")[0] != PACKAGE_NAME:
        return import_signature(target, skip)
    source = parse_module_source(module)
    node = source.bindings.get(name)
    if not isinstance(node, ast.FunctionDef):
        raise SignatureError(f"{module} defines no function {name}")
    parameters = list(source.read_parameters(node.args, skip))
    flat = [field for one in parameters for field in expand_dataclass(one)]
    kinds = [one.annotation for one in parameters if isinstance(one.annotation, DataclassSource)]
    helps = {name: text for kind in kinds for name, text in kind.helps.items()}
    doc = inspect.cleandoc(ast.get_docstring(node) or "")
    return FunctionSignature(tuple(sorted(flat, key=lambda one: one.kind)), doc, helps)


def expand_dataclass(parameter: inspect.Parameter) -> list[inspect.Parameter]:
    """The fields of a parameter that is a dataclass, or the parameter itself."""
    if not isinstance(parameter.annotation, DataclassSource):
        return [parameter]
    given = parameter.annotation if parameter.default is inspect.Parameter.empty else parameter.default
    return list(given.fields.values())


def import_signature(target: str, skip: frozenset[str]) -> FunctionSignature:
    """The signature of a function of another package, which is imported for it."""
    function = import_object(target)
    parameters = [one for one in inspect.signature(function, eval_str=True).parameters.values() if one.name not in skip]
    return FunctionSignature(tuple(parameters), inspect.getdoc(function) or "", {})


@cache
def parse_module_source(module: str) -> "ModuleSource":
    """Parse a module's file; only its parent packages, whose files are empty, are imported."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise SignatureError(f"there is no module {module}")
    return ModuleSource(module, ast.parse(Path(spec.origin).read_text(encoding="utf-8")))


class ModuleSource:
    """One module's names and the syntax that defines them."""

    def __init__(self, module: str, tree: ast.Module) -> None:
        self.module = module
        self.doc = ast.get_docstring(tree) or ""
        self.bindings: dict[str, ast.AST] = {}
        for statement in tree.body:
            self.bindings |= dict(list_bound_names(statement))

    def lookup(self, name: str) -> object:
        """The value of a name of this module.

        Raises:
            SignatureError: It cannot be evaluated without importing something.
        """
        node = self.bindings.get(name)
        if isinstance(node, ast.ImportFrom):
            original = next(alias.name for alias in node.names if name in (alias.asname, alias.name))
            if node.module in STANDARD_MODULES:
                return getattr(importlib.import_module(node.module), original)
            if node.module and node.module.split(".")[0] == PACKAGE_NAME:
                return parse_module_source(node.module).lookup(original)
        elif isinstance(node, ast.expr):
            return self.evaluate(node)
        elif isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(one) for one in node.decorator_list):
            return self.read_dataclass(node)
        elif node is None and hasattr(builtins, name):
            return getattr(builtins, name)
        raise SignatureError(f"{self.module}: {name} cannot be read without importing it")

    def read_parameters(self, arguments: ast.arguments, skip: frozenset[str]) -> Iterator[inspect.Parameter]:
        """The parameters of a function of this module, except for some."""
        missing = [None] * (len(arguments.args) - len(arguments.defaults))
        names = [*arguments.args, *arguments.kwonlyargs]
        defaults = [*missing, *arguments.defaults, *arguments.kw_defaults]
        for position, (argument, default) in enumerate(zip(names, defaults, strict=True)):
            if argument.arg not in skip:
                is_positional = position < len(arguments.args)
                kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if is_positional else inspect.Parameter.KEYWORD_ONLY
                yield self.read_parameter(argument.arg, kind, argument.annotation, default)

    def read_parameter(
        self, name: str, kind: Any, annotation: ast.expr | None, default: ast.expr | None
    ) -> inspect.Parameter:
        """A parameter of a function, or a field of a dataclass, from its annotation and its default."""
        empty = inspect.Parameter.empty
        return inspect.Parameter(
            name,
            kind,
            default=empty if default is None else self.evaluate(default),
            annotation=empty if annotation is None else self.evaluate(annotation),
        )

    def read_dataclass(self, node: ast.ClassDef) -> DataclassSource:
        """The fields of a dataclass of this module, those of its base classes first."""
        fields: dict[str, inspect.Parameter] = {}
        helps: dict[str, str] = {}
        for base in map(self.evaluate, node.bases):
            if isinstance(base, DataclassSource):
                fields, helps = fields | dict(base.fields), helps | dict(base.helps)
        for one in node.body:
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
                name, kind = one.target.id, inspect.Parameter.KEYWORD_ONLY
                fields[name] = self.read_parameter(name, kind, one.annotation, one.value)
        doc = inspect.cleandoc(ast.get_docstring(node) or "")
        return DataclassSource(fields, helps | split_docstring(doc).arguments)

    def evaluate_instance(self, node: ast.Call) -> DataclassSource | None:
        """The instance that a call of a dataclass makes; None for another call."""
        kind = self.evaluate(node.func)
        if not isinstance(kind, DataclassSource):
            return None
        values = dict(zip(kind.fields, map(self.evaluate, node.args), strict=False))
        return kind.make_instance(values | {str(one.arg): self.evaluate(one.value) for one in node.keywords})

    def evaluate(self, node: ast.expr) -> Any:
        """The value of an expression, from its syntax tree."""
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return self.lookup(node.id)
            case ast.Tuple():
                return tuple(map(self.evaluate, node.elts))
            case ast.List():
                return list(map(self.evaluate, node.elts))
            case ast.Subscript():
                return operator.getitem(self.evaluate(node.value), self.evaluate(node.slice))
            case ast.UnaryOp(op=ast.USub()):
                return operator.neg(self.evaluate(node.operand))
            case ast.BinOp() if type(node.op) in OPERATORS:
                return OPERATORS[type(node.op)](self.evaluate(node.left), self.evaluate(node.right))
            case ast.Call() if instance := self.evaluate_instance(node):
                return instance
        raise SignatureError(f"{self.module}:{node.lineno}: {ast.unparse(node)} cannot be read without importing it")


def list_bound_names(statement: ast.stmt) -> list[tuple[str, ast.AST]]:
    """The names that a statement of a module defines, each with the syntax that gives its value."""
    match statement:
        case ast.FunctionDef() | ast.ClassDef():
            return [(statement.name, statement)]
        case ast.Import() | ast.ImportFrom():
            return [(alias.asname or alias.name, statement) for alias in statement.names]
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            return [(name, value)]
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return [(name, value)]
        case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
            return [(name.id, value) for name, value in zip(names, values, strict=True) if isinstance(name, ast.Name)]
    return []
