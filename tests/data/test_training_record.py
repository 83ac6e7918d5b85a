"""Records with ids, ranks, scores and provenance: read from every layout, written back the same."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedlm.data import Source, read_records, record_lines, training_records
from embedlm.data.training_record import Document, TrainingRecord, read_training_record
from embedlm.errors import RecordError

texts = st.text(st.characters(codec="utf-8"), min_size=1).map(str.strip).filter(bool)
documents = st.builds(
    Document, texts, st.none() | texts, st.floats(-5, 5), st.none() | st.integers(1, 99)
)


@given(texts, st.lists(documents, min_size=1), st.lists(documents), st.none() | texts)
def test_a_record_is_read_as_it_was_written(query, positives, negatives, instruction):
    for document in positives:
        document.rank = None  # positives are not mined
    told = {"negatives": {"by": "a test"}}
    distinct = {one.text for one in positives} & {one.text for one in negatives}
    negatives = [one for one in negatives if one.text not in distinct]
    record = TrainingRecord(query, positives, negatives, instruction, told, {"id": 5, "x": [1]})
    (line,) = record_lines(record, "records")
    assert read_training_record(json.loads(line), "here") == record


ROWS = {
    "sentence-transformers": {"anchor": "q", "positive": "p", "negative": "n", "scores": [2, 1]},
    "flagembedding": {
        "query": "q",
        "pos": ["p"],
        "neg": ["n"],
        "prompt": "find",
        "pos_scores": [2.0],
        "neg_scores": [1.0],
    },
    "tevatron": {
        "query_id": "7",
        "query": "q",
        "positive_passages": [{"docid": "a", "title": "", "text": "p"}],
        "negative_passages": [{"docid": "b", "title": "t", "text": "n"}],
    },
    "automodel": {"question": "q", "pos_doc": [{"id": "a", "text": "p"}], "neg_doc": ["n"]},
}


@pytest.mark.parametrize("layout", ROWS)
def test_every_layout_is_read(tmp_path, layout):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[layout]) + "\n")
    (record,) = training_records(Source(path))
    assert record.query == "q"
    assert [one.text for one in record.positives] == ["p"]
    assert [one.text for one in record.negatives] == ["t n" if layout == "tevatron" else "n"]
    ids = {"tevatron": ["a", "b"], "automodel": ["a", None]}.get(layout, [None, None])
    assert [one.id for one in record.documents] == ids
    if "scores" in ROWS[layout] or "pos_scores" in ROWS[layout]:
        assert [one.score for one in record.documents] == [2, 1]
    assert record.instruction == ("find" if layout == "flagembedding" else None)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"negative_ranks": [1, 2]}, "one rank for each of 1"),
        ({"negative_ids": ["a", "b"]}, "one id for each of 1"),
        ({"scores": [1]}, "1 scores for 1 positives and 1"),
        ({"scores": True, "negatives": ["n", "m"]}, "1 scores for 1 positives and 2"),
        ({"pos_scores": {"p": 1}}, "'pos_scores' is dict; give a list of numbers"),
        ({"pos_scores": None, "neg_scores": [1]}, "1 scores for 1 positives and 1"),
        ({"instruction": 5}, "the instruction is int"),
        ({"provenance": "a hand"}, "'provenance' is str"),
        ({"negatives": [], "label": 0}, "'label' is 0, so 'positives' is no answer"),
        ({"negatives": None, "label": False}, "'label' is False, so 'positives' is no answer"),
        ({"negatives": "", "label": "0"}, "'label' is 0, so 'positives' is no answer"),
        ({"positives": ["n"]}, "is a positive and a negative"),
    ],
)
def test_what_does_not_fit_is_refused(more, told):
    record = {"query": "q", "positives": ["p"], "negatives": ["n"], **more}
    with pytest.raises(RecordError, match=f"here: .*{told}"):
        read_training_record(record, "here")


WIDE = {
    "a column a negative": {
        "negative_1": "n",
        "negative_10": "o",
        "negative_2": "m",
        "neg_3": None,
    },
    "labels": {"answer": ["m", "p", "n", "o"], "labels": [0, 1, 0, 0]},
    "empty columns": {"negative": "n", "negative_1": "m", "negative_2": "", "negative_3": "o"},
}


@pytest.mark.parametrize("layout", WIDE)
def test_what_mining_for_sentence_transformers_writes_loses_no_negative(tmp_path, layout):
    row = {"query": "q", "answer": "p", **WIDE[layout]}
    record = read_training_record(row, "here")
    assert [one.text for one in record.positives] == ["p"]
    negatives = [one.text for one in record.negatives]
    assert sorted(negatives) == ["m", "n", "o"]
    assert record.others == {}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (group,) = read_records(path).items
    assert (group.positives, group.negatives) == (("p",), tuple(negatives))


@pytest.mark.parametrize("name", ["scores", "label", "labels"])
def test_scores_of_numbered_negatives_are_kept(name):
    row = {"anchor": "q", "positive": "p", "negative_2": "m", "negative_1": "n", name: [3, 2, 1]}
    record = read_training_record(row, "here")
    assert [(one.text, one.score) for one in record.documents] == [("p", 3), ("n", 2), ("m", 1)]


def test_a_field_that_is_null_is_a_field_that_is_not_there():
    """As in a table of rows that came from several sources."""
    row = {
        "query": None,
        "question": "q",
        "positive": None,
        "pos": ["p"],
        "neg": None,
        "negatives": ["n"],
        "scores": None,
        "pos_scores": [2],
        "neg_scores": [1],
        "instruction": None,
        "prompt": "find",
        "label": None,
    }
    record = read_training_record(row, "here")
    assert (record.query, record.instruction) == ("q", "find")
    assert [(one.text, one.score) for one in record.documents] == [("p", 2), ("n", 1)]
    bare = {"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": None, "neg_scores": None}
    assert read_training_record(bare, "here").documents[0].score is None


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"sentence1": "a", "sentence2": "b", "label": 0}, 0.0),
        ({"sentence1": "a", "sentence2": "b", "label": 1, "score": None}, 1.0),
        ({"sentence1": "a", "sentence2": "b", "label": "entailment"}, "holds 'entailment'"),
        ({"text": "a", "label": None}, "'label' is null"),
    ],
)
def test_the_label_of_a_pair_is_its_score(tmp_path, row, told):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    if isinstance(told, float):
        assert [pair.score for pair in read_records(path).items] == [told]
        return
    with pytest.raises(RecordError, match=told):
        read_records(path)
