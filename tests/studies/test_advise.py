"""Advice: queries from titles, scores as evaluate gives them, the front, budgets, commands."""

import contextlib
import json
import shlex

import pytest

import embedlm
from embedlm.cli import main
from embedlm.errors import InputError, ModelError, RecordError
from embedlm.evaluation import evaluate
from embedlm.studies.advise import Budget, advise, named, read_corpus
from embedlm.studies.advise.candidates import Candidate
from embedlm.studies.advise.using import commands, kept_by_an_index
from embedlm.studies.report.panels import pareto
from embedlm.training.widths import dense_width
from tests.command import sentences

TEXTS = [text for text in dict.fromkeys(sentences(80, longest=20)) if len(text.split()) > 6][:40]


@pytest.fixture
def beir(tmp_path):
    """A BEIR folder whose queries are the first words of documents."""
    folder = tmp_path / "beir"
    folder.mkdir()
    rows = {
        "corpus": [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(TEXTS)],
        "queries": [{"_id": f"q{i}", "text": " ".join(TEXTS[i].split()[:4])} for i in range(20)],
        "qrels": [{"q": f"q{i}", "d": f"d{i}", "rel": 1} for i in range(20)],
    }
    for name, records in rows.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


def test_the_front_has_what_no_other_beats():
    points = [(1, 5), (2, 2), (3, 3), (1, 5), (4, 1)]
    assert pareto(points) == [True, True, False, True, True]


def test_scores_are_those_of_evaluate(beir, tiny_llama, tmp_path):
    corpus = read_corpus(beir)
    advice = advise(corpus, [f"{tiny_llama}@plain-mean"], work=tmp_path / "work")
    suite = tmp_path / "suite.yaml"
    files = {part: f"{part}.jsonl" for part in ("corpus", "queries", "qrels")}
    suite.write_text(json.dumps({"tasks": {"t": {"kind": "retrieval", "files": files}}}))
    model = embedlm.load(tiny_llama, "plain-mean")
    by_label = {one["label"].partition(", ")[2]: one for one in advice.candidates}
    for label, options in (("32", {}), ("32 binary", {"precision": "binary"})):
        (result,) = evaluate(model, suite=suite, data=beir, encode=options)
        assert by_label[label]["ndcg@10"] == pytest.approx(result.score)
    assert by_label["32"]["bytes"] == 128
    assert by_label["32 int8"]["bytes"] == 32
    assert by_label["32 binary"]["bytes"] == 4
    words = next(one for one in advice.candidates if one["label"] == "bm25")
    assert words["ndcg@10"] > 0.8  # queries are words of their documents
    chosen = advice.recommendation["label"]
    best = max(advice.candidates, key=lambda one: one["ndcg@10"])
    row = next(one for one in advice.candidates if one["label"] == chosen)
    assert row["front"] or row["p_equal_to_best"] > 0.05
    assert best["ndcg@10"] - row["ndcg@10"] < 0.2
    json.dumps(advice.as_dict(), allow_nan=False)


def test_a_budget_is_kept_and_vectors_are_computed_once(beir, tiny_llama, tmp_path):
    corpus, work = read_corpus(beir), tmp_path / "work"
    name = f"{tiny_llama}@plain-mean"
    advise(corpus, [name], work=work)
    kept = {path: path.stat().st_mtime_ns for path in work.iterdir()}
    assert len(kept) == 1
    advice = advise(corpus, [name], Budget(bytes=40, memory_mb=5000), path="my docs/", work=work)
    assert {path: path.stat().st_mtime_ns for path in work.iterdir()} == kept
    chosen = next(
        one for one in advice.candidates if one["label"] == advice.recommendation["label"]
    )
    assert chosen["bytes"] <= 40
    assert "'my docs/'" in advice.recommendation["commands"][0]
    with pytest.raises(
        InputError, match=r"no candidate fits the budget; the smallest is .* binary"
    ):
        advise(corpus, [name], Budget(bytes=1), work=work)


