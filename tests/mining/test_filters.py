"""Each rule against the formula of its paper, at and beside its bound."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from embedlm.errors import InputError
from embedlm.mining.filters import KEPT, Filters, margin_bound, percentage_bound, reasons

SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], np.float32)
finite = st.floats(-10, 10)


@pytest.mark.parametrize(
    ("rule", "constant", "dropped"),
    [
        ("shift", 2, 2),
        ("abs", 0.65, 3),
        ("margin_pos", 0.05, 1),  # s+ = 0.9: 0.9 > 0.85 goes, 0.8 stays
        ("margin_pos", 0.15, 2),
        ("margin_pos", 0.19, 2),  # 0.71: a margin that is a tenth larger would drop 0.7
        ("perc_pos", 0.95, 1),  # 0.855
        ("perc_pos", 0.78, 2),  # 0.702: two hundredths less would drop 0.7
        ("perc_pos", 0.7, 3),  # 0.63
    ],
)
def test_each_rule_drops_what_its_formula_says(rule, constant, dropped):
    found = reasons(Filters.of({rule: constant}), SCORES, 0.9).tolist()
    assert found == [rule] * dropped + [KEPT] * (len(SCORES) - dropped)


@given(finite, st.floats(0.01, 1))
@example(-0.5, 0.9)
def test_the_bound_of_the_percentage_lies_below_the_positive_where_scores_are_negative(s, p):
    """s+ times p, as some write it, would lie above a negative s+."""
    assert percentage_bound(s, p) == s - abs(s) * (1 - p)
    assert percentage_bound(s, p) <= s
    assert percentage_bound(s, 1) == s == margin_bound(s, 0)


@given(st.lists(finite, min_size=1, max_size=30), finite, st.floats(0, 2), st.floats(0.01, 1))
def test_a_candidate_is_kept_exactly_when_no_rule_drops_it(scores, s, m, p):
    scores_K = np.sort(np.array(scores, np.float32))[::-1]
    filters = Filters.of({"shift": 1, "abs": 3.5, "margin_pos": m, "perc_pos": p})
    kept = [
        rank > 1 and score <= 3.5 and score <= s - m and score <= s - abs(s) * (1 - p)
        for rank, score in enumerate(scores_K.tolist(), 1)
    ]
    assert (reasons(filters, scores_K, s) == KEPT).tolist() == kept


def test_of_several_rules_the_first_is_told():
    filters = Filters.of(["shift=1", "abs=0.75", "perc_pos=0.7"])
    found = reasons(filters, SCORES, 0.9, first=1).tolist()
    assert found == ["shift", "abs", "perc_pos", KEPT, KEPT, KEPT]
    assert reasons(filters, SCORES, 0.9, first=3).tolist()[:2] == ["window", "window"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("perc_post=0.9", "Did you mean 'perc_pos'"),
        ("perc_pos", "above 0 and at most 1"),
        ("perc_pos=0", "above 0 and at most 1"),
        ("perc_pos=1.2", "above 0 and at most 1"),
        ("perc_pos=nan", "above 0 and at most 1"),
        ("margin_pos=-1", "0 or more"),
        ("shift=1.5", "whole number"),
        ("consistency=0", "above 0"),
        (["abs=1", "abs=2"], "given twice"),
        (5, "give a mapping"),
        ({"abs": True}, "largest score"),
    ],
)
def test_constants_that_are_not_allowed_are_refused(given, told):
    with pytest.raises(InputError, match=told):
        Filters.of(given)
