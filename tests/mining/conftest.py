"""A corpus of random sentences, and records whose positives are known."""

import json
import random

import pytest

import embedlm
from tests.command import sentences


@pytest.fixture(scope="session")
def model(tiny_llama):
    return embedlm.load(tiny_llama, "plain-mean", device="cpu")


@pytest.fixture(scope="session")
def corpus():
    """Return 80 distinct passages, a copy of every twentieth under another id."""
    texts = list(dict.fromkeys(sentences(100, seed=1)))[:80]
    passages = [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    copies = [{"id": f"c{i}", "text": f" {texts[i]}\n"} for i in range(0, 80, 20)]
    return passages + copies


@pytest.fixture(scope="session")
def records(corpus):
    """Return 12 records: several positives, one query twice, a positive outside the corpus."""
    rng, found = random.Random(2), []
    for i, query in enumerate(list(dict.fromkeys(sentences(20, seed=3)))[:11]):
        positives = [corpus[i]["text"], *([corpus[i * 3 + 20]["text"]] if i % 2 else [])]
        found.append({"id": f"q{i}", "query": query, "positives": positives})
    found[4]["positives"] = ["A passage that the corpus lacks."]
    sibling = {"id": "q11", "query": found[0]["query"], "positives": [corpus[60]["text"]]}
    rng.shuffle(found)
    return [*found, sibling]


@pytest.fixture
def files(tmp_path, corpus, records):
    """Return the paths of the records and of the corpus, as .jsonl."""
    paths = tmp_path / "records.jsonl", tmp_path / "corpus.jsonl"
    for path, rows in zip(paths, (records, corpus), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


def known_texts(records, query):
    """Return the positives of a query, of all records that have it, without white space around."""
    return {text.strip() for one in records if one["query"] == query for text in one["positives"]}
