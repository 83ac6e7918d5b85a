"""An index: made, found in, changed, killed, pushed, refused; with a tiny model and real files."""

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import uuid
from itertools import pairwise

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import embedlm
from embedlm.errors import InputError, JobError, RecordError, UnsupportedError
from embedlm.search import (
    Chunking,
    FirstStage,
    Index,
    build_index,
    delete_documents,
    parse_filter,
    push_index,
    read_documents,
    writer,
)
from embedlm.search import edge as edge_module
from embedlm.search.chunks import sentence_spans
from embedlm.search.late import late_model, late_vectors
from embedlm.search.lexical import Bm25, bucket, counts, terms_of
from embedlm.search.snippets import best_sentence, snippet
from tests.command import sentences

UUID = str(uuid.UUID(int=5))
RECORDS = [
    {"id": 7, "text": "Plants make food from sunlight.", "year": 2001},
    {"id": "7", "text": "The quick brown fox jumps. A committee met on Tuesday.", "year": 2020},
    {"id": UUID, "text": "Chemical energy is stored in glucose.", "year": 2021},
    {"_id": "größe/1", "text": "Members asked why the irrigation plan failed.", "year": 2021},
]


@pytest.fixture(scope="module")
def model(tiny_llama):
    return embedlm.load(tiny_llama, "plain-mean", device="cpu")


@pytest.fixture
def corpus(tmp_path):
    return write(tmp_path / "corpus.jsonl", RECORDS)


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def answers(path, model, query="plants and glucose", **options):
    with Index.open(path, model) as index:
        return [(hit.id, hit.score, hit.text) for hit in index.search(query, **options)]


@pytest.mark.parametrize("way", ["forkserver", "spawn"])
def test_the_writer_does_not_run_the_callers_script_anew(corpus, model, tmp_path, monkeypatch, way):
    """A script that makes an index has no `if __name__ == "__main__"`."""
    script = tmp_path / "script.py"
    script.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__file__", str(script), raising=False)
    monkeypatch.setattr(main, "__spec__", None)
    # The process that forks is the same for all later tests: it must have imported the writer.
    context = multiprocessing.get_context(way) if way == "spawn" else writer._context(alone=True)
    assert context.get_start_method() == way
    monkeypatch.setattr(writer, "_context", lambda alone: context)
    assert build_index(corpus, tmp_path / "index", model, store="exact").passages == 4
    assert not (tmp_path / "ran").exists()
    assert (main.__file__, main.__spec__) == (str(script), None)


@pytest.mark.parametrize("store", ["edge", "exact"])
def test_every_mode_gives_ids_as_they_came_and_scores_of_the_model(corpus, model, tmp_path, store):
    report = build_index(corpus, tmp_path / "index", model, store=store)
    assert (report.documents, report.passages, report.added) == (4, 4, 4)
    hits = answers(tmp_path / "index", model, mode="dense")
    query, texts = model.encode_query(["plants and glucose"]), [r["text"] for r in RECORDS]
    scores = model.similarity(query, model.encode_document(texts))[0]
    ids = [7, "7", UUID, "größe/1"]
    expected = sorted(zip(ids, scores, texts, strict=True), key=lambda hit: -hit[1])
    assert [hit[0] for hit in hits] == [hit[0] for hit in expected]
    np.testing.assert_allclose([h[1] for h in hits], [h[1] for h in expected], rtol=1e-4)
    assert {hit[0] for hit in answers(tmp_path / "index", model, mode="bm25")} == {7, UUID}
    fused = answers(tmp_path / "index", model, fusion="rrf")
    assert len(fused) == 4
    assert fused[0][0] in (7, UUID)
    scaled = answers(tmp_path / "index", model)
    assert scaled == answers(tmp_path / "index", model, fusion="min_max")
    assert scaled != fused
    with Index.open(tmp_path / "index", model) as index:
        assert [[e.text for e in found] for found in index.fetch(["7", 7, "none"])] == [
            [RECORDS[1]["text"]],
            [RECORDS[0]["text"]],
            [],
        ]
        assert index.modes == ["dense", "bm25", "hybrid"]
        for options, told in [
            ({"mode": "sparse"}, "no vectors for the mode 'sparse'; allowed: dense, bm25"),
            ({"mode": "danse"}, "Did you mean 'dense'"),
            ({"weights": {"dense": 1}}, "ranks by dense, bm25"),
            ({"top_k": 0}, "top_k"),
            ({"where": {"type": "eq"}}, "a filter of type 'eq'"),
        ]:
            with pytest.raises(InputError, match=told):
                index.search("plants", **options)
        with pytest.raises(InputError, match="empty"):
            index.search("  ")


