"""Folders whose queries and documents are read by modules of their own (Router)."""

import json
import shutil

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer, SparseEncoder, models
from sentence_transformers.sparse_encoder.models import (
    MLMTransformer,
    SparseStaticEmbedding,
    SpladePooling,
)

import embedlm
from embedlm.bulk import encode_file
from embedlm.encode.identity import revision
from embedlm.errors import InputError, ModelError, UnsupportedError
from embedlm.loader import load_to_train
from embedlm.mining import mine
from embedlm.search import Index, build_index
from embedlm.studies.parity import compare
from embedlm.studies.runtimes import open_runtime
from tests.models import build, build_tokenizer
from tests.persistence.peers import change, close

TEXTS = ["plants MAKE food plants", "", "the Quick </s> brown fox", "a committee met " * 90]
CALLS = ("encode", "encode_query", "encode_document")
FILE = "router_config.json"


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {name: str(build(name, folder / name)) for name in ("bert", "llama")}


@pytest.fixture
def network(bases):
    """Return a function that makes a Transformer and its pooling."""

    def network(name="bert", pooling="mean"):
        return [models.Transformer(bases[name]), models.Pooling(32, pooling)]

    return network


@pytest.fixture
def table():
    torch.manual_seed(0)
    return models.StaticEmbedding(build_tokenizer("encoder").backend_tokenizer, embedding_dim=32)


@pytest.fixture
def saved(tmp_path):
    """Return a function that saves modules and opens them again."""

    def saved(*modules, kind=SentenceTransformer, **options):
        folder = tmp_path / "theirs"
        kind(modules=list(modules), device="cpu", **options).save(str(folder))
        (folder / "README.md").unlink()
        return kind(str(folder), device="cpu"), folder

    return saved


def router(query, document, **options):
    return models.Router.for_query_document(query, document, **options)


def rows(found):
    """Return what a call gave as an array."""
    if hasattr(found, "sparse"):
        return found.sparse.toarray()
    return found.to_dense().numpy() if isinstance(found, torch.Tensor) else found


def alike(peer, folder):
    model = embedlm.load(folder, device="cpu")
    for name in CALLS:
        close(rows(getattr(model, name)(TEXTS)), rows(getattr(peer, name)(TEXTS)))
    return model


def alike_and_again(peer, folder):
    model = alike(peer, folder)
    again = folder.parent / "ours"
    for _ in range(2):  # the second time in the place of the first
        model.save_pretrained(again)
    alike(type(peer)(str(again), device="cpu"), again)
    alike(peer, again)
    return model


# -- dense -------------------------------------------------------------------------------------


def test_a_table_for_queries_and_a_network_for_documents(saved, table, network):
    prompts = {"query": "q: ", "document": "d: ", "title": "t: "}
    peer, folder = saved(router([table], network()), models.Normalize(), prompts=prompts)
    model = alike_and_again(peer, folder)
    assert [one.backbone.static for one in model.routes.values()] == [False, True, False]
    close(model.encode(TEXTS, prompt_name="title"), peer.encode(TEXTS, prompt_name="title"))
    assert model.render("x", "query").text == ["q: x"]


def test_the_licence_is_that_of_the_card(saved, table, network):
    _, folder = saved(router([table], network()))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    embedlm.load(folder, device="cpu").save_pretrained(folder.parent / "ours")
    assert "license: apache-2.0" in (folder.parent / "ours" / "README.md").read_text()


@pytest.mark.parametrize("role", ["query", "document", None])
def test_both_libraries_are_compared_by_role(saved, table, network, role):
    _, folder = saved(router([table], network()), prompts={"query": "q: "})
    sides = [open_runtime(name, role=role) for name in (str(folder), f"st:{folder}")]
    assert compare(*sides, [text for text in TEXTS if text]).equal


