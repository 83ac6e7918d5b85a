"""Mining against brute force, against sentence-transformers, and by its promises."""

import datetime
import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embedlm
from embedlm.errors import InputError, RecordError
from embedlm.mining import mine
from tests.command import sentences
from tests.mining.conftest import known_texts


def brute_force(model, corpus, records, record, k, rules):
    """Return ids and ranks by a search over all, with the formulas written out."""
    passages = {}
    for one in corpus:
        passages.setdefault(one["text"].strip(), one["id"])
    texts = list(passages)
    query = model.encode_query([record["query"]])
    scores = model.similarity(query, model.encode_document(texts))[0]
    known = known_texts(records, record["query"])
    positive = float(model.similarity(query, model.encode_document(sorted(known)))[0].min())
    bounds = [np.inf]
    if "abs" in rules:
        bounds.append(rules["abs"])
    if "margin_pos" in rules:
        bounds.append(positive - rules["margin_pos"])
    if "perc_pos" in rules:
        bounds.append(positive - abs(positive) * (1 - rules["perc_pos"]))
    found = []
    for rank, i in enumerate(np.argsort(-scores, kind="stable").tolist(), 1):
        if texts[i] in known or rank <= rules.get("shift", 0) or scores[i] > min(bounds):
            continue
        found.append((passages[texts[i]], rank))
    return found[:k]


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"shift": 4},
        {"abs": 0.9},
        {"margin_pos": 0.05},
        {"perc_pos": 0.95},
        {"perc_pos": 0.8, "shift": 3},
    ],
    ids=str,
)
def test_the_negatives_are_those_of_brute_force(model, corpus, records, rules):
    mined = mine(records, corpus, model=model, k=6, filters=rules, block=5)
    assert len(mined.records) == len(records)
    for record, found in zip(records, mined.records, strict=True):
        expected = brute_force(model, corpus, records, record, 6, rules)
        ranks = found.get("negative_ranks", [])
        assert list(zip(found.get("negative_ids", []), ranks, strict=True)) == expected
        assert found["id"] == record["id"]


def test_ranks_are_not_counted_among_survivors(model, corpus, records):
    """sentence-transformers skips two survivors more for range_min=2 where a margin drops two."""
    record = records[0]
    rules = {"shift": 2, "perc_pos": 0.99}
    (found,) = mine([record], corpus, model=model, k=1, filters=rules).records
    assert [found["negative_ranks"][0]] == [
        rank for _, rank in brute_force(model, corpus, [record], record, 1, rules)
    ]


SOME = sentences(60, seed=9, longest=6)


@settings(max_examples=12)
@given(
    st.integers(0, 10**6),
    st.integers(1, 12),
    st.integers(0, 4),
    st.sampled_from([None, 12, 20]),
)
def test_promises_hold_for_random_corpora(seed, k, shift, sample):
    rng = random.Random(seed)
    corpus = [rng.choice(SOME) for _ in range(rng.randint(2, 50))]
    records = [
        {"query": rng.choice(SOME[:6]), "positives": rng.sample(corpus, rng.randint(1, 2))}
        for _ in range(rng.randint(1, 6))
    ]
    drawn = {} if sample is None else {"sample": sample, "seed": seed}
    options = {"model": "bm25", "filters": {"shift": shift}, **drawn}
    mined = mine(records, corpus, k=k, **options)
    assert len(mined.records) == len(records)
    for record, found in zip(records, mined.records, strict=True):
        negatives, ranks = found["negatives"], found.get("negative_ranks", [])
        known = known_texts(records, record["query"]) | {record["query"]}
        assert not known & {text.strip() for text in negatives}
        assert len(set(negatives)) == len(negatives) <= k
        assert ranks == sorted(ranks)
        assert all(rank > shift for rank in ranks)
        assert len(found["scores"]) == len(found["positives"]) + len(negatives)
    missing = sum(k - len(found["negatives"]) for found in mined.records)
    assert mined.report["short"]["missing"] == missing
    assert mined.report["negatives"] == sum(len(one["negatives"]) for one in mined.records)
    if k > 1 and sample is None:
        fewer = mine(records, corpus, k=k - 1, **options)
        for found, less in zip(mined.records, fewer.records, strict=True):
            assert less["negatives"] == found["negatives"][: k - 1]


