"""The search for a demonstration: scores, order, going on after a stop."""

import json

import pytest

import embedlm
from embedlm.errors import InputError, JobError
from embedlm.evaluation.measures import spearman
from embedlm.studies.demonstrations import default_candidates, search_demonstrations

DEV = [
    ("a dog runs", "the dog is running", 5.0),
    ("a dog runs", "shares fell", 0.0),
    ("light energy", "energy of light", 4.5),
    ("plants make food", "the committee met", 0.5),
]


@pytest.fixture(scope="module")
def model(tiny_llama):
    return embedlm.load(tiny_llama, recipe="prompteol-icl")


def test_candidates_are_scored_as_encode_would(model):
    found = search_demonstrations(model, DEV, limit=4)
    assert len(found) == 5
    assert [f.score for f in found] == sorted((f.score for f in found), reverse=True)
    best = found[0]
    shown = [{"query": best.query, "response": best.response}] if best.query else []
    texts = [text for a, b, _ in DEV for text in (a, b)]
    vectors = model.encode(texts, demonstrations=shown)
    scores = model.similarity_pairwise(vectors[::2], vectors[1::2])
    assert best.score == pytest.approx(spearman(scores, [gold for *_, gold in DEV]))
    assert any(f.query == "" for f in found)


def test_a_stopped_search_goes_on(model, tmp_path):
    log = tmp_path / "search.jsonl"
    whole = search_demonstrations(model, DEV, limit=5, log=log)
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:3]) + '\n{"query": "cut o')
    log.write_text(log.read_text() + "\n")
    assert search_demonstrations(model, DEV, limit=5, log=log) == whole
    with pytest.raises(JobError, match="another search"):
        search_demonstrations(model, DEV[:3], limit=5, log=log)


def test_clear_errors(model, tiny_llama):
    with pytest.raises(InputError, match="takes no demonstrations"):
        search_demonstrations(embedlm.load(tiny_llama, recipe="prompteol"), DEV)
    with pytest.raises(InputError, match="at least 2"):
        search_demonstrations(model, DEV[:1])


def test_the_built_in_candidates_are_sound():
    pool = default_candidates()
    assert len({json.dumps(c) for c in pool}) == len(pool) >= 50
    assert all(c["query"] and " " not in c["response"] for c in pool)
