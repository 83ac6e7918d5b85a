"""HTML and PDF are read as the text that a reader sees."""

import io
import time

import pytest

from embedlm.data import Source
from embedlm.errors import InputError, MissingExtraError
from embedlm.search import read_passages

PAGE = """<!DOCTYPE html>
<html><head><title>Tyres &amp; rims</title>
<style>p { color: red }</style><script>var hidden = "<p>no</p>";</script></head>
<body><h1>Pressure</h1>
<p>Fill the <b>front</b>
tyre to 3&nbsp;bar.<br/>Then ride.
<ul><li>one<li>two</ul>
<table><tr><td>a</td><td>b</td></tr></table>
<!-- not seen --></body></html>
"""


def test_html_is_read_as_paragraphs_with_lines(tmp_path):
    (tmp_path / "page.html").write_text(PAGE)
    found = [(passage.line, passage.text) for passage in read_passages(tmp_path)]
    above = "Tyres & rims > Pressure"
    assert found == [
        (5, f"{above}\nFill the front tyre to 3 bar."),
        (6, f"{above}\nThen ride."),
        (7, f"{above}\none"),
        (7, f"{above}\ntwo"),
        (8, f"{above}\na"),
        (8, f"{above}\nb"),
    ]
    texts = [row.value for row in Source(tmp_path / "page.html").rows()]
    assert texts[:3] == ["Tyres & rims", "Pressure", "Fill the front tyre to 3 bar."]
    assert len(texts) == 8


def test_a_title_that_is_the_first_heading_too_stands_once(tmp_path):
    body = "<body><h1>Tyres</h1><button>Dark</button><h2>Pressure</h2><p>Fill them.</body>"
    (tmp_path / "page.html").write_text(f"<head><title>Tyres</title></head>{body}")
    assert [p.text for p in read_passages(tmp_path)] == ["Tyres > Pressure\nFill them."]


def test_the_title_of_a_drawing_is_not_the_pages(tmp_path):
    drawing = "<svg><title>Arrow</title></svg>"
    body = f"<h1>Tyres</h1>{drawing}<h2>Pressure</h2><p>Fill them."
    (tmp_path / "page.html").write_text(f"<title>Shop</title>{body}")
    assert [p.text for p in read_passages(tmp_path)] == ["Shop > Tyres > Pressure\nFill them."]


DATA = """<table><caption>Bars</caption><thead><tr><th>tyre<th>bar<tbody>
<tr><th>front<td><p>2.5</p></tr><tr><td>rear<br>left</td><td></td><td>new</td></tr></table>"""
DATA_SEEN = "| tyre | bar |  | | --- | --- | --- | | front | 2.5 |  | | rear left |  | new |"


def test_a_table_of_html_is_a_passage_as_one_of_markdown(tmp_path):
    (tmp_path / "page.html").write_text(f"<h1>Tyres</h1>\n\n<p>All.</p>{DATA}<p>End.")
    found = [(p.line, p.text.partition("\n")[2]) for p in read_passages(tmp_path)]
    assert found == [(3, "All."), (3, "Bars"), (3, DATA_SEEN), (4, "End.")]


def test_a_long_table_of_html_is_cut_between_its_rows(tmp_path):
    rows = "".join(f"<tr><td>tyre {n}<td>{n} bar" for n in range(40))
    (tmp_path / "page.html").write_text(f"<table><tr><th>name<th>pressure{rows}")
    found = [p.text for p in read_passages(tmp_path, longest=200)]
    assert len(found) > 3
    head = "| name | pressure | | --- | --- | "
    assert all(text.startswith(head) and text.endswith("bar |") for text in found)
    assert sum(text.count("tyre ") for text in found) == 40


@pytest.mark.parametrize(
    "table",
    [
        "<table><tr><td>One.<td>Two.</table>",
        "<table><tr><td>One.<tr><td>Two.</table>",
        "<table><tr><td>One.<table><tr><td></table><tr><td>Two.<td></table>",
        f"<table><tr><td>One.<td><tr><td>Two.<td>{'Long. ' * 60}</table>",
        "<table><tr><td><h2>One.</h2><td><tr><td>Two.<td></table>",
        "</table><p>One.</table><p>Two.</table>",
    ],
)
def test_a_table_that_lays_out_a_page_is_read_as_its_paragraphs(tmp_path, table):
    (tmp_path / "page.html").write_text(table)
    texts = [row.value for row in Source(tmp_path / "page.html").rows()]
    assert texts[:2] == ["One.", "Two."]


@pytest.mark.parametrize("end", ["</nav>", "", "</div>"])
def test_a_menu_is_no_text_and_one_that_is_not_closed_hides_no_page(tmp_path, end):
    menu = f"<nav><h2>Pages</h2><ol><li><a href='#1'>Tyres</a></ol><nav><p>Rims</nav>{end}"
    (tmp_path / "page.html").write_text(f"<p>One.</p>{menu}<main><p>Two.</p></main>")
    texts = [row.value for row in Source(tmp_path / "page.html").rows()]
    assert texts == ["One.", "Two."]


@pytest.mark.parametrize("end", ["</svg>", "", "</g>"])
def test_what_a_drawing_says_is_no_text_and_one_that_is_not_closed_hides_no_page(tmp_path, end):
    drawing = f"<svg><title>Arrow</title><desc>up</desc><g><text>0.5</text><text>1.0</text>{end}"
    (tmp_path / "page.html").write_text(f"<p>One.</p>{drawing}<p>Two.</p>")
    texts = [row.value for row in Source(tmp_path / "page.html").rows()]
    assert texts == ["One.", "Two."]


