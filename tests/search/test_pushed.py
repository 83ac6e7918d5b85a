"""What a push leaves alone on a server, and what a search there refuses."""

import json
import shutil

import pytest

import embedlm
from embedlm.errors import InputError
from embedlm.search import Index, build_index, push_index

TEXTS = ["Plants make food from light.", "Check the tyre pressure.", "Shares fell again."]


@pytest.fixture(scope="module")
def model(tiny_llama):
    return embedlm.load(tiny_llama, "plain-mean", device="cpu")


def made(place, model, ids, **options):
    """Return an index of the texts under some ids."""
    place.parent.mkdir(exist_ok=True)
    records = [{"id": one, "text": text} for one, text in zip(ids, TEXTS, strict=True)]
    source = place.with_suffix(".jsonl")
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    build_index(source, place, model, **options)
    return place


def client(place):
    module = pytest.importorskip("qdrant_client")
    return module.QdrantClient(path=place), module.models


@pytest.mark.parametrize("store", ["exact", "edge"])
def test_a_server_that_holds_the_index_of_before_is_not_searched(model, tmp_path, store):
    """Its vectors are of other texts than those that would be shown."""
    index, server = made(tmp_path / "index", model, "abc", store=store), str(tmp_path / "server")
    push_index(index, server)
    made(index, model, "cba")  # the same ids and number of passages
    with pytest.raises(InputError, match="holds 3 passages, 0 of them as the index has them now"):
        Index.open(index, model, place=server)
    push_index(index, server)
    with Index.open(index, model) as here, Index.open(index, model, place=server) as there:
        found, expected = ([(h.id, h.text) for h in i.search("plants")] for i in (there, here))
        assert found == expected


def test_an_index_made_by_another_model_of_the_same_width_is_not_searched(
    model, tiny_llama, tmp_path
):
    server = str(tmp_path / "server")
    push_index(made(tmp_path / "a" / "index", model, "abc"), server)
    other = embedlm.load(tiny_llama, "plain-last", device="cpu")
    index = made(tmp_path / "b" / "index", other, "abc")
    with pytest.raises(InputError, match="push it first"):
        Index.open(index, other, place=server)


def test_a_push_does_not_take_out_what_another_index_has_put_there(model, tmp_path):
    """Two projects may both call their index `index`, which names the collection."""
    server = str(tmp_path / "server")
    one, two = made(tmp_path / "a/index", model, "abc"), made(tmp_path / "b/index", model, "xyz")
    push_index(one, server)
    with pytest.raises(InputError, match=r"3 points of another index.*--replace"):
        push_index(two, server)
    with Index.open(one, model, place=server) as there:
        assert {hit.id for hit in there.search("plants", mode="dense")} == set("abc")
    assert push_index(two, server, "two")["copied"] == 3
    assert push_index(two, server, replace=True)["deleted"] == 3
    with Index.open(two, model, place=server) as there:
        assert {hit.id for hit in there.search("plants", mode="dense")} == set("xyz")


@pytest.mark.parametrize("distance", ["DOT", "EUCLID"])
def test_a_collection_of_somebody_else_is_left_as_it_is(model, tmp_path, distance):
    index, server = made(tmp_path / "index", model, "abc"), str(tmp_path / "server")
    with Index.open(index, model) as opened:
        width = opened.store.heads()["dense"][1]
    held, api = client(server)
    named = {"dense": api.VectorParams(size=width, distance=api.Distance[distance])}
    held.create_collection("index", named, sparse_vectors_config={"bm25": api.SparseVectorParams()})
    point = api.PointStruct(id=1, vector={"dense": [0.5] * width}, payload={"mine": 1})
    held.upsert("index", [point])
    held.close()
    told = "1 points of another index" if distance == "DOT" else "made to compare by euclid"
    with pytest.raises(InputError, match=told):
        push_index(index, server)
    held, _ = client(server)
    assert held.retrieve("index", [1])[0].payload == {"mine": 1}
    assert held.count("index").count == 1
    held.close()
    if distance == "DOT":
        assert push_index(index, server, replace=True)["deleted"] == 1


def test_vectors_without_a_name_are_another_kind(model, tmp_path):
    index, server = made(tmp_path / "index", model, "abc"), str(tmp_path / "server")
    held, api = client(server)
    held.create_collection("index", api.VectorParams(size=64, distance=api.Distance.DOT))
    held.close()
    with pytest.raises(InputError, match="holds vectors of another kind"):
        push_index(index, server)


def test_a_copy_of_an_index_pushes_on(model, tmp_path):
    """It is the same index: a deployment may carry the folder to another machine."""
    index, server = made(tmp_path / "index", model, "abc"), str(tmp_path / "server")
    push_index(index, server)
    shutil.copytree(index, tmp_path / "moved" / "index")
    assert push_index(tmp_path / "moved" / "index", server)["deleted"] == 0
