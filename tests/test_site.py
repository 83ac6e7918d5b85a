"""The site builds strictly, asks no other host, and refers to every public name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import embedlm
from benchmarks.recipes_figure import DOCS, SCHEMES, scores, svg

ROOT = Path(__file__).parents[1]
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|audio|video)\b[^>]*\bsrc="?(?P<src>https?:[^"\s>]*)"""
    r"""|<link\b(?=[^>]*rel="?(?:stylesheet|preconnect|preload|icon))[^>]*href="?(?P<link>https?:[^"\s>]*)""",
)
STYLE = re.compile(r"(?:url\(|@import\s+)[\"']?https?:")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_no_page_asks_another_host(site):
    for page in site.rglob("*.html"):
        found = [m[0] for m in FETCHED.finditer(page.read_text(encoding="utf-8"))]
        assert not found, f"{page}: {found}"
    for sheet in site.rglob("*.css"):
        assert not STYLE.search(sheet.read_text(encoding="utf-8")), sheet


def test_the_reference_has_every_public_name(site):
    pages = "".join(page.read_text(encoding="utf-8") for page in (site / "api").rglob("*.html"))
    names = {f"embedlm.{name}" for name in embedlm.__all__} - {"embedlm.__version__"}
    names = (names - {"embedlm.losses"}) | {f"embedlm.losses.{n}" for n in embedlm.losses.__all__}
    assert {name for name in names if f'id="{name}"' not in pages} == set()


def test_the_search_finds_words_of_docstrings(site):
    assert "improved_info_nce" in (site / "search/search_index.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_figure_of_the_home_page_shows_the_numbers_of_the_results(scheme):
    drawn = svg(scores((DOCS / "results.md").read_text(encoding="utf-8")), scheme)
    assert (DOCS / f"assets/recipes-{scheme}.svg").read_text(encoding="utf-8") == drawn
