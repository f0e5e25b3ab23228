"""The files around the code agree with each other: pyproject.toml, constraints.txt, CITATION.cff, hooks, workflows."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import comodal
from tests.support.paths import ROOT

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


def read_yaml(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


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


def test_every_extra_is_on_the_page_about_the_installation():
    page = (ROOT / "docs" / "quickstart" / "installation.md").read_text(encoding="utf-8")
    named = {
        name for row in re.findall(r"^\| (`[^|]+`) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert set(PROJECT["optional-dependencies"]) <= named


def test_the_project_has_the_links_that_package_indexes_show():
    assert {"Homepage", "Documentation", "Source", "Issues", "Changelog"} == set(PROJECT["urls"])
    assert all(url.startswith(PROJECT["urls"]["Homepage"]) for url in PROJECT["urls"].values())


# ---------------------------------------------------------------------- hooks, workflows and forms
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
FORMS = [ROOT / ".github" / "ISSUE_TEMPLATE" / name for name in ("bug_report.yml", "feature_request.yml")]


def test_hooks_run_the_pinned_tools():
    hooks = [hook for repo in read_yaml(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    tools = dict(package.split("==") for hook in hooks for package in hook["additional_dependencies"])
    assert tools == {name: PINS[name] for name in ("ruff", "codespell")}
    assert all(hook["entry"].split()[0] in tools for hook in hooks)


def test_the_workflow_tests_every_python_of_the_classifiers():
    matrix = read_yaml(WORKFLOW)["jobs"]["check"]["strategy"]["matrix"]
    assert matrix["python"] == PYTHONS
    added = {job["dependencies"]: job["python"] for job in matrix["include"]}
    assert added["lowest"] == PYTHONS[0]
    assert added["newest"] == PYTHONS[-1]
    assert {job.get("onednn_max_cpu_isa") for job in matrix["include"]} == {None, "AVX2"}


def test_the_workflow_makes_targets_that_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    steps = [step for job in read_yaml(WORKFLOW)["jobs"].values() for step in job["steps"]]
    assert all(("run" in step) != ("uses" in step) for step in steps)
    made = {name for step in steps for name in re.findall(r"make ([\w-]+)", step.get("run", ""))}
    assert made | {"check", "test"} <= targets


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_has_what_the_format_requires(path: Path):
    form = read_yaml(path)
    assert {"name", "description", "body"} <= set(form)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) > 0
    assert all(field["attributes"]["label"] for field in fields)


def test_the_choice_of_issue_forms_has_links_with_a_purpose():
    links = read_yaml(FORMS[0].with_name("config.yml"))["contact_links"]
    assert all({"name", "url", "about"} == set(link) for link in links)


def test_the_version_has_release_notes():
    notes = ROOT / "docs" / "development" / f"release-{PROJECT['version']}.md"
    assert notes.read_text(encoding="utf-8").startswith(f"# Release notes: {PROJECT['version']}\n")


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_reads_the_options_that_it_declares(path: Path):
    text = path.read_text()
    declared = {name.lstrip("-").replace("-", "_") for name in re.findall(r'add_argument\(\s*"([\w-]+)"', text)}
    assert not declared or set(re.findall(r"\boptions\.(\w+)", text)) <= declared