def test_two_networks(saved, network):
    change_of = {"default_route": "query"}
    peer, folder = saved(router(network("llama"), network(pooling="cls"), **change_of))
    model = alike_and_again(peer, folder)
    assert model.routes[None] is model.routes["query"]


def test_a_network_that_both_share(saved, network):
    transformer, pooling = network()
    query = [transformer, pooling, models.Dense(32, 12), models.LayerNorm(12)]
    document = [transformer, models.Pooling(32, "cls"), models.Dense(32, 12)]
    peer, folder = saved(router(query, document))
    model = alike_and_again(peer, folder)
    assert model.routes["query"].backbone is model.routes["document"].backbone
    networks = [path.parent.name for path in (folder.parent / "ours").glob("*/tokenizer.json")]
    assert networks == ["query_0_Transformer"]


@pytest.mark.parametrize("old", [True, False])
def test_a_router_behind_a_network(saved, network, old):
    """As `Asym` stood before version 5, under that name."""
    peer, folder = saved(*network(), router([models.Dense(32, 8)], [models.Dense(32, 8)]))
    if old:
        shutil.move(folder / "2_Router" / FILE, folder / "2_Router" / "config.json")
        listing = json.loads((folder / "modules.json").read_text())
        listing[2]["type"] = "sentence_transformers.models.Asym"
        (folder / "modules.json").write_text(json.dumps(listing))
    alike_and_again(peer, folder)


def test_mapped_routes_and_tasks_of_other_names(saved, table, network):
    routes = {"small": [table], "large": network()}
    mappings = {("query", "text"): "small", ("faq", None): "small", (None, "text"): "large"}
    peer, folder = saved(models.Router(routes, route_mappings=mappings), prompts={"x": "x: "})
    model = alike(peer, folder)
    for task in ("faq", "small"):
        close(model.encode(TEXTS, role=task), peer.encode(TEXTS, task=task))
    assert not model.routes["small"].backbone.static  # (None, "text") goes before its name
    again = folder.parent / "ours"
    model.save_pretrained(again)
    opened = SentenceTransformer(str(again), device="cpu")
    for task in ("faq", "query", "document", None):
        close(opened.encode(TEXTS, task=task), peer.encode(TEXTS, task=task))


def test_roles_without_a_route(saved, table, network):
    single = models.Router({"query": [table], "doc": network()}, allow_empty_key=False)
    peer, folder = saved(single)
    model = embedlm.load(folder, device="cpu")
    close(model.encode_query(TEXTS), peer.encode_query(TEXTS))
    close(model.encode(TEXTS, role="doc"), peer.encode(TEXTS, task="doc"))
    for role in (None, "document"):
        with pytest.raises(InputError, match=f"the role is {role!r}, .* some for 'query', 'doc'"):
            model.encode(TEXTS, role=role)
    model.save_pretrained(folder.parent / "ours")
    again = embedlm.load(folder.parent / "ours", device="cpu")
    close(again.encode(TEXTS, role="doc"), peer.encode(TEXTS, task="doc"))
    with pytest.raises(InputError, match="the role is None"):
        again.encode(TEXTS)


def test_integers_of_one_range(saved, table, network):
    _, folder = saved(router([table], network()))
    model = embedlm.load(folder, device="cpu").fit_ranges(TEXTS)
    assert model.encode_query(TEXTS, precision="int8").dtype == np.int8
    model.save_pretrained(folder.parent / "ours")
    again = embedlm.load(folder.parent / "ours", device="cpu")
    np.testing.assert_array_equal(
        again.encode_query(TEXTS, precision="int8"), model.encode_query(TEXTS, precision="int8")
    )


