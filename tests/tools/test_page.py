"""Pages are whole and self-contained: nothing is loaded, everything is reached by the keyboard, no value is markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

from sparsegen.tools.page import Section, page, table, text

VOID = {"meta", "line", "circle", "polyline", "br"}


class Tree(HTMLParser):
    """The elements of a page; raises AssertionError where tags do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        """(the element that holds it, text)."""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data))


def made() -> str:
    """A page with a table, hostile values and data."""
    rows = [["<b>first</b>", 1.5, '"'], ["second", 2, "&amp;"]]
    held = table("A <table>", ["name", "value", "other"], rows, numbers=[1], marked=[1])
    sections = [Section("The <first> part", held), Section("Second", f"<p>{text('</p><script>')}</p>")]
    return page("Title & <more>", sections, {"closing": "</script><script>alert(1)</script>", "ö": [1, None]})


def test_a_page_is_well_formed_and_loads_nothing() -> None:
    tree = Tree(made())
    assert tree.elements[0] == ("html", {"lang": "en"})
    for _, attributes in tree.elements:
        assert not {"src", "srcset", "data", "action"} & attributes.keys()
        assert str(attributes.get("href", "#")).startswith("#")
    assert not re.search(r"url\(|@import|https?:", made())


def test_values_are_text_and_data_is_data() -> None:
    tree = Tree(made())
    assert [tag for tag, _ in tree.elements].count("script") == 1
    assert "b" not in [tag for tag, _ in tree.elements]
    assert ("th", "<b>first</b>") in tree.texts and ("p", "</p><script>") in tree.texts
    (held,) = [data for tag, data in tree.texts if tag == "script"]
    assert json.loads(held) == {"closing": "</script><script>alert(1)</script>", "ö": [1, None]}


def test_every_section_is_linked_and_every_table_scrolls_by_the_keyboard() -> None:
    tree = Tree(made())
    links = [str(attributes["href"])[1:] for tag, attributes in tree.elements if tag == "a"]
    anchors = [attributes["id"] for _, attributes in tree.elements if "id" in attributes]
    assert set(links) <= set(anchors) and len(set(anchors)) == len(anchors)
    assert {"the-first-part", "second", "content"} <= set(links)
    regions = [attributes for _, attributes in tree.elements if attributes.get("role") == "region"]
    assert [each["tabindex"] for each in regions] == ["0"]
    assert regions[0]["aria-label"] == "A <table>"
    scopes = [attributes.get("scope") for tag, attributes in tree.elements if tag == "th"]
    assert scopes == ["col"] * 3 + ["row"] * 2
    assert [attributes.get("class") for tag, attributes in tree.elements if tag == "tr"] == [
        None,
        None,
        "marked",
    ]
