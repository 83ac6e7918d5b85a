"""Every interface gives the library's own answers, over real sockets and by official clients."""

import base64
import gc
import re
import threading
import weakref
from hashlib import sha256

import numpy as np
import pytest

import embedlm
from embedlm.cli._options import Loading
from embedlm.cli.serve import load
from embedlm.errors import EmbedLMError, InputError
from embedlm.prompt.render import Renderer
from embedlm.search import Index, build_index
from embedlm.serving import Keys, Models, Mounted
from embedlm.serving.encoding import Encoding, Served
from tests.backbone.test_adapters import make_adapter
from tests.serving.conftest import RECORDS, process, running

openai = pytest.importorskip("openai")

TEXTS = ["Plants make food from light.", "A dog runs.", "a " * 40, "Plants make food from light."]


@pytest.fixture(scope="module")
def client(place):
    with openai.OpenAI(base_url=f"{place.url}/v1", api_key="any", max_retries=0) as found:
        yield found


def close(found, expected):
    np.testing.assert_allclose(np.asarray(found), expected, atol=2e-6)


# -- OpenAI -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["float", "base64", None])
@pytest.mark.parametrize("dim", [None, 8])
def test_openai_embeddings_are_the_librarys(client, model, form, dim):
    options = {"encoding_format": form} if form else {}  # without it the client asks for base64
    options |= {"dimensions": dim} if dim else {}
    found = client.embeddings.create(model="tiny", input=TEXTS, **options)
    vectors = [
        np.frombuffer(base64.b64decode(one.embedding), "<f4")
        if isinstance(one.embedding, str)
        else one.embedding
        for one in found.data
    ]
    close(vectors, model.encode(TEXTS, heads="dense", dim=dim))
    assert [one.index for one in found.data] == [0, 1, 2, 3]
    rendered = model.render(TEXTS).ids
    assert found.usage.prompt_tokens == sum(map(len, rendered))


def test_openai_takes_a_string_and_token_ids(client, model):
    one = client.embeddings.create(model="tiny", input=TEXTS[0], encoding_format="float")
    close(one.data[0].embedding, model.encode(TEXTS[0], heads="dense"))
    rows = [[5, 6, 7], [9, 10]]
    several = client.embeddings.create(model="tiny", input=rows, encoding_format="float")
    close([one.embedding for one in several.data], model.encode(rows, heads="dense"))
    alone = client.embeddings.create(model="tiny", input=rows[0], encoding_format="float")
    close(alone.data[0].embedding, model.encode(rows[:1], heads="dense")[0])


def test_foreign_token_ids_are_refused_with_the_way_out(client, place, caplog):
    place.service.sent_ids.clear()
    with caplog.at_level("WARNING", "embedlm.serving"):
        for _ in range(2):
            client.embeddings.create(model="tiny", input=[[5]])
    (told,) = [one.getMessage() for one in caplog.records if "token_ids" in one.getMessage()]
    assert "check_embedding_ctx_length=False" in told
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        client.embeddings.create(model="tiny", input=[[100_000]])


def test_openai_lists_models_and_says_which_there_are(client):
    assert [one.id for one in client.models.list()] == ["tiny", "cross"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="Did you mean 'tiny'"):
        client.embeddings.create(model="tinny", input="a")
    with pytest.raises(openai.NotFoundError, match="re-ranks; one that embeds"):
        client.embeddings.create(model="cross", input="a")


def test_openai_vector_store_search_gives_the_hits_of_the_index(client, index, model):
    query = "Which sugar stores energy?"
    with Index.open(index, model) as opened:
        expected = [(str(hit.id), hit.score) for hit in opened.search(query)]
    found = client.vector_stores.search("notes", query=query)
    assert [hit.file_id for hit in found] == [identity for identity, _ in expected]
    close([hit.score for hit in found], [score for _, score in expected])
    new = {"type": "gte", "key": "year", "value": 2020}
    hits = client.vector_stores.search("notes", query=query, filters=new, max_num_results=5)
    assert {hit.file_id for hit in hits} == {"note", "g1"}
    assert next(iter(hits)).attributes["year"] >= 2020
    assert [one.id for one in client.vector_stores.list()] == ["notes"]


