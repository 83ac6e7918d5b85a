"""Documents are cut into passages that the model reads whole."""

import json
from itertools import pairwise
from time import process_time

import pytest

import embedlm
from embedlm.errors import InputError
from embedlm.search import Chunking, Index, build_index, read_documents, read_passages, reads_whole
from embedlm.search.chunks import sentence_spans
from tests.command import sentences
from tests.models import build_tokenizer

LIMIT = 40


@pytest.fixture(scope="module")
def short(tiny_llama):
    return embedlm.load(tiny_llama, "plain-mean", device="cpu", max_length=LIMIT)


@pytest.fixture
def pages(tmp_path):
    folder = tmp_path / "pages"
    folder.mkdir()
    table = " | ".join(sentences(40, 3)).replace(".", "")
    (folder / "a.md").write_text("# Tyres\n\n" + " ".join(sentences(60, 2)) + f"\n\n| {table} |\n")
    (folder / "b.txt").write_text("x" * 900)
    return folder


def shortened(model, texts):
    return [text for text in texts if model.render([text], role="document").truncated[0]]


def test_paragraphs_of_prose_are_cut_to_what_the_model_reads(short, pages):
    assert shortened(short, [p.text for p in read_passages(pages)])
    found = read_passages(pages, fits=reads_whole(short))
    assert shortened(short, [p.text for p in found]) == []
    words = "".join(p.text.removeprefix("Tyres\n") for p in found)
    whole = "".join((pages / name).read_text() for name in ("a.md", "b.txt"))
    assert "".join(words.split()) == "".join(whole.removeprefix("# Tyres").split())
    assert [d.text for d in read_documents(pages, fits=reads_whole(short))] == [
        p.text for p in found
    ]


def test_sentences_stay_whole_where_they_fit(short, tmp_path):
    lines = ["Plants make food from sunlight.", "A committee met on Tuesday."] * 20
    (tmp_path / "a.txt").write_text(" ".join(lines))
    found = read_passages(tmp_path / "a.txt", fits=reads_whole(short))
    assert all(p.text.endswith(".") for p in found)
    assert len(found) < len(lines) / 2


@pytest.mark.parametrize(
    "unit", ["| Plants make food. Light is stored. |", "- Go. Plants make food."]
)
def test_tables_are_cut_at_rows_and_lists_at_items(short, tmp_path, unit):
    (tmp_path / "a.md").write_text("\n".join([unit] * 20))
    found = read_passages(tmp_path / "a.md", fits=reads_whole(short))
    assert len(found) < 20
    assert {p.text.count(unit) * (len(unit) + 1) - len(p.text) for p in found} == {1}


def test_headings_leave_room_for_the_text_below_them(short, tmp_path):
    marks = "\n\n".join(f"{'#' * n} Part {n}: {'q' * 15}" for n in (1, 2, 3))
    below = " ".join(sentences(20, 4))
    (tmp_path / "a.md").write_text(f"{marks}\n\n{below}")
    found = [p.text for p in read_passages(tmp_path / "a.md", fits=reads_whole(short))]
    assert shortened(short, found) == []
    assert len(found) < 80
    words = "".join("\n".join(found).split())
    assert all("".join(line.lstrip("#").split()) in words for line in marks.split("\n"))


def test_text_without_spaces_is_cut_where_a_sentence_ends(short, tmp_path):
    (tmp_path / "a.txt").write_text("轮胎漏气。" * 40)
    found = [p.text for p in read_passages(tmp_path / "a.txt", fits=reads_whole(short))]
    assert {text[-1] for text in found} == {"。"}
    assert "".join(found) == "轮胎漏气。" * 40


def test_blanks_that_are_longer_than_a_passage_are_none(short, tmp_path):
    (tmp_path / "a.txt").write_text("a" * 900 + " " * 5000 + "b")
    found = [p.text for p in read_passages(tmp_path / "a.txt", fits=reads_whole(short))]
    assert all(found)
    assert "".join(found) == "a" * 900 + "b"


