"""Checks a built site: every link and anchor within it resolves, and no page loads anything from another host."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Attributes by which a page loads something at view time.
LOADING = {
    ("script", "src"),
    ("img", "src"),
    ("link", "href"),
    ("iframe", "src"),
    ("source", "src"),
    ("object", "data"),
}


class Links(HTMLParser):
    """The ids of a page and the addresses in it.

    Attributes:
        ids: targets of anchors.
        addresses: every href, src and data, and whether the page loads it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.addresses: list[tuple[str, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record one tag's ids and addresses."""
        for name, value in attrs:
            if value and (name == "id" or (tag == "a" and name == "name")):
                self.ids.add(value)
            elif value and name in ("href", "src", "data"):
                self.addresses.append((value, (tag, name) in LOADING))


def faults(site: Path) -> list[str]:
    """The faults of the site, one line each."""
    pages = {path: _links(path) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        if path.name == "404.html":  # is served at every address, so its links are absolute
            continue
        for address, is_loaded in page.addresses:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if is_loaded and parts.scheme != "data":
                    found.append(f"{path.relative_to(site)} loads {address}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            if not target.exists():
                found.append(f"{path.relative_to(site)} links to {address}, which does not exist")
            elif anchor and target in pages and anchor not in pages[target].ids and anchor != "__skip":
                found.append(f"{path.relative_to(site)} links to {address}, which has no such anchor")
    return found


def _links(path: Path) -> Links:
    links = Links()
    links.feed(path.read_text(encoding="utf-8"))
    return links


if __name__ == "__main__":
    problems = faults(Path(sys.argv[1]).resolve())
    print("\n".join(problems) or "every link of the site resolves, and nothing is loaded from another host")
    sys.exit(bool(problems))
