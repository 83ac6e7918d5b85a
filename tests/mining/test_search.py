"""Lists of candidates: equal to the exact store's, to bm25s' own, and to fusion by hand."""

import bm25s
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedlm.data.words import words_of
from embedlm.mining import dense
from embedlm.mining.dense import VectorFile, nearest, prepared
from embedlm.mining.words import WordIndex
from embedlm.search import ExactStore
from tests.command import sentences

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("block", [1, 7, 1000])
def test_the_nearest_are_those_of_the_exact_store(tmp_path, monkeypatch, similarity, block):
    rng = np.random.default_rng(0)
    rows_ND = np.tile(rng.standard_normal((20, 4)), (3, 1)).astype(np.float32)  # ties
    q_QD = rng.standard_normal((9, 4)).astype(np.float32)
    np.save(tmp_path / "v.npy", rows_ND)
    monkeypatch.setattr(dense, "_SCORES", block * len(q_QD))
    vectors = VectorFile(tmp_path / "v.npy")
    places_QK, scores_QK = nearest(prepared(q_QD, similarity), vectors, 20, similarity)
    store = ExactStore(similarity=similarity)
    store.add([f"{i:03}" for i in range(60)], {"dense": rows_ND})
    for places, scores, matches in zip(
        places_QK, scores_QK, store.search("dense", q_QD, 20), strict=True
    ):
        assert [f"{place:03}" for place in places] == [match.id for match in matches]
        assert scores.tolist() == [match.score for match in matches]


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 50), st.integers(1, 12))
def test_a_query_finds_the_same_in_any_company(tmp_path_factory, seed, count, block, depth):
    rng = np.random.default_rng(seed)
    rows_ND = rng.standard_normal((count, 8)).astype(np.float32)
    q_QD = prepared(rng.standard_normal((5, 8)).astype(np.float32), "cosine")
    path = tmp_path_factory.mktemp("v") / "v.npy"
    np.save(path, rows_ND)
    depth = min(depth, count)
    whole = nearest(q_QD, VectorFile(path), depth, "cosine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "_SCORES", block)
        for i in range(len(q_QD)):
            alone = nearest(q_QD[i : i + 1], VectorFile(path), depth, "cosine")
            assert (alone[0][0] == whole[0][i]).all()
            assert (alone[1][0] == whole[1][i]).all()


def test_a_scan_that_drops_ties_searches_these_queries_again(tmp_path, monkeypatch):
    """90 copies of the nearest passage stand before, between and behind 400 others."""
    rng = np.random.default_rng(0)
    rows_ND = rng.standard_normal((490, 16)).astype(np.float32)
    copies = rng.choice(490, 90, replace=False)
    q_QD = prepared(rng.standard_normal((6, 16)).astype(np.float32), "cosine")
    rows_ND[copies] = q_QD[2]
    np.save(tmp_path / "v.npy", rows_ND)
    monkeypatch.setattr(dense, "_SCORES", 6 * 100)
    again = []
    whole = dense._nearest_of_alike
    monkeypatch.setattr(
        dense, "_nearest_of_alike", lambda q, *given: again.append(len(q)) or whole(q, *given)
    )
    places_QK, scores_QK = nearest(q_QD, VectorFile(tmp_path / "v.npy"), 20, "cosine")
    assert len(again) == 1
    assert 0 < again[0] < 6
    d_ND = prepared(rows_ND, "cosine").astype(np.float64)
    exact_QN = np.array([(d_ND * query).sum(1) for query in q_QD.astype(np.float64)])
    order_QN = np.argsort(-exact_QN, axis=1, kind="stable")
    assert places_QK.tolist() == order_QN[:, :20].tolist()
    assert places_QK[2].tolist() == sorted(copies.tolist())[:20]
    np.testing.assert_allclose(scores_QK, -np.sort(-exact_QN)[:, :20], atol=1e-6)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words") / "index"
    return WordIndex.build(sentences(50, seed=5), folder)


def test_bm25_is_that_of_bm25s(index):
    texts = sentences(50, seed=5)
    theirs = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    theirs.index([words_of(text) for text in texts], show_progress=False)
    for query in sentences(8, seed=6):
        expected = theirs.get_scores(words_of(query))
        np.testing.assert_allclose(index.scores(query), expected, rtol=1e-6)
        places, scores = index.best(query, 10)
        order = sorted(range(50), key=lambda i: (-index.scores(query)[i], i))
        order = [i for i in order if index.scores(query)[i] > 0][:10]
        assert places.tolist() == order
        assert (np.diff(scores) <= 0).all()


def test_the_bm25_of_a_text_is_that_of_the_passage(index):
    for query in sentences(5, seed=7):
        for place, text in enumerate(sentences(50, seed=5)):
            assert index.score(query, text) == pytest.approx(index.scores(query)[place], rel=1e-5)


def test_a_damaged_index_is_made_anew(tmp_path):
    texts, folder = sentences(20, seed=8), tmp_path / "index"
    before = WordIndex.build(texts, folder).scores(texts[0])
    (folder / "params.index.json").unlink()
    assert (WordIndex.build(texts, folder).scores(texts[0]) == before).all()
    assert (folder / "params.index.json").is_file()
