"""Renders sections as one self-contained HTML page, with the templates in `templates/`.

Jinja2 escapes every value (`autoescape`), and a name that a template misses is an error (`StrictUndefined`).
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from comodal.analysis.pages.page_parts import PageSection
from comodal.files import write_bytes_atomically


@cache
def make_page_environment() -> Environment:
    """The templates of the package."""
    return Environment(
        loader=PackageLoader("comodal.analysis.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_page(title: str, sections: Sequence[PageSection]) -> str:
    """A page of sections below its title."""
    return make_page_environment().get_template("page.html").render(title=title, sections=sections)


def write_page(out: Path, title: str, sections: Sequence[PageSection]) -> None:
    """Writes one HTML file of some sections. Bytes of file names that are no text are shown as numbers."""
    write_bytes_atomically(out, render_page(title, sections).encode(errors="backslashreplace"))


def write_page_numbers(out: Path, sections: Sequence[PageSection]) -> None:
    """Writes the numbers of the sections next to a page, by section: page.html has page.json. Without any, no file."""
    numbers = {section.title: dict(section.numbers) for section in sections if section.numbers}
    if numbers:
        write_bytes_atomically(out.with_suffix(".json"), (json.dumps(numbers, indent=1) + "\n").encode())