@pytest.mark.parametrize(
    ("precision", "mode"),
    [
        ("int8", "dense"),
        ("int8", "hybrid"),
        ("binary", "dense"),
        ("binary", "hybrid"),
        ("float32", "hybrid"),
        (None, "bm25"),
    ],
)
@pytest.mark.parametrize("form", ["folder", "beir", "file"])
def test_the_commands_run_as_they_are_told(beir, run, tiny_llama, tmp_path, form, precision, mode):
    where, field = beir, "text"
    if form == "folder":
        where = tmp_path / "my docs"
        where.mkdir()
        for number in range(2):
            (where / f"{number}.md").write_text("\n\n".join(TEXTS[number::2]))
    if form == "file":
        where, field = tmp_path / "own.jsonl", "body"
        where.write_text((beir / "corpus.jsonl").read_text().replace('"text"', '"body"'))
    name = None if precision is None else f"{tiny_llama}@plain-mean"
    chosen = Candidate("", name, mode, 16, precision, [1.0], 1.0, 1.0, 16.0, whole=False)
    told = commands(chosen, str(where), field, "float32")
    assert [line.split()[1] for line in told[:2]] == ["index", "search"]
    assert told[1].endswith(f"--mode {mode}")
    assert ("--set dim=16" in told[0]) == (precision is not None)
    assert ("--first-stage binary" in told[0]) == (precision == "binary")
    own = precision in ("int8", "binary")  # an index keeps float32 vectors
    assert len(told) == 2 + own
    assert bool(kept_by_an_index(chosen)) == own
    for line in told:
        name, *words = shlex.split(line)
        assert name == "embedlm"
        made = ("corpus.index", "vectors", "vectors.npy")
        done = run(*(tmp_path / word if word in made else word for word in words))
        assert done.code == 0, (line, done.err)