@pytest.mark.parametrize("store", ["edge", "exact"])
def test_several_queries_are_embedded_together_and_answered_as_one_by_one(
    corpus, model, tmp_path, store, monkeypatch
):
    build_index(corpus, tmp_path / "index", model, store=store, chunking=Chunking("tokens", 3))
    queries = ["plants and glucose", "a fox", "who met?"]
    with Index.open(tmp_path / "index", model) as index:
        for mode, options in (("hybrid", {"depth": 2}), ("dense", {"exact": True}), ("bm25", {})):
            alone = [index.search(q, 3, mode=mode, **options) for q in queries]
            asked = []
            encode = embedlm.Embedder.encode_query

            def counted(self, texts, encode=encode, asked=asked, **more):
                asked.append(len(texts))
                return encode(self, texts, **more)

            monkeypatch.setattr(embedlm.Embedder, "encode_query", counted)
            together = index.search_all(queries, 3, mode=mode, **options)
            monkeypatch.undo()
            assert asked == ([] if mode == "bm25" else [3])
            for one, other in zip(together, alone, strict=True):
                assert [hit.id for hit in one] == [hit.id for hit in other]
                scores = [[hit.score for hit in hits] for hits in (one, other)]
                np.testing.assert_allclose(*scores, rtol=1e-4, atol=1e-6)
        with pytest.raises(InputError, match="empty"):
            index.search_all(["plants", " "])
        assert index.search_all([]) == []
        vectors = {"dense": model.encode_query(queries)}
        given = index.search_all(queries, 3, mode="dense", vectors=vectors)
        assert [[hit.id for hit in hits] for hits in given] == [
            [hit.id for hit in index.search(query, 3, mode="dense")] for query in queries
        ]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"top_k": 0}, r"top_k is 0; give a number above 0"),
        ({"top_k": True}, r"top_k is True"),
        ({"mode": ["dense"]}, r"mode is \['dense'\]; give a name"),
        ({"depth": -1}, r"depth is -1; give a number above 0"),
        ({"rerank_depth": 0}, r"rerank_depth is 0"),
        ({"rerank": "a model"}, r"rerank is 'a model'; give an embedlm.Reranker or None"),
        ({"weights": [1, 2]}, r"weights is \[1, 2\]; give a number for each ranking"),
        ({"instruction": 5}, r"instruction is 5"),
        ({"exact": "no"}, r"exact is 'no'; give True or False"),
        ({"sentences": 2}, r"sentences is 2; give True or False"),
        ({"mode": "dense", "fusion": "rfr"}, r"fusion 'rfr' is not known.*Did you mean 'rrf'"),
        ({"mode": "dense", "vectors": {}}, r"vectors hold none for dense, and there are 1 queries"),
        ({"mode": "dense", "vectors": {"dense": np.ones((2, 32))}}, r"vectors hold 2 for dense"),
    ],
)
def test_a_search_refuses_what_it_cannot_use(corpus, model, tmp_path, options, told):
    build_index(corpus, tmp_path / "index", model, store="exact")
    with Index.open(tmp_path / "index", model) as index:
        with pytest.raises(InputError, match=told):
            index.search("plants", **options)
        with pytest.raises(InputError, match=told):
            index.search_all(["plants"], **options)
        for queries in ("plants", [5], None):
            with pytest.raises(InputError, match=r"quer(ies|y) is .*; give a (list of )?string"):
                index.search_all(queries)
        with pytest.raises(InputError, match=r"no option 'dept'.*Did you mean 'depth'"):
            index.search_all(["plants"], dept=3)


def test_what_cannot_be_read_is_set_aside_by_choice_and_stays_in_the_index(model, tmp_path, run):
    folder, index, rejects = tmp_path / "docs", tmp_path / "index", tmp_path / "bad.jsonl"
    folder.mkdir()
    (folder / "a.txt").write_text("Tyres wear out.")
    (folder / "b.txt").write_text("Oil floats.")
    write(folder / "r.jsonl", RECORDS[:2])
    options = {"store": "exact", "sync": True}
    assert build_index(folder, index, model, rejects=rejects, **options).set_aside == 0
    assert rejects.read_text() == ""
    (folder / "a.txt").write_bytes("Größe".encode("latin-1"))
    rows = [RECORDS[0], {"id": 9, "body": "no text"}, {**RECORDS[0], "text": "Twice."}]
    write(folder / "r.jsonl", [*rows, {"id": 10, "text": "New."}])
    with pytest.raises(RecordError, match=r"a\.txt:1: not valid UTF-8"):
        build_index(folder, index, model, **options)
    report = build_index(folder, index, model, rejects=rejects, **options)
    assert (report.added, report.deleted, report.set_aside) == (1, 0, 3)
    told = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert [(one["file"], one["line"]) for one in told] == [
        ("a.txt", 1),
        ("r.jsonl", 2),
        ("r.jsonl", 3),
    ]
    assert "given twice" in told[2]["error"]
    ids = {hit[0] for hit in answers(index, model, top_k=9, mode="dense")}
    assert ids == {"a.txt:1", "b.txt:1", 7, "7", 10}
    done = run("index", folder, "-o", index, "--rejects", rejects, "--sync")
    assert "set aside in" in done.err
    (folder / "b.txt").unlink()
    (folder / "r.jsonl").unlink()
    line = run("index", folder, "-o", tmp_path / "new", "--rejects", rejects).one_line()
    assert "holds no text to index" in line
    assert "not valid UTF-8" in line


