"""The items that a model refuses are told, and no others, with file and line if they have any."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import embedlm
from embedlm.bulk import encode_file
from embedlm.encode.refused import refused
from embedlm.errors import InputError, NotFiniteError, RecordError
from embedlm.search import build_index


@given(st.lists(st.sampled_from(["good", "bad", "nan"]), min_size=1, max_size=40))
def test_it_finds_the_bad_ones_and_no_others(items):
    def call(part):
        if "bad" in part:
            raise InputError(f"{part.index('bad')} is bad")
        error = NotFiniteError("nan")
        error.rows = tuple(at for at, one in enumerate(part) if one == "nan")
        if error.rows:
            raise error

    found = refused(call, items)
    assert sorted(found) == [at for at, one in enumerate(items) if one != "good"]
    assert {found[at] for at, one in enumerate(items) if one == "bad"} <= {"0 is bad"}


def test_what_no_item_is_to_blame_for_stays_an_error():
    def call(part):
        if len(part) > 2:
            raise InputError("more than two")

    with pytest.raises(InputError, match="more than two"):
        refused(call, [1, 2, 3])


@pytest.fixture
def strict(tiny_llama):
    recipe = {"pooling": {"kind": "mean"}, "prompt": {"special_tokens_in_text": "refuse"}}
    return embedlm.load(tiny_llama, recipe, device="cpu")


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "in.jsonl"
    texts = ["light", "a</s>b", "water", "</s>", "air"]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def test_a_record_that_a_model_refuses_is_told_or_set_aside(strict, source, tmp_path):
    with pytest.raises(RecordError, match=r"in\.jsonl:2: the text 'a</s>b'"):
        encode_file(strict, source, tmp_path / "out.npy")
    bad = tmp_path / "bad.jsonl"
    report = encode_file(strict, source, tmp_path / "out.npy", rejects=bad)
    assert (report.rows, report.rejected) == (3, 2)
    assert [json.loads(line)["line"] for line in bad.read_text().splitlines()] == [2, 4]


def test_a_passage_that_a_model_refuses_is_told_by_its_place(strict, source, tmp_path):
    with pytest.raises(InputError, match=r"^in\.jsonl:2: the text 'a</s>b'.*leave it out"):
        build_index(source, tmp_path / "out.index", strict, store="exact")