def test_vector_stores_are_listed_by_pages(model, index):
    served = Models.of({"tiny": model})
    embedders = list(served.embedders.values())
    named = {name: Mounted.open(name, index, embedders) for name in "abcde"}
    with running({"tiny": model}, named) as place:
        client = openai.OpenAI(base_url=f"{place.url}/v1", api_key="any", max_retries=0)

        def ids(**options):
            page = client.vector_stores.list(**options)
            return "".join(one.id for one in page.data), page.has_more

        assert ids() == ("edcba", False)
        assert ids(order="asc", limit=2) == ("ab", True)
        assert ids(order="asc", limit=2, after="b") == ("cd", True)
        assert ids(order="asc", limit=2, after="d") == ("e", False)
        assert ids(order="asc", limit=2, before="d") == ("bc", True)
        assert ids(order="asc", after="a", before="d") == ("bc", False)
        assert ids(order="desc", limit=2, after="d") == ("cb", True)
        assert "".join(one.id for one in client.vector_stores.list(limit=2)) == "edcba"
        for options in ({"limit": 0}, {"limit": 101}, {"order": "up"}):
            with pytest.raises(openai.BadRequestError, match=next(iter(options))):
                ids(**options)
        with pytest.raises(openai.NotFoundError, match="'z' is not served; there are: a, b"):
            ids(after="z")
        with pytest.raises(
            openai.BadRequestError, match=r"no query parameter 'sort'.*limit, order"
        ):
            ids(extra_query={"sort": "up"})


# -- TEI --------------------------------------------------------------------------------------


def test_tei_embed(place, model):
    found = place.post("/embed", {"inputs": TEXTS})
    close(found.json(), model.encode(TEXTS, heads="dense", normalize=True))
    raw = place.post("/embed", {"inputs": TEXTS[0], "normalize": False, "dimensions": 4}).json()
    close(raw, model.encode(TEXTS[:1], heads="dense", normalize=False, dim=4))


def test_teis_own_address_embeds_and_reranks(place, model, reranker):
    """Clients of Hugging Face, such as `InferenceClient`, ask it."""
    body = {"inputs": TEXTS, "truncate": True, "normalize": True}
    close(place.post("/", body).json(), model.encode(TEXTS, heads="dense", normalize=True))
    assert b"<html" in place.get("/").body
    assert place.post("/?truncate=true", body).status == 400
    pair = {"query": "plants", "texts": TEXTS[:2]}
    assert place.post("/", pair).json() == place.post("/rerank", pair).json()
    with running({"tiny": model}, keys=Keys((sha256(b"0123456789abcdef").digest(),))) as closed:
        assert closed.post("/", body).status == 401
        assert closed.get("/").status == 200
        assert closed.post("/", body, Authorization="Bearer 0123456789abcdef").status == 200


def test_tei_embed_all_gives_the_states_of_all_tokens(place, model):
    found = place.post("/embed_all", {"inputs": TEXTS[:2]}).json()
    states = {"multi_vector": {"over": "all", "normalize": False, "projection": "none"}}
    expected = model.encode(TEXTS[:2], heads=[states]).multi_vector
    for one, other in zip(found, expected, strict=True):
        close(one, other)
    assert [len(one) for one in found] == [len(ids) for ids in model.render(TEXTS[:2]).ids]


def test_tei_embed_sparse(place, model):
    found = place.post("/embed_sparse", {"inputs": TEXTS[:2]}).json()
    expected = model.encode(TEXTS[:2], heads="sparse").sparse.toarray()
    shown = np.zeros_like(expected)
    for row, terms in enumerate(found):
        for term in terms:
            shown[row, term["index"]] = term["value"]
    close(shown, expected)


def test_tei_similarity_tokenize_decode_and_info(place, model):
    body = {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}}
    vectors = model.encode(TEXTS, heads="dense")
    close(place.post("/similarity", body).json(), model.similarity(vectors[:1], vectors[1:])[0])
    (tokens,) = place.post("/tokenize", {"inputs": TEXTS[0]}).json()
    assert [token["id"] for token in tokens] == model.tokenizer(TEXTS[0])["input_ids"]
    assert tokens[0]["special"]
    plain = [token for token in tokens if not token["special"]]
    assert all(TEXTS[0][token["start"] : token["stop"]] == token["text"] for token in plain)
    ids = [token["id"] for token in tokens]
    assert place.post("/decode", {"ids": ids}).json() == [TEXTS[0]]
    info = place.get("/info").json()
    assert info["served_model_name"] == "tiny"
    assert info["max_client_batch_size"] == 2048
    assert info["auto_truncate"] is False