def test_a_button_that_is_not_closed_hides_no_page(tmp_path):
    page = "<p>a</p><button>Dark<p>icon</p><template><button>b</template><main><p>Fill them.</main>"
    (tmp_path / "page.html").write_text(page + "</button><button>c</button>end")
    assert [p.text for p in read_passages(tmp_path)] == ["a", "Fill them.", "end"]


@pytest.mark.parametrize(
    ("page", "seen"),
    [
        ("<p>a<p hidden>b<p>c", "a|c"),
        ("<div hidden>a<div>b</div>c</div>d", "d"),
        ("<p hidden>a<div>b</div>", "b"),
        ("<div><p hidden>a</div>b", "b"),
        ("<ul><li hidden>a<ul><li>n</ul><li>b</ul>c", "b|c"),
        ("<dl><dt hidden>a<dd>b</dl>", "b"),
        ("<table><tr><td hidden>a<td>b<tr hidden><td>c<tr><td>d</table>e", "b|d|e"),
        ("<table hidden><tr><td>a</div>b</table>c", "c"),
        ("<select><option hidden>a<option>b</select>", "b"),
        ("<span hidden>a<b>x</span>b", "b"),
        ("<a hidden>x<div>y</a>z</div>w", "z|w"),
        ("<button hidden>a<h1>b</h1>", "b"),
        ("<input hidden>a<br hidden>b<div hidden/>c", "a|b|c"),
        ("<p hidden=''>a</p><p HIDDEN=hidden>b</p><p hidden=false>c</p>d", "d"),
        ("<p hidden=until-found>a</p><div role=tabpanel hidden>b</div>", "a|b"),
        ("<p>a <a href=#a aria-hidden=true>#</a></p><p aria-hidden=false>b", "a|b"),
        ("<body hidden><main aria-hidden=true>a</main><main hidden>b</main>", "a"),
        ("<dialog>a</dialog><dialog open>b</dialog>", "b"),
        ("<p>a<noscript>Turn scripts on</noscript><video>old</video><iframe>old</iframe>", "a"),
        ("<template><div>a</template>b", "b"),
        (
            "<p style='color: red; DISPLAY : none !important'>a</p><p style='display:nonesuch'>b",
            "b",
        ),
        ("<p style=visibility:hidden>a</p><p style='--x:display:none'>b", "b"),
        ("</div>a<i>b</div>c</i>", "ab|c"),
    ],
)
def test_what_a_page_hides_is_left_out(page, seen, tmp_path):
    (tmp_path / "page.html").write_text(page)
    assert "|".join(row.value for row in Source(tmp_path / "page.html").rows()) == seen


def test_pages_of_many_open_elements_are_read_soon(tmp_path):
    (tmp_path / "page.html").write_text("<div><font>" * 20_000 + "</i>" * 20_000 + "a")
    begun = time.process_time()
    assert len(list(Source(tmp_path / "page.html").rows())) == 1
    assert time.process_time() - begun < 5


def test_long_paragraphs_of_html_are_cut(tmp_path):
    (tmp_path / "page.htm").write_text("<p>" + "One sentence here. " * 20)
    passages = read_passages(tmp_path / "page.htm", longest=100)
    assert len(passages) == 4
    assert all(len(passage.text) <= 100 for passage in passages)


def test_html_that_is_not_utf_8_is_refused(tmp_path):
    (tmp_path / "page.html").write_bytes("<p>é".encode("latin-1"))
    with pytest.raises(InputError, match=r"page\.html:1: not valid UTF-8"):
        read_passages(tmp_path)


def test_a_pdf_without_pypdf_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pypdf", None)
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4")
    with pytest.raises(MissingExtraError, match=r'pip install "embedlm\[pdf\]"'):
        read_passages(tmp_path)


def pdf(*pages):
    """Return a PDF with a line of text a page."""
    pypdf = pytest.importorskip("pypdf")
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = pypdf.PdfWriter()
    for text in pages:
        page = writer.add_blank_page(200, 200)
        font = DictionaryObject(
            {
                NameObject("/Type"): NameObject("/Font"),
                NameObject("/Subtype"): NameObject("/Type1"),
                NameObject("/BaseFont"): NameObject("/Helvetica"),
            }
        )
        fonts = DictionaryObject({NameObject("/F1"): font})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        stream = DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode() if text else b"")
        page[NameObject("/Contents")] = writer._add_object(stream)
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def test_a_pdf_is_read_by_pages(tmp_path):
    (tmp_path / "a.pdf").write_bytes(pdf("A river flows.", "A bridge stands."))
    found = [(passage.line, passage.text) for passage in read_passages(tmp_path)]
    assert found == [(1, "A river flows."), (2, "A bridge stands.")]


def test_a_pdf_without_text_and_a_damaged_one_are_refused(tmp_path):
    (tmp_path / "a.pdf").write_bytes(pdf(""))
    with pytest.raises(InputError, match="holds no text"):
        read_passages(tmp_path)
    (tmp_path / "a.pdf").write_bytes(b"no PDF at all")
    with pytest.raises(InputError, match="cannot be read as PDF"):
        read_passages(tmp_path)
