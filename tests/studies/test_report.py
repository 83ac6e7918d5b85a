"""Reports: numbers are those of the files, the page is whole by itself, and works in a browser."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from embedlm.errors import InputError
from embedlm.evaluation.results import Result, write_results
from embedlm.evaluation.sample import Sample
from embedlm.studies.report import check_outputs, read_found, report, write_report
from embedlm.studies.report.marks import number
from tests.browser import LAPTOP, PHONE, audit, chromium, opened
from tests.command import sentences


def result(task, score, seed=0, kind="retrieval"):
    rng = np.random.default_rng(seed)
    values = np.clip(rng.normal(score, 0.2, 60), 0, 1)
    sample = Sample.of(
        "mean", "query", [str(i) for i in range(60)], [["t"]] * 60, {"value": values}
    )
    mean = float(values.mean())
    return Result(task, "ndcg@10", mean, 2.0 + score, {}, (mean - 0.05, mean + 0.05), 0.025, "BCa",
                  sample, {"kind": kind})  # fmt: skip


def variant(label, value, x=None):
    scores = {"ndcg@10": value, "interval": [value - 0.03, value + 0.03], "seconds": 1.0}
    return {
        "label": label, "levels": {"dim": label}, "settings": {}, "model": {},
        "facts": {"parameters": 10.0, "bytes": 4.0 * float(label), "seconds": 1.0},
        "mean": value, "tasks": {"find": scores},
    }  # fmt: skip


def study():
    """A study's file with four numbered levels and a power law."""
    labels = ("64", "128", "256", "512")
    variants = [variant(label, 0.3 + 0.05 * i) for i, label in enumerate(labels)]
    row = {"better": "b", "p_holm": 0.001, "difference": 0.1, "interval": [0.05, 0.15]}
    compared = [
        {"variant": label, "against": "64", "mean": 0.05 * i, "mean_interval": [0.01, 0.2],
         "tasks": {"find": {**row, "better": "b" if i > 1 else ""}}}
        for i, label in enumerate(labels) if i
    ]  # fmt: skip
    places = [64.0, 128.0, 256.0, 512.0]
    fit = {
        "factor": "dim", "task": "find", "x_is": "level", "loss": "1 - ndcg@10", "x": places,
        "y": [0.7, 0.65, 0.6, 0.55], "c": 1.1, "exponent": 0.11, "exponent_interval": [0.08, 0.14],
        "floor": 0.0, "r2": 0.99, "places": places, "low": [0.6, 0.55, 0.5, 0.45],
        "middle": [0.7, 0.65, 0.6, 0.55], "high": [0.8, 0.75, 0.7, 0.65],
    }  # fmt: skip
    machine = {"system": "Linux", "processor": "x86", "cpus": 2, "threads": 1, "embedlm": "0",
               "torch": "2", "transformers": "5"}  # fmt: skip
    return {
        "schema": 1, "kind": "study", "command": ["embedlm", "study", "a<b"], "machine": machine,
        "seed": 42, "study": {"name": "dims", "question": "How many <dimensions>?",
                              "factors": {"dim": {label: {} for label in labels}}},
        "tasks": {"find": {"summary": "Finds.", "metric": "ndcg@10", "n": 60, "unit": "query"}},
        "variants": variants, "comparisons": compared, "fits": [fit], "verdict": ["Best: 512."],
    }  # fmt: skip


@pytest.fixture
def files(tmp_path):
    """Files of two models and a study."""
    for seed, (name, base) in enumerate((("good", 0.6), ("poor", 0.3), ("fair", 0.5))):
        found = [result(task, base, 7 * seed + i) for i, task in enumerate(("one", "two"))]
        write_results(tmp_path / f"{name}.json", found, {"name": name, "revision": "r"}, data={})
    (tmp_path / "dims.json").write_text(json.dumps(study()))
    return tmp_path