def test_a_prompt_that_leaves_queries_no_room_is_told_when_the_index_is_made(
    corpus, model, tmp_path
):
    fields = {"prompt.query": "find what answers this: {text}", "prompt.max_length": {"query": 4}}
    narrow = model.with_recipe(model.recipe.override(fields))
    with pytest.raises(InputError, match="role query: the prompt alone takes"):
        build_index(corpus, tmp_path / "index", narrow, store="exact")
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("store", ["edge", "exact"])
@pytest.mark.parametrize("recipe", ["dense", "heads", "late"])
def test_what_has_moved_keeps_its_vectors(model, tiny_llama, tmp_path, store, recipe, monkeypatch):
    chunking = Chunking("sentences", 8, late=True) if recipe == "late" else None
    if recipe == "heads":
        heads = ["dense", {"sparse": {"restrict": "text"}}, "multi_vector"]
        own = embedlm.Recipe.load("plain-mean").override({"heads": heads})
        model = embedlm.load(tiny_llama, own, device="cpu", lm_head=True)
    folder, index = tmp_path / "docs", tmp_path / "index"
    (folder / "sub").mkdir(parents=True)
    pages = ["Tyres wear out. Check them.\n\nOil is checked monthly.\n", "Plants need light.\n"]
    records = [{"id": i, "text": f"Record {i} is about {i} plants.", "n": i} for i in range(4)]

    def lay(prose, rows):
        (folder / "a.txt").write_text(prose[0])
        (folder / "b.txt").write_text(prose[1])
        write(folder / "sub/r.jsonl", rows)

    def build(path):
        return build_index(folder, path, model, store=store, chunking=chunking, sync=True)

    lay(pages, records)
    total = build(index).added
    (folder / "a.txt").rename(folder / "c.txt")
    changed = [{**records[0], "n": 7}, *records[3:0:-1]]
    lay([pages[1], "Oil is checked monthly.\n\nTyres wear out. Check them.\n"], changed)
    asked = []
    encode = embedlm.Embedder.encode_document

    def counted(self, texts, **options):
        asked.extend(texts)
        return encode(self, texts, **options)

    monkeypatch.setattr(embedlm.Embedder, "encode_document", counted)
    report = build(index)
    if recipe == "late":  # the page with two paragraphs is another document
        assert report.added < total
    else:
        assert (report.added, asked) == (0, [])
    assert report.moved > 4
    assert build(index).moved == 0
    build(tmp_path / "fresh")
    for mode in ["dense", "bm25"] if recipe != "heads" else ["sparse", "late-interaction", "dense"]:
        with Index.open(index, model) as one, Index.open(tmp_path / "fresh", model) as other:
            for where in (None, "n>=3"):
                options = {"mode": mode, "top_k": 20, "where": where and parse_filter(where)}
                found, wanted = (i.search("plants oil", **options) for i in (one, other))
                told = [[(h.id, h.text, h.file, h.line) for h in hits] for hits in (found, wanted)]
                assert sorted(told[0], key=str) == sorted(told[1], key=str)
                scores = [{h.id: h.score for h in hits} for hits in (found, wanted)]
                rtol = 5e-2 if mode == "bm25" else 1e-4
                for id, score in scores[0].items():
                    assert score == pytest.approx(scores[1][id], rel=rtol, abs=1e-6)


def test_a_change_embeds_what_is_new_and_equals_an_index_made_at_once(corpus, model, tmp_path):
    index = tmp_path / "index"
    build_index(corpus, index, model)
    changed = [RECORDS[0], {**RECORDS[1], "text": "Glucose again."}, {"id": 9, "text": "New one."}]
    write(corpus, changed)
    report = build_index(corpus, index, model)
    assert (report.added, report.gone, report.documents) == (2, 2, 5)
    assert len(answers(index, model)) == 5
    assert build_index(corpus, index, model).gone == 2
    report = build_index(corpus, index, model, sync=True)
    assert (report.added, report.deleted, report.gone, report.documents) == (0, 2, 0, 3)
    build_index(corpus, tmp_path / "fresh", model)
    for mode in ("dense", "bm25", "hybrid"):
        found, expected = (answers(path, model, mode=mode) for path in (index, tmp_path / "fresh"))
        assert [hit[::2] for hit in found] == [hit[::2] for hit in expected]
        np.testing.assert_allclose(
            [hit[1] for hit in found],
            [hit[1] for hit in expected],
            rtol=1e-2 if mode == "bm25" else 1e-5,
        )
    assert delete_documents(index, [7]).documents == 2
    assert 7 not in [hit[0] for hit in answers(index, model)]
    with pytest.raises(InputError, match="no document with the id 7"):
        delete_documents(index, [7, "7"])
    assert len(list(index.glob("gen-*"))) == 1
    assert not (tmp_path / "index.part").exists()


def test_a_new_average_length_gives_every_document_a_new_vector(corpus, model, tmp_path):
    index = tmp_path / "index"
    build_index(corpus, index, model)
    longer = [{"id": f"long {i}", "text": "glucose " + "river stone " * 40} for i in range(4)]
    write(corpus, [*RECORDS, *longer])
    build_index(corpus, index, model)
    build_index(corpus, tmp_path / "fresh", model)
    found, expected = (answers(path, model, mode="bm25") for path in (index, tmp_path / "fresh"))
    assert [hit[0] for hit in found] == [hit[0] for hit in expected]
    np.testing.assert_allclose([h[1] for h in found], [h[1] for h in expected], rtol=1e-5)


def test_filters_re_ranking_and_metadata(corpus, model, tmp_path):
    build_index(corpus, tmp_path / "index", model)

    class Longest:
        def rank(self, query, documents, top_k=None):
            order = sorted(range(len(documents)), key=lambda i: -len(documents[i]))
            return [{"corpus_id": i, "score": float(len(documents[i]))} for i in order]

    with Index.open(tmp_path / "index", model) as index:
        hits = index.search("plants", where=parse_filter("year>=2021"))
        assert {hit.id for hit in hits} == {UUID, "größe/1"}
        assert all(hit.metadata == {"year": 2021} for hit in hits)
        ranked = index.search("plants", 2, mode="dense", rerank=Longest())
        assert [hit.id for hit in ranked] == ["7", "größe/1"]
        assert ranked[0].score == len(RECORDS[1]["text"])


