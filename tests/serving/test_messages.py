"""What a client is told: which fields and names there are, and what it can do itself."""

import json
import time
from shutil import copytree

import pytest

from embedlm.errors import InputError, closest
from embedlm.search.layout import read_index
from embedlm.serving import Models, Mounted
from tests.serving.conftest import process, running

FILTER = 'such as {"type": "gte", "key": "year", "value": 2020}'


def told(answer, status=400):
    """Return the message of an error."""
    assert answer.status == status, answer.body
    body = answer.json()
    return body.get("detail") or body.get("message") or body["error"]


def of_openai(answer, status=400):
    return told(answer, status)["message"]


@pytest.mark.parametrize("path", ["/v1/encode", "/v1/compare", "/v1/render"])
def test_an_unknown_recipe_is_answered_with_one_that_fits(place, path):
    words = of_openai(place.post(path, {"texts": ["a"], "recipe": "wieghted-mean"}), 404)
    assert words.endswith("those that fit the model 'tiny'. Did you mean 'weighted-mean'?")
    words = of_openai(place.post(path, {"texts": ["a"], "recipe": "statc-mean"}), 404)
    assert "static-mean" not in words  # which this model cannot be read by


def test_no_message_tells_where_a_model_or_an_index_lies(place, model, index):
    folder = model.backbone.name
    assert folder.startswith("/")
    for path in ("/v1/encode", "/v1/compare", "/v1/render"):
        words = of_openai(place.post(path, {"texts": ["a"], "recipe": "static-mean"}))
        assert "'tiny' was loaded with 'transformer'; take a recipe that fits" in words
        assert "GET /v1/served" in words
        assert "embedlm serve MODEL -r static-mean" in words
        assert folder not in words
        assert "load it anew" not in words
    for wrong in ({"mode": "late"}, {"weights": {"a": 1}}, {"instruction": "x", "mode": "bm25"}):
        assert str(index) not in of_openai(place.post("/v1/search", {"query": "a", **wrong}))
    assert folder not in json.dumps(place.get("/info").json())
    words = of_openai(place.post("/v1/encode", {"texts": [{"image": "aGk="}]}))
    assert words.startswith("'tiny' reads texts alone")


def test_an_index_that_is_gone_is_called_by_its_name(model, tmp_path, index, caplog):
    folder = copytree(index, tmp_path / "own.index")
    served = list(Models.of({"tiny": model}).embedders.values())
    with running({"tiny": model}, {"papers": Mounted.open("papers", folder, served)}) as place:
        (folder / "index.json").unlink()
        answer = place.post("/v1/search", {"query": "a"})
        assert "the index 'papers' cannot be read now" in of_openai(answer, 503)
        assert str(tmp_path) not in answer.body.decode()
        assert str(folder) in caplog.text  # the log says more


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/search", {"query": "a", "k": 5}, "'k' is no field here. Did you mean 'top_k'?"),
        ("/v1/search", {"query": "a", "limit": 5}, "Did you mean 'top_k'?"),
        ("/v1/search", {"query": "a", "max_num_results": 5}, "Did you mean 'top_k'?"),
        ("/v1/search", {"query": "a", "filter": {}}, "Did you mean 'where'?"),
        ("/v1/search", {"query": "a", "zzz": 5}, "'zzz' is no field here. Allowed: query, image,"),
        ("/v1/vector_stores/notes/search", {"query": "a", "top_k": 5}, "'max_num_results'?"),
        (
            "/v1/vector_stores/notes/search",
            {"query": "a", "ranking_options": {"rankr": "auto"}},
            "ranking_options: 'rankr' is no field here. Did you mean 'ranker'? Allowed: ranker, s",
        ),
        ("/v1/embeddings", {"input": "a", "dim": 5}, "Did you mean 'dimensions'? Allowed: input,"),
        ("/v1/encode", {"inputs": "a"}, "Did you mean 'texts'? Allowed: texts, model"),
        ("/v1/compare", {"texts": ["a"], "recipee": "b"}, "Did you mean 'recipe'?"),
        ("/v1/render", {"texts": ["a"], "prompt": "b"}, "Did you mean 'instruction'?"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_k": 1}, "Did you mean 'top_n'?"),
        ("/v2/rerank", {"query": "a", "texts": ["b"]}, "Did you mean 'documents'?"),
        ("/v2/embed", {"input_type": "search_query", "text": ["b"]}, "Did you mean 'texts'?"),
        ("/embed", {"inputs": "a", "dim": 1}, "Did you mean 'dimensions'?"),
        ("/embed_all", {"input": "a"}, "Did you mean 'inputs'?"),
        ("/tokenize", {"text": "a"}, "Did you mean 'inputs'?"),
        ("/decode", {"id": [5]}, "Allowed: ids, skip_special_tokens"),
        ("/similarity", {"inputs": {"source_sentence": "a", "texts": []}}, "'sentences'?"),
    ],
)
def test_an_unknown_field_is_answered_with_those_that_there_are(place, path, body, words):
    found = told(place.post(path, body))
    found = found["message"] if isinstance(found, dict) else found
    assert words in found
    assert "not permitted" not in found


