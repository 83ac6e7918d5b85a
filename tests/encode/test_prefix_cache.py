"""What calls begin with alike is run once, kept within a number of bytes, and changes no vector."""

import threading

import numpy as np
import pytest

import embedlm
from embedlm.encode.prefix_cache import SHORTEST

SHOTS = [
    {"instruct": "Find facts.", "query": f"question {at} of many", "response": "an answer " * 5}
    for at in range(4)
]
QUERIES = ["What do plants eat?", "Which dog runs?", "Why is the sky blue today?", "Who?"]


@pytest.fixture
def model(tiny_llama):
    return embedlm.load(tiny_llama, "bge-icl", device="cpu")


def ask(model, text, **options):
    return model.encode_query([text], demonstrations=SHOTS, **options)[0]


def test_calls_share_a_prefix_and_their_vectors_stay(model):
    expected = [ask(model, text) for text in QUERIES]
    model.executor.keep_prefixes(1 << 20)
    for _ in range(2):
        found = [ask(model, text) for text in QUERIES]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    counts = model.executor.prefixes.counts
    # The first call shows the prompt, the second runs what both begin with, the others have it.
    assert (counts.lookups, counts.hits, counts.entries) == (8, 6, 1)
    prompt = len(model.render(QUERIES[:1], "query", demonstrations=SHOTS).ids[0])
    assert counts.tokens >= 6 * (prompt - 30) > 6 * SHORTEST
    batch = model.encode_query(QUERIES, demonstrations=SHOTS)
    np.testing.assert_allclose(batch, expected, atol=1e-5)
    assert counts.hits == 7


def test_a_call_of_other_texts_too_runs_them_apart(model):
    model.executor.keep_prefixes(1 << 20)
    for text in QUERIES[:3]:
        ask(model, text)
    mixed = [*QUERIES, *(f"document {at}" for at in range(3))]
    instructions = ["Find facts."] * 4 + [""] * 3
    plain = embedlm.load(model.name, "bge-icl", device="cpu")
    for roles in ("query", "document"):
        given = {"demonstrations": SHOTS, "instruction": instructions} if roles == "query" else {}
        found = model.encode(mixed, roles, **given)
        np.testing.assert_allclose(found, plain.encode(mixed, roles, **given), atol=1e-5)


def test_no_more_bytes_are_kept_than_allowed(model):
    for text in QUERIES:
        ask(model, text)
    model.executor.keep_prefixes(1)
    for text in QUERIES:
        ask(model, text)
    counts = model.executor.prefixes.counts
    assert (counts.hits, counts.entries, counts.bytes) == (0, 0, 0)
    model.executor.keep_prefixes(1 << 20)
    for number in range(12):
        shots = [{**SHOTS[0], "query": f"{number} " * 60}]
        for text in QUERIES[:2]:
            model.encode_query([text], demonstrations=shots)
    counts = model.executor.prefixes.counts
    assert 0 < counts.bytes <= 1 << 20
    whole = counts.bytes // counts.entries
    model.executor.keep_prefixes(whole * 3)
    for number in range(12):
        shots = [{**SHOTS[0], "query": f"{number} " * 60}]
        for text in QUERIES[:2]:
            model.encode_query([text], demonstrations=shots)
    assert 0 < model.executor.prefixes.counts.bytes <= whole * 3


def test_a_model_that_sees_both_directions_keeps_none(tiny_llama):
    recipe = embedlm.Recipe.load("plain-mean").override({"backbone.attention": "bidirectional"})
    model = embedlm.load(tiny_llama, recipe, device="cpu")
    model.executor.keep_prefixes(1 << 20)
    assert model.executor.prefixes is None


def test_threads_share_a_prefix(model):
    expected = [ask(model, text) for text in QUERIES]
    model.executor.keep_prefixes(1 << 20)
    found = {}

    def run(text):
        found[text] = [ask(model, text) for _ in range(5)]

    threads = [threading.Thread(target=run, args=[text]) for text in QUERIES]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    for text, vector in zip(QUERIES, expected, strict=True):
        np.testing.assert_allclose(found[text], [vector] * 5, atol=1e-5)
    assert model.executor.prefixes.counts.hits > 0
