"""Sparse heads: the language-model head's own logits, reduced, restricted and cut."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

import embedlm
from embedlm.errors import UnsupportedError
from embedlm.readout.term_weights import select_terms
from embedlm.readout.token_layers import token_weights
from embedlm.schema.heads import Sparse
from tests import models

TEXTS = ["Plants make food from sunlight.", "the quick brown fox", "?", "the of and", ""]
WORDS = {"sparse": {"restrict": "text", "reduce": "pool", "stop_words": "english"}}
WHOLE = {"sparse": {"restrict": "none", "reduce": "pool"}}


def own_weights(folder, ids, masked=False):
    """Return log(1 + relu(logits)) of every token, by the model as transformers runs it."""
    loader = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    network = loader.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = network(torch.tensor([ids])).logits[0]
    return torch.log1p(torch.relu(logits)).numpy()


HEADED = [*models.DECODERS, *models.STUBBORN]


@pytest.mark.parametrize("name", HEADED)
def test_pooled_logits_are_the_models_own(model_folder, name):
    folder = model_folder(name)
    model = embedlm.load(folder, recipe="prompteol", lm_head=True)
    found = model.encode(TEXTS, heads=[WHOLE]).sparse.toarray()
    for row, ids in zip(found, model.render(TEXTS).ids, strict=True):
        np.testing.assert_allclose(row, own_weights(folder, ids)[-1], atol=1e-4)


@pytest.mark.parametrize(("reduce", "by"), [("max", np.max), ("sum", np.sum)])
@pytest.mark.parametrize("name", ["bert", "xlm-r"])
def test_splade_reduces_over_all_tokens(model_folder, name, reduce, by):
    folder = model_folder(name)
    model = embedlm.load(folder, recipe="splade")
    found = model.encode(TEXTS, heads=[{"sparse": {"reduce": reduce}}]).sparse.toarray()
    for row, ids in zip(found, model.render(TEXTS).ids, strict=True):
        wanted = by(own_weights(folder, ids, masked=True), axis=0)
        np.testing.assert_allclose(row, wanted, atol=1e-4, rtol=1e-5)


def test_a_causal_splade_can_leave_the_first_token_out(tiny_llama):
    recipe = embedlm.Recipe.load("splade").override({"pooling.over": ["text"]})
    model = embedlm.load(tiny_llama, recipe=recipe)
    text = "the quick brown fox"
    found = model.encode([text]).sparse.toarray()[0]
    wanted = own_weights(tiny_llama, model.render([text]).ids[0])[1:].max(0)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_restricted_to_the_texts_own_words(tiny_llama):
    model = embedlm.load(tiny_llama, recipe="prompteol", lm_head=True)
    text = "The quick brown fox"
    own = {
        token
        for word in ("quick", "brown", "fox")
        for token in model.tokenizer(word, add_special_tokens=False)["input_ids"]
    }
    restricted = model.encode([text], heads=[WORDS]).sparse.toarray()[0]
    whole = model.encode([text], heads=[WHOLE]).sparse.toarray()[0]
    kept = sorted(token for token in own if whole[token] > 0)
    assert np.flatnonzero(restricted).tolist() == kept
    np.testing.assert_array_equal(restricted[kept], whole[kept])


@pytest.mark.parametrize("text", ["?", "the of and", ""])
def test_a_text_without_words_takes_the_best_of_the_vocabulary(tiny_llama, text):
    model = embedlm.load(tiny_llama, recipe="prompteol", lm_head=True)
    found = model.encode([text], heads=[WORDS]).sparse
    whole = model.encode([text], heads=[WHOLE]).sparse.toarray()[0]
    assert found.nnz == 10
    assert sorted(found.indices) == sorted(np.argsort(-whole, kind="stable")[:10])


@pytest.mark.parametrize("top_k", [1, 5, 10_000])
def test_top_k_keeps_the_largest(tiny_llama, top_k):
    model = embedlm.load(tiny_llama, recipe="prompteol", lm_head=True)
    whole = model.encode(TEXTS, heads=[WHOLE]).sparse
    found = model.encode(TEXTS, heads=[{"sparse": {**WHOLE["sparse"], "top_k": top_k}}]).sparse
    for row in range(len(TEXTS)):
        mine, all_ = found[row].toarray()[0], whole[row].toarray()[0]
        assert (mine > 0).sum() == min(top_k, (all_ > 0).sum())
        assert mine[mine > 0].min() >= np.sort(all_)[::-1][: (mine > 0).sum()].min()


def test_expansion_adds_word_like_tokens_of_no_own_word(tiny_llama):
    model = embedlm.load(tiny_llama, recipe="prompteol", lm_head=True)
    text = "The quick brown fox"
    own = model.encode([text], heads=[WORDS]).sparse
    found = model.encode([text], heads=[{"sparse": {**WORDS["sparse"], "expand": 3}}]).sparse
    added = sorted({*found.indices} - {*own.indices})
    assert len(added) == 3
    tokens = model.tokenizer.convert_ids_to_tokens(added)
    assert all(token.isalnum() and "a" <= token[0] <= "z" for token in tokens)


def test_weights_are_indexed_by_the_vocabulary(tiny_llama):
    model = embedlm.load(tiny_llama, recipe="promptreps")
    found = model.encode(TEXTS)
    assert found.sparse.shape == (len(TEXTS), models.VOCAB)
    assert (found.sparse.data > 0).all()
    assert found.sparse.has_sorted_indices
    np.testing.assert_allclose(np.linalg.norm(found.dense, axis=1), 1, atol=1e-6)


def test_a_model_without_a_head_is_refused(model_folder):
    with pytest.raises(UnsupportedError, match="no language-model head"):
        embedlm.load(model_folder("t5"), recipe="splade")
    with pytest.raises(UnsupportedError, match="no language-model head"):
        embedlm.load(model_folder("bert", head=False), recipe="splade")
    model = embedlm.load(model_folder("t5"), recipe="plain-last")
    with pytest.raises(UnsupportedError, match=r"no language-model head.*lm_head=True"):
        model.encode(["a"], heads=["sparse"])


def test_three_outputs_cost_one_forward_pass(tiny_llama):
    model = embedlm.load(tiny_llama, recipe="one-pass", device="cpu")
    texts, seen = ["plants make food", "the lazy dog jumps over the fox"], []
    layer = model.backbone.layers[0]
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].numel()))
    found = model.encode(texts)
    handle.remove()
    ids = model.tokenizer([model.recipe.prompt.default.replace("{text}", t) for t in texts])
    width = model.backbone.config.hidden_size
    assert sum(seen) <= sum(map(len, ids["input_ids"])) * width, "no token is run twice"
    for kind in ("dense", "sparse", "multi_vector"):
        alone = embedlm.load(
            tiny_llama, recipe=model.recipe.override({"heads": [wanted(model, kind)]}), device="cpu"
        ).encode(texts)
        alone = alone if kind == "dense" else getattr(alone, kind)
        for ours, theirs in zip(rows(getattr(found, kind)), rows(alone), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


def wanted(model, kind):
    """Return the one head of that kind, as a recipe file writes it."""
    (head,) = [head for head in model.recipe.heads if head.kind == kind]
    return {kind: head.model_dump(exclude={"kind"})}


def rows(found):
    return found.toarray() if hasattr(found, "toarray") else found


def test_tokens_that_are_no_terms_have_no_weight_where_a_layer_weighs(tmp_path):
    models.build("xlm-r", tmp_path, head=False)
    for name, width in (("sparse", 1), ("colbert", 32)):
        layer = torch.nn.Linear(32, width)
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.ones_(layer.bias)
        torch.save(layer.state_dict(), tmp_path / f"{name}_linear.pt")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.unk_token = "<mask>"
    tokenizer.save_pretrained(tmp_path)
    model = embedlm.load(tmp_path)
    assert model.encode([""]).sparse.nnz == 0
    read = model.recipe.override({"prompt.special_tokens_in_text": "tokens"})
    row = model.with_recipe(read).encode(["a <mask> <pad> </s> b"]).sparse
    assert set(row.indices) == set(tokenizer("a   b", add_special_tokens=False)["input_ids"])
    assert (row.data == 1.0).all()


@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_terms_and_token_weights_are_cut_alike(top_k):
    """A table may have weights below 0, and what is trained is what is read."""
    w_V = np.array([0.0, -3.0, 1.0, 2.0], np.float32)
    ids, weights = select_terms(w_V, None, Sparse(weights="static", top_k=top_k), None)
    ((own, same),) = token_weights(w_V, [np.arange(4)], top_k, ())
    assert ids.tolist() == own.tolist() == {None: [1, 2, 3], 1: [1], 2: [1, 3]}[top_k]
    assert weights.tolist() == same.tolist() == w_V[ids].tolist()
