"""The ranking metrics are those of trec_eval, ties included; a collapsed model ranks by chance."""

from types import SimpleNamespace

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from embedlm.data import Group, Records
from embedlm.errors import InputError
from embedlm.evaluation.metrics import (
    average_precision,
    best_documents,
    hit_rate,
    ndcg,
    precision,
    ranking,
    ranking_metric,
    recall,
    reciprocal_rank,
    score_queries,
)
from embedlm.training.dev import dev_score

IDS = [*map(str, range(14)), "a", "B", "é", "z-1"]
runs = st.dictionaries(st.sampled_from(IDS), st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=1)
judgements = st.dictionaries(st.sampled_from(IDS), st.integers(-1, 3), min_size=1)
METRICS = {
    "ndcg_cut_10": lambda ranked, gains: ndcg(ranked, gains, 10),
    "ndcg_cut_3": lambda ranked, gains: ndcg(ranked, gains, 3),
    "recall_5": lambda ranked, gains: recall(ranked, gains, 5),
    "recall_100": lambda ranked, gains: recall(ranked, gains, 100),
    "map_cut_4": lambda ranked, gains: average_precision(ranked, gains, 4),
    "map": average_precision,
    "P_5": lambda ranked, gains: precision(ranked, gains, 5),
    "success_5": lambda ranked, gains: hit_rate(ranked, gains, 5),
    "recip_rank": lambda ranked, gains: reciprocal_rank(ranked, gains, None),
}
MEASURES = {"ndcg_cut.3,10", "recall.5,100", "map_cut.4", "map", "P.5", "success.5", "recip_rank"}


@settings(deadline=None, max_examples=300)
@given(run=runs, judged=judgements)
def test_metrics_equal_trec_eval_with_many_ties(run, judged):
    if not any(gain > 0 for gain in judged.values()):
        judged["0"] = 1  # trec_eval leaves out queries without a relevant document
    evaluator = pytrec_eval.RelevanceEvaluator({"q": judged}, MEASURES)
    expected = evaluator.evaluate({"q": run})["q"]
    ranked = ranking(run)
    for name, metric in METRICS.items():
        assert metric(ranked, judged) == pytest.approx(expected[name]), name


def test_scores_are_compared_in_float32():
    """They differ in float64 alone, so the id decides, as in trec_eval."""
    assert ranking({"a": 1.0 + 1e-12, "b": 1.0}) == ["b", "a"]


@settings(deadline=None)
@given(run=st.fixed_dictionaries(dict.fromkeys(IDS, st.integers(0, 3))), depth=st.integers(1, 20))
def test_the_best_documents_are_the_ranking_s_first(run, depth):
    scores_QN = np.array([[run[id_] for id_ in IDS]], dtype=np.float32)
    (best,) = best_documents(scores_QN, IDS, depth)
    assert list(best) == ranking(run)[:depth]
    assert best == {id_: run[id_] for id_ in best}


def test_a_query_without_a_run_counts_zero():
    judged = {"q1": {"a": 1.0}, "q2": {"b": 1.0}}
    each = score_queries({"q1": {"a": 2.0, "b": 1.0}}, judged, ["ndcg@10", "mrr@10"])
    assert each == {"ndcg@10": [1.0, 0.0], "mrr@10": [1.0, 0.0]}


@pytest.mark.parametrize("name", ["ndcg", "ndgc@10", "ndcg@0", "map@x"])
def test_a_metric_of_another_name_is_refused(name):
    with pytest.raises(InputError, match="no metric of rankings; write one of ndcg, map"):
        ranking_metric(name)


class Scorer:
    """An embedder of which the scores are known."""

    def __init__(self, score):
        self.score = score
        self.recipe = SimpleNamespace()

    def encode_query(self, texts, **_):
        return texts

    encode_document = encode_query

    def similarity(self, queries, documents):
        return np.array([[self.score(q, d) for d in documents] for q in queries], np.float32)


def records(count, negatives):
    groups = [
        Group(f"q{i}", (f"answer {i}",), tuple(f"wrong {i} {j}" for j in range(negatives)))
        for i in range(count)
    ]
    return Records("dev", "groups", groups)


def test_a_collapsed_model_ranks_by_chance():
    """Chance: each rank up to 10 is a given query's answer with probability 1 / documents."""
    collapsed = Scorer(lambda *_: 1.0)
    chance = sum(1 / rank for rank in range(1, 11)) / 100
    assert dev_score(collapsed, records(100, 0)) == pytest.approx(chance)
    assert dev_score(collapsed, records(100, 3)) < 2 * chance
    assert dev_score(Scorer(lambda q, d: d == f"answer {q[1:]}"), records(100, 3)) == 1