def test_a_two_stage_index_gives_true_scores(corpus, model, tmp_path):
    build_index(corpus, tmp_path / "plain", model)
    build_index(corpus, tmp_path / "short", model, first=FirstStage("short", 8))
    plain, short = (answers(tmp_path / name, model, mode="dense") for name in ("plain", "short"))
    assert [hit[::2] for hit in plain] == [hit[::2] for hit in short]


def test_another_model_or_another_setting_is_refused(corpus, model, model_folder, tmp_path):
    build_index(corpus, tmp_path / "index", model)
    other = embedlm.load(model_folder("qwen3"), "plain-mean", device="cpu")
    recipe = model.with_recipe("plain-last")
    for wrong in (other, recipe):
        with pytest.raises(InputError, match="is another one"):
            Index.open(tmp_path / "index", wrong)
        with pytest.raises(InputError, match="is another one"):
            build_index(corpus, tmp_path / "index", wrong)
    for options in ({"store": "exact"}, {"chunking": Chunking("tokens")}, {"analyzer": "plain"}):
        with pytest.raises(InputError, match="made with other settings"):
            build_index(corpus, tmp_path / "index", model, **options)
    file = tmp_path / "index" / "index.json"
    facts = json.loads(file.read_text())
    del facts["model"]["identity"]["recipe"]["pooling"]["denoise"]  # as if it came later
    file.write_text(json.dumps(facts))
    with Index.open(tmp_path / "index") as index:  # loads the model that it was made with
        assert index.search("plants", mode="dense")[0].id is not None


@pytest.mark.parametrize("changed", ["weights", "config"])
def test_a_model_that_changed_in_its_place_is_refused_as_such(corpus, model, tmp_path, changed):
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    build_index(corpus, tmp_path / "index", embedlm.load(folder, device="cpu"))
    before = json.loads((folder / "config.json").read_text())
    if changed == "weights":
        weights = load_file(folder / "model.safetensors")
        save_file({name: 2 * t for name, t in weights.items()}, folder / "model.safetensors")
    else:
        (folder / "config.json").write_text(json.dumps({**before, "hidden_act": "gelu"}))
    told = "which is another one by now .*; make a new index"
    with Index.open(tmp_path / "index") as index, pytest.raises(InputError, match=told) as refused:
        index.search("plants")
    assert "--model" not in str(refused.value)
    for again in (None, embedlm.load(folder, device="cpu")):
        with pytest.raises(InputError, match=told):
            build_index(corpus, tmp_path / "index", again)
    if changed == "config":  # as if another version of transformers had written it
        file = tmp_path / "index" / "index.json"
        facts = json.loads(file.read_text())
        facts["model"]["identity"]["config"]["transformers"] = "4.0"
        file.write_text(json.dumps(facts))
        build_index(corpus, tmp_path / "index", embedlm.load(folder, device="cpu"))


def test_statistics_that_were_learnt_from_the_documents_come_with_the_index(corpus, tmp_path):
    build_index(corpus, tmp_path / "index", embedlm.load(recipe="static-tfidf", device="cpu"))
    fitted = embedlm.load(recipe="static-tfidf", device="cpu")
    fitted.fit([record["text"] for record in RECORDS])
    scores = fitted.similarity(
        fitted.encode_query(["plants"]), fitted.encode_document(["Plants make food from sunlight."])
    )
    with Index.open(tmp_path / "index") as index:
        hit = index.search("plants", 1, mode="dense")[0]
    assert hit.id == 7
    assert hit.score == pytest.approx(float(scores[0, 0]), rel=1e-5)


@pytest.mark.parametrize("weights", ["none", "sif"])
def test_an_index_is_fitted_to_its_documents_unless_the_model_was_before(
    corpus, tiny_llama, tmp_path, weights
):
    pooling = {"kind": "mean", "weights": weights, "remove_components": 1}
    bare = embedlm.load(tiny_llama, {"name": "f", "pooling": pooling}, device="cpu")
    apart = bare.with_recipe(bare.recipe).fit(sentences(40, seed=1))
    texts = [record["text"] for record in RECORDS]
    for name, given, wanted in (
        ("bare", bare, bare.with_recipe(bare.recipe).fit(texts)),
        ("apart", apart, apart.with_recipe(apart.recipe)),
    ):
        build_index(corpus, tmp_path / name, given, store="exact")
        expected = wanted.similarity(wanted.encode_query(texts[0]), wanted.encode_document(texts))
        with Index.open(tmp_path / name) as index:
            found = {hit.text: hit.score for hit in index.search(texts[0], 9, mode="dense")}
        np.testing.assert_allclose([found[text] for text in texts], expected[0], atol=1e-5)
        with Index.open(tmp_path / name, bare) as index:
            found = {hit.text: hit.score for hit in index.search(texts[0], 9, mode="dense")}
        np.testing.assert_allclose([found[text] for text in texts], expected[0], atol=1e-5)
    assert bare.readout.statistics is None  # and its next index is fitted to other documents
    with Index.open(tmp_path / "bare", bare) as one, Index.open(tmp_path / "apart", bare) as other:
        scores = [index.search(texts[0], 1, mode="dense")[0].score for index in (one, other)]
    assert scores == pytest.approx([1, 1], abs=1e-5)  # each reads its query as its documents
    assert bare.readout.statistics is None
    with pytest.raises(UnsupportedError, match="late chunking"):
        build_index(corpus, tmp_path / "l", apart, chunking=Chunking("sentences", 8, late=True))


