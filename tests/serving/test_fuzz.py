"""Whatever JSON comes, a server answers, and no answer says that the fault was the server's."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

VALID = [
    ("/v1/embeddings", {"input": ["a", "b"], "dimensions": 4, "encoding_format": "float"}),
    (
        "/v1/encode",
        {
            "texts": ["a"],
            "role": "query",
            "heads": ["dense", {"sparse": {"top_k": 2}}],
            "dim": 4,
            "precision": "float32",
            "normalize": True,
            "max_length": 20,
            "adapter": None,
            "demonstrations": [],
        },
    ),
    (
        "/v1/search",
        {"query": "a", "top_k": 2, "mode": "bm25", "where": {"type": "eq", "key": "a", "value": 1}},
    ),
    (
        "/v1/vector_stores/notes/search",
        {"query": "a", "max_num_results": 2, "ranking_options": {"score_threshold": 0.1}},
    ),
    ("/embed", {"inputs": "a", "normalize": True, "truncate": True, "prompt_name": "query"}),
    ("/embed_all", {"inputs": [[5, 6]], "truncate": False}),
    ("/embed_sparse", {"inputs": ["a"]}),
    ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}),
    ("/tokenize", {"inputs": ["a"], "add_special_tokens": True, "prompt_name": "query"}),
    ("/decode", {"ids": [5, 6], "skip_special_tokens": True}),
    ("/rerank", {"query": "a", "texts": ["b"], "raw_scores": True}),
    ("/v2/rerank", {"query": "a", "documents": ["b", {"text": "c"}], "top_n": 1}),
    (
        "/v1/compare",
        {
            "texts": ["a", "b"],
            "recipe": "weighted-mean",
            "heads": ["dense"],
            "dim": 4,
            "role": None,
        },
    ),
    ("/v1/render", {"texts": ["a"], "model": "tiny", "instruction": "", "max_length": 9}),
    ("/v2/embed", {"input_type": "search_query", "texts": ["a"], "embedding_types": ["binary"]}),
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "query", "dense", "\0", "<s>", "\u2028", "0", "a" * 300])
    | st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=6,
)


IMAGED = [
    ("/v1/embeddings", {"input": [{"image": "iVBORw0KGgo="}, {"text": "a"}, "b"]}),
    ("/v1/encode", {"texts": {"text": "a", "image": "data:image/png;base64,iVBORw0KGgo="}}),
    ("/v1/search", {"query": "a", "image": "iVBORw0KGgo="}),
    ("/v2/embed", {"input_type": "image", "images": ["data:image/png;base64,iVBORw0KGgo="]}),
    (
        "/v2/embed",
        {
            "input_type": "search_query",
            "inputs": [{"content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
        },
    ),
]
"""What is valid for a model that reads images."""


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([*VALID, *IMAGED]), st.data())
def test_no_json_is_a_fault_of_the_server(place, route, data):
    path, body = route
    changed = dict(body)
    field = data.draw(st.sampled_from([*body, "other"]))
    changed[field] = data.draw(VALUES)
    if data.draw(st.booleans()):
        changed.pop(data.draw(st.sampled_from(list(changed))))
    answer = place.post(path, changed)
    assert answer.status < 500, (path, changed, answer.body)
    assert answer.json() is not None


def test_the_valid_ones_are_answered(place):
    for path, body in VALID:
        answer = place.post(path, body)
        assert answer.status == 200, (path, answer.body)
