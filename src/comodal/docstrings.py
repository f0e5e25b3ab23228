"""The parts of a Google-style docstring: the text, the arguments, the examples."""

import re
import textwrap
from dataclasses import dataclass

SECTION_HEADING = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Examples?):$", re.MULTILINE)


@dataclass(frozen=True)
class Docstring:
    """A docstring in parts.

    Attributes:
        about: The text before the first section.
        arguments: One text for each argument, or for each attribute of a class, on one line.
        examples: The lines of the examples, without indentation.
    """

    about: str
    arguments: dict[str, str]
    examples: tuple[str, ...]


def split_docstring(doc: str) -> Docstring:
    """Split a docstring whose indentation has been removed."""
    about, *parts = SECTION_HEADING.split(doc)
    sections = {title: textwrap.dedent(body).strip() for title, body in zip(parts[::2], parts[1::2], strict=True)}
    described = sections.get("Args") or sections.get("Attributes") or ""
    entries = re.split(r"^(\w+):\s", described, flags=re.MULTILINE)[1:]
    arguments = {name: " ".join(text.split()) for name, text in zip(entries[::2], entries[1::2], strict=True)}
    examples = sections.get("Examples") or sections.get("Example") or ""
    return Docstring(about.strip(), arguments, tuple(line for line in examples.splitlines() if line.strip()))
