"""What requests share with each other (the prefix of a prompt), and the spans that tell of them."""

import json
import re

import numpy as np
import pytest

import embedlm
from tests.serving.conftest import running

SHOTS = [
    {"instruct": "Find facts.", "query": f"question {at} of many", "response": "an answer " * 5}
    for at in range(4)
]
QUERIES = ["What do plants eat?", "Which dog runs?", "Why is the sky blue today?", "Who?"]


def counted(place, name):
    found = re.search(rf'^{name}{{model="icl"}} (\S+)$', place.get("/metrics").body.decode(), re.M)
    return float(found[1])


def test_requests_share_the_prefix_of_their_prompt(tiny_llama):
    model = embedlm.load(tiny_llama, "bge-icl", device="cpu")
    expected = model.encode_query(QUERIES, demonstrations=SHOTS)
    with running({"icl": model}) as place:
        for text, vector in zip(QUERIES, expected, strict=True):
            body = {"texts": [text], "role": "query", "demonstrations": SHOTS}
            found = place.post("/v1/encode", body).json()
            np.testing.assert_allclose(found["outputs"]["dense"][0], vector, atol=1e-5)
        assert counted(place, "embedlm_prefix_lookups_total") == 4
        assert counted(place, "embedlm_prefix_hits_total") == 2
        assert counted(place, "embedlm_prefix_tokens_total") > 100
        assert 0 < counted(place, "embedlm_prefix_bytes") < 256 << 20
    with running({"icl": model}, prefix_bytes=0) as place:
        assert place.post("/embed", {"inputs": "a"}).status == 200
        assert b"embedlm_prefix_hits_total{" not in place.get("/metrics").body


def test_spans_hold_what_the_log_does_and_no_text(model):
    pytest.importorskip("opentelemetry.sdk", reason="needs the extra otel")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from embedlm.serving import Tracing

    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    trace = "0af7651916cd43dd8448eb211c80319c"
    with running({"tiny": model}, tracing=Tracing(provider)) as place:
        body = {"inputs": ["a secret text", "another"]}
        answer = place.post("/embed", body, traceparent=f"00-{trace}-b7ad6b7169203331-01")
        assert place.post("/v1/embeddings", {"input": 5, "user": "secret"}).status == 400
    good, bad = kept.get_finished_spans()
    assert good.name == "POST /embed"
    assert f"{good.context.trace_id:032x}" == trace
    told = dict(good.attributes)
    assert told["http.response.status_code"] == 200
    assert (told["embedlm.model"], told["embedlm.texts"]) == ("tiny", 2)
    assert told["embedlm.id"] == answer.headers["x-request-id"]
    assert told["embedlm.run_seconds"] > 0
    assert dict(bad.attributes)["http.response.status_code"] == 400
    assert "secret" not in json.dumps([good.to_json(), bad.to_json()])
