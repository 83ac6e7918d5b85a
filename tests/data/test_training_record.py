"""Records with ids, ranks, scores and provenance: read from every layout, written back the same."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedlm.data import Source, record_lines, training_records
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
        ({"instruction": 5}, "the instruction is int"),
        ({"positives": ["n"]}, "is a positive and a negative"),
    ],
)
def test_what_does_not_fit_is_refused(more, told):
    record = {"query": "q", "positives": ["p"], "negatives": ["n"], **more}
    with pytest.raises(RecordError, match=f"here: .*{told}"):
        read_training_record(record, "here")
