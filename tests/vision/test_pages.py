"""Retrievers of pages with a vector a token, against transformers' own classes."""

import json

import numpy as np
import pytest
import torch
import transformers as tf

import embedlm
from embedlm.backbone.config import stored_dtype
from embedlm.errors import InputError
from tests.vision_models import build_colpali, build_colqwen2, picture

PAGES = [picture(130, 90), picture(60, 200, 1), picture(100, 100, 2)]
QUERIES = ["how do plants make food?", "light"]


@pytest.fixture(scope="module")
def colqwen2(tmp_path_factory):
    return build_colqwen2(tmp_path_factory.mktemp("colqwen2") / "model")


@pytest.fixture(scope="module")
def colpali(tmp_path_factory):
    return build_colpali(tmp_path_factory.mktemp("colpali") / "model")


def kept(output, mask):
    """Each row's vectors, without those of its padding."""
    return [row[own.bool()].numpy() for row, own in zip(output.embeddings, mask, strict=True)]


def alike(ours, theirs):
    assert len(ours) == len(theirs)
    for own, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_colqwen2(colqwen2):
    model = embedlm.load(colqwen2, device="cpu")
    assert model.recipe == embedlm.Recipe.load("colqwen2")
    pages, queries = model.encode_document(PAGES), model.encode_query(QUERIES)

    network = tf.ColQwen2ForRetrieval.from_pretrained(colqwen2).eval()
    processor = tf.AutoProcessor.from_pretrained(colqwen2)
    read = processor(images=PAGES, padding=True, return_tensors="pt")
    image = (read["input_ids"] == network.config.vlm_config.image_token_id).int()
    # colpali_engine's ColQwen2 computes these; without them transformers counts one after another.
    positions, _ = network.vlm.get_rope_index(
        read["input_ids"],
        mm_token_type_ids=image,
        image_grid_thw=read["image_grid_thw"],
        attention_mask=read["attention_mask"],
    )
    found = {key: value for key, value in read.items() if key != "mm_token_type_ids"}
    theirs = kept(network(**found, position_ids=positions), read["attention_mask"])
    alike(pages.multi_vector, theirs)
    asked = processor(text=QUERIES, padding=True, return_tensors="pt")
    their_queries = kept(network(**asked), asked["attention_mask"])
    alike(queries.multi_vector, their_queries)
    scores = processor.score_retrieval(
        [torch.from_numpy(one) for one in their_queries], [torch.from_numpy(one) for one in theirs]
    )
    np.testing.assert_allclose(model.similarity(queries, pages), scores, rtol=1e-4)


OLDER = {
    "body in the middle": lambda name: name.replace("vlm.", "vlm.model.", 1),
    "body at the top": lambda name: name.replace("vlm.language_model.", "vlm.model.", 1),
}
"""The names of weights as earlier versions of transformers wrote them."""


@pytest.mark.parametrize("names", OLDER)
def test_earlier_names_of_a_checkpoints_weights_are_read(colqwen2, tmp_path, names):
    older = build_colqwen2(tmp_path / "older", named_as=OLDER[names])
    ours, theirs = (
        embedlm.load(folder, device="cpu").encode_document(PAGES[:1]).multi_vector
        for folder in (older, colqwen2)
    )
    alike(ours, theirs)


@torch.no_grad()
def test_colpali(colpali):
    model = embedlm.load(colpali, device="cpu")
    assert model.recipe == embedlm.Recipe.load("colpali")
    assert not model.backbone.causal
    pages, queries = model.encode_document(PAGES), model.encode_query(QUERIES)

    network = tf.ColPaliForRetrieval.from_pretrained(colpali).eval()
    processor = tf.AutoProcessor.from_pretrained(colpali)
    read = dict(processor(images=PAGES))
    read.pop("labels")
    alike(pages.multi_vector, kept(network(**read), read["attention_mask"]))
    asked = processor(text=QUERIES)
    alike(queries.multi_vector, kept(network(**asked), asked["attention_mask"]))


@pytest.mark.parametrize("name", ["colqwen2", "colpali"])
def test_pages_do_not_depend_on_their_company_and_are_saved(name, request, tmp_path):
    model = embedlm.load(request.getfixturevalue(name), device="cpu")
    together = model.encode_document(PAGES).multi_vector
    alone = [model.encode_document(page).multi_vector[0] for page in PAGES]
    alike(together, alone)
    model.save_pretrained(tmp_path / "saved")
    again = embedlm.load(tmp_path / "saved", device="cpu")
    alike(again.encode_document(PAGES).multi_vector, together)
    alike(again.encode_query(QUERIES).multi_vector, model.encode_query(QUERIES).multi_vector)


@pytest.mark.parametrize("name", ["colqwen2", "colpali"])
def test_queries_are_texts_and_documents_are_images(name, request):
    model = embedlm.load(request.getfixturevalue(name), device="cpu")
    with pytest.raises(InputError, match=r"reads an image, and none was given.*encode_query"):
        model.encode_document("a page")
    with pytest.raises(InputError, match="without a role reads an image"):
        model.encode("a page")
    with pytest.raises(InputError, match=r"for role 'query' has no \{image\}"):
        model.encode_query(PAGES[0])
    with pytest.raises(InputError, match=r"for role 'document' has no \{text\}"):
        model.encode_document({"image": PAGES[0], "text": "a page"})


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_the_numbers_that_a_retriever_names_are_its_networks(colqwen2, tmp_path, name):
    config = json.loads((colqwen2 / "config.json").read_text())
    for part in (config, config["vlm_config"]):
        part.pop("dtype", None)
    config[name] = "bfloat16"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert stored_dtype(str(tmp_path)) == "bfloat16"