@pytest.mark.parametrize(
    "damage", ["index.json", "catalogue.sqlite", "segments", "generation", "foreign folder"]
)
def test_a_damaged_index_is_told(corpus, model, tmp_path, damage):
    index = tmp_path / "index"
    build_index(corpus, index, model)
    (generation,) = index.glob("gen-*")
    if damage == "index.json":
        (index / "index.json").write_text('{"format": "embedlm index 1"}')
    elif damage == "catalogue.sqlite":
        (generation / "catalogue.sqlite").write_bytes(b"SQLite format 3\0" + bytes(4000))
    elif damage == "segments":
        for file in (generation / "store").rglob("*.json"):
            file.write_text("{")
    elif damage == "generation":
        generation.rename(index / "elsewhere")
    else:
        index = tmp_path
    with pytest.raises(InputError, match=r"damaged|again|is not an index|not valid JSON"):
        Index.open(index, model)
    if damage == "foreign folder":
        with pytest.raises(InputError, match="is no index"):
            build_index(corpus, index, model)


@pytest.mark.parametrize("damage", ["emptied", "halved", "gone", "other content"])
def test_damaged_files_of_the_store_are_told(corpus, model, tmp_path, damage):
    index, whole = tmp_path / "index", tmp_path / "whole"
    build_index(corpus, whole, model)
    expected = answers(whole, model, "the river", mode="dense")
    for name in ("mutable_id_tracker.mappings", "version.info", "page_0.dat", "store.json"):
        if damage == "other content" and name == "page_0.dat":  # compared by its size
            continue
        shutil.rmtree(index, ignore_errors=True)
        shutil.copytree(whole, index)
        file = next(index.glob(f"gen-*/store/**/{name}"))
        content = file.read_bytes()
        if damage == "gone":
            file.unlink()
        elif damage == "other content":
            file.write_bytes(bytes([content[0] ^ 255]) + content[1:])
        else:
            file.write_bytes(content[: 0 if damage == "emptied" else len(content) // 2])
        told = f"damaged: {file} .*make the index again"
        with pytest.raises(InputError, match=told):
            Index.open(index, model)
        with pytest.raises(InputError, match=told):
            delete_documents(index, [expected[0][0]])
        file.write_bytes(content)
        assert answers(index, model, "the river", mode="dense") == expected


def test_an_index_of_an_earlier_version_is_told_by_the_number_of_its_passages(model, tmp_path):
    index = tmp_path / "index"
    records = [{"id": i, "text": text} for i, text in enumerate(sentences(300, longest=20))]
    build_index(write(tmp_path / "many.jsonl", records), index, model)
    expected = answers(index, model)
    next(index.glob("gen-*/files.json")).unlink()
    assert answers(index, model) == expected
    mappings = next(index.glob("gen-*/store/**/mutable_id_tracker.mappings"))
    mappings.write_bytes(b"")
    for _ in range(2):  # the first has let go of the store
        with pytest.raises(InputError, match=r"the store holds \d+ passages and the catalogue 300"):
            Index.open(index, model)


@pytest.mark.parametrize("store", ["edge", "exact"])
def test_files_that_are_noted_stay_while_an_index_is_used(corpus, model, tmp_path, store):
    index = tmp_path / "index"
    build_index(corpus, index, model, store=store)
    (generation,) = index.glob("gen-*")
    noted = json.loads((generation / "files.json").read_text())
    assert {"catalogue.sqlite", "store/store.json" if store == "edge" else "store.npz"} <= {*noted}
    before = {name: (generation / name).read_bytes() for name, state in noted.items() if state}
    for _ in range(2):
        for mode in ("dense", "bm25"):
            answers(index, model, "the river", mode=mode)
        assert before == {name: (generation / name).read_bytes() for name in before}


def test_a_second_process_is_told_who_holds_the_index(corpus, model, tmp_path, run, with_model):
    build_index(corpus, tmp_path / "index", model)
    with Index.open(tmp_path / "index", model):
        done = run("search", tmp_path / "index", "plants", "--mode", "bm25")
        assert "another process has the index" in done.one_line()


def test_a_killed_run_goes_on_and_gives_the_same_index(model, tmp_path, run, with_model):
    records = [{"id": i, "text": text} for i, text in enumerate(sentences(1500, longest=40))]
    corpus = write(tmp_path / "many.jsonl", records)
    command = ("index", corpus, "-o", tmp_path / "index", *with_model)
    killed = run(*command, kill_at=(f"{tmp_path}/index.part/blocks/*.npz", 2, 0.0))
    assert killed.code == -9
    assert not (tmp_path / "index").exists()
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "index.part/blocks").iterdir()}
    again = run(*command, kill_at=(f"{tmp_path}/index/gen-000001.tmp", 1, 0.05))
    if again.code == -9:  # while the generation was written
        assert not (tmp_path / "index/index.json").exists()
        assert all(path.stat().st_mtime_ns == at for path, at in made.items())
        assert run(*command).code == 0
    build_index(corpus, tmp_path / "whole", model)
    for mode in ("dense", "bm25", "hybrid"):
        found, expected = (
            answers(tmp_path / name, model, "the river", mode=mode) for name in ("index", "whole")
        )
        assert found == expected


