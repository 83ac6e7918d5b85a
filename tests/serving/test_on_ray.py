"""Replicas on Ray Serve give the library's vectors."""

import json
import subprocess
import sys

import numpy as np
import pytest

from embedlm.errors import InputError
from tests.serving import conftest

pytest.importorskip("ray.serve", reason="needs the extra ray")

from embedlm.serving.on_ray import deployment

# In a process of its own: what Ray leaves open at its end is no other test's.
ASK = """
import json, sys, urllib.request
import ray
from ray import serve
from embedlm.serving.on_ray import deployment

given = json.loads(sys.argv[1])
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": given["port"]})
serve.run(deployment(
    {"tiny": given["model"]},
    {"notes": given["index"]},
    load={"recipe": given["recipe"], "device": "cpu"},
    limits={"timeout": 20.0},
    ray_actor_options={"num_cpus": 0.5},
))

def ask(path, body):
    url, head = f"http://127.0.0.1:{given['port']}{path}", {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), head)
    return json.load(urllib.request.urlopen(request, timeout=60))

vectors = ask("/embed", {"inputs": ["A dog runs."]})
hits = ask("/v1/search", {"query": "glucose", "top_k": 1})["hits"]
print(json.dumps({"vectors": vectors, "hits": hits}))
serve.shutdown()
ray.shutdown()
"""


def test_limits_that_there_are_not_are_refused():
    with pytest.raises(InputError, match="nope"):
        deployment(limits={"nope": 1})


@pytest.mark.slow
def test_a_replica_answers_as_the_library_does(model, tiny_llama, index):
    with conftest.listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    recipe = tiny_llama.parent / "recipe.yaml"
    recipe.write_text(json.dumps(model.recipe.model_dump(mode="json", exclude_none=True)))
    given = {
        "port": port,
        "model": str(tiny_llama),
        "index": str(index),
        "recipe": str(recipe),
    }
    ran = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(given)], capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    expected = model.encode(["A dog runs."], heads="dense", normalize=True)
    np.testing.assert_allclose(found["vectors"], expected, atol=2e-6)
    assert found["hits"][0]["id"] == "g1"
