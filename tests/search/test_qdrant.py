"""Each store of Qdrant finds what the exact store finds, with its scores."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from embedlm.errors import InputError, JobError
from embedlm.search import ExactStore, Store
from embedlm.search.edge import EdgeStore
from embedlm.search.filters import check_filter, fits, flat, parse_filter
from embedlm.search.server import QdrantStore
from embedlm.search.store import FirstStage

COUNT, WIDTH, TERMS = 150, 24, 60
TOLERANCE = 2e-5
"""Of a score, relative; stores sum in other orders."""

every_store = pytest.mark.parametrize("kind", ["edge", "server"])
METADATA = [
    {
        "year": 1990 + i % 20,
        "share": i / 10,
        "lang": ("en", "de", "fr")[i % 3],
        "tags": ["a", "b"] if i % 2 else ["c"],
        "deep": {"odd key.x": bool(i % 2)},
    }
    for i in range(COUNT)
]


def make(kind, path, **options):
    if kind == "exact":
        return ExactStore(**options)
    if kind == "edge":
        return EdgeStore(path / "edge", **options)
    return QdrantStore(":memory:", "test", **options)


def sample(seed, count):
    """Return vectors of each form; they have no equal scores."""
    rng = np.random.default_rng(seed)
    sparse = rng.random((count, TERMS)) * (rng.random((count, TERMS)) < 0.2)
    tokens = [rng.standard_normal((rng.integers(1, 6), 8)) for _ in range(count)]
    return {
        "dense": rng.standard_normal((count, WIDTH)).astype(np.float32),
        "sparse": csr_matrix(sparse.astype(np.float32)),
        "multi_vector": [array.astype(np.float32) for array in tokens],
    }


IDS = [f"doc {i}" for i in range(COUNT)]


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    stores = {}
    for kind in ("exact", "edge", "server"):
        stores[kind] = make(kind, tmp_path_factory.mktemp(kind))
        stores[kind].add(IDS, sample(0, COUNT), METADATA)
    stores["edge"].optimize()
    return stores


def same(found, expected):
    assert [match.id for match in found] == [match.id for match in expected]
    scores = [[match.score for match in matches] for matches in (found, expected)]
    np.testing.assert_allclose(*scores, rtol=TOLERANCE, atol=TOLERANCE)


@every_store
@pytest.mark.parametrize("head", ["dense", "sparse", "multi_vector"])
def test_hits_and_scores_are_those_of_the_exact_store(filled, kind, head):
    assert isinstance(filled[kind], Store)
    assert len(filled[kind]) == COUNT
    queries = sample(1, 5)[head]
    pairs = [filled[name].search(head, queries, 12) for name in (kind, "exact")]
    for found, expected in zip(*pairs, strict=True):
        same(found, expected)


@every_store
@pytest.mark.parametrize("similarity", ["dot", "euclidean", "manhattan"])
def test_every_similarity_is_that_of_the_exact_store(kind, similarity, tmp_path):
    stores = [make(name, tmp_path, similarity=similarity) for name in (kind, "exact")]
    for store in stores:
        store.add(IDS, {"dense": sample(0, COUNT)["dense"]})
    queries = sample(1, 3)["dense"]
    pairs = [store.search("dense", queries, 9) for store in stores]
    for found, expected in zip(*pairs, strict=True):
        same(found, expected)


FILTERS = [
    "lang=en",
    "lang!=en",
    "year>=2001",
    "year<1993",
    "year=1995",
    "share=2.5",
    "share>12.25",
    "tags=a",
    "tags!=c",
    "lang in en,de",
    "lang not in en,de",
    "year in 1991,1992",
    "deep.odd key.x=true",
    "missing=1",
    "missing!=1",
    '{"type": "and", "filters": [{"type": "eq", "key": "lang", "value": "de"},'
    ' {"type": "or", "filters": [{"type": "lt", "key": "year", "value": 1995},'
    ' {"type": "nin", "key": "tags", "value": ["a", "z"]}]}]}',
]


@every_store
@pytest.mark.parametrize("text", FILTERS)
def test_every_filter_passes_the_same_documents_in_every_store(filled, kind, text):
    where = parse_filter(text)
    passing = {IDS[i] for i, one in enumerate(METADATA) if fits(where, flat(one))}
    query = sample(2, 1)["dense"]
    found = filled[kind].search("dense", query, COUNT, where=where)[0]
    assert {match.id for match in found} == passing
    same(found, filled["exact"].search("dense", query, COUNT, where=where)[0])


NESTED = [
    [[1, 2], ["a"]],
    [[[3.0]]],
    [],
    [{"k": 1}],
    ["a", [True]],
    "\u2400true",
    ["\u2400true"],
    True,
    None,
]
"""Values that stores keep otherwise than they were."""


@every_store
@pytest.mark.parametrize("kind_of", ["eq", "ne", "lt"])
@pytest.mark.parametrize("value", [1, 3, "a", True, "\u2400true", "\u2400\u2400true"])
def test_lists_in_lists_and_odd_texts_fit_alike_in_every_store(tmp_path, kind, kind_of, value):
    if kind_of == "lt" and type(value) is not int:
        return
    where = check_filter({"type": kind_of, "key": "m", "value": value})
    store = make(kind, tmp_path)
    ids = [f"{i}" for i in range(len(NESTED))]
    rows = {"dense": sample(0, len(ids))["dense"]}
    store.add(ids, rows, [{"m": one} for one in NESTED])
    passing = {id for id, one in zip(ids, NESTED, strict=True) if fits(where, {"m": one})}
    assert {m.id for m in store.search("dense", rows["dense"][:1], 99, where=where)[0]} == passing
    known = {"1": {"0"}, "True": {"4", "7"}, "'\u2400true'": {"5", "6"}}
    if kind_of == "eq" and repr(value) in known:
        assert passing == known[repr(value)]


SAME_NAMES = [
    {"a.b": 1, "a": {"b": 2}},
    {"a": {"b": 2}, "a.b": [1, "x"]},
    {"a.b": {"c": 1}, "a": {"b.c": 2, "b": {"c": None}}},
    {"a": {"b": True}, "a.b": []},
    {"a": {"b": 3}},
    {"a.b": None},
]
"""Documents with several fields that a filter names alike."""


@every_store
@pytest.mark.parametrize(
    ("text", "passing"),
    [
        ("a.b=1", {"0", "1"}),
        ("a.b=2", {"0", "1"}),
        ("a.b=x", {"1"}),
        ("a.b=true", {"3"}),
        ("a.b!=2", {"2", "3", "4", "5"}),
        ("a.b<2", {"0", "1"}),
        ("a.b>=2", {"0", "1", "4"}),
        ("a.b.c in 2,7", {"2"}),
        ("a.b.c=1", {"2"}),
        ("a.b.c not in 1,7", {"0", "1", "3", "4", "5"}),
    ],
)
def test_fields_of_one_name_are_all_compared(tmp_path, kind, text, passing):
    ids = [f"{i}" for i in range(len(SAME_NAMES))]
    rows = {"dense": sample(0, len(ids))["dense"]}
    for name in (kind, "exact"):
        store = make(name, tmp_path)
        store.add(ids, rows, SAME_NAMES)
        found = store.search("dense", rows["dense"][:1], 99, where=parse_filter(text))[0]
        assert {match.id for match in found} == passing


WIDE = [
    2**53,
    2**53 + 1,
    2.0**53,
    2**64 - 1,
    2**64,
    -(2**63),
    1e20,
    10**20 + 1,
    10**400,
    [1, 2**63],
]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    stores = {}
    for kind in ("exact", "edge", "server"):
        stores[kind] = make(kind, tmp_path_factory.mktemp(kind))
        held = [{"user": one} for one in WIDE]
        stores[kind].add(IDS[: len(WIDE)], {"dense": sample(0, len(WIDE))["dense"]}, held)
    return stores


@pytest.mark.parametrize("kind", ["exact", "edge", "server"])
@pytest.mark.parametrize("wanted", [one for one in WIDE if not isinstance(one, list)])
def test_whole_numbers_of_64_bits_and_more_are_told_apart(wide, kind, wanted):
    query = sample(2, 1)["dense"]
    equal = {IDS[i] for i, one in enumerate(WIDE) if one == wanted}
    for type_, passing in (("eq", equal), ("ne", {*IDS[: len(WIDE)]} - equal)):
        where = check_filter({"type": type_, "key": "user", "value": wanted})
        found = wide[kind].search("dense", query, COUNT, where=where)[0]
        assert {match.id for match in found} == passing
    where = check_filter({"type": "gte", "key": "user", "value": wanted})
    found, exact = (
        wide[one].search("dense", query, COUNT, where=where)[0] for one in (kind, "exact")
    )
    assert equal <= {match.id for match in found}
    same(found, exact)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"type": "is", "key": "a", "value": 1}, "allowed: eq"),
        ({"type": "eq", "key": "a"}, "give key, type, value"),
        ({"type": "gt", "key": "a", "value": "x"}, "compares numbers"),
        ({"type": "in", "key": "a", "value": "x"}, "a list of values"),
        ({"type": "and", "filters": []}, "a list of filters"),
        ({"type": "eq", "key": "a", "value": None}, "a text, a number"),
        ({"type": "eq", "key": "a", "value": float("nan")}, "finite"),
        ({"type": "in", "key": "a", "value": ["b", "\ud800"]}, "lone surrogate"),
        ("year", "a filter is 'year'"),
    ],
)
def test_a_filter_that_says_nothing_is_refused(wrong, told):
    with pytest.raises(InputError, match=told):
        check_filter(wrong)
    with pytest.raises(InputError, match="cannot be read"):
        parse_filter("year")


@every_store
def test_replaced_and_deleted_documents(kind, tmp_path):
    stores = [make(name, tmp_path) for name in (kind, "exact")]
    changed = sample(3, 40)
    for store in stores:
        store.add(IDS, sample(0, COUNT))
        store.add(IDS[:40], changed)
        store.delete([*IDS[30:60], "not there"])
        assert len(store) == COUNT - 30
    for head in changed:
        queries = sample(1, 2)[head]
        for found, expected in zip(
            *(store.search(head, queries, 20) for store in stores), strict=True
        ):
            same(found, expected)


@pytest.mark.parametrize("kind", ["exact", "edge", "server"])
@pytest.mark.parametrize("first", ["binary", "short:12"])
def test_a_first_stage_keeps_scores_and_most_hits(filled, kind, first, tmp_path):
    store = make(kind, tmp_path, first=FirstStage.parse(first))
    store.add(IDS, {"dense": sample(0, COUNT)["dense"]}, METADATA)
    queries = sample(1, 5)["dense"]
    for where in (None, parse_filter("lang=en")):
        exact = filled["exact"].search("dense", queries, 5, where=where)
        staged = store.search("dense", queries, 5, where=where)
        hits = sum(
            len({m.id for m in a} & {m.id for m in b}) for a, b in zip(staged, exact, strict=True)
        )
        assert hits >= 20
        everything = filled["exact"].search("dense", queries, COUNT, where=where)
        for matches, all_of in zip(staged, everything, strict=True):
            true = dict(all_of)
            for match in matches:
                assert match.score == pytest.approx(true[match.id], abs=TOLERANCE)
        for found, expected in zip(
            store.search("dense", queries, 5, where=where, exact=True), exact, strict=True
        ):
            same(found, expected)


@pytest.mark.parametrize("first", ["binary:3", "short", "short:x", "other", "short:0"])
def test_a_first_stage_that_cannot_be_is_refused(first):
    with pytest.raises(InputError, match=r"allowed: binary, short:DIM|above 0"):
        FirstStage.parse(first)


@every_store
def test_vectors_that_no_store_can_compare_are_refused_and_nothing_is_added(kind, tmp_path):
    store = make(kind, tmp_path)
    store.add(["a"], {"dense": np.ones((1, 4))})
    for vectors, told in [
        (np.full((1, 4), np.nan), "NaN"),
        (np.full((1, 4), np.inf), "infinity"),
        (np.zeros((1, 4)), "is zero"),
        (np.ones((1, 5)), "width 5"),
        (np.ones((2, 4)), "2 dense vectors were given for 1 ids"),
    ]:
        with pytest.raises(InputError, match=told):
            store.add(["b"], {"dense": vectors})
    with pytest.raises(InputError, match="repeated"):
        store.add(["b", "b"], {"dense": np.ones((2, 4))})
    with pytest.raises(InputError, match="heads"):
        store.add(["b"], {"sparse": csr_matrix(np.ones((1, 4)))})
    assert len(store) == 1
    with pytest.raises(InputError, match="no vectors of the head"):
        store.search("sparse", csr_matrix(np.ones((1, 4))))
    with pytest.raises(InputError, match="top_k"):
        store.search("dense", np.ones((1, 4)), 0)


def test_an_edge_store_opens_as_it_was_and_one_process_holds_it(tmp_path):
    store = EdgeStore(tmp_path / "edge")
    store.add(IDS, sample(0, COUNT), METADATA)
    store.optimize()
    queries = sample(1, 3)["dense"]
    before = store.search("dense", queries)
    with pytest.raises(JobError, match=r"has the index at .* open"):
        EdgeStore.open(tmp_path / "edge")
    store.close()
    again = EdgeStore.open(tmp_path / "edge")
    assert again.search("dense", queries) == before
    assert sorted(point.key for point in again.scroll()) == sorted(IDS)
    again.close()
    with pytest.raises(InputError, match="not empty"):
        EdgeStore(tmp_path / "edge")


@pytest.mark.parametrize("reason", ["Os { code: 28, kind: StorageFull }", "kind: FileTooLarge"])
def test_a_full_disk_is_not_called_damage(tmp_path, reason):
    store = EdgeStore(tmp_path / "edge")
    with pytest.raises(JobError, match="no space left while writing the index"), store._told():
        raise RuntimeError(f"Service runtime error: Can't init WAL: {reason}")


@pytest.mark.parametrize("damage", ["facts", "segments", "nothing there"])
def test_a_damaged_edge_store_is_told(tmp_path, damage):
    store = EdgeStore(tmp_path / "edge")
    store.add(IDS, sample(0, COUNT))
    store.close()
    if damage == "facts":
        (tmp_path / "edge" / "store.json").write_text("{")
    elif damage == "segments":
        for file in (tmp_path / "edge" / "shard").rglob("*.json"):
            file.write_text("{")
    else:
        (tmp_path / "edge").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"is not a store|damaged|not valid JSON"):
        EdgeStore.open(tmp_path / "edge")


def test_a_server_that_does_not_answer_is_told():
    with pytest.raises(InputError, match="check the URL"):
        QdrantStore("http://127.0.0.1:9", "test", timeout=1)
