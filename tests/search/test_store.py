"""What every store guarantees; a new store is one row in `STORES`."""

import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from embedlm.errors import InputError
from embedlm.search import ExactStore, Store
from embedlm.search import exact as exact_module

STORES = {"exact": ExactStore}
WIDTH = 4
HEADS = ("dense", "sparse", "multi_vector")
every_head = pytest.mark.parametrize("head", HEADS)


@pytest.fixture(params=STORES)
def make(request):
    return STORES[request.param]


@pytest.fixture
def store(make):
    return make(similarity="dot")


def vectors(head, rows):
    """Turn lists of small integers into one head's vectors; integers make many ties."""
    values = np.array(rows, dtype=np.float32).reshape(len(rows), WIDTH)
    if head == "sparse":
        return csr_matrix(values)
    return values if head == "dense" else [np.stack([row, row[::-1]]) for row in values]


def heads(rows):
    return {head: vectors(head, rows) for head in HEADS}


def score(head, query, row):
    """Score small integers: exactly, so that ties are ties."""

    def dot(a, b):
        return sum(int(x) * int(y) for x, y in zip(a, b, strict=True))

    if head != "multi_vector":
        return dot(query, row)
    return sum(max(dot(q, d) for d in (row, row[::-1])) for q in (query, query[::-1]))


def brute_force(head, documents, query, top_k):
    """Score each document by itself and sort by score, then id."""
    pairs = [(id_, float(score(head, query, row))) for id_, row in documents.items()]
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:top_k]


def same(head, matches, expected):
    """Compare ids and scores; a sparse search may leave out documents with score 0."""
    if head == "sparse":
        matches, expected = ([p for p in pairs if p[1] != 0] for pairs in (matches, expected))
    assert [match[0] for match in matches] == [pair[0] for pair in expected]
    assert [match[1] for match in matches] == [pair[1] for pair in expected]


rows = st.lists(st.integers(0, 2), min_size=WIDTH, max_size=WIDTH)
collections = st.dictionaries(st.text(max_size=3), rows, min_size=1, max_size=12)
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_threads_search_what_another_thread_changes():
    """A score belongs to the vector of its id, whatever is added and deleted meanwhile."""
    vectors = np.random.default_rng(0).standard_normal((900, 16)).astype(np.float32)
    ids = [f"{i}" for i in range(len(vectors))]
    store, over, wrong = ExactStore(), threading.Event(), []
    store.add(ids[:100], {"dense": vectors[:100]})
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = unit @ unit[0]

    def look():
        while not over.is_set():
            try:
                found = store.search("dense", vectors[:1], 5)[0]
                wrong.extend(m for m in found if abs(m.score - scores[int(m.id)]) > 1e-4)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for one in threads:
        one.start()
    for start in range(100, 900, 4):
        store.add(ids[start : start + 4], {"dense": vectors[start : start + 4]})
        store.delete(ids[start - 50 : start - 49])
    over.set()
    for one in threads:
        one.join()
    assert wrong == []
    again = pickle.loads(pickle.dumps(store))
    assert again.search("dense", vectors[:1], 5) == store.search("dense", vectors[:1], 5)


def test_it_is_a_store(store):
    assert isinstance(store, Store)
    assert len(store) == 0


@every_head
@relaxed
@given(documents=collections, query=rows, top_k=st.integers(1, 14))
def test_search_equals_brute_force(make, head, documents, query, top_k):
    store = make(similarity="dot")
    store.add(list(documents), heads(list(documents.values())))
    (matches,) = store.search(head, vectors(head, [query]), top_k)
    same(head, matches, brute_force(head, documents, query, top_k))


@every_head
@relaxed
@given(documents=collections, query=rows, order=st.randoms())
def test_ties_do_not_depend_on_the_order_of_adding(make, head, documents, query, order):
    ids = list(documents)
    results = []
    for _ in range(2):
        order.shuffle(ids)
        store = make(similarity="dot")
        for id_ in ids:
            store.add([id_], heads([documents[id_]]))
        results.append([m.id for m in store.search(head, vectors(head, [query]), 5)[0]])
    assert results[0] == results[1]


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("count", [1, 3])
def test_equal_documents_tie_wherever_they_stand(make, similarity, count):
    """Products of matrices round by a row's place; the order may not depend on it."""
    rng = np.random.default_rng(0)
    document, queries = rng.standard_normal(384), rng.standard_normal((count, 384))
    ids = [f"{i:03}" for i in rng.permutation(103)]
    store = make(similarity=similarity)
    store.add(ids, {"dense": np.tile(document, (103, 1)), "tokens": [document[None]] * 103})
    for head, asked in (("dense", queries), ("tokens", [query[None] for query in queries])):
        for matches in store.search(head, asked, 5):
            assert [match.id for match in matches] == ["000", "001", "002", "003", "004"]
            assert len({match.score for match in matches}) == 1


@every_head
@relaxed
@given(documents=collections, query=rows, data=st.data())
def test_replaced_and_deleted_documents(make, head, documents, query, data):
    store = make(similarity="dot")
    store.add(list(documents), heads(list(documents.values())))
    replaced = data.draw(st.dictionaries(st.sampled_from(list(documents)), rows, min_size=1))
    store.add(list(replaced), heads(list(replaced.values())))
    documents = {**documents, **replaced}
    deleted = data.draw(st.lists(st.sampled_from([*documents, "not there"])))
    store.delete(deleted)
    documents = {id_: row for id_, row in documents.items() if id_ not in deleted}
    assert len(store) == len(documents)
    (matches,) = store.search(head, vectors(head, [query]), 20)
    same(head, matches, brute_force(head, documents, query, 20))


