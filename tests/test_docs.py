"""The documentation stays true: links resolve, code compiles, every recipe has its page."""

import ast
import re
from pathlib import Path

import pytest
import yaml

import embedlm

ROOT = Path(__file__).parent.parent
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_resolve_and_code_compiles(page):
    text = page.read_text(encoding="utf-8")
    for link in LINK.findall(text):
        assert (page.parent / link).exists(), link
    for block in BLOCK.findall(text):
        ast.parse(block)


def test_every_recipe_has_a_page_and_a_source():
    pages = "".join(p.read_text() for p in (ROOT / "docs/methods").glob("*.md"))
    for name in embedlm.recipes():
        assert f"`{name}`" in pages, name
    for page in (ROOT / "docs/methods").glob("*.md"):
        assert "## Source" in page.read_text(), page.name


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]

    def leaves(node):
        if isinstance(node, str):
            yield node
        elif isinstance(node, dict):
            for value in node.values():
                yield from leaves(value)
        else:
            for item in node:
                yield from leaves(item)

    pages = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    assert set(leaves(nav)) == pages
