"""The files around the code agree with each other: pyproject.toml, constraints.txt, CITATION.cff, hooks, workflows."""

import re
import tomllib
from pathlib import Path

import comodal

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = dict(
    line.lower().split("==")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
)
PYTHONS = [
    name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r"Python :: \d\.\d+$", name) is not None
]


def normalized(name: str) -> str:
    """A distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_lowest_python_of_the_classifiers_is_the_one_required():
    versions = [tuple(map(int, version.split("."))) for version in PYTHONS]
    assert versions == [(3, minor) for minor in range(versions[0][1], versions[-1][1] + 1)]
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"


def test_every_dependency_of_tests_and_docs_is_pinned():
    extras = PROJECT["optional-dependencies"]
    names = {
        normalized(re.split(r"[<>=!\[]", line)[0])
        for line in (*PROJECT["dependencies"], *extras["dev"], *extras["docs"])
    }
    assert names <= {normalized(name) for name in PINS}


def test_the_package_says_that_it_is_typed():
    assert (Path(comodal.__file__).parent / "py.typed").exists()
    assert "Typing :: Typed" in PROJECT["classifiers"]


def test_every_extra_is_in_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = {
        name for row in re.findall(r"^\| (`[^|]+`) \|", readme, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert set(PROJECT["optional-dependencies"]) <= named


def test_the_project_has_the_links_that_package_indexes_show():
    assert {"Homepage", "Documentation", "Source", "Issues", "Changelog"} == set(PROJECT["urls"])
    assert all(url.startswith(PROJECT["urls"]["Homepage"]) for url in PROJECT["urls"].values())
