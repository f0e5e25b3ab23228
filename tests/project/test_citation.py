"""CITATION.cff and docs/development/citation.md cite this version of the library and the two papers."""

import re
import tomllib
from itertools import accumulate

import pytest
import yaml

from tests.support.paths import ROOT

CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGE = (ROOT / "docs" / "development" / "citation.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"~~~bibtex\n(.*?)~~~", PAGE, re.DOTALL)
REQUIRED = {  # by BibTeX for @inproceedings, by biblatex for @software
    "inproceedings": {"author", "title", "booktitle", "year"},
    "software": {"author", "title", "version", "year", "url"},
}


def fields_of(entry: str) -> dict[str, str]:
    """The fields of a BibTeX entry that has one a line."""
    return dict(re.findall(r"^ +(\w+) *= \{(.*)\},?$", entry, re.MULTILINE))


def test_the_citation_file_has_what_its_format_requires():
    assert {"cff-version", "message", "title", "authors"} <= set(CITATION)  # Citation File Format 1.2.0, required keys
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["type"] == "software"
    for reference in CITATION["references"]:
        assert {"type", "title", "authors"} <= set(reference)


def test_the_citation_file_is_of_this_project():
    assert CITATION["version"] == PROJECT["version"]
    assert CITATION["license"] == PROJECT["license"]
    assert CITATION["authors"] == PROJECT["authors"]
    assert CITATION["repository-code"] == PROJECT["urls"]["Source"]


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_bibtex_entry_is_complete(entry: str):
    body = entry.strip()
    depths = list(accumulate({"{": 1, "}": -1}.get(character, 0) for character in body))
    assert min(depths[body.index("{") : -1]) > 0
    assert depths[-1] == 0
    fields = fields_of(entry)
    assert len(fields) == len(re.findall(r"^ +\w", entry, re.MULTILINE))
    assert REQUIRED[entry[1 : entry.index("{")]] <= set(fields)


def test_both_forms_cite_the_same():
    library, *papers = (fields_of(entry) for entry in ENTRIES)
    assert library["version"] == PROJECT["version"]
    assert library["url"] == CITATION["url"]
    assert [(paper["title"].replace("{", "").replace("}", ""), int(paper["year"])) for paper in papers] == [
        (reference["title"], reference["year"]) for reference in CITATION["references"]
    ]
    for paper, reference in zip(papers, CITATION["references"], strict=True):
        names = [person.split(",")[0].replace(r"{\'c}", "ć") for person in paper["author"].split(" and ")]
        assert names == [person["family-names"] for person in reference["authors"]]
        assert paper.get("doi") == reference.get("doi")


def test_the_readme_leads_to_the_citation():
    assert "(docs/development/citation.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
