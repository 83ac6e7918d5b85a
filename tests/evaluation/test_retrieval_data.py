"""Retrieval sets as people have them: odd ids, missing texts, judgements that cannot be."""

import json

import pytest

import embedlm
from embedlm.errors import RecordError
from embedlm.evaluation import evaluate
from embedlm.evaluation.readers import read_pairs, read_retrieval
from embedlm.evaluation.suite import RetrievalFields

CORPUS = [("1", "Plants make food."), ("größe/2", "Leaves make sugar."), (" 3", "Oil floats.")]
QUERIES = [("q1", "what do plants make"), ("q2", "what floats"), ("q3", "")]
QRELS = [("q1", 1, 2), ("q1", "größe/2", 0.5), ("q2", " 3", 1), ("q2", "1", -1), ("q3", "1", 1)]


@pytest.fixture
def written(tmp_path):
    """Return a function that writes a retrieval set, and returns its paths."""

    def write(corpus=CORPUS, queries=QUERIES, qrels=QRELS):
        paths = {}
        for name, rows, keys in (
            ("corpus", corpus, ("_id", "text")),
            ("queries", queries, ("_id", "text")),
            ("qrels", qrels, ("q", "d", "rel")),
        ):
            paths[name] = tmp_path / f"{name}.jsonl"
            lines = (json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows)
            paths[name].write_text("".join(lines))
        return paths

    return write


def read(paths):
    return read_retrieval(paths, RetrievalFields())


def test_ids_are_texts_and_gains_are_numbers_of_any_kind(written):
    found = read(written())
    assert found.relevant == {
        "q1": {"1": 2.0, "größe/2": 0.5}, "q2": {" 3": 1.0, "1": -1.0}, "q3": {"1": 1.0},
    }  # fmt: skip
    assert found.notes == {}


def test_what_is_judged_and_not_there_is_told(written, tiny_llama, tmp_path, run):
    qrels = [*QRELS, ("q1", "gone", 1), ("q2", "gone", 1), ("q9", "1", 1)]
    queries = [*QUERIES, ("q4", "unjudged")]
    found = read(written(qrels=qrels, queries=queries))
    assert found.notes == {
        "left_out": {
            "queries without a relevant document": 1,
            "judged queries without a text": 1,
        },
        "not_found": {"relevant documents that the corpus lacks": 1},
    }
    files = {part: f"{part}.jsonl" for part in ("corpus", "queries", "qrels")}
    suite = tmp_path / "suite.yaml"
    suite.write_text(json.dumps({"tasks": {"t": {"kind": "retrieval", "files": files}}}))
    model = embedlm.load(tiny_llama, "plain-mean", device="cpu")
    (result,) = evaluate(model, suite=suite, data=tmp_path)
    assert result.notes["not_found"] == found.notes["not_found"]
    assert result.more["recall@100"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    words = ("evaluate", tiny_llama, "--recipe", "plain-mean", "--cache", "none")
    told = run(*words, "--suite", suite, "--data", tmp_path).out
    assert "left out: 1 judged queries without a text" in told
    assert "not found: 1 relevant documents that the corpus lacks" in told


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"corpus": [*CORPUS, (1, "Other.")]}, r"corpus.jsonl:4: the id '1' has another text"),
        ({"queries": [*QUERIES, ("q1", "why")]}, r"queries.jsonl:4: the id 'q1' has another text"),
        ({"qrels": [*QRELS, ("q1", 1, 1)]}, r"qrels.jsonl:6: the document '1' has another gain"),
        ({"qrels": [*QRELS, ("q1", "x", "NaN")]}, r"qrels.jsonl:6: 'rel' is 'NaN'"),
        ({"qrels": [*QRELS, ("q1", "x", "inf")]}, r"qrels.jsonl:6: 'rel' is 'inf'"),
        ({"qrels": [*QRELS, ("q1", "x", [1])]}, r"qrels.jsonl:6: 'rel' is \[1\]; give a text"),
        ({"corpus": [("1", ["Plants", "food"])]}, r"corpus.jsonl:1: 'text' is \['Plants', 'foo"),
        ({"qrels": [("q1", "d1", 1)]}, r"no judged document \(such as 'd1'\) is in .*corpus.jsonl"),
    ],
)
def test_what_cannot_be_is_refused(written, rows, message):
    with pytest.raises(RecordError, match=message):
        read(written(**rows))


def test_what_stands_twice_and_is_the_same_counts_once(written):
    twice = read(written(CORPUS * 2, QUERIES * 2, QRELS * 2))
    assert twice == read(written())


def test_a_field_that_no_document_has_is_refused(written):
    with pytest.raises(RecordError, match="no document has 'title' or 'body'; there are: _id, te"):
        read_retrieval(written(), RetrievalFields(text="body"))


def test_a_gold_value_that_is_no_number_is_refused(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"s1": "a", "s2": "b", "score": "nan"}\n')
    with pytest.raises(RecordError, match=r"pairs.jsonl:1: 'score' is 'nan'"):
        read_pairs(file)
