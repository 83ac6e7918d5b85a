"""Passages know where they stand, and the nearest come first."""

import json
import time

import numpy as np
import pytest

import embedlm
from embedlm.adaptation.chunks import cut, read_corpus
from embedlm.errors import InputError, RecordError
from embedlm.search import MODES, Passage, SearchIndex, read_documents, read_passages
from embedlm.search.chunks import Chunking

GUIDE = """\
# Guide

Plants make food
from sunlight.


The quick brown fox.
"""


@pytest.fixture(scope="module")
def model(tiny_llama):
    return embedlm.load(tiny_llama, "plain-mean", device="cpu", lm_head=True)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "docs"
    (root / "inner").mkdir(parents=True)
    (root / ".hidden").mkdir()
    (root / "guide.md").write_text(GUIDE)
    (root / "inner" / "rows.jsonl").write_text('{"text": "A committee met."}\n\n"On Tuesday."\n')
    (root / "inner" / "table.csv").write_text('text\n"two\nlines"\nlast\n')
    (root / ".hidden" / "secret.md").write_text("secret")
    (root / ".secret.md").write_text("secret")
    (root / "picture.png").write_bytes(b"\xff\xfe")
    return root


def places(passages, root):
    return [(p.file.removeprefix(f"{root}/"), p.line, p.text) for p in passages]


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_an_index_scores_as_the_model_compares(model, similarity):
    own = model.with_recipe(model.recipe.override({"similarity": similarity}))
    hits = SearchIndex(own, PASSAGES).search("Plants", 4)
    query, documents = own.encode_query(["Plants"]), own.encode_document([p.text for p in PASSAGES])
    scores = sorted(own.similarity(query, documents)[0], reverse=True)
    np.testing.assert_allclose([hit.score for hit in hits], scores[:4], rtol=1e-4, atol=1e-5)


def test_a_folder_is_cut_into_passages_with_file_and_line(folder):
    assert places(read_passages(folder), folder) == [
        ("guide.md", 3, "Guide\nPlants make food from sunlight."),
        ("guide.md", 7, "Guide\nThe quick brown fox."),
        ("inner/rows.jsonl", 1, "A committee met."),
        ("inner/rows.jsonl", 3, "On Tuesday."),
        ("inner/table.csv", 2, "two\nlines"),
        ("inner/table.csv", 4, "last"),
    ]


def test_lines_are_passages_by_choice(folder):
    assert places(read_passages(folder / "guide.md", split="line"), folder) == [
        ("guide.md", 1, "# Guide"),
        ("guide.md", 3, "Plants make food"),
        ("guide.md", 4, "from sunlight."),
        ("guide.md", 7, "The quick brown fox."),
    ]


SECTIONS = """\
Before.
# Tyres #
## Pressure
Fill the front
tyre.

It loses air.
```sh
# no heading

## nor this
```
## Empty
# Rims
### Deep
Of steel.
"""


def test_a_passage_carries_the_headings_that_it_stands_under(tmp_path):
    (tmp_path / "a.md").write_text(SECTIONS)
    found = [(p.line, p.text) for p in read_passages(tmp_path)]
    assert found == [
        (1, "Before."),
        (4, "Tyres > Pressure\nFill the front tyre."),
        (7, "Tyres > Pressure\nIt loses air. ```sh # no heading ## nor this ```"),
        (13, "## Empty"),
        (16, "Rims > Deep\nOf steel."),
    ]
    assert [d.text for d in read_documents(tmp_path)] == [text for _, text in found]
    bare = [d.text for d in read_documents(tmp_path, headings=False)]
    assert bare[:4] == ["Before.", "# Tyres #", "## Pressure", "Fill the front tyre."]


def test_comments_of_markdown_are_no_text_but_those_in_code_are(tmp_path):
    text = "# Tyres\n\n<!-- not run: slow -->\nFill\n  <!-- a --> \nthem.\n\n<!-- b -->\n\n"
    (tmp_path / "a.md").write_text(text + "```\n<!-- in code -->\n```\n\n<!-- c --> B <!-- d -->\n")
    assert [(p.line, p.text) for p in read_passages(tmp_path)] == [
        (4, "Tyres\nFill them."),
        (10, "Tyres\n``` <!-- in code --> ```"),
        (14, "Tyres\n<!-- c --> B <!-- d -->"),
    ]


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("A.\n\n<!-- one\n\n# two\n-->\n\nB.", ["A.", "B."]),
        ("A.\n<!-- one\ntwo -->  \nB.", ["A. B."]),
        ("<!--\none --> A.\n\n# B\n\nC.", ["A.", "B\nC."]),
        ("<!-- never\n\n# B\n\nclosed.", ["<!-- never", "B\nclosed."]),
        ("```\n<!-- one\n```\n\n# B\n\nC --> D.", ["``` <!-- one ```", "B\nC --> D."]),
    ],
)
def test_comments_of_several_lines_are_no_text(tmp_path, text, seen):
    (tmp_path / "a.md").write_text(text)
    assert [p.text for p in read_passages(tmp_path)] == seen


