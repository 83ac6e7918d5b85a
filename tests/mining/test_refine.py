"""Refining: the negatives that records already have."""

import json

import pytest

import embedlm
from embedlm.errors import InputError

LIGHT = {
    "query": "what do plants make from light?",
    "positives": ["Plants make food from light."],
    "positive_ids": ["p"],
    "negatives": [
        "From light plants make their food.",
        "A dog runs through the park.",
        "plants make food from  LIGHT.",
        "What do plants make from light?",
    ],
    "negative_ids": ["a", "b", "c", "d"],
    "provenance": {"negatives": {"by": "hand"}},
}


def test_copies_of_what_is_known_are_no_negatives_whatever_the_filter():
    refined = embedlm.refine([LIGHT], filters={"abs": 100})
    (row,) = refined.records
    assert row["negative_ids"] == ["a", "b"]
    assert row["positives"] == LIGHT["positives"]
    dropped = refined.report["dropped"]
    assert {name: one["count"] for name, one in dropped.items()} == {"positive": 1, "query": 1}
    assert (refined.report["given"], refined.report["negatives"]) == (4, 2)


def test_positives_of_another_record_with_the_query_are_no_negatives():
    other = {"query": LIGHT["query"], "positives": [LIGHT["negatives"][0]], "negatives": ["x y z"]}
    first, second = embedlm.refine([LIGHT, other], filters={"abs": 100}).records
    assert first["negative_ids"] == ["b"]
    assert second["negatives"] == ["x y z"]


@pytest.mark.parametrize(
    ("filters", "bound"),
    [
        ({"perc_pos": 0.9}, lambda s: 0.9 * s),
        ({"margin_pos": 0.3}, lambda s: s - 0.3),
        ({"abs": 0.4}, lambda s: 0.4),
    ],
)
def test_filters_compare_the_models_own_scores(filters, bound):
    model = embedlm.load()
    texts = [*LIGHT["positives"], *LIGHT["negatives"][:2]]
    query = model.encode(LIGHT["query"], role="query", show_progress=False)
    positive, *others = (model.encode(texts, role="document", show_progress=False) @ query).tolist()
    (row,) = embedlm.refine([LIGHT], model=model, filters=filters).records
    left = [id for id, s in zip("ab", others, strict=True) if s <= bound(positive)]
    assert row.get("negative_ids", []) == left
    assert row["scores"][0] == pytest.approx(positive, abs=1e-5)


def test_a_reranker_vetoes_what_it_likes_better_than_the_positive(tiny_llama):
    reranker = embedlm.Reranker(tiny_llama, device="cpu")
    logits = reranker.score(
        LIGHT["query"], [*LIGHT["positives"], *LIGHT["negatives"][:2]], probability=False
    )
    (row,) = embedlm.refine([LIGHT], filters={"veto": 0}, reranker=reranker).records
    left = [id for id, s in zip("ab", logits[1:], strict=True) if s <= logits[0]]
    assert row.get("negative_ids", []) == left


def judge(chat, sampling, seed):
    """Say that the first of two negatives answers."""
    return "<verdict><better>1</better><worse>2</worse></verdict>"


def test_a_judge_makes_positives_of_negatives_that_answer():
    refined = embedlm.refine([LIGHT], llm=judge)
    (row,) = refined.records
    assert (row["positive_ids"], row["negative_ids"]) == (["p", "a"], ["b"])
    assert refined.report["positives_added"] == 1
    told = row["provenance"]["negatives"]
    assert (told["by"], told["given"], told["before"]) == ("embedlm refine", 4, {"by": "hand"})
    (row,) = embedlm.refine([LIGHT], llm=judge, mode="remove").records
    assert (row["positive_ids"], row["negative_ids"]) == (["p"], ["b"])


def test_a_record_without_negatives_and_one_that_loses_all_stay(tmp_path):
    records = tmp_path / "r.jsonl"
    bare = {"query": "what do dogs do?", "positives": ["Dogs run."]}
    records.write_text(json.dumps(bare) + "\n" + json.dumps(LIGHT) + "\n")
    out = tmp_path / "out.jsonl"
    report = embedlm.refine(records, filters=["abs=-100"], output=out).report
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row.get("negatives", []) for row in rows] == [[], []]
    assert (report["written"], report["negatives"]) == (2, 0)
    other = out.with_name("other.jsonl")
    embedlm.refine(records, filters=["abs=-100"], output=other, block=1)
    again = [json.loads(line) for line in other.read_text().splitlines()]
    # Sums of a text's vector stand in another order beside other texts, in the last digit alone.
    for row, other in zip(rows, again, strict=True):
        assert row.pop("scores") == pytest.approx(other.pop("scores"), abs=1e-6)
    assert rows == again


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "neither a filter nor a language model"),
        ({"filters": {"shift": 3}}, "shift is of the ranks of a search"),
        ({"filters": {"consistency": 3}}, "consistency is of the ranks"),
        ({"filters": {"veto": 0}}, "needs a re-ranker"),
        ({"filters": {"abs": 1}, "seed": 3}, "no language model judges"),
        ({"filters": {"abs": 1}, "mode": "drop"}, "no language model was given"),
        ({"filters": {"abs": 1}, "model": ["bm25", None]}, "model is a list"),
    ],
)
def test_what_would_have_no_effect_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        embedlm.refine([LIGHT], **options)