def test_an_index_shortens_no_passage_of_prose(short, pages, tmp_path, caplog):
    report = build_index(pages, tmp_path / "index", short, store="exact")
    assert report.passages > len(list(read_documents(pages)))
    assert "shortened" not in caplog.text
    with Index.open(tmp_path / "index", short) as index:
        assert index.search("tyres", 3)
    again = build_index(pages, tmp_path / "index", short)
    assert (again.added, again.deleted) == (0, 0)


def test_a_model_without_a_limit_reads_all(tiny_llama, pages):
    long = embedlm.load(tiny_llama, "plain-mean", device="cpu", max_length=100_000)
    long.renderer.positions = None
    assert shortened(long, [p.text for p in read_passages(pages, fits=reads_whole(long))]) == []


def test_an_empty_cell_ends_no_row(tmp_path):
    row = "| Go. |  | Up. |"
    (tmp_path / "a.md").write_text("\n".join([row] * 20))
    found = read_passages(tmp_path / "a.md", fits=lambda text: len(text) <= 45)
    assert {p.text for p in found} == {f"{row} {row}"}


@pytest.mark.parametrize("overlap", [0, 5])
def test_no_chunk_ends_within_a_character(overlap):
    model, text = embedlm.load(device="cpu"), "嚭嘬仈塅册原使伊喫嘾呥喀埏塦侣咿噈俾一哝叶塀儲凄" * 4
    spans = Chunking("tokens", 20, overlap).spans(text, model.tokenizer)
    ids = [model.tokenizer(text[a:b], add_special_tokens=False)["input_ids"] for a, b in spans]
    assert max(map(len, ids)) <= 20
    assert (spans[0][0], spans[-1][1]) == (0, len(text))
    assert all(
        start == end or (overlap and start < end) for (_, end), (start, _) in pairwise(spans)
    )


def test_long_blanks_are_read_in_one_pass():
    begun = process_time()
    assert sentence_spans(" " * 100_000 + "x" + " " * 100_000) == [(100_000, 100_001)]
    assert process_time() - begun < 1


@pytest.mark.parametrize("way", ["sentences", "headings"])
def test_what_lies_between_sentences_counts_as_tokens_of_a_chunk(way):
    model = embedlm.load(device="cpu")
    text = "\n\n\n".join(["Go.", "Plants make food from light.", "It rained."] * 60)
    for size, overlap in ((24, 0), (24, 9)):
        chunks = [text[a:b] for a, b in Chunking(way, size, overlap).spans(text, model.tokenizer)]
        lengths = [len(model.tokenizer(chunk)["input_ids"]) for chunk in chunks]
        assert max(lengths) <= size
        assert min(lengths[:-1]) > size / 2


def test_chunks_are_as_long_as_the_model_reads(short, tmp_path):
    (tmp_path / "a.md").write_text(" ".join(sentences(60, 2)))
    tokens = Chunking("tokens")
    build_index(tmp_path / "a.md", tmp_path / "i", short, chunking=tokens, store="exact")
    kept = json.loads((tmp_path / "i" / "index.json").read_text())["chunking"]["size"]
    assert LIMIT - 3 <= kept <= LIMIT
    build_index(tmp_path / "a.md", tmp_path / "i", short, chunking=tokens)
    for late in (False, True):
        chunking = Chunking("tokens", LIMIT + 1, late=late)
        with pytest.raises(InputError, match=f"chunks of {LIMIT + 1} tokens.* reads {kept} of a"):
            build_index(tmp_path / "a.md", tmp_path / "j", short, chunking=chunking, store="exact")


def test_the_command_line_cuts_so_and_refuses_so(run, tiny_llama, pages, tmp_path):
    options = ("-m", tiny_llama, "-r", "plain-mean", "--set", f"prompt.max_length={LIMIT}")
    found = run("search", pages, "tyres", "-k", 1, *options)
    assert found.code == 0, found.err
    assert "shortened" not in found.err
    whole = (*options, "--max-length", LIMIT)
    asked = run("search", pages, "tyres", "-k", 100, "--json", *whole)
    assert len(json.loads(asked.out)) == len(read_passages(pages))
    for name, given in (("cut", options), ("whole", whole)):
        made = run("index", pages, "-o", tmp_path / name, "--store", "exact", *given)
        assert made.code == 0, made.err
    kept = [json.loads((tmp_path / n / "index.json").read_text()) for n in ("cut", "whole")]
    assert kept[0]["passages"] > kept[1]["passages"] == len(list(read_documents(pages)))
    cut = ("--chunk", "tokens", "--chunk-size", 300, "--store", "exact")
    refused = run("index", pages, "-o", tmp_path / "index", *options, *cut)
    assert refused.code == 2
    assert "give a size (--chunk-size) of at most" in refused.one_line()
    assert not (tmp_path / "index").exists()


