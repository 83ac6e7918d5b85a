"""EmbedLM to sentence-transformers and back, for every recipe that it can express."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer, SparseEncoder

import embedlm
from embedlm.persistence.expressible import form_of, is_expressible

TEXTS = ["plants make food", "x", "the quick brown fox jumps", "a committee met on Tuesday"]
TOGETHER = [name for name in embedlm.recipes() if is_expressible(embedlm.Recipe.load(name))]
DENSE = [name for name in TOGETHER if embedlm.Recipe.load(name).heads[0].kind == "dense"]
ROLES = (None, "query", "document")


def architecture(name):
    recipe = embedlm.Recipe.load(name)
    return "bert" if recipe.backbone.attention == "bidirectional" else "llama"


def test_most_recipes_with_one_dense_vector_are_expressible():
    assert {"sgpt", "e5", "e5-mistral", "bge", "gte", "nomic-embed", "kalm"} <= set(DENSE)
    assert {"splade", "colbert"} <= set(TOGETHER)
    assert not {"prompteol", "echo", "metaeol", "nv-embed-v2", "one-pass", "clip"} & set(TOGETHER)


@pytest.mark.parametrize("name", DENSE)
def test_dense(model_folder, tmp_path, name):
    model = embedlm.load(model_folder(architecture(name)), recipe=name, device="cpu")
    if form_of(model) is None:
        pytest.skip("this tokenizer's special tokens stand in the way")
    model.save_pretrained(tmp_path / "ours")
    peer = SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    peer.save(str(tmp_path / "theirs"))
    back = embedlm.load(tmp_path / "theirs")
    for role in ROLES:
        ours = model.encode(TEXTS, role=role)
        named = role if role in peer.prompts else None
        np.testing.assert_allclose(peer.encode(TEXTS, prompt_name=named), ours, atol=1e-5)
        np.testing.assert_allclose(back.encode(TEXTS, role=role), ours, atol=1e-6)


def test_a_tokenizer_without_padding_gets_some(model_folder, tmp_path):
    """As those of Llama and Mistral; other libraries refuse a batch of them."""
    model = embedlm.load(model_folder("llama"), "plain-mean", device="cpu", dtype="float32")
    model.tokenizer.pad_token = None
    expected = model.encode(TEXTS)
    model.save_pretrained(tmp_path / "ours")
    assert model.tokenizer.pad_token is None
    for peer in (SentenceTransformer(str(tmp_path / "ours"), device="cpu"), embedlm):
        opened = embedlm.load(tmp_path / "ours", dtype="float32") if peer is embedlm else peer
        np.testing.assert_allclose(opened.encode(TEXTS), expected, atol=1e-5)


def test_splade(model_folder, tmp_path):
    model = embedlm.load(model_folder("bert"), recipe="splade", device="cpu")
    model.save_pretrained(tmp_path / "ours")
    assert "SparseEncoder" in (tmp_path / "ours" / "README.md").read_text()
    peer = SparseEncoder(str(tmp_path / "ours"), device="cpu")
    ours = model.encode(TEXTS).sparse.toarray()
    np.testing.assert_allclose(peer.encode(TEXTS).to_dense().numpy(), ours, atol=1e-5)
    peer.save_pretrained(str(tmp_path / "theirs"))
    back = embedlm.load(tmp_path / "theirs")
    np.testing.assert_allclose(back.encode(TEXTS).sparse.toarray(), ours, atol=1e-6)


@pytest.fixture
def colbert(model_folder, tmp_path):
    """Return a model with a random layer for token vectors."""
    folder = tmp_path / "base"
    embedlm.load(model_folder("bert"), recipe="plain-mean").save_pretrained(folder)
    (folder / "embedlm.yaml").unlink()
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    layer = folder / "1_Dense"
    layer.mkdir()
    identity = "torch.nn.modules.linear.Identity"
    config = {"in_features": width, "out_features": 8, "bias": False}
    (layer / "config.json").write_text(json.dumps({**config, "activation_function": identity}))
    torch.manual_seed(0)
    save_file({"linear.weight": torch.randn(8, width)}, layer / "model.safetensors")
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").unlink()
    return embedlm.load(folder, recipe="colbert", device="cpu")


def test_colbert(colbert, tmp_path):
    from sentence_transformers import MultiVectorEncoder

    colbert.save_pretrained(tmp_path / "ours")
    assert "MultiVectorEncoder" in (tmp_path / "ours" / "README.md").read_text()
    peer = MultiVectorEncoder(str(tmp_path / "ours"), device="cpu")
    peer.save_pretrained(str(tmp_path / "theirs"))
    back, again = embedlm.load(tmp_path / "theirs"), embedlm.load(tmp_path / "ours")
    theirs = {"query": peer.encode_query, "document": peer.encode_document}
    for role, encode in theirs.items():
        ours = colbert.encode(TEXTS, role=role).multi_vector
        for found, limit in (
            (encode(TEXTS), 1e-5),
            (back.encode(TEXTS, role=role).multi_vector, 1e-6),
            (again.encode(TEXTS, role=role).multi_vector, 0),
        ):
            assert [len(one) for one in found] == [len(one) for one in ours]
            for one, other in zip(found, ours, strict=True):
                np.testing.assert_allclose(np.asarray(one), other, atol=limit, rtol=0)


def test_a_causal_sparse_model_is_not_expressible(tiny_llama, tmp_path):
    model = embedlm.load(tiny_llama, recipe="splade")
    assert form_of(model) is None
    model.save_pretrained(tmp_path / "saved")
    assert "cannot express" in (tmp_path / "saved" / "README.md").read_text()
