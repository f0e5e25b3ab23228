"""The documentation as a site: every page can be reached, every link within it leads somewhere, the build is strict."""

import os
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.paths import ROOT

DOCS = ROOT / "docs"
BUILT = {"auto_examples", "generated"}  # folders that conf.py and the gallery write
PAGES = [
    path
    for path in sorted(DOCS.rglob("*"))
    if path.suffix in (".md", ".rst") and path.relative_to(DOCS).parts[0] not in BUILT
]
MAX_PAGES = 12  # of a folder
TOCTREE = re.compile(r"^:::\{toctree\}\n(.*?)^:::$", re.MULTILINE | re.DOTALL)
INCLUDE = re.compile(r"^:::\{include\} (\S+)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def test_every_page_stands_once_in_the_table_of_contents():
    blocks = TOCTREE.findall((DOCS / "index.md").read_text(encoding="utf-8"))
    entries = [line for block in blocks for line in block.splitlines() if line and not line.startswith(":")]
    names = [path.relative_to(DOCS).with_suffix("").as_posix() for path in PAGES if path.stem != "index"]
    assert Counter(entry for entry in entries if not entry.startswith("auto_examples/")) == Counter(names)


def test_no_folder_has_too_many_pages():
    assert max(Counter(path.parent for path in PAGES).values()) <= MAX_PAGES


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda path: path.stem)
def test_links_and_included_files_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    for target in (*LINK.findall(text), *INCLUDE.findall(text)):
        assert re.match(r"https?://", target) or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_headings_go_down_one_level_at_a_time(page: Path):
    text = re.sub(r"^(```|~~~).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    levels = [len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)]
    assert levels.count(1) == (page.suffix == ".md" and "{include}" not in text)
    assert all(after <= before + 1 for before, after in pairwise(levels))


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path):
    """Without the gallery, whose examples have their own tests. conf.py refuses pages that load from other hosts."""
    pytest.importorskip("sphinx", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-D", "plot_gallery=0", "-b", "html"]
    command += ["-d", str(tmp_path / "cache")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [*command, str(DOCS), str(tmp_path / "site")], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    assert 'id="comodal.train"' in api