def test_metrics_have_teis_names_too(place):
    place.post("/embed", {"inputs": TEXTS})
    text = place.get("/metrics").body.decode()
    value = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, number = line.rpartition(" ")
            value[name] = float(number)
    assert value["te_request_count"] == value["te_request_success"] + value["te_request_failure"]
    for name in ("te_queue_size", "te_batch_next_size_count", "te_request_duration_count"):
        assert name in value
    assert value["te_batch_next_tokens_sum"] == value["embedlm_batch_tokens_sum"] > 0
    assert value['embedlm_requests_total{route="/embed",status="200"}'] >= 1


# -- Cohere, Jina, re-ranking -----------------------------------------------------------------


def test_every_form_of_reranking_gives_the_librarys_scores(place, reranker):
    query, documents = "what do plants make?", [record["text"] for record in RECORDS]
    expected = reranker.rank(query, documents, probability=True)
    order = [one["corpus_id"] for one in expected]
    scores = [one["score"] for one in expected]
    tei = place.post("/rerank", {"query": query, "texts": documents, "return_text": True}).json()
    assert [one["index"] for one in tei] == order
    assert tei[0]["text"] == documents[order[0]]
    close([one["score"] for one in tei], scores)
    raw = place.post("/rerank", {"query": query, "texts": documents, "raw_scores": True}).json()
    close(
        [one["score"] for one in raw],
        np.sort(reranker.score(query, documents, probability=False))[::-1],
    )
    body = {"query": query, "documents": documents, "model": "cross", "top_n": 2}
    for path in ("/v2/rerank", "/v1/rerank", "/rerank"):
        found = place.post(path, body).json()
        assert [one["index"] for one in found["results"]] == order[:2]
        close([one["relevance_score"] for one in found["results"]], scores[:2])


def test_documents_are_shortened_on_demand_and_it_is_told(place, reranker):
    body = {"query": "a", "documents": ["Plants make food", "b"], "max_tokens_per_doc": 1}
    found = place.post("/v2/rerank", body)
    assert "0" in found.json()["meta"]["warnings"][0]
    assert found.headers["x-embedlm-truncated"] == "0"
    first = reranker.counting_tokenizer.backend_tokenizer.encode(
        "Plants make food", add_special_tokens=False
    ).offsets[0][1]
    expected = reranker.score("a", ["Plants make food"[:first], "b"], probability=True)
    results = {one["index"]: one["relevance_score"] for one in found.json()["results"]}
    close([results[0], results[1]], expected)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_documents_are_echoed_as_they_were_sent(place, reranker, path):
    sent = ["Plants make food", {"text": "A dog  runs far"}, "b"]
    body = {"query": "a", "documents": sent, "max_tokens_per_doc": 1, "return_documents": True}
    found = place.post(path, body)
    results = {one["index"]: one for one in found.json()["results"]}
    shown = [results[index]["document"] for index in range(3)]
    assert shown == [{"text": sent[0]}, sent[1], {"text": "b"}]
    assert found.headers["x-embedlm-truncated"] == "0,1"
    encode = reranker.counting_tokenizer.backend_tokenizer.encode
    whole = [sent[0], sent[1]["text"], sent[2]]
    firsts = [text[: encode(text, add_special_tokens=False).offsets[0][1]] for text in whole]
    expected = reranker.score("a", firsts, probability=True)
    close([results[index]["relevance_score"] for index in range(3)], expected)