class Tags(HTMLParser):
    """Counts tags, and fails where one is not closed."""

    VOID = frozenset(["meta", "br", "hr", "img", "input", "link"])

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.ids, self.links = [], {}, [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen[tag] = self.seen.get(tag, 0) + 1
        facts = dict(attrs)
        self.ids += [facts["id"]] if "id" in facts else []
        self.links += [facts["href"]] if tag == "a" else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen[tag] = self.seen.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(folder, *names):
    found = [(name, read_found(folder / f"{name}.json")) for name in names]
    target = folder / "page.html"
    write_report(target, found)
    return target


def test_the_page_is_whole_by_itself(files):
    text = page_of(files, "good", "poor", "fair", "dims").read_text()
    tags = Tags(text)
    assert not tags.open
    assert len(tags.ids) == len(set(tags.ids))
    assert {link[1:] for link in tags.links} <= set(tags.ids)
    assert not re.search(r"""(?:src|href)="?https?:|url\(|@import""", text)
    assert "<dimensions>" not in text  # what files say is text, never markup
    # Each plot has its table.
    assert tags.seen["figure"] == 7
    assert tags.seen["details"] >= tags.seen["figure"]


def test_the_numbers_are_those_of_the_files(files):
    names = ("poor", "good", "fair")
    found = [(name, read_found(files / f"{name}.json")) for name in names]
    title, panels, _ = report(found)
    assert title == "Results"
    board = panels[0].table
    assert [row[1] for row in board.rows] == ["good", "fair", "poor"]
    means = {n: np.mean([r.score for r in one.results]) for n, one in found}
    for row in board.rows:
        assert row[2].startswith(f"{means[row[1]]:.4f} [")
    assert board.rows[2][3].startswith(f"{means['poor'] - means['good']:+.4f}")
    assert "worse" in panels[0].plot
    tasks = panels[1].table
    assert tasks.rows[0][0] == "one"
    assert tasks.head[3:] == list(names)


def test_markdown_has_the_tables(files):
    target = files / "report.md"
    write_report(target, [("dims", read_found(files / "dims.json"))])
    text = target.read_text()
    assert text.startswith("# Study: dims\n")
    assert "| **512** | **0.4500 [0.4200, 0.4800]** |" in text
    assert text.count("\n## ") == 5


def test_other_files_and_endings_are_refused(files, run):
    (files / "other.json").write_text('{"kind": "poem", "schema": 1}')
    with pytest.raises(InputError, match="results of the kind 'poem'"):
        read_found(files / "other.json")
    with pytest.raises(InputError, match=r"another ending than \.html"):
        check_outputs(["a.pdf"])
    assert "nothing to report" in run("report", "-o", "a.html").one_line()
    lost = run("report", files / "none.json", "-o", files / "a.html")
    assert lost.code == 2
    assert "none.json' is not there; check its name" in lost.one_line()
    told = run("report", files / "good.json", "-m", "x", "-o", files / "a.html").one_line()
    assert "for --map alone" in told


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "study", "schema": 1},
        {"kind": "advice", "schema": 1},
        {"kind": [], "schema": 1},
        {"schema": 1, "model": [], "details": {}},
        {"schema": 1, "model": {}, "details": []},
    ],
)
def test_damaged_results_are_refused(value, tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"r\.json"):
        read_found(path)


def test_options_of_a_map_without_texts_are_refused(files, run):
    for option in (("--clusters", "3"), ("--text-field", "body")):
        assert "--map" in run("report", files / "good.json", "-o", "x.html", *option).one_line()


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.12345, "0.1235"), (3.0, "3"), (12345.0, "12.3k"), (1.5e7, "15M"), (42.25, "42.2")],
)
def test_numbers_are_short(value, shown):
    assert number(value) == shown


