"""Fusion by hand-computed values, and by the properties of its one formula."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedlm.errors import InputError
from embedlm.search.fusion import SCALES, fuse

DENSE = {"a": 0.9, "b": 0.5, "c": 0.1}
SPARSE = {"b": 12.0, "d": 4.0, "a": 2.0}
# b: second of DENSE, first of SPARSE. m and d of (0.9, 0.5, 0.1): 0.5 and 0.4; of (12, 4, 2):
# 6 and sqrt(28).
BY_HAND = {
    "rrf": {"a": 1 / 61 + 1 / 63, "b": 1 / 62 + 1 / 61, "c": 1 / 63, "d": 1 / 62},
    "weighted": {"a": 0.9 + 2.0, "b": 0.5 + 12.0, "c": 0.1, "d": 4.0},
    "min_max": {"a": 1.0, "b": 1.5, "c": 0.0, "d": 0.2},
    "dbsf": {
        "a": (0.9 + 0.7) / 2.4 + 0.5 - 4 / (6 * 28**0.5),
        "b": 0.5 + 0.5 + 6 / (6 * 28**0.5),
        "c": (0.1 + 0.7) / 2.4,
        "d": 0.5 - 2 / (6 * 28**0.5),
    },
}
runs = st.lists(
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 5).map(float)),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("method", SCALES)
def test_values_by_hand(method):
    assert fuse([DENSE, SPARSE], method, [1, 1]) == pytest.approx(BY_HAND[method])
    mean = {document: score / 2 for document, score in BY_HAND[method].items()}
    assert fuse([DENSE, SPARSE], method) == pytest.approx(mean)


def test_weights_and_depth_and_k():
    assert fuse([DENSE, SPARSE], "min_max", [0.25, 0.75]) == pytest.approx(
        {"a": 0.25, "b": 0.125 + 0.75, "c": 0.0, "d": 0.15}
    )
    assert fuse([DENSE, SPARSE], "min_max", [1, 1], depth=2) == {"a": 1.0, "b": 1.0, "d": 0.0}
    assert fuse([DENSE], "rrf", [1], k=1) == pytest.approx({"a": 1 / 2, "b": 1 / 3, "c": 1 / 4})


def test_qdrant_s_rank_fusion_is_ours_with_k_less_one():
    """Its formula, ranks from 0 and weight 1: 1 / (k + rank)."""
    assert fuse([DENSE], "rrf", [1], k=2 - 1) == pytest.approx(
        {"a": 1 / (2 + 0), "b": 1 / (2 + 1), "c": 1 / (2 + 2)}
    )


@pytest.mark.parametrize("method", SCALES)
def test_equal_scores_and_empty_runs(method):
    single = {"rrf": 1 / 61, "weighted": 3.0, "min_max": 1.0, "dbsf": 0.5}[method]
    assert fuse([{"a": 3.0}, {}], method, [1, 1]) == {"a": pytest.approx(single)}
    equal = fuse([{"b": 2.0, "a": 2.0}], method)
    assert list(equal) == ["a", "b"]
    assert (equal["a"] == equal["b"]) == (method != "rrf")


@pytest.mark.parametrize("method", SCALES)
@given(runs=runs)
def test_the_order_of_runs_does_not_matter_and_every_document_is_there(method, runs):
    fused = fuse(runs, method)
    assert set(fused) == {document for run in runs for document in run}
    assert fuse(runs[::-1], method) == pytest.approx(fused)


def test_clear_errors():
    with pytest.raises(InputError, match=r"fusion 'rff' is not known; allowed: rrf.*mean 'rrf'"):
        fuse([DENSE], "rff")
    with pytest.raises(InputError, match="1 weights were given for 2 runs"):
        fuse([DENSE, SPARSE], weights=[1])
    for method in ("weighted", "min_max", "dbsf"):
        with pytest.raises(InputError, match="too large to be fused"):
            fuse([{"a": 1.7e308, "b": -1.7e308}] * 2, method, [1e308, 1e308])
