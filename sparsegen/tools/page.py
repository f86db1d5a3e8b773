"""HTML pages: sections and data come in, one self-contained page comes out, which opens offline.

A page loads nothing. It can be read in black and white and printed, and everything in it is reached by the keyboard.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 90rem; margin: 0 auto; padding: 1rem; background: Canvas; color: CanvasText; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2rem; }
a { color: LinkText; } :focus-visible { outline: 3px solid currentColor; outline-offset: 2px; }
.skip { position: absolute; left: -100vw; } .skip:focus { position: static; }
nav ul { padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: 0 1.5rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: bold; padding: .25rem 0; }
th, td { border-bottom: 1px solid; padding: .15rem .6rem; text-align: left; white-space: nowrap; }
td.number, th.number { text-align: right; font-family: ui-monospace, monospace; }
tr.marked td, tr.marked th { font-weight: bold; border-top: 3px double; border-bottom: 3px double; }
svg { max-width: 100%; height: auto; } svg text { fill: currentColor; font-size: 12px; }
@media print { nav, .skip { display: none; } }
"""


@dataclass(frozen=True)
class Section:
    """A part of a page, with a heading that the page's list of contents links to."""

    title: str
    html: str
    """Its content, trusted: what comes from a user has been through `text`."""

    @property
    def anchor(self) -> str:
        """The heading's name in links: "Layer by layer" is `layer-by-layer`."""
        return re.sub(r"[^\w]+", "-", self.title.lower()).strip("-")


def page(
    title: str, sections: Sequence[Section], data: Any = None, *, style: str = "", script: str = ""
) -> str:
    """A whole page.

    Parameters
    ----------
    title
        Plain text.
    sections
        In order.
    data
        Plain values for JSON, embedded as the element `data`, which scripts and other programs read; None: none.
    style, script
        More rules and code of this page, trusted; they load nothing either.
    """
    links = "".join(f'<li><a href="#{each.anchor}">{text(each.title)}</a></li>' for each in sections)
    parts = "".join(
        f'<section aria-labelledby="{each.anchor}">\n<h2 id="{each.anchor}" tabindex="-1">{text(each.title)}</h2>\n'
        f"{each.html}\n</section>\n"
        for each in sections
    )
    held = "" if data is None else f'<script type="application/json" id="data">{embedded(data)}</script>\n'
    code = f"<script>{script}</script>\n" if script else ""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{text(title)}</title>\n'
        f"<style>{_STYLE}{style}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#content">Skip to the content</a>\n<h1>{text(title)}</h1>\n'
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n<main id="content" tabindex="-1">\n{parts}</main>\n'
        f"{held}{code}</body>\n</html>\n"
    )


def text(value: Any) -> str:
    """A value as the text of an element or an attribute."""
    return escape(str(value))


def embedded(data: Any) -> str:
    """JSON that no browser takes for markup."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def table(
    caption: str,
    header: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    numbers: Iterable[int] = (),
    marked: Iterable[int] = (),
) -> str:
    """A table in a region that scrolls by the keyboard; the first cell of a row is its heading.

    `numbers` are the columns that hold numbers, `marked` the rows that stand out.
    """
    right, bold = set(numbers), set(marked)

    def cell(kind: str, column: int, value: Any, scope: str = "") -> str:
        style = ' class="number"' if column in right else ""
        return f"<{kind}{style}{scope}>{text(value)}</{kind}>"

    head = "".join(cell("th", i, each, ' scope="col"') for i, each in enumerate(header))
    body = "".join(
        f"<tr{' class=marked' if number in bold else ''}>"
        + "".join(
            cell("td", i, each) if i else cell("th", i, each, ' scope="row"') for i, each in enumerate(row)
        )
        + "</tr>\n"
        for number, row in enumerate(rows)
    )
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{text(caption)}"><table>\n'
        f"<caption>{text(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
    )