def test_a_push_is_resumable_and_a_server_answers_as_the_index(model, tmp_path, run):
    records = [{"id": i, "text": text, "n": i} for i, text in enumerate(sentences(300))]
    corpus = write(tmp_path / "many.jsonl", records)
    index, place = tmp_path / "index", str(tmp_path / "server")
    build_index(corpus, index, model)
    killed = run("index", "push", index, "--to", place, kill_at=(f"{index}/push-*.json", 1, 0.0))
    assert killed.code == -9
    assert push_index(index, place) == {
        "to": place,
        "collection": "index",
        "copied": 44,
        "deleted": 0,
    }
    assert not list(index.glob("push-*.json"))
    here = answers(index, model, "the river", where=parse_filter("n<150"))
    with Index.open(index, model, place=place) as pushed:
        there = pushed.search("the river", where=parse_filter("n<150"))
        assert [(hit.id, hit.text) for hit in there] == [(hit[0], hit[2]) for hit in here]
    write(corpus, records[:200])
    build_index(corpus, index, model, sync=True)
    assert push_index(index, place)["deleted"] == 100


def test_no_space_is_told_before_anything_is_written(corpus, model, tmp_path, monkeypatch):
    monkeypatch.setitem(edge_module.SPARE, "edge", 1 << 60)
    with pytest.raises(JobError, match="no space left for the index"):
        build_index(corpus, tmp_path / "index", model)
    monkeypatch.undo()
    assert build_index(corpus, tmp_path / "index", model).documents == 4


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    made = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], capture_output=True, check=False
    )
    if not made or made.returncode:
        pytest.skip("a small disk can be mounted by root alone")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("store", ["edge", "exact"])
def test_an_index_on_a_disk_that_is_read_only(corpus, model, tmp_path, store):
    index = tmp_path / "index"
    build_index(corpus, index, model, store=store)
    for options in ("bind", "remount,ro,bind"):
        done = subprocess.run(
            ["mount", "-o", options, index, index], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("a disk can be mounted by root alone")
    try:
        if store == "exact":
            assert answers(index, model)
        else:
            with pytest.raises(InputError, match=r"let this user write there, or .* --store exact"):
                Index.open(index, model)
        told = r"gen-000002.tmp cannot be written: Read-only file system. This user may not"
        with pytest.raises(JobError, match=told) as refused:
            delete_documents(index, [RECORDS[0]["id"]])
        write(corpus, [*RECORDS, {"id": "new", "text": "A new one."}])
        with pytest.raises(JobError, match=told):
            build_index(corpus, index, model)
        assert "room" not in str(refused.value)
        with pytest.raises(JobError, match=r"push.lock cannot be written: Read-only file system. "):
            push_index(index, str(tmp_path / "server"))
    finally:
        subprocess.run(["umount", "-l", index], check=True)


def test_a_disk_that_fills_up_ends_the_writer_and_not_the_caller(
    corpus, model, small_disk, monkeypatch
):
    spare = -(1 << 40)  # as if another process took the space
    monkeypatch.setitem(edge_module.SPARE, "edge", spare)
    free = shutil.disk_usage(small_disk).free
    (small_disk / "other").write_bytes(b"0" * (free - 100_000))
    with pytest.raises(JobError, match=r"no space left|cannot be written|ended"):
        build_index(corpus, small_disk / "index", model)
    assert not (small_disk / "index" / "index.json").exists()


def test_the_exact_store_needs_no_more_room_than_it_fills(corpus, model, small_disk):
    assert build_index(corpus, small_disk / "index", model, store="exact").documents == 4


# -- documents and chunks -----------------------------------------------------------------------


def test_documents_of_files_folders_and_beir(tmp_path):
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.md").write_text("# Title\n\nOne.\n\nTwo.\n")
    write(
        folder / "deep" / "b.jsonl", [{"text": "x"}, {"id": 3, "text": " "}, {"id": 4, "text": "y"}]
    )
    assert [(d.id, d.text) for d in read_documents(folder)] == [
        ("a.md:3", "Title\nOne."),
        ("a.md:5", "Title\nTwo."),
        ("deep/b.jsonl:1", "x"),
        (4, "y"),
    ]
    assert next(d.id for d in read_documents(folder, whole=True)) == "a.md"
    beir = tmp_path / "beir"
    beir.mkdir()
    write(beir / "corpus.jsonl", [{"_id": "4", "title": "T", "text": "body", "metadata": {"u": 1}}])
    write(beir / "queries.jsonl", [{"_id": "q", "text": "never read"}])
    (document,) = read_documents(beir)
    assert (document.id, document.text) == ("4", "T body")
    assert document.metadata == {"metadata": {"u": 1}}


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([{"id": 1, "text": "a"}, {"id": 1, "text": "b"}], "given twice"),
        ([{"id": 1.5, "text": "a"}], "a whole number or a UUID"),
        ([{"id": 1, "words": "a"}], "no text in the field"),
        ([{"id": 1, "text": 3}], "no text in the field"),
        ([{"id": 1, "text": " "}], "holds no text"),
    ],
)
def test_bad_documents_are_told_with_their_place(tmp_path, records, told):
    path = write(tmp_path / "bad.jsonl", records)
    with pytest.raises(InputError, match=told):
        list(read_documents(path))


@pytest.mark.parametrize("way", ["tokens", "sentences", "headings"])
@pytest.mark.parametrize(("size", "overlap"), [(8, 0), (8, 3), (40, 20)])
def test_chunks_hold_all_of_a_text_and_no_more_tokens_than_asked(model, way, size, overlap):
    text = "# One\n" + " ".join(sentences(12, 1)) + "\n\n## Two\n" + " ".join(sentences(9, 2))
    spans = Chunking(way, size, overlap).spans(text, model.tokenizer)
    covered = np.zeros(len(text), bool)
    for start, end in spans:
        covered[start:end] = True
        inside = model.tokenizer.backend_tokenizer.encode(text[start:end], add_special_tokens=False)
        assert len(inside.ids) <= size + 1  # a word at a chunk's edge may be cut otherwise alone
    assert not "".join(sign for sign, held in zip(text, covered, strict=True) if not held).strip()
    shared = sum(a[1] > b[0] for a, b in pairwise(spans))
    assert (shared > 0) == (overlap > 0) or way != "tokens"


