"""Reads a function's signature and docstring from its source file, without importing the module.

Importing a command imports torch, which takes seconds. Help and usage errors only need names, types and defaults. These
are evaluated from the syntax tree: literals, arithmetic, builtins, names of a few standard modules, and names that
comodal's own modules define in the same ways. The test suite compares the result with `inspect.signature` for every
command.
"""

import ast
import builtins
import importlib
import importlib.util
import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from comodal.lazy_import import import_object

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
        parameters: Names, types and defaults, in order.
        doc: The docstring, without indentation.
    """

    parameters: tuple[inspect.Parameter, ...]
    doc: str


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
    keyword_only = len(node.args.args)
    arguments = [*node.args.args, *node.args.kwonlyargs]
    missing = [None] * (keyword_only - len(node.args.defaults))
    defaults = [*missing, *node.args.defaults, *node.args.kw_defaults]
    parameters = [
        inspect.Parameter(
            argument.arg,
            inspect.Parameter.POSITIONAL_OR_KEYWORD if place < keyword_only else inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if default is None else source.evaluate(default),
            annotation=source.evaluate(argument.annotation) if argument.annotation else inspect.Parameter.empty,
        )
        for place, (argument, default) in enumerate(zip(arguments, defaults, strict=True))
        if argument.arg not in skip
    ]
    return FunctionSignature(tuple(parameters), inspect.cleandoc(ast.get_docstring(node) or ""))


def import_signature(target: str, skip: frozenset[str]) -> FunctionSignature:
    """The signature of a function of another package, which is imported for it."""
    function = import_object(target)
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    return FunctionSignature(tuple(one for one in parameters if one.name not in skip), inspect.getdoc(function) or "")


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
        elif node is None and hasattr(builtins, name):
            return getattr(builtins, name)
        raise SignatureError(f"{self.module}: {name} cannot be read without importing it")

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