def test_a_query_that_is_shortened_is_named(place, reranker):
    long = "word " * 600
    documents = ["a", "b"]
    found = place.post("/v2/rerank", {"query": long, "documents": documents})
    warnings = found.json()["meta"]["warnings"]
    assert warnings == ["the query was shortened to what the model reads"]
    assert found.headers["x-embedlm-truncated"] == "query"
    expected = reranker.score(long, documents, probability=True)
    results = {one["index"]: one["relevance_score"] for one in found.json()["results"]}
    close([results[0], results[1]], expected)
    found = place.post("/v2/rerank", {"query": long, "documents": ["a", long]})
    assert found.headers["x-embedlm-truncated"] == "query,1"
    assert [one.partition(" were")[0] for one in found.json()["meta"]["warnings"]] == [
        "the query was shortened to what the model reads",
        "documents that",
    ]
    found = place.post("/v1/rerank", {"query": long, "documents": documents})
    assert found.headers["x-embedlm-truncated"] == "query"
    for texts, told in (
        (documents, "the query is too long"),
        (["a", long], "the query and text 1 are too long"),
    ):
        body = {"query": long, "texts": texts}
        refused = place.post("/rerank", body)
        assert refused.status == 413
        assert refused.json()["error"].startswith(told)
        assert place.post("/rerank", {**body, "truncate": True}).status == 200
    refused = place.post("/rerank", {"query": "a", "texts": ["a", long]})
    assert refused.json()["error"].startswith("text 1 is too long")


def test_a_query_that_leaves_no_room_in_a_template_is_refused(tiny_llama):
    asked = embedlm.Reranker(tiny_llama, "yes-no", device="cpu", max_length=120)
    with running({"asked": asked}) as place:
        for path, texts in (("/rerank", "texts"), ("/v1/rerank", "documents")):
            answer = place.post(path, {"query": "word " * 300, texts: ["a", "b"]})
            assert answer.status == 400
            assert "the query 'word word" in answer.body.decode()
            assert place.post(path, {"query": "a", texts: ["a", "b"]}).status == 200


def test_the_cohere_client(place, model, reranker):
    cohere = pytest.importorskip("cohere")
    client = cohere.ClientV2(api_key="any", base_url=place.url)
    found = client.embed(
        model="tiny",
        input_type="search_query",
        texts=TEXTS[:2],
        embedding_types=["float", "ubinary", "binary"],
    )
    close(found.embeddings.float_, model.encode_query(TEXTS[:2], heads="dense"))
    for precision in ("ubinary", "binary"):
        expected = model.encode_query(TEXTS[:2], heads="dense", precision=precision)
        np.testing.assert_array_equal(getattr(found.embeddings, precision), expected)
    ranked = client.rerank(model="cross", query="a", documents=TEXTS[:3], top_n=1)
    best = reranker.rank("a", TEXTS[:3], 1, probability=True)[0]
    assert ranked.results[0].index == best["corpus_id"]
    close(ranked.results[0].relevance_score, best["score"])


# -- ours -------------------------------------------------------------------------------------


def test_our_route_takes_all_that_encode_takes(place, model):
    body = {
        "texts": TEXTS[:2],
        "role": "query",
        "heads": ["dense", {"sparse": {"top_k": 3}}],
        "dim": 8,
    }
    found = place.post("/v1/encode", body).json()
    expected = model.encode(TEXTS[:2], "query", heads=["dense", {"sparse": {"top_k": 3}}], dim=8)
    close(found["outputs"]["dense"], expected.dense)
    assert [len(terms) for terms in found["outputs"]["sparse"]] == [3, 3]
    binary = place.post("/v1/encode", {"texts": TEXTS, "heads": ["dense"], "precision": "ubinary"})
    np.testing.assert_array_equal(
        binary.json()["outputs"]["dense"],
        model.encode(TEXTS, heads="dense", precision="ubinary"),
    )
    half = {
        "texts": TEXTS[:1],
        "heads": ["dense"],
        "precision": "float16",
        "encoding_format": "base64",
    }
    (shown,) = place.post("/v1/encode", half).json()["outputs"]["dense"]
    assert (shown["dtype"], shown["shape"]) == ("float16", [model.dim])
    np.testing.assert_array_equal(
        np.frombuffer(base64.b64decode(shown["data"]), "<f2"),
        model.encode(TEXTS[:1], heads="dense", precision="float16")[0],
    )
    whole = place.post("/v1/encode", {"texts": TEXTS[1], "heads": ["multi_vector"]}).json()
    (states,) = model.encode(TEXTS[1:2], heads=["multi_vector"]).multi_vector
    close(whole["outputs"]["multi_vector"][0], states)