def test_late_chunks_are_means_of_the_document_s_own_states(model):
    text = "Plants make food. The quick brown fox. A committee met on Tuesday."
    own = late_model(model)
    whole = late_vectors(own, text, [(0, len(text))])
    np.testing.assert_allclose(whole[0], own.encode_document(text), atol=1e-4)
    spans = sentence_spans(text)
    assert [text[a:b] for a, b in spans][1] == "The quick brown fox."
    vectors = late_vectors(own, text, spans)
    # Under a causal mask the first chunk sees nothing else; later ones do.
    alone = own.encode_document([text[a:b] for a, b in spans])
    np.testing.assert_allclose(vectors[0], alone[0], atol=1e-4)
    assert np.abs(vectors[1] - alone[1]).max() > 1e-3
    last = late_model(model.with_recipe(model.recipe.override({"pooling.kind": "max"})))
    assert late_vectors(last, text, spans).shape == vectors.shape
    with pytest.raises(UnsupportedError, match="late chunking needs"):
        late_model(model.with_recipe("plain-last"))


def test_a_document_beyond_the_model_s_length_is_read_in_windows(tiny_llama):
    short = late_model(embedlm.load(tiny_llama, "plain-mean", device="cpu", max_length=40))
    text = " ".join(sentences(12, 5))
    spans = sentence_spans(text)
    vectors = late_vectors(short, text, spans)
    assert vectors.shape == (len(spans), short.dim)
    assert np.isfinite(vectors).all()


def test_a_chunked_index_gives_each_document_once(model, tmp_path):
    (tmp_path / "a.md").write_text(" ".join(["Plants make food from sunlight."] * 30))
    (tmp_path / "b.md").write_text("A committee met on Tuesday. " * 10)
    for late in (False, True):
        index = tmp_path / f"index-{late}"
        report = build_index(
            tmp_path / "a.md", index, model, chunking=Chunking("tokens", 30, 5, late)
        )
        assert report.documents == 1
        assert report.passages > 3
        build_index(tmp_path / "b.md", index, model)
        hits = answers(index, model, "sunlight", top_k=5)
        assert [hit[0] for hit in hits] == ["a.md", "b.md"]


@pytest.mark.parametrize("late", [False, True])
def test_documents_that_are_now_cut_otherwise_are_embedded_anew(model, tmp_path, monkeypatch, late):
    folder, index = tmp_path / "docs", tmp_path / "index"
    folder.mkdir()
    (folder / "a.md").write_text(
        "Dr. Miller eats. Plants grow. It rains on J. Smith. Then he left."
    )
    (folder / "b.md").write_text("It rained. The sun came out.")
    chunking = Chunking("sentences", 6, late=late)
    with monkeypatch.context() as patch:  # as sentences were told apart before
        patch.setattr(
            "embedlm.search.chunks.sentence_gaps",
            lambda text, lines: (gap.span() for gap in re.finditer(r"(?<=[.!?])\s+", text)),
        )
        build_index(folder, index, model, chunking=chunking)
        assert answers(index, model, "Dr.", mode="bm25")[0][2] == "Dr."
    report = build_index(folder, index, model)
    assert report.added + report.moved > 0
    fresh = build_index(folder, tmp_path / "fresh", model, chunking=chunking)
    assert (report.documents, report.passages) == (fresh.documents, fresh.passages)
    for query in ("Dr.", "Smith", "sun"):
        found, expected = (answers(path, model, query) for path in (index, tmp_path / "fresh"))
        assert [hit[2] for hit in found] == [hit[2] for hit in expected]
        found, expected = (
            answers(path, model, query, mode="dense") for path in (index, tmp_path / "fresh")
        )
        assert found == expected
    again = build_index(folder, index, model)
    assert (again.added, again.moved, again.deleted) == (0, 0, 0)


# -- BM25 and snippets ----------------------------------------------------------------------------


def test_scores_of_bm25_are_those_of_bm25s():
    bm25s = pytest.importorskip("bm25s")
    texts = sentences(120, 3)
    tokens = [terms_of(text) for text in texts]
    retriever = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    retriever.index(tokens, show_progress=False)
    average = float(np.mean([len(one) for one in tokens]))
    found: dict[int, int] = {}
    for text in texts:
        for term in counts(text):
            found[term] = found.get(term, 0) + 1
    bm25 = Bm25(average)
    documents = bm25.documents(texts)
    for query in sentences(6, 4, 6):
        scores = (bm25.query(query, found, len(texts)) @ documents.T).toarray()[0]
        np.testing.assert_allclose(scores, retriever.get_scores(terms_of(query)), rtol=1e-4)