@pytest.mark.parametrize(
    ("name", "text", "title"),
    [
        ("a.md", "# C# and F#\n\nText.", "C# and F#"),
        ("a.md", "# C# ##  \n\nText.", "C#"),
        ("a.md", "C#\n==\n\nText.", "C#"),
        ("a.md", "## #1 of all\n\nText.", "#1 of all"),
        ("a.html", "<h2>C#</h2>Text.", "C#"),
        ("a.html", "<h2>#1 of all</h2>Text.", "#1 of all"),
    ],
)
def test_number_signs_that_are_words_of_a_heading_stay(tmp_path, model, name, text, title):
    (tmp_path / name).write_text(text.replace("Text.", "Text of ten letters."))
    text = "Text of ten letters."
    assert [p.text for p in read_passages(tmp_path)] == [f"{title}\n{text}"]
    (chunk,) = cut(read_corpus(tmp_path).documents, model.tokenizer, 64)
    assert (chunk.title, chunk.text) == (title, text)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("- a\n---\nB.", ["- a", "B."]),
        ("2. a\nb\n---\n\nB.", ["2. a b", "B."]),
        ("> a\n---\nB.", ["> a", "B."]),
        ("| a |\n---\n| b |", ["| a | --- | b |"]),
        ("-a\n---\nB.", ["-a\nB."]),
    ],
)
def test_a_rule_below_an_item_makes_no_heading_of_it(tmp_path, text, seen):
    (tmp_path / "a.md").write_text(text)
    assert [p.text for p in read_passages(tmp_path)] == seen


@pytest.mark.parametrize(
    "code",
    [
        "````\n```\n# in\n```\n````",
        "~~~\n```\n# in\n~~~",
        "```\n``` sh\n# in\n```",
        "    # in",
        "\t# in",
        "```one``` line",
    ],
)
def test_code_of_markdown_gives_no_heading_and_ends_where_it_ends(tmp_path, code):
    (tmp_path / "a.md").write_text(f"# Tyres\n\n{code}\n\n## Rims\n\nOf steel.\n")
    first, last = read_passages(tmp_path)
    assert first.text == "Tyres\n" + " ".join(code.split())
    assert last.text == "Tyres > Rims\nOf steel."


def test_a_heading_of_many_blanks_is_read_at_once(tmp_path):
    (tmp_path / "a.md").write_text(f"# A{' ' * 200_000}b\n\nText.\n")
    start = time.perf_counter()
    assert len(read_passages(tmp_path)) == 3
    assert time.perf_counter() - start < 5


def test_a_comment_that_is_never_closed_is_text_and_its_code_is_code(tmp_path):
    page = "<!-- open\n```\n# no heading\n\n# nor this\n```\n# Heading\n\nText.\n"
    (tmp_path / "a.md").write_text(page)
    assert [(one.line, one.text) for one in read_passages(tmp_path)] == [
        (1, "<!-- open ``` # no heading # nor this ```"),
        (9, "Heading\nText."),
    ]


def test_underlined_words_of_markdown_are_headings(tmp_path):
    text = "---\ntitle: x\n---\n\nTyres\n=====\n\nTo\nfill\n---\nBy hand.\n\n- a\n\n---\n\n"
    (tmp_path / "a.md").write_text(text + "```\nno\n---\n```\n")
    assert [p.text for p in read_passages(tmp_path)] == [
        "x > Tyres > To fill\nBy hand.",
        "x > Tyres > To fill\n- a",
        "x > Tyres > To fill\n``` no --- ```",
    ]


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (
            "---\ntitle: 'Car care'\ntags: [a]\n---\nFill.\n\n## Rims\nOf steel.",
            ["Car care\nFill.", "Car care > Rims\nOf steel."],
        ),
        ("---\nhide: [toc]\n---\n\n# Tyres\n\nFill.", ["Tyres\nFill."]),
        ("---\ntitle: Tyres\n---\n# Tyres\nFill.", ["Tyres\nFill."]),
        ("---\ntitle:\n...\nFill.", ["Fill."]),
        ("---\n\nFill.\n\n---\n\nRims.", ["Fill.", "Rims."]),
        ("---\nFill: them: now.\n---\n", ["--- Fill: them: now. ---"]),
        ("---\ntitle: x\n\nFill.", ["--- title: x", "Fill."]),
        ("# Tyres\n\n* * *\n\nFill.\n\n    ___\n", ["Tyres\nFill."]),
    ],
)
def test_fields_at_the_head_of_markdown_and_lines_across_it_are_no_text(tmp_path, text, seen):
    (tmp_path / "a.md").write_text(text)
    assert [p.text for p in read_passages(tmp_path)] == seen


