"""Reader of HTML, by the standard library: the text that a reader of the page sees."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from typing import Any, BinaryIO

from embedlm.data.html_tables import Table
from embedlm.data.rows import FileRow, Reading, not_utf8

__all__ = ["read_html"]

_BLOCK_NAMES = """address article aside blockquote body br caption dd details div dl dt fieldset
figcaption figure footer form h1 h2 h3 h4 h5 h6 head header hr html legend li main nav ol option p
pre section summary table tbody td tfoot th thead title tr ul"""
_BLOCKS = frozenset(_BLOCK_NAMES.split())
"""Elements at whose begin and end a paragraph ends."""
_HEADINGS = {"title": 1} | {f"h{level}": level + 1 for level in range(1, 7)}
"""The levels of headings: a page's title is above all others."""
_UNSEEN_NAMES = """audio button canvas datalist iframe nav noscript object script style svg
template video"""
_UNSEEN = frozenset(_UNSEEN_NAMES.split())
"""Elements whose content is no prose of the page, or is not shown where scripts and films run."""
_EMPTY_NAMES = "area base br col embed hr img input link meta param source track wbr"
_EMPTY = frozenset(_EMPTY_NAMES.split())
"""Elements that hold nothing and have no end."""
_HIDING = re.compile(r"(?:^|;)(?:display:none|visibility:hidden)(?:!important)?(?:;|$)")
"""What a style says of an element that is not shown, without blanks."""
_SCOPES = frozenset(["button", "caption", "object", "table", "td", "template", "th"])
"""Elements out of which no end tag reaches, but those of tables."""
_INLINE_NAMES = "a b big code em font i nobr s small strike strong tt u"
_INLINE = frozenset(_INLINE_NAMES.split())
"""Elements whose end tags also reach out of blocks that begin in them."""
_CELLS = frozenset(["caption", "table", "tbody", "td", "tfoot", "th", "thead", "tr"])
_ROWS = frozenset(["tbody", "td", "tfoot", "th", "thead", "tr"])
_OPTIONAL = {
    "dd": (frozenset(["dd", "dt"]), frozenset(["dl"])),
    "dt": (frozenset(["dd", "dt"]), frozenset(["dl"])),
    "li": (frozenset(["li"]), frozenset(["menu", "ol", "ul"])),
    "option": (frozenset(["option"]), frozenset(["datalist", "select"])),
    "tbody": (_ROWS, frozenset(["table"])),
    "td": (frozenset(["td", "th"]), frozenset(["table", "tr"])),
    "tfoot": (_ROWS, frozenset(["table"])),
    "th": (frozenset(["td", "th"]), frozenset(["table", "tr"])),
    "tr": (frozenset(["td", "th", "tr"]), frozenset(["table", "tbody", "tfoot", "thead"])),
}
"""Elements that end others which have no end tag: which, and within what."""
_OUTSIDE_NAMES = "article aside footer h1 h2 h3 h4 h5 h6 header main nav section table"
_OUTSIDE = frozenset(_OUTSIDE_NAMES.split())
"""Elements that never stand in a button: where one begins, a button was not closed."""
_AFTER_MENUS = frozenset(["article", "footer", "main", "section", "table"])
"""Elements that never stand in a menu: where one begins, a menu was not closed."""
_IN_P = frozenset(["body", "br", "head", "html", "legend", "option", "summary", "title"])
_NOT_IN_P = _BLOCKS - _IN_P - (_CELLS - {"table"})
"""Elements where whose begin a `p` ends that has no end tag."""