def test_titles_and_headings_become_queries(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text(
        "# How to resume\n\nGive the command again.\n\nIt goes on.\n\n## Setup\n\nInstall it.\n\n"
        "## The same words\n\nOne.\n"
    )
    (folder / "b.md").write_text("# The same words\n\nTwo.\n\n# Worn tyres slip\n\nCheck them.\n")
    corpus = read_corpus(folder)
    asked = dict(zip(corpus.queries, corpus.answers, strict=True))
    texts = dict(zip(corpus.ids, corpus.texts, strict=True))
    # A short heading stands below the page's title; one that stands twice is no query.
    assert set(asked) == {"How to resume", "How to resume Setup", "Worn tyres slip"}
    (own,) = asked["How to resume"]
    assert texts[own] == "Give the command again."
    assert not any(text.startswith("#") for text in corpus.texts)


def test_titles_of_records_are_taken_out_of_their_texts(tmp_path):
    rows = [{"_id": f"d{i}", "title": f"Title number {i}", "text": f"Body {i}"} for i in range(5)]
    folder = tmp_path / "beir"
    folder.mkdir()
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = read_corpus(folder)
    assert corpus.texts == [f"Body {i}" for i in range(5)]
    assert corpus.queries == [f"Title number {i}" for i in range(5)]
    few = corpus.sampled(3, 2)
    assert len(few.ids) == 3
    assert len(few.queries) == 2
    assert {d for gains in few.answers for d in gains} <= set(few.ids)


def test_queries_of_the_user_s_own(beir, tmp_path):
    file = tmp_path / "asked.jsonl"
    file.write_text('{"query": "a", "answers": ["d1", "d2"]}\n{"query": "b", "answers": "d3"}\n')
    corpus = read_corpus(beir, file)
    assert corpus.answers == [{"d1": 1.0, "d2": 1.0}, {"d3": 1.0}]
    file.write_text('{"query": "a", "answers": ["d1"]}\n{"query": "b", "answers": "none"}\n')
    with pytest.raises(RecordError, match=r"asked.jsonl:2.*no document 'none'"):
        read_corpus(beir, file)
    for record in ('{"question": "a"}', '{"query": " ", "answers": ["d1"]}'):
        file.write_text(f"{record}\n")
        with pytest.raises(RecordError, match=r"fields query .* and answers"):
            read_corpus(beir, file)
    file.write_text('{"question": "a"}\n')
    with pytest.raises(RecordError, match=r"fields query .* and answers"):
        read_corpus(beir, file)


def test_a_beir_folder_as_the_benchmark_writes_it_has_its_own_queries(beir):
    own = read_corpus(beir)
    rows = [json.loads(line) for line in (beir / "qrels.jsonl").read_text().splitlines()]
    (beir / "qrels.jsonl").unlink()
    (beir / "qrels").mkdir()
    lines = "".join(f"{row['q']}\t{row['d']}\t1\n" for row in rows)
    (beir / "qrels" / "dev.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}")
    assert read_corpus(beir) == own
    (beir / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td1\t1\n")
    with pytest.raises(InputError, match="2 splits, and none of test"):
        read_corpus(beir)
    (beir / "qrels" / "dev.tsv").rename(beir / "qrels" / "test.tsv")
    assert read_corpus(beir) == own


def test_signs_that_end_a_heading_are_no_words_of_it_and_those_of_a_word_are(tmp_path):
    pages = ["# Guides\n\n## Speed of C#\n\nIt is compiled.\n\n## Use of tools ##\n\nMany.\n"]
    (tmp_path / "a.md").write_text(pages[0])
    assert read_corpus(tmp_path).queries == ["Speed of C#", "Use of tools"]


def test_the_command(beir, tiny_llama, run, tmp_path):
    page = tmp_path / "advice.html"
    arguments = ("advise", beir, "-m", f"{tiny_llama}@plain-mean", "--work", tmp_path / "w")
    done = run(*arguments, "-o", page, "--device", "cpu")
    assert done.code == 0, done.err
    assert "take " in done.out
    assert "embedlm " in done.out
    assert "Which should I take?" in page.read_text()
    told = run(*arguments, "--bytes", "1", "--device", "cpu")
    assert told.code == 2
    assert "no candidate fits" in told.err
    (tmp_path / "plain.txt").write_text("One.\n\nTwo.\n")
    assert "give --queries FILE" in run("advise", tmp_path / "plain.txt").one_line()


def test_what_cannot_be_advised_is_refused(run, tiny_llama, tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    pages = [f"# The river number {i}\n\nIts bridge is {i} miles long.\n" for i in range(4)]
    for i, page in enumerate(pages):
        (folder / f"{i}.md").write_text(page)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "a@b").symlink_to(tiny_llama)
    model = f"{tmp_path / 'a@b'}@plain-mean"
    work = ("--work", tmp_path / "work")
    for more, told in (
        (("-o", folder / "0.md"), "lies inside the input"),
        (("--queries", tmp_path / "empty.jsonl"), "has 0 queries"),
        (("--max-queries", 1), "2 are the fewest"),
        (("--most-queries", 1), "2 are the fewest"),
    ):
        assert told in run("advise", folder, "-m", model, *work, *more).one_line()
    assert (folder / "0.md").read_text() == pages[0]
    for more, told in (
        (("--work", folder / "0.md" / "x"), "work folder"),
        (("-m", f"{tiny_llama}@", *work), "lacks what stands after the @"),
        (("-m", "@plain-mean", *work), "lacks what stands before the @"),
        (("-m", model, *work), "is given twice"),
    ):
        done = run("advise", folder, "-m", model, *more)
        assert done.code == 2
        assert told in done.err
    done = run("advise", folder, "-m", model, *work, "-o", folder / "a.json")
    assert done.code == 0, done.err
    for kept in (tmp_path / "work").glob("*.npz"):
        kept.write_bytes(b"damaged")
    assert run("advise", folder, "-m", model, *work).code == 0


def test_each_model_is_checked_once(beir, tiny_llama, tmp_path, monkeypatch):
    asked = []
    plain = named.network_config
    monkeypatch.setattr(
        named, "network_config", lambda folder: asked.append(folder) or plain(folder)
    )
    words = ("advise", beir, "-m", f"{tiny_llama}@plain-mean", "--work", tmp_path / "work")
    with contextlib.suppress(SystemExit):
        main([str(word) for word in words])
    assert asked == [str(tiny_llama)]


def test_the_folder_of_an_adapter_is_a_model(tiny_llama, tmp_path):
    config = {"peft_type": "LORA", "base_model_name_or_path": str(tiny_llama)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (found,) = named.check_models([f"{tmp_path}@plain-mean"])
    assert (found.model, found.recipe) == (str(tmp_path), "plain-mean")
    assert dense_width(str(tmp_path), embedlm.Recipe.load("plain-mean")) == 32
    config["base_model_name_or_path"] = str(tmp_path / "gone")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="no folder here"):
        named.check_models([str(tmp_path)])


def test_a_missing_model_is_refused_before_anything_is_computed(beir, run, tiny_llama, tmp_path):
    for name in (tmp_path / "missing", f"{tiny_llama}@missing"):
        done = run("advise", beir, "-m", tiny_llama, "-m", name, "--work", tmp_path / "work")
        assert (done.code, done.out) == (2, ""), done


def test_titles_without_blanks_are_queries(tmp_path):
    rows = [
        ("风力发电机", "叶片由玻璃纤维制成。"),
        ("核电站", "反应堆使用普通水。"),
        ("水", "冷。"),
    ]
    lines = (json.dumps({"id": t, "title": t, "text": text}) for t, text in rows)
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert read_corpus(tmp_path).queries == ["风力发电机", "核电站"]
