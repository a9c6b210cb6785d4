"""One self-contained HTML document: the frame that every page of ours is put into.

The frame is ``report.html`` with its style sheets in it. Text is escaped here or where it enters the markup; the
contents of a section are markup already.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from string import Template

from distilhash.experiments.svg import element

# What a headline sets in bold: .573, with its sign where it has one, and 3.8 times.
NUMBER = re.compile("(?<![\\w.])([+\N{MINUS SIGN}±]?\\d?\\.\\d{3}|\\d+(?:\\.\\d)?\N{MULTIPLICATION SIGN})(?!\\w)")

Section = tuple[str, str, str, str]  # id, name, what a reader should know first, markup
Fact = tuple[str, str]  # a number, and what it is


def document(
    *,
    title: str,
    headline: str,
    deck: str,
    facts: Sequence[Fact],
    sections: Sequence[Section],
    styles: Sequence[str] = ("report.css",),
) -> str:
    """The whole page as text; a section without contents is left out."""
    shown = [part for part in sections if part[3]]
    source = resources.files("distilhash.experiments")
    return Template(source.joinpath("report.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        style="\n".join(source.joinpath(name).read_text(encoding="utf-8") for name in styles),
        headline=NUMBER.sub(r"<b>\1</b>", escape(headline)),
        deck=element("p", escape(deck), class_="deck") if deck else "",
        facts=_facts(facts),
        contents="".join(element("li", element("a", escape(name), href=f"#{key}")) for key, name, _, _ in shown),
        sections="\n".join(_section(*part) for part in shown),
    )


def share(ratio: float) -> str:
    """A ratio in per cent, with a decimal where it is small."""
    return f"{100 * ratio:.0f} %" if ratio >= 0.0995 else f"{100 * ratio:.1f} %"


def facts_table(rows: Sequence[tuple[str, str]], caption: str) -> str:
    """Names and what they are, line by line; empty where there are none."""
    lines = (element("tr", element("th", escape(k), scope="row") + element("td", escape(v))) for k, v in rows)
    unseen = element("caption", escape(caption), class_="unseen")
    return element("table", unseen + element("tbody", "".join(lines)), class_="provenance") if rows else ""


def _section(key: str, name: str, lead: str, content: str) -> str:
    about = element("p", escape(lead), class_="lead") if lead else ""
    heading = element("h2", escape(name), id=f"{key}-heading")
    return element("section", heading + about + content, id=key, aria_labelledby=f"{key}-heading")


def _facts(facts: Sequence[Fact]) -> str:
    cells = (element("div", element("dt", escape(told)) + element("dd", escape(number))) for number, told in facts)
    return element("dl", "".join(cells), class_="facts") if facts else ""