@pytest.mark.parametrize(
    ("path", "field"), [("/v1/search", "where"), ("/v1/vector_stores/notes/search", "filters")]
)
def test_a_filter_of_the_command_line_is_answered_with_its_json(place, path, field):
    words = of_openai(place.post(path, {"query": "a", field: "year>=2020"}))
    assert f"{field}: give a filter as a JSON object, {FILTER}" in words
    words = of_openai(place.post(path, {"query": "a", field: "lang in en,de"}))
    assert '{"type": "in", "key": "lang", "value": ["en", "de"]}' in words
    for wrong in ("?", 5, ["year"]):
        assert FILTER in of_openai(place.post(path, {"query": "a", field: wrong}))
    shown = json.loads(FILTER.removeprefix("such as "))
    assert place.post(path, {"query": "a", field: shown}).status == 200


def test_json_without_its_header_is_answered_with_the_header(place):
    body = b'{"input": "a"}'
    kind = "application/x-www-form-urlencoded"
    words = of_openai(place.post("/v1/embeddings", body, Content_Type=kind))
    assert f"its content-type is '{kind}'" in words
    assert words.endswith("send it with the header content-type: application/json")
    words = of_openai(place.post("/v1/embeddings", body, Content_Type=""))
    assert "it has no content-type; send it with the header" in words
    for other in (b"[1]", b"input=a", b""):
        words = of_openai(place.post("/v1/embeddings", other, Content_Type=kind))
        assert "the header" not in words
    assert place.post("/v1/embeddings", body, Content_Type="application/vnd.a+json").status == 200


@pytest.mark.parametrize(
    ("body", "here", "not_here"),
    [
        (
            {"inputs": "a", "raw_scores": True},
            "Allowed: truncate, truncation_direction, inp",
            "query",
        ),
        ({"query": "a", "texts": ["b"], "normalize": True}, "query, texts, raw_scores", "inputs"),
        ({"query": "a"}, "texts: Field required", "inputs"),
        ({"texts": ["a"]}, "query: Field required", "inputs"),
        ({"normalize": True}, "inputs: Field required", "query"),
        ([1], "the body is no JSON object", "inputs"),
    ],
)
def test_at_teis_address_the_errors_are_of_the_body_that_is_meant(place, body, here, not_here):
    words = told(place.post("/", body))
    assert here in words
    assert not_here not in words


def test_an_image_for_a_model_of_texts_is_refused_before_it_is_read(place):
    asked = [
        ("/v1/encode", {"texts": [{"image": "%%"}]}),
        ("/v1/embeddings", {"input": [{"image": "%%"}]}),
        ("/v1/embeddings", {"input": {"image": "%%"}}),
        ("/v1/search", {"image": "%%"}),
    ]
    for path, body in asked:
        words = of_openai(place.post(path, body))
        assert words.startswith("'tiny' reads texts alone"), path
        assert "base64" not in words
    asked = place.post("/v2/embed", {"input_type": "search_query", "images": ["%%"]})
    assert asked.json()["message"].startswith("'tiny' reads texts alone")


def test_names_that_are_not_alike_are_no_guess(place):
    words = of_openai(place.post("/v1/search", {"query": "a", "index": "nope"}), 404)
    assert words == "the index 'nope' is not served; there are: notes."
    words = of_openai(place.post("/v1/search", {"query": "a", "index": "note"}), 404)
    assert words.endswith("Did you mean 'notes'?")
    assert closest("nope", ["notes"]) == ""
    assert closest("kay", ["body", "key"]) == " Did you mean 'key'?"
    assert closest("rfr", ["min_max", "rrf"]) == " Did you mean 'rrf'?"


def test_what_is_no_index_is_answered_with_a_name_that_is_free(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "a"}\n')
    (tmp_path / "docs").mkdir()
    (tmp_path / "old.index").mkdir()
    for place, command in (
        (corpus, f"embedlm index {corpus} -o {tmp_path}/corpus.index"),
        (tmp_path / "docs", f"embedlm index IN -o {tmp_path}/docs.index"),
        (tmp_path / "old.index", f"embedlm index IN -o {tmp_path}/old-2.index"),
        (tmp_path / "none.index", f"embedlm index IN -o {tmp_path}/none.index"),
    ):
        with pytest.raises(InputError, match="is not an index; make one: ") as caught:
            read_index(place)
        assert str(caught.value).endswith(command)


def test_the_documentation_has_the_values_of_json_and_says_whose_limits_are_told(place):
    page = place.get("/docs").body.decode()
    assert "None" not in page
    for cell in ("null", "true", "false", "10", "&quot;float&quot;"):
        assert f"<td>{cell}</td>" in page
    assert page.count('aria-label="Fields of POST /"') == 2  # one for each body
    limits = place.get("/openapi.json").json()["components"]["schemas"]["ServedLimits"]
    assert "/v1/compare" in limits["properties"]["texts"]["description"]


@pytest.mark.parametrize(
    ("host", "keys", "warns"),
    [("0.0.0.0", False, True), ("0.0.0.0", True, False), ("127.0.0.1", False, False)],
)
def test_a_server_that_all_reach_without_a_key_warns(tiny_llama, tmp_path, host, keys, warns):
    (tmp_path / "keys").write_text("0123456789abcdef\n")
    given = ["--api-key-file", tmp_path / "keys"] if keys else []
    how = ("-r", "plain-mean", "--workers", "0", "--drain", "0", "--host", host)
    with process(f"tiny={tiny_llama}", *how, *given) as (started, place, lines):
        assert place.get("/health").status == 200
        started.terminate()
        started.wait(30)
        time.sleep(0.2)  # its last lines are read
        found = [json.loads(line) for line in lines if '"open"' in line]
        assert len(found) == warns
        for line in found:
            assert line["level"] == "warning"
            assert "--api-key-file" in line["message"]