def test_the_options_of_load(saved, table, network):
    peer, folder = saved(router([table], network()))
    short = embedlm.load(folder, device="cpu", max_length=5)
    cut = embedlm.load(folder, device="cpu")
    for name in CALLS:
        close(getattr(short, name)(TEXTS), getattr(cut, name)(TEXTS, max_length=5))
    by_role = embedlm.load(folder, device="cpu", max_length={"query": 5, "document": 9})
    for name, length in (("encode_query", 5), ("encode_document", 9), ("encode", 9)):
        close(getattr(by_role, name)(TEXTS), getattr(cut, name)(TEXTS, max_length=length))
    by_role.save_pretrained(folder.parent / "by_role")
    opened = SentenceTransformer(str(folder.parent / "by_role"), device="cpu")
    for name in CALLS:
        close(getattr(opened, name)(TEXTS), getattr(by_role, name)(TEXTS))
    eight = embedlm.load(folder, device="cpu", dtype="int8")
    close(eight.encode_query(TEXTS), peer.encode_query(TEXTS))
    short.save_pretrained(folder.parent / "ours")
    opened = SentenceTransformer(str(folder.parent / "ours"), device="cpu")
    for name in CALLS:
        close(getattr(opened, name)(TEXTS), getattr(short, name)(TEXTS))


# -- sparse ------------------------------------------------------------------------------------


@pytest.fixture
def inference_free(bases, saved):
    """Return a function that saves a model whose queries are weighed by a table."""

    def inference_free(**options):
        mlm = MLMTransformer(bases["bert"])
        torch.manual_seed(0)
        weight = torch.rand(400) - 0.2
        query = SparseStaticEmbedding(mlm.tokenizer, weight=weight, frozen=True)
        pooling = SpladePooling("max", activation_function="log1p_relu")
        both = router([query], [mlm, pooling])
        return saved(both, kind=SparseEncoder, similarity_fn_name="dot", **options)

    return inference_free


@pytest.mark.parametrize("options", [{}, {"max_active_dims": 3}, {"prompts": {"query": "q: "}}])
def test_queries_that_run_no_network(inference_free, options):
    peer, folder = inference_free(**options)
    model = alike_and_again(peer, folder)
    ours = model.similarity(model.encode_query(TEXTS), model.encode_document(TEXTS))
    theirs = peer.similarity(peer.encode_query(TEXTS), peer.encode_document(TEXTS))
    close(ours, theirs)
    assert model.routes["query"].backbone.static
    # One number a token weighs it; it is no vector.
    with pytest.raises(UnsupportedError, match="trained to give sparse"):
        model.encode_query(TEXTS, heads="dense")


def test_the_documents_network_at_the_top(inference_free):
    """As OpenSearch's models have it."""
    peer, folder = inference_free()
    for file in (folder / "document_0_MLMTransformer").iterdir():
        shutil.move(file, folder / file.name)
    text = (folder / FILE).read_text().replace('"document_0_MLMTransformer"', '""')
    (folder / FILE).write_text(text)
    alike_and_again(peer, folder)
    by_name = embedlm.load(folder, "splade", device="cpu")  # a recipe reads what lies at the top
    assert by_name.encode(TEXTS).sparse.shape == (4, 400)


def test_weights_by_token(inference_free):
    _, folder = inference_free()
    query = folder / "query_0_SparseStaticEmbedding"
    vocabulary = json.loads((query / "tokenizer.json").read_text())["model"]["vocab"]
    weights = {token: 0.1 + index % 7 for token, index in vocabulary.items() if index > 5}
    (query / "idf.json").write_text(json.dumps(weights))
    change(query, "config.json", path=str(query / "idf.json"))
    peer = SparseEncoder(str(folder), device="cpu")
    change(query, "config.json", path="idf.json")
    alike_and_again(peer, folder)
    change(query, "config.json", path="../idf.json")
    with pytest.raises(ModelError, match="only paths inside its folder"):
        embedlm.load(folder)
    change(query, "config.json", path="idf.json")
    (query / "idf.json").write_text('{"a": "b"}')
    with pytest.raises(ModelError, match=r"idf\.json: the weight of 'a' is 'b'"):
        embedlm.load(folder)


