"""Replicas on Ray Serve give the library's vectors."""

import json
import urllib.request

import numpy as np
import pytest

from embedlm.errors import InputError
from tests.serving import conftest

pytest.importorskip("ray.serve", reason="needs the extra ray")

from embedlm.serving.on_ray import deployment


def test_limits_that_there_are_not_are_refused():
    with pytest.raises(InputError, match="nope"):
        deployment(limits={"nope": 1})


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_replica_answers_as_the_library_does(model, tiny_llama, index, monkeypatch):
    import ray
    from ray import serve

    monkeypatch.setenv("RAY_DISABLE_IMPORT_WARNING", "1")
    with conftest.listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    recipe = model.recipe.model_dump(mode="json", exclude_none=True)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        application = deployment(
            {"tiny": str(tiny_llama)},
            {"notes": str(index)},
            load={"recipe": recipe, "device": "cpu"},
            limits={"timeout": 20.0},
            ray_actor_options={"num_cpus": 0.5},
        )
        serve.run(application)

        def ask(path, body):
            head = {"Content-Type": "application/json"}
            url = f"http://127.0.0.1:{port}{path}"
            request = urllib.request.Request(url, json.dumps(body).encode(), head)
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)

        found = ask("/embed", {"inputs": ["A dog runs."]})
        expected = model.encode(["A dog runs."], heads="dense", normalize=True)
        np.testing.assert_allclose(found, expected, atol=2e-6)
        (hit,) = ask("/v1/search", {"query": "glucose", "top_k": 1})["hits"]
        assert hit["id"] == "g1"
    finally:
        serve.shutdown()
        ray.shutdown()
