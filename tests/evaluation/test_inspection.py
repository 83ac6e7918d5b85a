"""What `embedlm data inspect` tells of a file whose content is known."""

import json

import pytest

import embedlm
from embedlm.data.duplicates import Duplicates
from embedlm.errors import InputError
from embedlm.evaluation.inspection import inspect_records

ROWS = [
    {"query": "what do plants make", "positives": ["Plants make food."], "negatives": ["Oil."]},
    {"query": "what do plants  make", "positives": ["Plants make food."], "instruction": "find"},
    {"query": "Oil floats.", "positives": ["Oil floats."]},
    {"query": "how far", "positives": ["Far away.", "Near by."], "scores": [2.0, 1.0]},
    {
        "query": "what is the way to the old mill by the river today",
        "positives": ["Left, then right."],
    },
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "records.jsonl"
    lines = [json.dumps(row) for row in ROWS]
    lines.insert(2, '{"query": "no positive"}')
    lines.append("not JSON")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_counts_lengths_duplicates_and_bad_records_by_line(file):
    found = inspect_records(file, samples=2)
    assert found["records"] == 5
    assert found["bad"]["count"] == 2
    assert [one["line"] for one in found["bad"]["examples"]] == [3, 7]
    assert "records.jsonl:3" in found["bad"]["examples"][0]["error"]
    assert found["texts"]["query"]["distinct"] == 4
    assert found["texts"]["query"]["words"]["most"] == 12
    assert found["texts"]["positive"]["count"] == 6
    assert found["repeated_queries"] == 1
    assert found["positives_per_record"] == 1.2
    assert found["without_negatives"] == 4
    assert (found["with_instruction"], found["with_scores"]) == (1, 1)
    assert found["findings"]["query is positive"]["examples"][0]["record"] == 3
    assert len(found["samples"]) == 2


def test_leaks_by_words_and_by_vectors(file, tmp_path, tiny_llama):
    test = tmp_path / "test.jsonl"
    rows = ["Tell me, what is the way to the old mill by night", "what do plants make"]
    test.write_text("".join(json.dumps({"query": row}) + "\n" for row in rows))
    found = inspect_records(file, against=[test])["leaks"]["by_words"]
    assert found["count"] == 3
    assert {one["record"] for one in found["examples"]} == {1, 2, 5}
    model = embedlm.load(tiny_llama, "plain-mean", device="cpu")
    near = inspect_records(file, against=[test], model=model)["leaks"]["by_vectors"]
    assert near["compared"] == 5
    assert near["examples"][0]["cosine"] == pytest.approx(1, abs=1e-4)
    assert "plants" in near["examples"][0]["query"]


def test_near_duplicates_are_counted(file):
    pytest.importorskip("datasketch")
    found = inspect_records(file, near=True)["findings"]["near-duplicate queries"]
    assert found["examples"] == [{"record": 2, "like": 1}]


def test_minhash_finds_near_duplicates_and_keeps_the_first():
    pytest.importorskip("datasketch")
    base = " ".join(f"word{i}" for i in range(60))
    known = Duplicates(0.8, 2)
    assert known.like(base, "a") is None
    assert known.like(base.replace("word30", "other"), "b") == "a"
    assert known.like(" ".join(f"word{i}" for i in range(40, 100)), "c") is None
    assert known.like(base.upper(), "d") == "a"


def test_the_command_prints_and_refuses(run, file):
    pytest.importorskip("py3langid")
    told = run("data", "inspect", file)
    assert told.code == 0
    assert "5 records" in told.out
    assert "records.jsonl:3" in told.err
    assert json.loads(run("data", "inspect", file, "--json").out)["records"] == 5
    assert "is not there" in run("data", "inspect", "missing.jsonl").one_line()
    with pytest.raises(InputError):
        inspect_records(file, against=["missing.jsonl"])
