"""Two runtimes compared: equal ones are equal, and what parts others is named."""

import http.server
import json
import threading

import numpy as np
import pytest

import embedlm
from embedlm.errors import InputError, ModelError
from embedlm.studies import compare, open_runtime

TEXTS = ["plants make food from light", "the quick brown fox", "light"]


def sides(folder, *recipes, **options):
    return [open_runtime(str(folder), recipe, **options) for recipe in recipes]


def test_a_model_equals_itself(tiny_llama):
    found = compare(*sides(tiny_llama, "plain-mean", "plain-mean"), TEXTS)
    assert found.equal
    assert found.verdict == "equal on all 3 texts"


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"pooling.kind": "last"}, "pooling.kind: last"),
        ({"backbone.attention": "bidirectional"}, "backbone.attention: bidirectional"),
    ],
)
def test_pooling_and_attention_are_told_from_numbers(tiny_llama, other, named):
    recipe = embedlm.Recipe.load("plain-mean").override({"backbone.attention": "causal"})
    found = compare(*sides(tiny_llama, recipe, recipe.override(other)), TEXTS[:2])
    assert {row.parts for row in found.rows} == {"pooling"}
    assert all(named in row.detail for row in found.rows)


def test_tokens_come_first(tiny_llama):
    prompt = {"prompt.default": "{text} and more", "pooling.kind": "last"}
    recipe = embedlm.Recipe.load("plain-mean")
    found = compare(*sides(tiny_llama, recipe, recipe.override(prompt)), TEXTS)
    assert {row.parts for row in found.rows} == {"tokens"}
    assert "token " in found.rows[0].detail
    assert "the tokens differ (3)" in found.verdict


def test_length_and_numbers_and_width(tiny_llama, model_folder):
    recipe = embedlm.Recipe.load("plain-mean")
    scaled = compare(*sides(tiny_llama, recipe, recipe.override({"normalize": True})), TEXTS)
    assert {row.parts for row in scaled.rows} == {"length"}
    layer = recipe.override({"pooling.layer": 1})
    assert {row.parts for row in compare(*sides(tiny_llama, recipe, layer), TEXTS).rows} == {
        "numbers"
    }
    wide = open_runtime("builtin", "plain-mean")
    found = compare(open_runtime(str(tiny_llama), "plain-mean"), wide, TEXTS)
    assert {row.parts for row in found.rows} == {"width"}


@pytest.mark.parametrize("recipe", ["plain-mean", "static-mean"])
def test_sentence_transformers_on_a_saved_folder(tiny_llama, tmp_path, recipe):
    embedlm.load(tiny_llama, recipe).save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "embedlm.yaml").unlink()
    a, b = open_runtime(str(tmp_path / "saved")), open_runtime(f"st:{tmp_path / 'saved'}")
    found = compare(a, b, TEXTS)
    assert found.equal, found
    assert a.ids(TEXTS) == b.ids(TEXTS)


@pytest.fixture
def endpoint(tiny_llama):
    """A server that answers embeddings requests with the vectors of a real model."""
    model = embedlm.load(tiny_llama, "plain-mean")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            vectors = model.encode(asked["input"])
            data = [
                {"object": "embedding", "index": i, "embedding": v.tolist()}
                for i, v in enumerate(vectors)
            ]
            body = json.dumps({"object": "list", "model": asked["model"], "data": data[::-1]})
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1#tiny"
    server.shutdown()
    server.server_close()


def test_an_endpoint_is_a_side(tiny_llama, endpoint):
    pytest.importorskip("openai")
    side = open_runtime(endpoint)
    assert compare(open_runtime(str(tiny_llama), "plain-mean"), side, TEXTS).equal
    assert side.vectors(TEXTS).dtype == np.float32
    found = compare(open_runtime(str(tiny_llama), "plain-last"), side, TEXTS[:2])
    assert "pooling.kind: mean" in found.rows[0].detail


def test_what_cannot_be_compared_is_told(tiny_llama, tmp_path):
    with pytest.raises(InputError, match=r"write http://host:port/v1#model"):
        open_runtime("http://127.0.0.1:9/v1")
    with pytest.raises(ModelError, match=r"sentence-transformers cannot open"):
        open_runtime(f"st:{tmp_path}")
    with pytest.raises(InputError, match=r"no texts"):
        compare(*sides(tiny_llama, "plain-mean", "plain-mean"), [])


def test_the_command_says_it_and_exits_1(run, tiny_llama, tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS) + "\n")
    same = ("parity", tiny_llama, tiny_llama, "--recipe-a", "plain-mean", "--texts", file)
    done = run(*same, "--recipe-b", "plain-mean")
    assert done.code == 0, done
    assert done.out.endswith("equal on all 3 texts\n")
    done = run(*same, "--recipe-b", "plain-last", "--json")
    assert done.code == 1, done
    said = json.loads(done.out)
    assert not said["equal"]
    assert said["rows"][0]["parts"] == "pooling"
    run("parity", "a", "b", "--texts", tmp_path / "none").one_line()