def test_instructions_and_demonstrations_reach_the_prompt(tiny_llama):
    shot = [{"instruct": "Tell.", "query": "what is a cat?", "response": "an animal"}]
    icl = embedlm.load(tiny_llama, "bge-icl", device="cpu")
    with running({"icl": icl}) as place:
        body = {"texts": TEXTS[:2], "role": "query", "instruction": ["Find it.", "Say it."]}
        found = place.post("/v1/encode", {**body, "demonstrations": shot}).json()
        expected = icl.encode(TEXTS[:2], "query", ["Find it.", "Say it."], shot)
        close(found["outputs"]["dense"], expected)
        wrong = place.post("/v1/encode", {**body, "instruction": ["one"]})
        assert wrong.status == 400


def test_our_search_is_the_command_lines_and_sees_a_changed_index(place, index, model, tmp_path):
    body = {"query": "glucose", "mode": "bm25", "top_k": 1}
    (hit,) = place.post("/v1/search", body).json()["hits"]
    with Index.open(index, model) as opened:
        (expected,) = opened.search("glucose", 1, mode="bm25")
    assert hit == expected.as_dict()
    more = tmp_path / "more.jsonl"
    more.write_text('{"id": "new", "text": "A zebra crossed the road."}\n')
    build_index(more, index, model)
    (hit,) = place.post("/v1/search", {**body, "query": "zebra"}).json()["hits"]
    assert hit["id"] == "new"


def test_several_models_and_adapters_are_chosen_by_name(model_folder, tmp_path):
    base = model_folder("llama")
    make_adapter(base, tmp_path / "law", seed=1)
    make_adapter(base, tmp_path / "news", seed=2)
    adapters = [str(tmp_path / "law"), str(tmp_path / "news")]
    several = embedlm.load(base, "plain-mean", device="cpu", adapters=adapters, merge=False)
    other = embedlm.load(base, "plain-last", device="cpu")
    with running({"several": several, "other": other}) as place:
        names = [one["id"] for one in place.get("/v1/models").json()["data"]]
        assert names == ["several", "other", "several:law", "several:news"]
        for name, expected in (
            ("several:law", several.encode(TEXTS, adapter="law")),
            ("several:news", several.encode(TEXTS, adapter="news")),
            ("several", several.encode(TEXTS)),
            ("other", other.encode(TEXTS)),
        ):
            found = place.post("/v1/embeddings", {"model": name, "input": TEXTS}).json()
            close([one["embedding"] for one in found["data"]], expected)
        bare = place.post("/v1/encode", {"texts": TEXTS, "model": "several:law", "adapter": None})
        close(bare.json()["outputs"]["dense"], several.encode(TEXTS, adapter=None))


def test_a_text_is_tokenised_once(place, model, monkeypatch):
    seen, whole = [], Renderer.render
    monkeypatch.setattr(
        Renderer,
        "render",
        lambda me, texts, *a, **k: seen.append(texts) or whole(me, texts, *a, **k),
    )
    assert place.post("/embed", {"inputs": ["A dog runs.", "It barks."]}).status == 200
    assert seen == [["A dog runs.", "It barks."]]


def test_only_little_is_tokenised_while_others_wait(place, model, monkeypatch):
    threads, whole = [], Renderer.render
    name = lambda: threads.append(threading.current_thread().name.partition("_")[0])  # noqa: E731
    monkeypatch.setattr(Renderer, "render", lambda *a, **k: name() or whole(*a, **k))
    for inputs in ("A dog runs.", ["a"] * 2000, ["a" * 60] * 200):
        assert place.post("/embed", {"inputs": inputs}).status in (200, 413)
    assert threads[1:] == ["embedlm-tokenize"] * 2
    assert threads[0] != "embedlm-tokenize"
    long = Encoding(served=Served("tiny", model), demonstrations="[" * 1000)
    assert long.length([("a", None)] * 9) > 9000
    assert long.length([("a", "b" * 1000)]) > 2000


def test_a_model_that_is_let_go_is_gone(model):
    served = Served("other", model)
    Encoding(served=served).prepare([("a", None)], truncate=False)
    left = weakref.ref(served)
    del served
    gc.collect()
    assert left() is None