def test_a_table_of_weights_alone(bases, saved):
    mlm = MLMTransformer(bases["bert"])
    table = SparseStaticEmbedding(mlm.tokenizer, weight=torch.rand(400))
    peer, folder = saved(table, kind=SparseEncoder)
    alike_and_again(peer, folder)
    with pytest.raises(UnsupportedError, match=r"weights: static. reads a table of one weight"):
        embedlm.load(bases["bert"], {"heads": [{"sparse": {"weights": "static"}}]})


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"default_route": "other"}, "names the route 'other'; there are query, document"),
        ({"route_mappings": {"(None, 'image')": "query"}}, "EmbedLM can honour .'task', 'text'"),
        ({"route_mappings": {"what": "query"}}, "EmbedLM can honour .'task', 'text'"),
        ({"route_mappings": {"('../x', None)": "query"}}, r"the route or task '\.\./x'"),
        ({"route_mappings": {"(None, None)": "other"}}, "names the route 'other'"),
        ({"further": 1}, "the key 'further'"),
    ],
)
def test_parameters(saved, table, network, parameters, told):
    _, folder = saved(router([table], network()))
    content = json.loads((folder / FILE).read_text())
    change(folder, FILE, parameters={**content["parameters"], **parameters})
    with pytest.raises((ModelError, UnsupportedError), match=told):
        embedlm.load(folder)


def test_files_that_are_damaged(saved, table, network):
    _, folder = saved(router([table], network()))
    whole = (folder / FILE).read_text()
    content = json.loads(whole)
    for key, value in (
        ("structure", {}),
        ("structure", {"query": ["none"]}),
        ("structure", {"query": ["query_0_StaticEmbedding"]}),
        ("types", {}),
        ("types", []),
        ("more", 1),
    ):
        change(folder, FILE, **{key: value})
        with pytest.raises(ModelError, match=r"router_config\.json is damaged"):
            embedlm.load(folder)
        (folder / FILE).write_text(whole)
    types = {**content["types"], "query_0_StaticEmbedding": "sentence_transformers.models.CNN"}
    change(folder, FILE, types=types)
    with pytest.raises(UnsupportedError, match=r"router_config\.json has the module .*CNN"):
        embedlm.load(folder)
    (folder / FILE).unlink()
    with pytest.raises(ModelError, match="is not there"):
        embedlm.load(folder)


def test_routes_of_other_widths(saved, network):
    table = models.StaticEmbedding(build_tokenizer("encoder").backend_tokenizer, embedding_dim=8)
    _, folder = saved(router([table], network()))
    with pytest.raises(UnsupportedError, match=r"query: vectors of 8, document: vectors of 32"):
        embedlm.load(folder)


def test_what_can_be_done_to_one_network_alone(saved, table, network):
    _, folder = saved(router([table], network()))
    model = embedlm.load(folder, device="cpu")
    for refused in (
        lambda: model.with_recipe("plain-mean"),
        lambda: model.fit(TEXTS),
        lambda: model.as_sentence_transformer(),
        lambda: model.save_pretrained(folder.parent / "ours", save_dtype="int8"),
        lambda: load_to_train(str(folder), model.recipe),
        lambda: embedlm.load(folder, adapters=["x"]),
        lambda: embedlm.load(folder, merge=True),
    ):
        with pytest.raises(UnsupportedError, match="Router"):
            refused()


def test_a_query_that_is_read_otherwise_is_another_model(saved, table, network):
    _, folder = saved(router([table], network()))
    before = revision(embedlm.load(folder, device="cpu"))
    assert before == revision(embedlm.load(folder, device="cpu"))
    weights = folder / "query_0_StaticEmbedding" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-4 * 32 * 400 :: 4] = bytes(len(data[-4 * 32 * 400 :: 4]))
    weights.write_bytes(bytes(data))
    assert before != revision(embedlm.load(folder, device="cpu"))