def test_the_list_is_read_deeper_until_k_are_left(model, corpus, records):
    bound = 0.5  # far below most scores: nearly the whole corpus is read
    mined = mine(records, corpus, model=model, k=3, filters={"perc_pos": bound})
    for record, found in zip(records, mined.records, strict=True):
        expected = brute_force(model, corpus, records, record, 3, {"perc_pos": bound})
        assert found.get("negative_ids", []) == [id for id, _ in expected]
    dropped = mined.report["dropped"]["perc_pos"]
    assert dropped["count"] > 100
    assert {"query", "passage", "rank", "score", "positive_score"} <= dropped["examples"][0].keys()


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("half of \ud800", "holds a lone surrogate"),
        (datetime.date(2026, 1, 1), "cannot be written"),
    ],
)
def test_what_no_file_can_hold_is_refused_or_set_aside(
    model, corpus, records, tmp_path, value, told
):
    odd = {**records[0], "note": value}
    with pytest.raises(RecordError, match=rf"records:1: {told}"):
        mine([odd], corpus, model=model, k=1)
    with pytest.raises(RecordError, match=rf"corpus:1: {told}"):
        mine(records[:1], [{"text": "a", "note": value}, *corpus], model=model, k=1)
    aside = tmp_path / "rejects.jsonl"
    mine([odd, records[1]], corpus, model=model, k=1, output=tmp_path / "o.jsonl", rejects=aside)
    assert told in aside.read_text()
    with pytest.raises(RecordError, match=rf"rows:1: .*{told}"):
        embedlm.synthesize("hyde", [{"query": "a", "note": value}], llm="http://127.0.0.1:1/v1#w")


def test_a_window_is_not_left_and_the_shortfall_is_told(model, corpus, records):
    mined = mine(records, corpus, model=model, k=5, window="11-13")
    for found in mined.records:
        assert {*found["negative_ranks"]} <= {11, 12, 13}
    assert mined.report["short"]["records"] == len(records)
    assert mined.report["short"]["missing"] >= 2 * len(records)


def test_sampling_draws_from_the_hardest_and_depends_on_seed_and_query_alone(
    model, corpus, records
):
    options = {"model": model, "k": 4, "sample": 10}
    one, again, other = (
        mine(records, corpus, seed=seed, block=block, **options).records
        for seed, block in ((1, 3), (1, 100), (2, 3))
    )
    for name in ("negatives", "negative_ranks"):
        assert [found[name] for found in one] == [found[name] for found in again]
        assert [found[name] for found in one] != [found[name] for found in other]
    hardest = mine(records, corpus, model=model, k=10).records
    for found, pool in zip(one, hardest, strict=True):
        assert {*found["negatives"]} <= {*pool["negatives"]}


def test_a_prompt_that_leaves_queries_no_room_is_told_before_passages_are_embedded(
    model, corpus, records, monkeypatch
):
    fields = {"prompt.query": "find what answers this: {text}", "prompt.max_length": {"query": 4}}
    narrow = model.with_recipe(model.recipe.override(fields))
    monkeypatch.setattr(type(model), "encode", None)
    monkeypatch.setattr(type(model), "encode_document", None)
    with pytest.raises(InputError, match="role query: the prompt alone takes"):
        mine(records, corpus, model=narrow, k=2)


def test_positives_that_the_search_does_not_find_are_dropped(model, corpus, records):
    mined = mine(records, corpus, model=model, k=2, filters={"consistency": 10})
    kept = {found["id"]: found["positives"] for found in mined.records}
    for record in records:
        query = model.encode_query([record["query"]])
        texts = list(dict.fromkeys(one["text"].strip() for one in corpus))
        scores = model.similarity(query, model.encode_document(texts))[0]
        own = model.similarity(query, model.encode_document(record["positives"]))[0]
        found = [
            text
            for text, score in zip(record["positives"], own, strict=True)
            if (scores > score + 1e-6).sum() < 10
        ]
        assert kept.get(record["id"], []) == found
    (aside,) = mined.report["set_aside"].values()
    assert aside["count"] == len(records) - len(kept) > 0


@pytest.mark.parametrize("inside", [True, False], ids=["of the corpus", "outside it"])
@pytest.mark.parametrize(("rank", "kept"), [(49, True), (50, True), (51, False)])
def test_a_positive_at_the_very_rank_is_found(rank, kept, inside):
    """KaLM (arXiv 2501.01028) drops a pair whose positive is not in the top 50."""
    passages = [f"river{' bank' * i}" for i in range(60)]  # the longer, the lower for BM25
    positive, others = passages[rank - 1], passages[: rank - 1] + passages[rank:]
    corpus = passages if inside else others
    records = [{"query": "river", "positives": [positive]}]
    mined = mine(records, corpus, model="bm25", k=2, filters={"consistency": 50})
    assert [found["positives"] for found in mined.records] == [[positive]] * kept
    assert mined.report["dropped"].get("consistency", {"count": 0})["count"] == (not kept)
    told = {} if kept else {"consistency: no positive is among the first 50": 1}
    assert {why: found["count"] for why, found in mined.report["set_aside"].items()} == told


