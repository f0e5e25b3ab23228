"""The documentation as a site: `make docs` writes it to build/docs.

The pages are Markdown (MyST). The Python API comes from the docstrings of the public names, the gallery from running
`examples/`. A built page loads no script, style or font from elsewhere; the build fails if one would.
"""

import importlib
import importlib.metadata
import inspect
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args, get_type_hints

from sphinx.application import Sphinx
from sphinx.errors import SphinxError

import comodal
import comodal.openl3

HERE = Path(__file__).parent

project = "comodal"
author = "The comodal authors"
copyright = "2026, The comodal authors"
release = version = importlib.metadata.version("comodal")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["generated"]  # included by api.rst
highlight_language = "bash"  # of blocks without a language

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
    "remove_config_comments": True,
}

autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
napoleon_use_rtype = False

default_role = "code"  # docstrings have code in single backticks
nitpicky = True
nitpick_ignore_regex = [("py:class", r"(?!comodal\.\w+$).*")]  # types without a page here
nitpick_ignore = [("py:exc", "OpenL3Error")]  # of comodal.openl3, without a page here

html_theme = "furo"
html_title = f"comodal {release}"
html_theme_options = {
    "source_repository": "https://github.com/comodal/comodal/",
    "source_branch": "main",
    "source_directory": "docs/",
}


def public_objects() -> dict[str, Any]:
    """The public names but the version, and what they are."""
    return {name: getattr(comodal, name) for name in comodal.PUBLIC_NAMES if name != "__version__"}


def returned_classes(functions: list[Any]) -> list[type]:
    """Classes of comodal that these functions return and that have no public name."""
    public, found = set(map(id, public_objects().values())), {}
    for function in functions:
        result = get_type_hints(function).get("return")
        for kind in (result, *get_args(result)):
            if inspect.isclass(kind) and kind.__module__.startswith("comodal.") and id(kind) not in public:
                found[kind.__module__, kind.__qualname__] = kind
    return list(found.values())


def list_openl3_functions() -> list[str]:
    """Full names of the functions of `comodal.openl3` and of its models."""
    modules = {"comodal.openl3": comodal.openl3.__all__, "comodal.openl3.models": dir(comodal.openl3.models)}
    return [
        f"{module}.{name}"
        for module, names in modules.items()
        for name in names
        if inspect.isfunction(value := getattr(importlib.import_module(module), name))
        and value.__module__.startswith("comodal.openl3.")
        and (module == "comodal.openl3" or name.startswith(("load_audio", "load_image")))
    ]


def api_section(title: str, directive: str, names: list[str]) -> list[str]:
    """A table of the names, then each with its docstring."""
    lines = [
        title,
        "-" * len(title),
        "",
        ".. autosummary::",
        "   :nosignatures:",
        "",
        *(f"   {name}" for name in names),
        "",
    ]
    for name in names:
        options = ["   :members:", "   :inherited-members: Module"] if directive == "autoclass" else []
        lines += [f".. {directive}:: {name}", *options, ""]
    return lines


def write_api(_: Sphinx) -> None:
    """Writes generated/api.rst, which follows `comodal.PUBLIC_NAMES`."""
    objects = public_objects()
    errors = [name for name, value in objects.items() if inspect.isclass(value) and issubclass(value, Exception)]
    classes = [name for name, value in objects.items() if inspect.isclass(value) and name not in errors]
    functions = [name for name in objects if name not in (*errors, *classes)]
    results = [
        f"{kind.__module__}.{kind.__qualname__}" for kind in returned_classes([objects[name] for name in functions])
    ]
    lines = [
        *api_section("Functions", "autofunction", [f"comodal.{name}" for name in functions]),
        *api_section("Classes", "autoclass", [f"comodal.{name}" for name in classes]),
        *api_section("What the functions return", "autoclass", results),
        *api_section("Exceptions", "autoexception", [f"comodal.{name}" for name in errors]),
        *api_section("OpenL3's functions", "autofunction", list_openl3_functions()),
    ]
    (HERE / "generated").mkdir(exist_ok=True)
    (HERE / "generated" / "api.rst").write_text("\n".join(lines), encoding="utf-8")


class RemoteAssets(HTMLParser):
    """Addresses on other hosts that a browser fetches when it shows the page; links to follow are none."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        address = attributes.get("href") if tag == "link" else attributes.get("src")
        if re.match(r"(https?:)?//", address or "") and attributes.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(str(address))


def refuse_remote_assets(app: Sphinx, exception: Exception | None) -> None:
    """Fails the build if a page or a style sheet loads something from another host."""
    if exception is not None or app.builder.format != "html":
        return
    for path in sorted(Path(app.outdir).rglob("*.html")):
        page = RemoteAssets()
        page.feed(path.read_text(encoding="utf-8"))
        if page.found:
            raise SphinxError(f"{path}: loads {page.found}")
    for path in sorted(Path(app.outdir).rglob("*.css")):
        found = re.findall(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')]+)""", path.read_text(encoding="utf-8"))
        if found:
            raise SphinxError(f"{path}: loads {found}")


def show_examples_as_code(
    _app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]
) -> None:
    """The commands under `Examples:`, the last section of a docstring, are a literal block."""
    if "Examples:" in lines:
        start = lines.index("Examples:") + 1
        lines[start:] = ["    ::", "", *(f"    {line}" for line in lines[start:])]


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", write_api)
    app.connect("autodoc-process-docstring", show_examples_as_code, priority=100)  # before napoleon
    app.connect("build-finished", refuse_remote_assets)
