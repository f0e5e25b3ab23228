"""Whether a page of HTML is whole and needs nothing else."""

import re
from html.parser import HTMLParser

VOID = {"meta", "img"}


class Balance(HTMLParser):
    """Every tag that is opened is closed, in order; every address is data."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "poster", "srcset", "data"}:
                assert str(value).startswith("data:"), f"{tag} {name}={value}"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


def check_page(page: str) -> list[str]:
    """The tags of a page that is whole and stands alone."""
    balance = Balance()
    balance.feed(page)
    balance.close()
    assert not balance.open
    without = re.sub(r'src="data:[^"]+"', "", page)
    assert not re.search(r"https?:|<script|<link|@import|url\(", without)
    return balance.tags