def test_whole_documents_are_cut_at_their_headings_and_at_nothing_else(tmp_path, model):
    text = "Tyres\n=====\n\nFill them.\n\n```sh\nfill\n\n# front\nfill\n```\n\n## Rims\nOf steel.\n"
    (tmp_path / "a.md").write_text(text)
    (whole,) = read_documents(tmp_path, whole=True)
    chunking = Chunking("headings", 400)
    found = [whole.text[a:b] for a, b in chunking.spans(whole.text, model.tokenizer)]
    code = "```sh fill # front fill ```"
    assert found == [f"# Tyres\n\nFill them.\n\n{code}", "## Rims\n\nOf steel."]
    lines = text.replace("\n", "\r\n")  # a record's own text, line by line
    found = [lines[a:b] for a, b in chunking.spans(lines, model.tokenizer)]
    assert [one[:5] for one in found] == ["Tyres", "## Ri"]


@pytest.mark.parametrize("code", ["~~~\n# in\n~~~", "    # in", "\t# in", "```\n# in\n```"])
def test_code_in_a_whole_document_hides_no_heading_and_is_none(tmp_path, model, code):
    (tmp_path / "a.md").write_text(f"# Tyres\n\n{code}\n\n## Rims\n\nOf steel.\n")
    (whole,) = read_documents(tmp_path, whole=True)
    spans = Chunking("headings", 400).spans(whole.text, model.tokenizer)
    assert [whole.text[a:b].split("\n")[0] for a, b in spans] == ["# Tyres", "## Rims"]


def test_a_page_of_html_is_cut_at_its_headings(tmp_path, model):
    page = "<title>Bicycles</title><p>To ride a bicycle.<h1>Tyres</h1><p>To fill them all."
    (tmp_path / "a.html").write_text(f"{page}<pre># code</pre><h6>R</h6>By one hand.")
    (whole,) = read_documents(tmp_path, whole=True)
    spans = Chunking("headings", 400).spans(whole.text, model.tokenizer)
    assert [whole.text[a:b] for a, b in spans] == [
        "# Bicycles\n\nTo ride a bicycle.",
        "## Tyres\n\nTo fill them all.\n\n    # code",
        "###### R\n\nBy one hand.",
    ]
    chunks = cut(read_corpus(tmp_path).documents, model.tokenizer, 64)
    assert [(one.title, one.heading) for one in chunks] == [
        ("Bicycles", ""),
        ("Bicycles", "Tyres"),
        ("Bicycles", "R"),
    ]


@pytest.mark.parametrize("name", ["a.md", "a.html"])
def test_a_heading_of_a_pages_length_drowns_no_passage_and_is_not_lost(tmp_path, name):
    huge = "word. " * 1000
    marked = {"a.md": f"# A\n\nTo a.\n# {huge}\n\nBelow.\n\n## B\n\nTo b.\n"}
    marked["a.html"] = f"<h1>A</h1>To a.<h1>{huge}</h1><p>Below.<h2>B</h2>To b."
    (tmp_path / name).write_text(marked[name])
    texts = [p.text for p in read_passages(tmp_path)]
    assert texts[0] == "A\nTo a."
    assert texts[-2:] == ["Below.", "B\nTo b."]
    assert max(map(len, texts)) <= 1200
    assert " ".join(texts).count("word") == 1000


@pytest.mark.parametrize("name", ["a.txt", "a.rst"])
def test_only_markdown_has_headings_of_number_signs(tmp_path, name):
    (tmp_path / name).write_text("# Tyres\n\nFill them.\n")
    assert [p.text for p in read_passages(tmp_path)] == ["# Tyres", "Fill them."]


def test_pieces_of_a_long_paragraph_carry_its_headings(tmp_path):
    (tmp_path / "long.md").write_text("# Tyres\n\n" + "One sentence here. " * 20)
    found = read_passages(tmp_path / "long.md", longest=100)
    assert len(found) == 4
    assert all(p.text.startswith("Tyres\nOne") and len(p.text) <= 106 for p in found)


def test_long_paragraphs_are_cut_and_nothing_is_lost(tmp_path):
    lines = [f"Sentence {i} is here. It has {'very ' * i}many words." for i in range(30)]
    text = "\n".join(lines) + "\n\n" + "x" * 250
    (tmp_path / "long.txt").write_text(text)
    found = read_passages(tmp_path / "long.txt", longest=100)
    assert all(len(passage.text) <= 100 for passage in found)
    assert "".join("".join(p.text for p in found).split()) == "".join(text.split())
    for passage in found:
        first_word = passage.text.split()[0]
        assert first_word[:90] in text.split("\n")[passage.line - 1]