def test_search(saved, table, network, run, tmp_path):
    peer, folder = saved(router([table], network()), models.Normalize())
    docs = tmp_path / "docs.txt"
    docs.write_text("\n\n".join(["plants make food", "the quick brown fox", "a committee met"]))
    found = run("search", docs, "brown plants", "-m", folder, "--device", "cpu", "--json")
    hits = json.loads(found.out)
    assert len(hits) == 3
    scores = peer.similarity(
        peer.encode_query(["brown plants"]), peer.encode_document([hit["text"] for hit in hits])
    )
    close([hit["score"] for hit in hits], scores[0], atol=1e-4)


def test_a_query_without_room_is_told_before_anything_is_embedded(saved, table, network, tmp_path):
    prompts = {"query": "the quick brown fox asks: "}
    _, folder = saved(router([table], network()), prompts=prompts)
    docs = tmp_path / "docs.txt"
    docs.write_text("plants make food")
    model = embedlm.load(folder, device="cpu", max_length={"query": 3, "document": 64})
    with pytest.raises(InputError, match="role query"):
        build_index(docs, tmp_path / "index", model)
    with pytest.raises(InputError, match="role query"):
        mine([{"query": "a", "positives": ["b"]}], [{"id": "1", "text": "c"}], model=model)


def test_an_index_is_opened_by_a_model_that_runs_otherwise(saved, table, network, tmp_path):
    _, folder = saved(router([table], network()))
    docs = tmp_path / "docs.txt"
    docs.write_text("plants make food\n\nthe fox")
    build_index(docs, tmp_path / "index", embedlm.load(folder, device="cpu"), store="exact")
    other = embedlm.load(folder, device="cpu", attn="eager")
    with Index.open(tmp_path / "index", other) as index:
        assert index.search("plants", 1)[0].text == "plants make food"


def test_an_index_of_routes_stays_open_to_later_versions(saved, table, network, tmp_path):
    _, folder = saved(router([table], network()))
    docs = tmp_path / "docs.txt"
    docs.write_text("plants make food\n\nthe fox")
    build_index(docs, tmp_path / "index", embedlm.load(folder, device="cpu"), store="exact")

    def edited(change):
        file = tmp_path / "index" / "index.json"
        facts = json.loads(file.read_text())
        for role, route in facts["model"]["identity"]["routes"].items():
            change(role, *route, route)
        facts["model"]["identity"]["config"]["transformers"] = "4.0"
        file.write_text(json.dumps(facts))
        with Index.open(tmp_path / "index", embedlm.load(folder, device="cpu")) as index:
            return index.search("plants", 1, mode="bm25")[0].text

    def older(role, model, config, recipe, route):
        del recipe["pooling"]["denoise"]  # as if it came later
        route[1] = "as another version of transformers writes it"

    def wrong(role, model, config, recipe, route):
        model["weights"] = "others"

    assert edited(older) == "plants make food"
    with pytest.raises(InputError, match=r"another one by now .*; make a new index"):
        edited(wrong)


def test_ranges_of_routes_that_normalise_otherwise(saved, network, tmp_path):
    _, folder = saved(router([*network(), models.Normalize()], network("llama")))
    model, texts = embedlm.load(folder, device="cpu"), [f"plants {i}" * (i + 1) for i in range(9)]
    (tmp_path / "in.txt").write_text("\n".join(texts))
    for role in ("query", "document"):
        model.fit_ranges(texts, role=role)
        plain, small = (model.encode(texts, role=role, precision=p) for p in ("float32", "int8"))
        np.testing.assert_allclose(
            embedlm.dequantize(small, "int8", small.ranges), plain, atol=0.02 * abs(plain).max()
        )
        out = tmp_path / f"{role}.npy"
        encode_file(model, tmp_path / "in.txt", out, role=role, precision="int8")
        np.testing.assert_allclose(np.load(out).astype(int), small.astype(int), atol=1)