def test_without_a_model_the_indexs_own_is_served(index, model, tiny_llama):
    with process("--index", f"notes={index}") as (_, place, _):
        (served,) = place.get("/v1/models").json()["data"]
        assert served["id"] == tiny_llama.name
        found = place.post("/v1/encode", {"texts": ["a dog"], "heads": ["dense"]}).json()
        close(found["outputs"]["dense"], model.encode(["a dog"], heads="dense"))
        (hit,) = place.post("/v1/search", {"query": "glucose", "top_k": 1}).json()["hits"]
        assert hit["id"] == "g1"
        assert place.get("/metrics").body.count(b"embedlm_tokens_total{model=") == 1


def test_queries_of_one_store_search_run_together(place, client, monkeypatch):
    asked = []
    encode = place.service.encode

    async def counted(caller, encoding, items, **more):
        asked.append(len(items))
        return await encode(caller, encoding, items, **more)

    monkeypatch.setattr(place.service, "encode", counted)
    queries = ["glucose", "a dog", "who met on Tuesday?"]
    alone = [client.vector_stores.search("notes", query=q, max_num_results=3) for q in queries]
    best = {}
    for hit in (hit for page in alone for hit in page.data):
        best[hit.file_id] = max(best.get(hit.file_id, hit.score), hit.score)
    asked.clear()
    page = client.vector_stores.search("notes", query=queries, max_num_results=3)
    assert asked == [3]
    for hit in page.data:
        assert hit.score == pytest.approx(best[hit.file_id], abs=1e-5)
    assert [h.score for h in page.data] == sorted((h.score for h in page.data), reverse=True)


def test_options_of_a_model_are_honoured_or_refused(tmp_path, reranker, model_folder):
    cross = reranker.name
    held, _ = load(("builtin",), (), Loading(device="cpu", recipe="plain-last"))
    assert held.embedders["builtin"].model.recipe.name == "plain-last"
    assert held.embedders["builtin"].model.backbone.name.endswith("tuned")
    held, _ = load((), (), Loading(device="cpu", recipe="plain-last"))
    assert held.names == ["builtin-base"]
    for wrong, told in [
        ({"generator": "builtin-base"}, "no --generator"),
        ({"change": ("pooling.kind=mean",)}, "no --set"),
    ]:
        with pytest.raises(InputError, match=told):
            load((cross,), (), Loading(device="cpu", **wrong))
    with pytest.raises(InputError, match="--keep-adapters is for embedders"):
        load((cross,), (), Loading(device="cpu"), keep_adapters=True)
    base = str(model_folder("llama"))
    make_adapter(base, tmp_path / "law", seed=1)
    adapted = Loading(device="cpu", adapter=(str(tmp_path / "law"),))
    with pytest.raises(EmbedLMError, match="adapter"):
        load((cross,), (), adapted)
    held, _ = load((base, f"rr={cross}"), (), adapted)
    assert held.rerankers
    assert len(next(iter(held.embedders.values())).model.backbone.merged) == 1


def test_models_of_two_indexes_whose_folders_have_one_name_are_both_served(tmp_path, model):
    folders = []
    for place, recipe in (("a", "plain-mean"), ("b", "plain-last")):
        model.with_recipe(recipe).save_pretrained(tmp_path / place / "same")
        (tmp_path / place / "corpus.jsonl").write_text('{"id": "1", "text": "A dog."}\n')
        own = embedlm.load(tmp_path / place / "same", device="cpu", dtype="float32")
        build_index(
            tmp_path / place / "corpus.jsonl", tmp_path / f"{place}.index", own, store="exact"
        )
        folders.append(str(tmp_path / f"{place}.index"))
    held, indexes = load((), folders, Loading(device="cpu"))
    assert held.names == ["same", "same-2"]
    assert [one.served.name for one in indexes.values()] == held.names
    first, second = (one.served.model.recipe.pooling.kind for one in indexes.values())
    assert (first, second) == ("mean", "last")
    for mounted in indexes.values():
        mounted.close()


def test_the_documentation_asks_no_other_host(place):
    page = place.get("/docs").body.decode()
    assert not re.search(r"(?:src|href)=.?https?:|@import|url\(|<script", page)
    described = place.get("/openapi.json").json()["paths"]
    for path in ("/v1/embeddings", "/embed_sparse", "/v2/rerank", "/v1/encode"):
        assert path in described
        assert path in page
