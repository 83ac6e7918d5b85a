"""Links what a page names: arXiv numbers to the papers, names of the package to their reference."""

import re
from typing import Any

PAPER = re.compile(r"arXiv[: ]\s*(\d{4}\.\d{4,5})")
NAME = re.compile(r"<code>(embedlm(?:\.\w+)+)</code>")
MARKUP = re.compile(r"(<a\b.*?</a>|<pre\b.*?</pre>|<code\b.*?</code>|<[^>]*>)", re.DOTALL)


def on_page_content(html: str, **_: Any) -> str:
    """Return the page with these links; code blocks and existing links stay as they are.

    Names are references of mkdocs-autorefs, which drops those that no page documents.
    """
    parts = MARKUP.split(html)
    for place, part in enumerate(parts):
        if place % 2 == 0:
            parts[place] = PAPER.sub(r'<a href="https://arxiv.org/abs/\1">\g<0></a>', part)
        elif name := NAME.fullmatch(part):
            parts[place] = f'<autoref identifier="{name[1]}" optional>{part}</autoref>'
    return "".join(parts)