TABLE_HEAD = ["| food | what it does |", "|:---|---|"]


@pytest.fixture(scope="module")
def roomy(tiny_llama):
    return embedlm.load(tiny_llama, "plain-mean", device="cpu", max_length=4 * LIMIT)


def rows(count):
    return [f"| dish {at} | It is eaten. By some, e.g. at noon. |" for at in range(count)]


@pytest.mark.parametrize("longest", [200, 1200])
@pytest.mark.parametrize("above", [["Dishes are listed:"], ["Dishes are listed:", ""]])
def test_each_part_of_a_long_table_begins_with_its_first_row(roomy, tmp_path, above, longest):
    file = tmp_path / "a.md"
    file.write_text("\n".join(["# Food", "", *above, *TABLE_HEAD, *rows(40), "", "That is all."]))
    found = read_passages(file, longest=longest, fits=reads_whole(roomy))
    texts = [p.text.removeprefix("Food\n") for p in found]
    assert texts[0] == "Dishes are listed:"
    assert texts[-1] == "That is all."
    head = " ".join(TABLE_HEAD) + " "
    assert all(text.startswith(head) for text in texts[1:-1])
    assert len(texts) > 5
    kept = " ".join(text.removeprefix(head) for text in texts[1:-1])
    assert kept == " ".join(rows(40))
    assert shortened(roomy, [p.text for p in found]) == []
    # The line of a part's first own row, not that of the head.
    lines = file.read_text().splitlines()
    if longest == 200:
        starts = {p.line for p in found[2:-1]}
        assert all(lines[at - 1].startswith("| dish") for at in starts)


def test_a_row_of_a_table_is_one_unit_of_a_chunk():
    text = "\n".join(["It is so. It is not.", *TABLE_HEAD, *rows(3), "a | b. Not a row."])
    units = [text[a:b] for a, b in sentence_spans(text)]
    assert units == ["It is so.", "It is not.", *TABLE_HEAD, *rows(3), "a | b.", "Not a row."]


def test_what_only_looks_like_a_table_is_prose(tmp_path):
    for words in (
        "a | b\n--- | ---",
        "Go.\n| one row |\nNo rule. At all.",
        "```\nx\n| a |\n|---|\n```",
    ):
        (tmp_path / "a.md").write_text(words + "\n")
        assert [p.text for p in read_passages(tmp_path / "a.md")] == [" ".join(words.split("\n"))]


@pytest.mark.parametrize("form", ["md", "html"])
@pytest.mark.parametrize("way", ["sentences", "headings"])
def test_a_table_of_a_file_is_cut_between_its_rows(tmp_path, form, way):
    rows = [["name", "what it is"]] + [[f"n{i}", "a thing. that. stands here"] for i in range(30)]
    if form == "md":
        lines = [f"| {a} | {b} |" for a, b in rows]
        text = "\n".join(["# Limits", "", lines[0], "|---|---|", *lines[1:]])
    else:
        cells = "".join(f"<tr><td>{a}</td><td>{b}</td></tr>" for a, b in rows)
        text = f"<h1>Limits</h1><table>{cells}</table>"
    (tmp_path / f"a.{form}").write_text(text)
    (document,) = read_documents(tmp_path, whole=True)
    spans = Chunking(way, 80).spans(document.text, build_tokenizer())
    chunks = [document.text[start:end] for start, end in spans]
    assert len(chunks) > 3
    assert all(chunk.endswith("|") and chunk.startswith(("|", "#")) for chunk in chunks)
