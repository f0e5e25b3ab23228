"""Names in the terms of the field: no word of the list in an identifier or in the docs, and no public name twice."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import comodal
from tests.support.paths import ROOT

PACKAGE = Path(comodal.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
BANNED_PARTS = {
    *("attended", "beside", "blank", "blind", "centre", "centres", "centred", "colour", "colours", "deviation"),
    *("fewest", "guess", "guesses", "heard", "hide", "known", "learnt", "licence", "meet", "meeting", "meetings"),
    *("met", "mirror", "mirrored", "neighbour", "neighbours", "picture", "pictures", "piece", "pieces", "place"),
    *("places", "playground", "riddle", "rounds", "seen", "share", "shares", "sitting", "sounds", "tell", "together"),
    *("told", "verdict", "verdicts", "volume", "wanted", "warm"),
}
OTHER_INTERFACES = {
    "tell": "of file objects",
    "share_model": "the command `comodal share`",
    "KINETICS_SOUNDS": "the data set",
    "WordPieceTokenizer": "the algorithm",
    "kinetics_sounds": "the data set",
    "parse_known_args": "of argparse",
}
INTERFACE_MODULES = {"openl3", "hear.py"}  # which have the names of OpenL3 and of HEAR
RECIPE_FUNCTION = "recipe"  # of each module that the registry of recipes lists
BANNED_IN_DOCS = re.compile(
    r"\b(pictures?|learnt|told|verdicts?|riddle|playground|word pieces|hidden words|hidden regions|belongs? together|"
    r"by chance|from chance|colour|centre|licence)\b",
    re.IGNORECASE,
)
CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)


def split_identifier(name: str) -> list[str]:
    return [part.lower() for part in re.split(r"_|(?<=[a-z0-9])(?=[A-Z])", name) if part]


def list_identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names that a module defines: of classes, functions, parameters, fields, attributes and variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_identifiers_have_no_banned_word(path: Path):
    found = {
        f"{path.relative_to(PACKAGE)}:{line} {name}"
        for name, line in list_identifiers(ast.parse(path.read_text()))
        if name not in OTHER_INTERFACES and BANNED_PARTS & set(split_identifier(name))
    }
    assert not found


def test_no_public_class_or_function_has_the_name_of_another():
    modules_of_name = defaultdict(set)
    for path in MODULES:
        module = path.relative_to(PACKAGE)
        for node in ast.parse(path.read_text()).body:
            is_public = isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
            if is_public and module.parts[0] not in INTERFACE_MODULES and node.name != RECIPE_FUNCTION:
                modules_of_name[node.name].add(module.as_posix())
    assert not {name: found for name, found in modules_of_name.items() if len(found) > 1}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_docs_have_no_banned_word(page: Path):
    found = [
        f"{number}: {match[0]}"
        for number, line in enumerate(CODE.sub("", page.read_text(encoding="utf-8")).splitlines(), 1)
        for match in BANNED_IN_DOCS.finditer(line)
    ]
    assert not found
