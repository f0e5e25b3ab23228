"""Reads what a page of HTML shows, and whether it is whole and needs nothing else."""

import re
from html.parser import HTMLParser
from typing import NamedTuple

VOID = {"meta", "img"}
ADDRESSES = {"src", "href", "poster", "srcset", "data"}


class ReadTable(NamedTuple):
    """The caption and the cells of a table; the first row has the headings. `main` has the rows that stand out."""

    caption: str
    rows: list[list[str]]
    main: list[list[str]]


class PageReader(HTMLParser):
    """Every tag that is opened is closed, in order; every address is data; everything has a name and is reachable."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[tuple[str, str]] = []  # innermost tag, and text
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[ReadTable] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        for name, value in attrs:
            assert not name.startswith("on"), f"{tag} {name}={value}"
            if name in ADDRESSES:
                assert str(value).startswith("data:"), f"{tag} {name}={value}"
        self.check_access(tag, dict(attrs))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append(ReadTable("", [], []))
        elif tag == "tr":
            self.tables[-1].rows.append([])
            if dict(attrs).get("class") == "main":
                self.tables[-1].main.append(self.tables[-1].rows[-1])
        elif tag in {"td", "th"}:
            self.tables[-1].rows[-1].append("")

    def check_access(self, tag: str, attributes: dict[str, str | None]) -> None:
        """Images and audio have names, headings of tables a direction; what scrolls is reached by the keyboard."""
        assert tag != "img" or attributes.get("alt")
        assert tag != "audio" or attributes.get("aria-label")
        assert tag != "th" or attributes.get("scope") in {"col", "row"}
        if "scroll" in str(attributes.get("class")).split():
            assert attributes.get("tabindex") == "0" and attributes.get("aria-label") and attributes.get("role")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if not self.open or not data.strip():
            return
        self.texts.append((self.open[-1], data.strip()))
        if "caption" in self.open:
            self.tables[-1] = self.tables[-1]._replace(caption=data.strip())
        elif {"td", "th"} & set(self.open):
            self.tables[-1].rows[-1][-1] += data.strip()

    @property
    def text(self) -> str:
        """All that is shown, without the style sheet and the title of the window."""
        return "\n".join(text for tag, text in self.texts if tag not in {"style", "title"})

    def texts_of(self, tag: str) -> list[str]:
        """The texts directly inside a kind of tag."""
        return [text for inside, text in self.texts if inside == tag]

    def rows(self) -> list[list[str]]:
        """The cells of all tables, without their headings."""
        return [row for table in self.tables for row in table.rows[1:]]

    def values_of(self, tag: str, name: str) -> list[str]:
        """The values of an attribute, of the tags that have it."""
        return [str(values[name]) for inside, values in self.attributes if inside == tag and name in values]

    def count_class(self, name: str) -> int:
        """How many tags have a class."""
        return sum(name in str(values.get("class")).split() for _, values in self.attributes)


def check_page(page: str) -> PageReader:
    """What a page shows, after checking that it is whole and stands alone."""
    reader = PageReader(page)
    without = re.sub(r'src="data:[^"]+"', "", page)
    assert not re.search(r"https?:|<script|<link|<iframe|@import|url\(", without)
    assert reader.tags.count("h1") == 1
    assert all(table.caption and table.rows for table in reader.tables)
    return reader
