"""Variants written behind a real server, and where they end up in an embedder."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import pytest

import embedlm
from embedlm.encode.identity import revision
from embedlm.encode.items import Item, Text
from embedlm.errors import GenerationError
from embedlm.generation import (
    Cache,
    EndpointGenerator,
    Sampling,
    resolve_generator,
)
from embedlm.schema.recipe import Transform
from embedlm.transform import transform_items, transform_texts
from embedlm.transform.geneol import _tasks, chats_for
from tests.chat_server import Server, serving

TEXTS = ["plants make food", "the quick brown fox", "light"]
CONFIG = Transform(max_new_tokens=6, demonstrations=1)


@pytest.fixture
def serve():
    with serving() as start:
        yield start


@pytest.fixture
def cache(tmp_path):
    with closing(Cache(tmp_path / "cache" / "generations.sqlite")) as store:
        yield store


def endpoint(server, **options):
    return EndpointGenerator(server.url, "writer", **{"wait": 0.01, **options})


# -- an endpoint ----------------------------------------------------------------------------------


def test_an_endpoint_writes_and_the_cache_keeps(serve, cache):
    server = serve()
    found = transform_texts(TEXTS, CONFIG, endpoint(server), cache)
    assert [len(variants) for variants in found] == [4, 4, 4]
    assert all(v.startswith(t.upper()) for t, row in zip(TEXTS, found, strict=True) for v in row)
    assert len(server.requests) == 12
    assert transform_texts(TEXTS[::-1], CONFIG, endpoint(server), cache) == found[::-1]
    assert len(server.requests) == 12
    body = server.requests[0]
    assert (body["model"], body["max_tokens"], body["top_p"]) == ("writer", 6, 1.0)
    assert body["messages"][1] == {"role": "assistant", "content": "Alright."}
    assert "do not provide any alternative or reasoning" in body["messages"][0]["content"]


def test_other_sampling_is_asked_for_anew(serve, cache):
    server = serve()
    for changes in ({}, {"temperature": 0.1}, {"top_p": 0.5}, {"seed": 1}, {"max_new_tokens": 7}):
        transform_texts(TEXTS[:1], CONFIG.model_copy(update=changes), endpoint(server), cache)
    transform_texts(TEXTS[:1], CONFIG, endpoint(server, name="another"), cache)
    assert len(server.requests) == 6 * 4


def test_duplicates_are_written_once_and_blanks_never(serve, cache):
    server = serve()
    found = transform_texts(["light", " ", "light", ""], CONFIG, endpoint(server), cache)
    assert len(server.requests) == 4
    assert found[0] == found[2]
    assert (found[1], found[3]) == ([" "] * 4, [""] * 4)


def test_several_samples_a_prompt_differ(serve, cache):
    server = serve()
    config = CONFIG.model_copy(update={"per_prompt": 3})
    found = transform_texts(TEXTS[:1], config, endpoint(server), cache)[0]
    assert len(set(found)) == 12


def test_compositional_summarises_each_variant(serve, cache):
    server = serve()
    config = CONFIG.model_copy(update={"compositional": True})
    found = transform_texts(TEXTS[:1], config, endpoint(server), cache)[0]
    assert len(server.requests) == 8
    assert "summary" in server.requests[-1]["messages"][0]["content"]
    assert all(len(variant.split()) == 5 for variant in found)  # two seeds behind the text


def test_order_holds_and_requests_are_bounded(serve, cache):
    server = serve(delay=0.02)
    texts = [f"text {i}" for i in range(20)]
    found = transform_texts(texts, CONFIG, endpoint(server, concurrency=3), cache)
    assert all(v.startswith(t.upper()) for t, row in zip(texts, found, strict=True) for v in row)
    assert 1 < server.most_at_once <= 3


@pytest.mark.parametrize("trouble", [429, 500, 503, "malformed", "empty"])
def test_passing_trouble_is_tried_again(serve, cache, trouble):
    server = serve([trouble, trouble])
    start = time.monotonic()
    found = transform_texts(TEXTS[:1], CONFIG, endpoint(server, concurrency=1), cache)
    assert all(variant.startswith("PLANTS") for variant in found[0])
    assert len(server.requests) == 6
    assert time.monotonic() - start > (0.4 if trouble == 429 else 0)  # Retry-After is heeded


def test_a_timeout_is_tried_again(serve, cache):
    server = serve(["late"])
    writer = endpoint(server, concurrency=1, timeout=0.4)
    found = transform_texts(TEXTS[:1], CONFIG, writer, cache)[0]
    assert all(variant.startswith("PLANTS") for variant in found)
    assert len(server.requests) >= 5


@pytest.mark.parametrize("trouble", [401, 404, "no such", "empty", "malformed"])
def test_lasting_trouble_is_told_and_nothing_is_lost(serve, cache, trouble):
    server = serve([200, 200, trouble])
    with pytest.raises(GenerationError, match=r"writer.*after 1 attempt:.*in the cache"):
        transform_texts(TEXTS[:1], CONFIG, endpoint(server, concurrency=1, retries=0), cache)
    before = len(server.requests)
    transform_texts(TEXTS[:1], CONFIG, endpoint(server, concurrency=1), cache)
    assert len(server.requests) - before == 4 - (before - 1)


def test_answers_after_a_failed_one_are_kept(serve, cache):
    server = serve([401], delay=0.05)
    with pytest.raises(GenerationError):
        transform_texts(TEXTS, CONFIG, endpoint(server, concurrency=4), cache)
    asked = len(server.requests)
    assert 4 <= asked < 12
    transform_texts(TEXTS, CONFIG, endpoint(server), cache)
    assert len(server.requests) - asked == 12 - (asked - 1)


@pytest.mark.parametrize("trouble", ["filtered", 422, 413, "silent"])
def test_a_refused_chat_becomes_the_text_itself(serve, cache, caplog, trouble):
    server = serve([trouble])
    found = transform_texts(TEXTS[:1], CONFIG, endpoint(server, concurrency=1), cache)[0]
    assert found[0] == TEXTS[0]
    assert all(variant.startswith("PLANTS") for variant in found[1:])
    assert "1 of 4 variants" in caplog.text
    transform_texts(TEXTS[:1], CONFIG, endpoint(server), cache)
    assert len(server.requests) == (4 if trouble == "silent" else 5)


def test_thoughts_and_a_refusals_reason_are_no_variant(cache):
    class Thinks(Server):
        def say(self, body):
            return '<think>Shorter, they say.</think>\nOutput: "light"'

        def more(self, body, answer):
            if "fox" in body["messages"][-1]["content"]:
                answer["choices"][0]["finish_reason"] = "content_filter"

    with serving(Thinks) as start:
        writer = EndpointGenerator(start().url, "w", wait=0.01)
        variants = transform_texts(["plants make food", "a fox"], CONFIG, writer, cache)
    assert set(variants[0]) <= {"plants make food", "light"}
    assert "light" in variants[0]
    assert set(variants[1]) == {"a fox"}


def test_a_server_that_refuses_everything_is_told(serve, cache):
    server = serve(["filtered"] * 64)
    with pytest.raises(GenerationError, match="refused each of 64"):
        transform_texts([f"text {i}" for i in range(16)], CONFIG, endpoint(server), cache)


def test_no_server_is_told():
    generator = EndpointGenerator("http://127.0.0.1:9/v1", "writer", retries=1, wait=0.01)
    with pytest.raises(GenerationError, match="after 2 attempts"):
        list(generator.generate([[{"role": "user", "content": "x"}]], Sampling(), [0]))


def test_a_killed_job_goes_on_where_it_was(serve, tmp_path):
    server = serve(delay=0.1)
    texts = [f"text {i}" for i in range(16)]
    code = (
        "import sys; from embedlm.schema.recipe import Transform\n"
        "from embedlm.generation import *; from embedlm.transform import *\n"
        "config = Transform(max_new_tokens=6, demonstrations=1)\n"
        "transform_texts([f'text {i}' for i in range(16)], config,\n"
        "                EndpointGenerator(sys.argv[1], 'writer', concurrency=2))\n"
    )
    surroundings = {**os.environ, "EMBEDLM_CACHE": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code, server.url], env=surroundings) as process:
        while len(server.requests) < 50:
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    time.sleep(0.3)
    server.delay, asked = 0.0, len(server.requests)
    with closing(Cache(tmp_path / "generations.sqlite")) as store:
        found = transform_texts(texts, CONFIG, endpoint(server), store)
    again = len(server.requests) - asked
    assert 64 - asked <= again <= 64 - asked + 20  # the last half second's answers anew
    assert all(v.startswith(t.upper()) for t, row in zip(texts, found, strict=True) for v in row)


# -- in an embedder -------------------------------------------------------------------------------


def test_geneol_averages_text_and_variants(serve, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDLM_CACHE", str(tmp_path))
    server = serve()
    recipe = embedlm.Recipe.load("geneol").override({"transform.demonstrations": 1})
    model = embedlm.load(tiny_llama, recipe=recipe, generator=f"{server.url}#writer")
    plain = embedlm.load(tiny_llama, recipe=recipe.override({"transform": None}))
    found = model.encode(TEXTS)
    variants = transform_texts(TEXTS, recipe.transform, f"{server.url}#writer")
    assert len(server.requests) == 12
    for text, row, vector in zip(TEXTS, variants, found, strict=True):
        wanted = plain.encode([text, *row]).mean(0)
        np.testing.assert_allclose(vector, wanted, atol=1e-4)


def test_equal_variants_are_embedded_once_and_weigh_as_often(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDLM_CACHE", str(tmp_path))
    recipe = embedlm.Recipe.load("geneol")
    items = [Item(Text(text), None) for text in TEXTS]
    shares = transform_items(items, recipe.transform, shout)
    assert [share.weight for share in shares] == [0.2, 0.8] * len(TEXTS)
    heads = ["dense", {"sparse": {"restrict": "none"}}]
    model = embedlm.load(tiny_llama, recipe=recipe, generator=shout)
    plain = embedlm.load(tiny_llama, recipe=recipe.override({"transform": None}))
    found = model.encode(TEXTS, heads=heads)
    for row, text in enumerate(TEXTS):
        wanted = plain.encode([text, *[text.upper()] * 4], heads=heads)
        np.testing.assert_allclose(found.dense[row], wanted.dense.mean(0), atol=1e-4)
        mean = wanted.sparse.toarray().mean(0)
        np.testing.assert_allclose(found.sparse.toarray()[row], mean, atol=1e-4)


def test_a_model_that_another_one_writes_for_is_another_one(tiny_llama):
    """Jobs are resumed, and scores kept, under what a model is."""
    named = {name: Odd(["a"] * 4, name) for name in ("one", "two")}
    models = [embedlm.load(tiny_llama, recipe="geneol", generator=one) for one in named.values()]
    assert [model.writer_name for model in models] == list(named)
    assert len({revision(model) for model in models}) == 2
    alike = [model.with_recipe(model.recipe.override({"transform": None})) for model in models]
    assert [model.writer_name for model in alike] == [None, None]
    assert len({revision(model) for model in alike}) == 1


# -- what a generator may be ----------------------------------------------------------------------


def shout(chat, sampling, seed):
    return chat[-1]["content"].removeprefix("Input: ").upper()


def test_a_function_writes(cache):
    assert transform_texts(["light"], CONFIG, shout, cache) == [["LIGHT"] * 4]
    assert resolve_generator(shout).name == "function:tests.transform.test_geneol.shout"


@pytest.mark.parametrize("spec", ["http://127.0.0.1:1/v1", 7, lambda chat, sampling, seed: ""])
def test_a_generator_that_is_none(spec):
    with pytest.raises(GenerationError, match=r"names no model|generator is int|has no name to"):
        resolve_generator(spec)


class Odd:
    """A generator of one's own that gives whatever it is told to."""

    def __init__(self, answers, name="odd"):
        self.answers, self.name = answers, name

    def generate(self, chats, sampling, seeds):
        return self.answers


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (["a"], "given 1 for 4 chats"),
        (["a"] * 9, "given more for 4 chats"),
        (["a", 3, "a", "a"], "given int for chat 2"),
        ([b"a"] * 4, "given bytes for chat 1"),
        (["a", "\ud800", "a", "a"], "chat 2 holds a lone surrogate"),
        (None, "given NoneType"),
    ],
)
def test_what_is_no_answer_is_told_and_never_kept(cache, answers, told):
    with pytest.raises(GenerationError, match=told):
        transform_texts(["light"], CONFIG, Odd(answers), cache)
    kept = cache._connection.execute("SELECT text FROM generations").fetchall()
    assert {text for (text,) in kept} <= {"a"}
    assert transform_texts(["light"], CONFIG, Odd(["a"] * (4 - len(kept))), cache) == [["a"] * 4]


@pytest.mark.parametrize("name", [None, "", object()])
def test_a_generator_has_a_name(cache, name):
    with pytest.raises(GenerationError, match="the generator's name is"):
        transform_texts(["light"], CONFIG, Odd(["a"] * 4, name), cache)


def test_a_text_that_damage_made_a_number_is_written_anew(cache):
    assert transform_texts(["light"], CONFIG, Odd(["a"] * 4), cache) == [["a"] * 4]
    with cache._connection as connection:
        connection.execute("UPDATE generations SET text = x'ff00'")
    assert transform_texts(["light"], CONFIG, Odd(["b"] * 4), cache) == [["b"] * 4]


def test_the_examples_are_complete():
    tasks = _tasks()["transformations"]
    assert len(tasks) == 4
    for task in tasks.values():
        assert task["instruction"].endswith(
            "do not provide any alternative or reasoning or explanation."
        )
        assert len({given for given, _ in task["examples"]}) == 10
        assert all(given != wanted for given, wanted in task["examples"])
    shots = [turn["content"] for turn in chats_for("light", Transform())[0][0][2:-1:2]]
    assert len(set(shots)) == 5