@every_head
def test_many_queries_are_many_searches(store, head, monkeypatch):
    monkeypatch.setattr(exact_module, "BLOCK", 20)
    rng = np.random.default_rng(0)
    store.add([str(i) for i in range(9)], heads(rng.integers(0, 3, (9, WIDTH))))
    queries = rng.integers(0, 3, (7, WIDTH))
    together = store.search(head, vectors(head, queries), 4)
    for query, matches in zip(queries, together, strict=True):
        same(head, matches, store.search(head, vectors(head, [query]), 4)[0])


def test_a_saved_store_opens_as_it_was(make, store, tmp_path):
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 3, (5, WIDTH))
    store.add(["b", "é", "a", "", "zz"], heads(rows))
    store.save(tmp_path / "store")
    store.delete(["a"])
    opened = make.open(tmp_path / "store")
    assert len(opened) == 5
    opened.delete(["a"])
    for head in HEADS:
        query = vectors(head, rows[:2])
        assert opened.search(head, query, 9) == store.search(head, query, 9)
    store.save(tmp_path / "store")
    assert len(make.open(tmp_path / "store")) == 4


def test_an_interrupted_save_leaves_the_last_one(make, store, tmp_path, monkeypatch):
    store.add(["a"], heads([[1, 0, 0, 0]]))
    store.save(tmp_path / "store")
    store.add(["b"], heads([[0, 1, 0, 0]]))

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        store.save(tmp_path / "store")
    monkeypatch.undo()
    assert len(make.open(tmp_path / "store")) == 1


def test_an_empty_store_finds_nothing_and_can_be_saved(make, store, tmp_path):
    assert store.search("dense", np.ones((2, WIDTH))) == [[], []]
    store.save(tmp_path / "store")
    assert len(make.open(tmp_path / "store")) == 0


def test_a_document_without_tokens_has_score_zero(store):
    empty = np.zeros((0, WIDTH), np.float32)
    store.add(["a", "b"], {"multi_vector": [empty, -np.ones((1, WIDTH), np.float32)]})
    (matches,) = store.search("multi_vector", [np.ones((2, WIDTH), np.float32)])
    assert matches == [("a", 0.0), ("b", -8.0)]


@pytest.mark.parametrize("content", [None, b"", b"other", b"\x93NUMPY", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_store_does_not_open(make, tmp_path, content):
    path = tmp_path / "store"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="is not a store"):
        make.open(path)


BAD = [
    (["a", "a"], {"dense": np.ones((2, WIDTH))}, "an id is repeated"),
    (["a"], {"dense": np.ones((2, WIDTH))}, "2 dense vectors were given for 1 ids"),
    (["a"], {"dense": np.ones((1, WIDTH + 1))}, "have the width 5, but those of the store"),
    (["a"], {"dense": np.full((1, WIDTH), np.nan)}, "NaN or infinity"),
    (["a"], {"sparse": csr_matrix((1, WIDTH))}, "heads sparse were given; give those of dense"),
    (["a"], {"dense": csr_matrix((1, WIDTH))}, "sparse vectors were given for the head 'dense'"),
    (["a"], {"dense": np.ones(WIDTH)}, "dense vectors have the shape"),
    (["a"], {}, "heads none were given; give those of dense"),
]


@pytest.mark.parametrize(("ids", "given", "message"), BAD, ids=[row[2] for row in BAD])
def test_bad_vectors_are_refused_and_nothing_is_added(store, ids, given, message):
    store.add(["kept"], {"dense": np.eye(WIDTH)[:1]})
    with pytest.raises(InputError, match=message):
        store.add(ids, given)
    assert store.search("dense", np.eye(WIDTH)[:1]) == [[("kept", 1.0)]]


def test_bad_searches_are_refused(store):
    store.add(["a"], {"dense": np.eye(WIDTH)[:1]})
    with pytest.raises(InputError, match="top_k is 0"):
        store.search("dense", np.eye(WIDTH)[:1], 0)
    with pytest.raises(
        InputError, match="no vectors of the head 'sparse'; it holds those of dense"
    ):
        store.search("sparse", csr_matrix((1, WIDTH)))
    with pytest.raises(InputError, match="have the width 3"):
        store.search("dense", np.ones((1, 3)))


def test_the_exact_store_compares_as_it_was_told(tmp_path):
    documents, query = np.array([[3.0, 0.0], [1.0, 1.0]]), np.array([[2.0, 1.0]])
    tokens = [np.eye(2, dtype=np.float32)]
    expected = {
        "dot": ("a", 6.0),
        "cosine": ("b", 3 / 10**0.5),
        "euclidean": ("b", -1.0),
        "manhattan": ("b", -1.0),
    }
    for similarity, best in expected.items():
        store = ExactStore(similarity=similarity, length_normalize=True)
        store.add(["a", "b"], {"dense": documents, "multi_vector": tokens * 2})
        store.save(Path(tmp_path / similarity))
        opened = ExactStore.open(tmp_path / similarity)
        (match,) = opened.search("dense", query, 1)[0]
        assert match.id == best[0]
        assert match.score == pytest.approx(best[1])
        assert opened.search("multi_vector", tokens, 1)[0][0].score == 1.0