def test_titles_and_ids_tell_that_a_passage_is_a_positive():
    corpus = [
        {"_id": "a", "title": "Rivers", "text": "Water flows to the sea."},
        {"_id": "b", "title": "Seas", "text": "Water of the sea is salt water."},
        {"_id": "c", "text": "The sea and its water."},
    ]
    record = {
        "query": "water of the sea",
        "positives": ["Water flows to the sea.", "salt"],
        "positive_ids": [None, "b"],
    }
    (found,) = mine([record], corpus, model="bm25", k=3).records
    assert found["negative_ids"] == ["c"]
    assert found["positive_ids"] == ["a", "b"]


@pytest.mark.parametrize(
    "same", ["  oil FLOATS\n", "ｏｉｌ floats", "oil \ufefffloats", "oil flo\u00adats"]
)
def test_what_reads_alike_is_no_negative(model, same):
    corpus = ["Oil floats", "Cafés serve tea", "Cafe\u0301s serve tea", same]
    records = [
        {"query": "what floats", "positives": ["Oil floats"]},
        {"query": "What floats", "positives": ["cafés serve tea"]},
    ]
    mined = mine(
        [*records, {"query": "tea", "positives": ["oil floats"]}], corpus, model=model, k=3
    )
    assert [one.get("negatives", []) for one in mined.records] == [[], [], ["Cafés serve tea"]]


def test_several_lists_are_fused_and_scores_are_the_embedders(model, corpus, records):
    mined = mine(records, corpus, model=["bm25", model], k=3)
    texts = list(dict.fromkeys(one["text"].strip() for one in corpus))
    for record, found in zip(records, mined.records, strict=True):
        query = model.encode_query([record["query"]])
        scores = model.similarity(query, model.encode_document(texts))[0]
        for text, score in zip(
            found["negatives"], found["scores"][len(found["positives"]) :], strict=True
        ):
            assert score == pytest.approx(scores[texts.index(text.strip())], abs=1e-5)
    alone = [mine(records, corpus, model=one, k=3).records for one in ("bm25", model)]
    for one in alone:  # both lists have a say
        assert [found["negatives"] for found in mined.records] != [
            found["negatives"] for found in one
        ]
    report = mined.report
    assert [one["name"].partition(":")[0] for one in report["miners"]] == ["bm25", "dense"]


def test_a_reranker_orders_candidates_and_vetoes(model, corpus, records, tiny_llama):
    reranker = embedlm.Reranker(tiny_llama, device="cpu")
    some = records[:2]
    base = mine(some, corpus, model=model, k=8).records
    mined = mine(some, corpus, model=model, k=8, reranker=reranker, rerank=84).records
    vetoed = mine(some, corpus, model=model, k=8, reranker=reranker, filters={"veto": 0.1})
    assert mined != base
    for record, found, kept in zip(some, mined, vetoed.records, strict=True):
        logits = reranker.score(record["query"], found["negatives"], probability=False)
        assert (np.diff(logits) <= 1e-4).all()
        known = sorted(known_texts(some, record["query"]))
        bound = reranker.score(record["query"], known, probability=False).min() - 0.1
        if kept["negatives"]:
            logits = reranker.score(record["query"], kept["negatives"], probability=False)
            assert (logits <= bound + 1e-4).all()
        order = mine([record], corpus, model=model, k=80).records[0]["negatives"]
        logits = reranker.score(record["query"], order, probability=False)
        expected = [text for text, logit in zip(order, logits, strict=True) if logit <= bound]
        assert kept["negatives"] == expected[:8]


def test_two_models_of_one_name_do_not_share_vectors(model_folder, corpus, records, tmp_path):
    """The cache knows models by content: sentence-transformers' knows them by their base's name."""
    models = [
        embedlm.load(model_folder(name), "plain-mean", device="cpu") for name in ("llama", "qwen3")
    ]
    for one in models:
        one.name = "same"
    shared = [mine(records, corpus, model=one, k=3, work=tmp_path / "work") for one in models]
    apart = [mine(records, corpus, model=one, k=3) for one in models]
    assert [one.records for one in shared] == [one.records for one in apart]
    assert shared[0].records != shared[1].records
    assert len(list((tmp_path / "work").glob("vectors-*/document.npy"))) == 2
    stamps = [p.stat().st_mtime_ns for p in (tmp_path / "work").glob("vectors-*/document.npy")]
    mine(records, corpus, model=models[0], k=5, work=tmp_path / "work")
    after = [p.stat().st_mtime_ns for p in (tmp_path / "work").glob("vectors-*/document.npy")]
    assert after == stamps