def test_a_map_names_clusters_and_shows_its_trust(tiny_llama):
    import embedlm
    from embedlm.studies.report.maps import map_panels

    model = embedlm.load(tiny_llama, "plain-mean")
    texts = [f"{text} <{i}>" for i, text in enumerate(sentences(40))]
    drawn, similar = map_panels(model, texts, clusters=3)
    assert [row[0] for row in drawn.table.rows] == ["1", "2", "3"]
    assert sum(int(row[1]) for row in drawn.table.rows) == 40
    assert drawn.plot.count("<circle") == 40
    assert "&lt;0&gt;" in drawn.plot
    assert "trustworthiness" in drawn.answer
    assert similar.table.rows[0][2] == "1.00"
    again = map_panels(model, texts, clusters=3)
    assert again[0].plot == drawn.plot


# -- in a browser -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_chromium(browser, files, size, scheme):
    target = page_of(files, "good", "poor", "fair", "dims")
    with opened(browser, target.as_uri(), size=size, scheme=scheme) as seen:
        page = seen.page
        assert audit(page) == []
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(20, 22, 26)") == (scheme == "dark")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")  # the switch of schemes
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != paper
        mark = page.locator("svg .mark").first
        mark.focus()
        tip = page.locator("#tip")
        assert tip.is_visible()
        assert tip.inner_text() == mark.get_attribute("data-tip")
        page.keyboard.press("Escape")
        assert tip.is_hidden()
        summary = page.locator("summary").first
        summary.focus()
        page.keyboard.press("Enter")
        assert page.locator("details[open] table").first.is_visible()
        page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")
        assert audit(page) == []


@pytest.mark.parametrize("name", ["prompt", "sink"])
def test_the_studies_of_the_docs_can_be_read(browser, name):
    target = Path(__file__).parents[2] / "docs" / "studies" / f"{name}.html"
    with opened(browser, target.as_uri(), size=PHONE) as seen:
        assert audit(seen.page) == []


def test_a_map_and_its_heat_are_read_by_keyboard(browser, tiny_llama, tmp_path):
    import embedlm
    from embedlm.studies.report.maps import map_panels
    from embedlm.studies.report.page import page as page_with

    model = embedlm.load(tiny_llama, "plain-mean")
    panels = map_panels(model, sentences(24, longest=9), clusters=3)
    target = tmp_path / "map.html"
    target.write_text(page_with("Map", panels, ["by a test"]))
    with opened(browser, target.as_uri(), size=PHONE, scheme="dark") as seen:
        page = seen.page
        assert audit(page) == []
        page.locator("svg.heat").focus()
        for key, told in (
            ("ArrowRight", "1 and 1: "),
            ("ArrowDown", "2 and 1: "),
            ("End", "16 and 16: "),
        ):
            page.keyboard.press(key)
            assert page.locator("#tip").inner_text().startswith(told)
        page.locator("svg.map").focus()
        page.keyboard.press("ArrowLeft")
        assert page.locator("#tip").inner_text().startswith("1: ")


def test_a_file_that_holds_no_results_is_refused_with_what_to_give(run, tmp_path):
    for content in (b"", b"\xff", b"[" * 100_000, b"[1]", b"3"):
        (tmp_path / "bad.json").write_bytes(content)
        told = run("report", tmp_path / "bad.json", "-o", tmp_path / "r.html").one_line()
        assert "give what embedlm evaluate, study or advise wrote" in told
    (tmp_path / "study.json").write_text('{"kind": "study", "schema": 1}')
    pair = (tmp_path / "study.json", tmp_path / "study.json")
    assert "of the kind 'study'" in run("compare", *pair).one_line()


def test_a_map_is_not_drawn_over_its_texts(run, with_model, tmp_path):
    page = tmp_path / "texts.html"
    page.write_text("".join(f"<p>The river is {i} miles long.</p>" for i in range(30)))
    before = page.read_bytes()
    assert "is an input, too" in run("report", "--map", page, "-o", page, *with_model).one_line()
    assert page.read_bytes() == before
