"""Metrics by their definitions, and tasks on small data written here."""

import gzip
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

import embedlm
from embedlm.data import read_rows
from embedlm.errors import InputError, RecordError
from embedlm.evaluation import evaluate
from embedlm.evaluation.measures import spearman
from embedlm.evaluation.metrics import ndcg, recall, reciprocal_rank
from embedlm.evaluation.readers import read_retrieval
from embedlm.evaluation.subject import Subject
from embedlm.evaluation.suite import Suite
from embedlm.studies import search_layers
from tests.command import sentences

WORDS = [
    "plants",
    "food",
    "light",
    "energy",
    "fox",
    "dog",
    "river",
    "committee",
    "pump",
    "harvest",
    "violin",
    "museum",
]


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path.with_name(path.name + ".gz"), "wt") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    pairs = [(a, b, 5.0 if a == b else i % 4) for i, a in enumerate(WORDS) for b in WORDS[:4]]
    write(root / "sts/stsb_dev.jsonl", [{"s1": a, "s2": b, "score": g} for a, b, g in pairs])
    write(
        root / "ir_adi/corpus.jsonl",
        [{"_id": str(i), "title": w, "text": f"{w} {w} it is"} for i, w in enumerate(WORDS)],
    )
    write(root / "ir_adi/queries.jsonl", [{"_id": w, "text": w} for w in [*WORDS, "unjudged"]])
    write(
        root / "ir_adi/qrels.jsonl",
        [{"q": w, "d": str(i), "rel": 1} for i, w in enumerate(WORDS)],
    )
    return root


@given(st.lists(st.integers(0, 4), min_size=2, max_size=12), st.integers(1, 12))
def test_ndcg_equals_scikit_learn(gains, k):
    names = [str(i) for i in range(len(gains))]
    relevant = dict(zip(names, map(float, gains), strict=True))
    scores = np.arange(len(gains), 0, -1, dtype=float)
    wanted = ndcg_score([gains], [scores], k=k) if any(gains) else 0.0
    assert ndcg(names, relevant, k) == pytest.approx(wanted)


def test_ndcg_counts_missing_documents():
    assert ndcg(["a"], {"a": 1, "b": 1}) == pytest.approx(1 / (1 + 1 / math.log2(3)))


def test_recall_and_reciprocal_rank():
    assert recall(["a", "b", "c"], {"c": 1, "d": 1}, k=3) == 0.5
    assert reciprocal_rank(["a", "b", "c"], {"c": 2}) == pytest.approx(1 / 3)
    assert reciprocal_rank(["a"], {"c": 2}) == 0
    assert spearman([1, 2, 3], [2, 4, 9]) == 1
    assert spearman([1, 1, 1], [2, 4, 9]) == 0


@pytest.mark.parametrize("recipe", ["plain-mean", "static-sif", "promptreps"])
def test_tasks_run(tiny_llama, data, recipe):
    model = embedlm.load(tiny_llama, recipe=recipe)
    similar, found = evaluate(model, ["stsb_dev", "adi"], data=data)
    assert similar.metric == "spearman"
    assert -1 <= similar.score <= 1
    assert 0 <= found.score <= 1
    if recipe == "plain-mean":
        # Each query is a word of its document's: even a random model finds most.
        assert found.more["dense_recall@100"] == 1
        assert found.score > 0.5
    if recipe == "promptreps":
        assert {"dense_ndcg@10", "sparse_ndcg@10", "hybrid_ndcg@10"} <= set(found.more)


def test_unjudged_queries_are_left_out(data):
    task = Suite.load("retrieval")["adi"]
    paths = {what: data / path for what, path in task.paths().items()}
    found = read_retrieval(paths, task.fields)
    assert "unjudged" not in found.queries
    assert found.left_out == {"queries without a relevant document": 1}


def test_clear_errors(tiny_llama, data, tmp_path):
    with pytest.raises(InputError, match=r"'stsb' is not a task.*Did you mean 'stsb_"):
        evaluate(tiny_llama, ["stsb"], data=data)
    with pytest.raises(InputError, match="EMBEDLM_DATA"):
        evaluate(tiny_llama, ["adi"], data=tmp_path / "no")
    with pytest.raises(
        InputError, match=r"cisi needs .*ir_cisi/corpus\.jsonl: the file is not there"
    ):
        evaluate(tiny_llama, ["cisi"], data=data)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"a": 1}\n[1]\n')
    with pytest.raises(RecordError, match=r"bad\.jsonl:2: not a JSON object"):
        list(read_rows(bad))


def test_layers_are_scored_as_their_override_would(tiny_llama):
    dev = [(a, b, float(i % 5)) for i, a in enumerate(WORDS) for b in WORDS[:3]]
    model = embedlm.load(tiny_llama, recipe="pretended-cot")
    found = search_layers(model, dev)
    assert {entry.layer for entry in found} == {-1, -2}
    best = found[0]
    recipe = model.recipe.override({"pooling.layer": best.layer})
    texts = [text for a, b, _ in dev for text in (a, b)]
    vectors = embedlm.load(tiny_llama, recipe=recipe).encode(texts)
    scores = model.similarity_pairwise(vectors[::2], vectors[1::2])
    assert best.score == pytest.approx(spearman(scores, [gold for *_, gold in dev]), abs=1e-6)
    with pytest.raises(InputError, match="layer 9"):
        search_layers(model, dev, [9])


@pytest.mark.parametrize("weights", ["none", "sif"])
def test_a_model_is_fitted_to_a_tasks_texts_unless_it_was_before(tiny_llama, weights):
    pooling = {"kind": "mean", "weights": weights, "remove_components": 1}
    bare = embedlm.load(tiny_llama, {"name": "f", "pooling": pooling}, device="cpu")
    corpus, texts = sentences(40, seed=1), sentences(30, seed=2)
    fitted = bare.with_recipe(bare.recipe).fit(corpus)
    wanted = bare.with_recipe(bare.recipe).fit(texts).encode(texts)
    np.testing.assert_array_equal(Subject(bare).fitted(texts).model.encode(texts), wanted)
    assert bare.readout.statistics is None
    kept = Subject(fitted).fitted(texts).model.encode(texts)
    np.testing.assert_array_equal(kept, fitted.encode(texts))
    assert np.abs(kept - wanted).max() > 1e-3