class _Paragraphs(HTMLParser):
    """Collects the paragraphs of a page, each with the line on which it begins."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[FileRow] = []
        self._parts: list[str] = []
        self._line = self._level = 0
        self._open: list[tuple[str, bool]] = []
        """The elements in which the reading is, each with whether its content is not seen."""
        self._count: Counter[str] = Counter()
        """Of these by name, so that few are looked for."""
        self._unseen = 0
        self._table: Table | None = None
        """The outermost one in which the reading is."""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        """End the paragraph before a block; enter an element."""
        if tag in _BLOCKS:
            self.end_paragraph()
            self._level = _HEADINGS.get(tag, 0)
        if tag in _BLOCKS and tag != "title":  # a drawing may have one; else it was not closed
            self._leave_all(frozenset(["svg"]), frozenset())
        if tag in _OUTSIDE:
            self._leave_all(frozenset(["button"]), frozenset())
        if tag in _AFTER_MENUS:
            self._leave_all(frozenset(["nav"]), frozenset())
        if tag in _NOT_IN_P:
            self._leave_all(frozenset(["p"]), _SCOPES)
        if tag in _OPTIONAL:
            self._leave_all(*_OPTIONAL[tag])
        unseen = _is_unseen(tag, attrs)
        if self._table is None and tag == "table":
            self._table = Table(len(self.rows))
        elif self._table is not None and not (unseen or self._unseen):
            self._table.enter(tag)
        if tag not in _EMPTY:
            self._open.append((tag, unseen))
            self._count[tag] += 1
            self._unseen += unseen

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        """End the paragraph at a block that is empty."""
        if tag in _BLOCKS:
            self.end_paragraph()

    def handle_endtag(self, tag: str) -> None:
        """End the paragraph with its block; leave an element and what was not closed in it."""
        if tag in _BLOCKS:
            self.end_paragraph()
        if tag in _INLINE:
            within = _SCOPES
        elif tag in _UNSEEN:
            within = frozenset()
        elif tag in _CELLS:
            within = frozenset(["table"])
        else:
            within = _SCOPES if tag in _BLOCKS else _SCOPES | _BLOCKS
        for at, name in self._inside_out() if self._count[tag] else ():
            if name == tag:
                self._leave(at, at + 1 if tag in _INLINE else len(self._open))
                return
            if name in within:
                return

    def _leave_all(self, tags: frozenset[str], within: frozenset[str]) -> None:
        """Leave all elements of some kinds, up to one out of which there is no way."""
        found = None
        for at, name in self._inside_out() if any(map(self._count.get, tags)) else ():
            if name in tags:
                found = at
            elif name in within:
                break
        if found is not None:
            self._leave(found, len(self._open))

    def _inside_out(self) -> Iterator[tuple[int, str]]:
        for at in range(len(self._open) - 1, -1, -1):
            yield at, self._open[at][0]

    def _leave(self, begin: int, end: int) -> None:
        left = self._open[begin:end]
        self._unseen -= sum(unseen for _, unseen in left)
        self._count.subtract(name for name, _ in left)
        del self._open[begin:end]
        if self._table is not None and not self._count["table"]:
            self.end_table()

    def handle_data(self, data: str) -> None:
        """Add text to the paragraph."""
        if self._unseen:
            return
        if not self._line and data.strip():
            blank = data[: len(data) - len(data.lstrip())]
            self._line = self.getpos()[0] + blank.count("\n")
        self._parts.append(data)

    def end_paragraph(self) -> None:
        """Keep the paragraph that was collected, with each run of whitespace as one space."""
        text = " ".join("".join(self._parts).split())
        if text:
            if self._table is not None:
                self._table.add(text, self._level, len(self.rows))
            self.rows.append(FileRow(self._line, text, heading=self._level))
        self._parts, self._line, self._level = [], 0, 0

    def end_table(self) -> None:
        """Keep a table of data as one paragraph, and any other as the paragraphs of its cells."""
        table, self._table = self._table, None
        text = None if table is None else table.as_markdown()
        if table is not None and text is not None:
            self.rows[table.first :] = [FileRow(self.rows[table.first].line, text)]


def _is_unseen(tag: str, attrs: Sequence[tuple[str, str | None]]) -> bool:
    """Tell whether a reader sees nothing of what an element holds.

    The panels of tabs are seen at a click, and whole pages are hidden until they are loaded.
    """
    given = {name: (value or "").strip().lower() for name, value in reversed(attrs)}
    if tag in ("body", "html") or given.get("role") == "tabpanel":
        return False
    return (
        tag in _UNSEEN
        or (tag == "dialog" and "open" not in given)
        or given.get("hidden", "until-found") != "until-found"
        or (given.get("aria-hidden") == "true" and tag not in ("article", "main"))
        or _HIDING.search("".join(given.get("style", "").split())) is not None
    )


def read_html(handle: BinaryIO, _: Reading) -> Iterator[FileRow]:
    """Yield a row for each paragraph, heading, list item and table of an HTML page.

    A table is written as in Markdown, all of it on one line; one that lays out the page (a table
    within it, a heading, a long cell) is read as the paragraphs of its cells. Drawings and
    menus (`nav`) are left out.
    """
    content = handle.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield FileRow(1, error=not_utf8(error), raw=content[:200])
        return
    page = _Paragraphs()
    page.feed(text)
    page.close()
    page.end_paragraph()
    page.end_table()
    yield from page.rows