def test_queries_are_encoded_once_for_jobs_of_one_work_folder(model, corpus, records, tmp_path):
    def encoded(**options):
        texts, encode = [], model.encode
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                model, "encode", lambda rows, **k: texts.extend(rows) or encode(rows, **k)
            )
            mined = mine(records, corpus, model=model, work=tmp_path / "work", **options)
        return texts, mined.records

    queries = [one["query"] for one in records]
    assert set(queries) <= set(encoded(k=3)[0])
    again, found = encoded(k=4)
    assert not set(queries) & set(again)
    assert found == mine(records, corpus, model=model, k=4).records
    file = next((tmp_path / "work").glob("vectors-*/queries-*.npy"))
    file.write_bytes(file.read_bytes()[:100])
    damaged, found = encoded(k=4)
    assert set(queries) <= set(damaged)
    assert found == encoded(k=4)[1]


def test_without_a_corpus_the_records_are_mined(model, records):
    mined = mine(records, model=model, k=2)
    every = {text for one in records for text in one["positives"]}
    assert all({*found["negatives"]} <= every for found in mined.records)
    assert mined.report["passages"] == len(every)


def test_instructions_of_records_are_read_where_the_recipe_takes_them(tiny_llama, corpus, records):
    e5 = embedlm.load(tiny_llama, "e5-mistral", device="cpu")
    told = [{**one, "instruction": f"find {i}" * 3} for i, one in enumerate(records)]
    mined = mine(told, corpus, model=e5, k=2)
    for one, found in zip(told, mined.records, strict=True):
        query = e5.encode_query([one["query"]], instruction=one["instruction"])
        documents = e5.encode_document([*found["positives"], *found["negatives"]])
        scores = e5.similarity(query, documents)[0]
        np.testing.assert_allclose(found["scores"], scores, atol=1e-5)
        assert found["instruction"] == one["instruction"]
    assert mined.report["instructions_unused"] == 0
    assert mine(told, corpus, model="bm25", k=2).report["instructions_unused"] == len(told)


def test_what_is_mined_can_be_trained_on_and_mined_again(model, corpus, records, tmp_path):
    from embedlm.data import read_records

    out = tmp_path / "mined.jsonl"
    mine(records, corpus, model=model, k=3, output=out)
    read = read_records(out)
    assert read.has_negatives
    assert read.has_scores
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    again = mine(out, corpus, model="bm25", k=2).records
    for before, after in zip(rows, again, strict=True):
        assert after["negatives"][:3] == before["negatives"]
        assert len(set(after["negatives"])) == len(after["negatives"])
        assert after["provenance"]["negatives"]["given"] == 3


def test_a_passage_longer_than_the_model_is_mined_like_any_other(model, corpus, records):
    long = {"id": "long", "text": " ".join(sentences(200))}
    mined = mine(records, [*corpus, long], model=model, k=81)
    assert any("long" in found["negative_ids"] for found in mined.records)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"mode": "drop"}, "no language model was given to judge"),
        ({"judge": "arhn"}, "no language model was given to judge"),
        ({"most": 3}, "no language model was given to judge"),
        ({"seed": 3}, "nothing is drawn by it"),
        ({"text_field": "words"}, "no corpus was given"),
        ({"text_field": "words", "corpus": [{"title": "a", "text": "b"}]}, "no field 'words'"),
    ],
)
def test_an_option_that_nothing_uses_is_refused(model, records, options, told):
    with pytest.raises(InputError, match=told):
        mine(records, model=model, **options)


def test_an_input_under_another_name_is_not_replaced(run, with_model, corpus, records, tmp_path):
    for name, rows in (("records", records), ("corpus", corpus)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "d").mkdir()
    given, passages = tmp_path / "records.jsonl", tmp_path / "corpus.jsonl"
    before = given.read_bytes(), passages.read_bytes()
    for output in (tmp_path / "d" / ".." / "records.jsonl", tmp_path / "d" / ".." / "corpus.jsonl"):
        words = ("mine", given, "--corpus", passages, "-o", output, *with_model)
        assert "is an input, too" in run(*words).one_line()
    assert (given.read_bytes(), passages.read_bytes()) == before


def test_a_model_is_fitted_to_the_passages_unless_it_was_before(corpus, records, tiny_llama):
    pooling = {"kind": "mean", "remove_components": 1}
    bare = embedlm.load(tiny_llama, {"name": "f", "pooling": pooling}, device="cpu")
    passages = list(dict.fromkeys(one["text"].strip() for one in corpus))
    own = bare.with_recipe(bare.recipe).fit(passages)
    apart = bare.with_recipe(bare.recipe).fit(sentences(40, seed=1))
    for model, wanted in ((bare, own), (apart, apart.with_recipe(apart.recipe))):
        mined = mine(records, corpus, model=model, k=6)
        for record, found in zip(records, mined.records, strict=True):
            expected = brute_force(wanted, corpus, records, record, 6, {})
            ranks = found.get("negative_ranks", [])
            assert list(zip(found.get("negative_ids", []), ranks, strict=True)) == expected
    assert bare.readout.statistics is None  # and it is fitted to the next corpus anew
