"""A model whose vectors are known, and small data sets of every kind, for us and for mteb alike."""

import hashlib
import json

import numpy as np

from embedlm.schema.recipe import Recipe

RANKED = ("doc", "ask", "wiki")
"""Texts that begin so have whole numbers in their vectors: scores are exact, and many tie."""


def vector(text):
    """A vector of a text: of its topic where it names one, and of chance."""
    rng = np.random.default_rng(int(hashlib.sha256(text.encode()).hexdigest()[:12], 16))
    if text.startswith(RANKED):
        return rng.integers(0, 3, 4).astype(np.float32)
    values = rng.normal(size=16)
    for word in text.split():
        if word.startswith("topic"):
            topic = np.random.default_rng(int(word.removeprefix("topic"))).normal(size=16)
            values = values + 0.8 * topic
    return (values / np.linalg.norm(values)).astype(np.float32)


class Known:
    """As much of an embedder as a task uses."""

    recipe = Recipe.load("plain-mean")
    generator, name = None, "known"

    def takes_instruction(self, role):
        return False

    def encode(self, texts, role=None, heads=None, **_):
        return np.stack([vector(text) for text in texts])

    def similarity(self, a, b, heads=None):
        return np.asarray(a) @ np.asarray(b).T

    def similarity_pairwise(self, a, b):
        return (np.asarray(a) * np.asarray(b)).sum(axis=1)


def _pairs(count, name):
    rng = np.random.default_rng(5)
    for i in range(count):
        a, b = rng.integers(0, 6, 2)
        yield f"topic{a} {name} {i}", f"topic{b if i % 2 else a} {name} other {i}", int(a == b)


def _labelled(labels, count, name):
    return [
        {"text": f"topic{i % labels} {name} {i}", "label": f"l{i % labels}"} for i in range(count)
    ]


def records():
    """The records of every file."""
    rng = np.random.default_rng(3)
    documents = [f"d{i}" for i in range(60)]
    queries = [f"q{i}" for i in range(15)]
    pairs = list(_pairs(70, "pair"))
    return {
        "sts.jsonl": [
            {"s1": a, "s2": b, "score": float(3 * same + i % 3)}
            for i, (a, b, same) in enumerate(pairs)
        ],
        "pairs.jsonl": [
            {"s1": a, "s2": b, "label": int(same or i % 7 == 0)}
            for i, (a, b, same) in enumerate(pairs)
        ],
        "bitext.jsonl": [
            {"src": f"topic{i % 9} src {i}", "eng": f"topic{i % 9} eng {i}"} for i in range(40)
        ],
        "train.jsonl": _labelled(5, 75, "train"),
        "test.jsonl": _labelled(5, 60, "test"),
        "clusters.jsonl": _labelled(4, 120, "cluster"),
        "corpus.jsonl": [{"_id": d, "title": "", "text": f"doc {d}"} for d in documents],
        "queries.jsonl": [{"_id": q, "text": f"ask {q}"} for q in queries],
        "qrels.jsonl": [
            {"q": q, "d": str(d), "rel": int(rng.integers(0, 4))}
            for q in queries
            for d in rng.choice(documents, 6, replace=False)
        ],
        "wiki.jsonl": [
            {
                "query": f"ask wiki {i}",
                "positive": [f"wiki {i} yes {j}" for j in range(1 + i % 3)],
                "negative": [f"wiki {i} no {j}" for j in range(5)],
            }
            for i in range(12)
        ],
    }


SUITE = """
tasks:
  sts: {kind: sts, files: {pairs: sts.jsonl}}
  pair: {kind: pair, files: {pairs: pairs.jsonl}}
  bitext: {kind: bitext, files: {pairs: bitext.jsonl}}
  classification: {kind: classification, files: {train: train.jsonl, test: test.jsonl}}
  clustering: {kind: clustering, files: {texts: clusters.jsonl}, documents: 100, draws: 512}
  retrieval:
    kind: retrieval
    files: {corpus: corpus.jsonl, queries: queries.jsonl, qrels: qrels.jsonl}
    also: [ndcg@3, map@10, map@1000, mrr@10, recall@5, precision@5, hit_rate@3]
  rerank: {kind: rerank, files: {queries: wiki.jsonl}, also: [mrr@10, ndcg@10]}
"""


def write(folder):
    """Write all files and the suite; return the suite's path."""
    for name, rows in records().items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "all.yaml").write_text(SUITE)
    return folder / "all.yaml"