def test_terms():
    assert terms_of("The Queries' bodies, of 3 buses") == ["query", "body", "3", "buse"]
    assert terms_of("The Bodies", "plain") == ["the", "bodies"]
    assert terms_of("東京都に", query=True) == ["東京", "京都", "都に"]
    assert terms_of("東京都に") == ["東京", "京都", "都に", *"東京都に"]
    assert terms_of("猫", query=True) == terms_of("猫") == ["猫"]
    with pytest.raises(InputError, match="allowed: english, plain"):
        terms_of("a", "german")


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("手机", ["zh"]),  # beside Latin letters
        ("报告", ["zh"]),  # within a run without blanks
        ("买", ["zh"]),  # one sign
        ("GPU", ["ja"]),
        ("佐々木", ["ja"]),
        ("ธนาคาร", ["th"]),
        ("सड़क", []),  # shares letters with the document, not its vowel signs
        ("सड़कें", ["hi"]),
        ("كتب", ["ar"]),
    ],
)
def test_words_of_other_scripts_are_found(model, tmp_path, query, found):
    texts = {
        "zh": "2024年度报告：他买了iPhone手机",
        "ja": "佐々木さんはGPUサーバーを使う",
        "th": "วันนี้ธนาคารปิด",
        "hi": "सड़कें बंद हैं",
        "ar": "كَتَبَ الوَلَدُ",
    }
    records = [{"id": id, "text": text} for id, text in texts.items()]
    build_index(write(tmp_path / "c.jsonl", records), tmp_path / "index", model, store="exact")
    assert [hit[0] for hit in answers(tmp_path / "index", model, query, mode="bm25")] == found


def test_the_matching_sentence_is_marked(corpus, model, tmp_path):
    text = "Plants make food. The tyre lost its pressure! " + "Nothing else. " * 40
    weights = {bucket("tyre"): 2.0, bucket("make"): 1.0}
    span = best_sentence(text, weights, "english")
    assert text[slice(*span)] == "The tyre lost its pressure!"
    shown = snippet(text, span)
    assert "«The tyre lost its pressure!»" in shown
    assert len(shown) < 260
    assert best_sentence("One. Two.", {}, "english") is None
    text, query = "The cook is new. Who knows Dr. Miller? He eats.", "who is dr miller"
    span = best_sentence(text, counts(query, query=True), "english")
    assert "«Who knows Dr. Miller?»" in snippet(text, span)
    build_index(corpus, tmp_path / "index", model)
    with Index.open(tmp_path / "index", model) as index:
        (hit,) = (h for h in index.search("tuesday", mode="dense", sentences=True) if h.id == "7")
        assert hit.text[slice(*hit.sentence)] == "A committee met on Tuesday."
        (hit,) = (h for h in index.search("zzz", mode="dense", sentences=True) if h.id == "7")
        parts = ["The quick brown fox jumps.", "A committee met on Tuesday."]
        nearest = model.similarity(model.encode_query(["zzz"]), model.encode_document(parts))
        assert hit.text[slice(*hit.sentence)] == parts[int(nearest[0].argmax())]
        (hit,) = (h for h in index.search("zzz", mode="dense") if h.id == "7")
        assert hit.sentence == (0, 26)


# -- the command line -----------------------------------------------------------------------------


def test_the_commands(corpus, tmp_path, run, with_model):
    index = tmp_path / "index"
    made = run("index", corpus, "-o", index, *with_model, "--json")
    assert json.loads(made.out)["documents"] == 4, made
    done = run("search", index, "plants", "-k", "2", "--json")
    hits = json.loads(done.out)["hits"]
    assert len(hits) == 2
    assert set(hits[0]) >= {"id", "score", "text"}
    shown = run("search", index, "fox", "--mode", "bm25")
    assert "7  «The quick brown fox jumps.» A committee met" in shown.out
    asked = run("search", index, "--mode", "bm25", "-k", "1", stdin="fox\nglucose\n")
    assert asked.out.count("«") == 2, asked
    assert run("index", "delete", index, '"7"', "--json").code == 0
    assert json.loads(run("search", index, "fox", "--mode", "bm25", "--json").out) == {"hits": []}
    for arguments, told in [
        (("search", index, "x", "--mode", "sparse"), "allowed: dense, bm25, hybrid"),
        (("search", index, "x", "--where", "year"), "cannot be read"),
        (("search", index, "x", "--split", "line"), "is an index"),
        (("search", index, "x", "--max-length", "8"), "leave --max-length out"),
        (("search", index, "x", "--mode", "bm25", "--fusion", "rrf"), "of a hybrid search"),
        (("search", corpus, "x", "--where", "a=1"), "is no index"),
        (("search", corpus, "x", "--mode", "bm25"), "needs an index"),
        (("index", corpus, "-o", index, "--late"), "give --chunk"),
        (("index", corpus, "-o", index, "--store", "exact"), "other settings"),
        (("index", corpus, "-o", corpus), "is no index"),
        (("index", "delete", index, "99"), "no document with the id 99"),
        (("index", "push", index, "--to", "http://127.0.0.1:9"), "check the URL"),
    ]:
        assert told in run(*arguments).one_line()


def test_a_length_is_kept_with_the_index_for_queries_too(corpus, tiny_llama, tmp_path, run):
    index, text = tmp_path / "index", RECORDS[1]["text"]
    for recipe in (("-r", "plain-mean"), ()):
        options = ("-m", tiny_llama, *recipe, "--device", "cpu", "--max-length", "4")
        if not recipe:
            embedlm.load(tiny_llama, "plain-mean").save_pretrained(tmp_path / "own")
            options = ("-m", tmp_path / "own", *options[2:])
        made = run("index", corpus, "-o", index, *options, "--store", "exact")
        assert made.code == 0, made
        with Index.open(index) as opened:
            assert opened.model.renderer.max_length("query") == 4
            assert opened.model.renderer.max_length("document") == 4
        asked = json.loads(run("search", index, text, "--mode", "dense", "--json").out)
        assert asked["hits"][0]["score"] == pytest.approx(1)
        files = run("search", corpus, text, *options, "--json")
        assert json.loads(files.out)[0]["score"] == pytest.approx(1), files
        index = tmp_path / "second"