def test_bad_files_are_told_with_file_and_line(folder):
    (folder / "inner" / "rows.jsonl").write_text('"fine"\n{"body": "x"}\n')
    with pytest.raises(RecordError, match=r"rows\.jsonl:2: no field 'text'"):
        read_passages(folder)
    (folder / "guide.md").write_bytes(b"fine\n\nfine\xff\n")
    with pytest.raises(RecordError, match=r"guide\.md:3: not valid UTF-8"):
        read_passages(folder)


def test_nothing_to_search_is_told(tmp_path):
    with pytest.raises(InputError, match="is not there"):
        read_passages(tmp_path / "none")
    with pytest.raises(InputError, match=r"holds no file that ends in one of \.txt"):
        read_passages(tmp_path)
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(InputError, match="holds no text to search"):
        read_passages(tmp_path)
    with pytest.raises(InputError, match="split 'word' is not known; allowed: paragraph, line"):
        read_passages(tmp_path, split="word")


TEXTS = ["Plants make food.", "The quick brown fox.", "A committee met.", "Photosynthesis!"]
PASSAGES = [Passage("a.txt", i + 1, text) for i, text in enumerate(TEXTS)]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_ranks_by_its_scores(model, mode):
    index = SearchIndex(model, PASSAGES, mode)
    found = index.search("The quick brown fox.", 4)
    assert [hit.rank for hit in found] == [1, 2, 3, 4]
    assert sorted(hit.passage.line for hit in found) == [1, 2, 3, 4]
    scores = [hit.score for hit in found]
    assert scores == sorted(scores, reverse=True)
    if mode in ("dense", "late-interaction"):
        assert found[0].passage == PASSAGES[1]
    if len(MODES[mode]) == 1:
        heads = list(MODES[mode])
        query = model.encode_query(["The quick brown fox."], heads=heads)
        wanted = model.similarity(query, model.encode_document(TEXTS, heads=heads))[0]
        found_scores = {hit.passage.line - 1: hit.score for hit in found}
        np.testing.assert_allclose([found_scores[i] for i in range(4)], wanted, rtol=1e-5)


def test_hybrid_fuses_both_runs_after_scaling_them(model):
    runs = [SearchIndex(model, PASSAGES, mode).search("Plants", 4) for mode in ("dense", "sparse")]
    wanted = np.zeros(4)
    for run in runs:
        scores = {hit.passage.line - 1: hit.score for hit in run}
        low, high = min(scores.values()), max(scores.values())
        wanted += [(scores[i] - low) / (high - low) / 2 for i in range(4)]
    found = SearchIndex(model, PASSAGES, "hybrid").search("Plants", 4)
    np.testing.assert_allclose(
        [hit.score for hit in found], np.sort(wanted)[::-1], rtol=1e-4, atol=1e-6
    )


def test_equal_passages_keep_the_order_of_the_files(model):
    same = [Passage("a.txt", line, "Plants make food.") for line in (1, 2, 3)]
    found = SearchIndex(model, same).search("food", 2)
    assert [hit.passage.line for hit in found] == [1, 2]


def test_search_refuses_what_it_cannot_do(model):
    with pytest.raises(InputError, match="search mode 'bm52' is not known; allowed: dense"):
        SearchIndex(model, PASSAGES, "bm52")
    index = SearchIndex(model, PASSAGES)
    with pytest.raises(InputError, match="the query is empty"):
        index.search("  ")
    with pytest.raises(InputError, match="top_k is 0"):
        index.search("x", 0)


def test_the_records_of_a_jsonl_may_name_their_text(tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps({"body": "Plants."}) + "\n")
    assert read_passages(tmp_path / "in.jsonl", text_field="body")[0].text == "Plants."


def test_passages_come_from_every_form_and_from_stdin(tmp_path, monkeypatch):
    import gzip
    import io

    root = tmp_path / "docs"
    root.mkdir()
    (root / "a.md.gz").write_bytes(gzip.compress(GUIDE.encode()))
    (root / "b.tsv").write_text('text\n"quoted\n')
    assert places(read_passages(root), root) == [
        ("a.md.gz", 3, "Guide\nPlants make food from sunlight."),
        ("a.md.gz", 7, "Guide\nThe quick brown fox."),
        ("b.tsv", 2, '"quoted'),
    ]
    assert read_passages(root / "a.md") == read_passages(root / "a.md.gz")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(GUIDE.encode())))
    assert [passage.line for passage in read_passages("-")] == [1, 3, 7]
