"""The bridge's modules: what is set on them means what it means in sentence-transformers."""

import numpy as np
import pytest
import torch

import embedlm
from embedlm.errors import InputError, UnsupportedError

pytest.importorskip("sentence_transformers")
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer as AnyTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from embedlm.interop.sentence_transformers import EmbedderSentenceTransformer

TEXTS = ["plants make food from sunlight.", "light", "the quick brown fox"]


@pytest.fixture(scope="module")
def folder(model_folder, tmp_path_factory):
    """Return a folder of sentence-transformers with a prompt."""
    network = Transformer(str(model_folder("bert")))
    pooling = Pooling(network.get_embedding_dimension(), "mean")
    target = tmp_path_factory.mktemp("modules") / "model"
    saved = SentenceTransformer(modules=[network, pooling], prompts={"query": "query: "})
    saved.save(str(target), create_model_card=False)
    return str(target)


@pytest.fixture
def theirs(folder):
    return SentenceTransformer(folder, device="cpu")


@pytest.fixture
def ours(folder):
    return embedlm.load(folder, device="cpu").as_sentence_transformer()


def close(a, b):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5)


def test_they_are_a_transformer_and_a_pooling(theirs, ours):
    assert isinstance(ours[0], AnyTransformer)
    assert isinstance(ours[1], Pooling)
    assert type(ours[0].auto_model) is type(theirs[0].auto_model)
    for name in ("pooling_mode", "include_prompt", "embedding_dimension"):
        assert getattr(ours[1], name) == getattr(theirs[1], name)
    assert len(list(ours.parameters())) == len(list(theirs.parameters()))


@pytest.mark.parametrize("mode", ["cls", "max", "mean", "weightedmean", "lasttoken"])
def test_a_pooling_that_is_set_is_used_and_saved(theirs, ours, mode, tmp_path):
    ours[1].pooling_mode = theirs[1].pooling_mode = mode
    vectors = ours.encode(TEXTS)
    close(vectors, theirs.encode(TEXTS))
    close(ours.encode(TEXTS, output_value=None)[0]["sentence_embedding"], vectors[0])
    ours.save(str(tmp_path / "saved"))
    close(SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(TEXTS), vectors)


def test_a_pooling_that_there_is_not_is_refused(ours):
    with pytest.raises(UnsupportedError, match="weightedmean"):
        ours[1].pooling_mode = "median"


def test_a_prompt_is_left_out_and_taken_in_again(theirs, ours):
    with_prompt = ours.encode_query(TEXTS)
    for include in (False, True):
        ours.set_pooling_include_prompt(include)
        theirs.set_pooling_include_prompt(include)
        close(ours.encode_query(TEXTS), theirs.encode_query(TEXTS))
        close(ours.encode(TEXTS, prompt="a: "), theirs.encode(TEXTS, prompt="a: "))
        features = ours.preprocess(TEXTS, prompt="query: ")
        assert (
            features["prompt_length"] == theirs.preprocess(TEXTS, prompt="query: ")["prompt_length"]
        )
        close(ours(features)["sentence_embedding"].detach(), ours.encode_query(TEXTS))
    close(ours.encode_query(TEXTS), with_prompt)


def test_features_are_theirs(theirs, ours):
    mine, reference = ours.preprocess(TEXTS), theirs.preprocess(TEXTS)
    assert set(mine) == set(reference)
    for name in set(mine) - {"modality"}:
        assert torch.equal(mine[name], reference[name])


def test_a_limit_of_tokens_is_honoured(theirs, ours):
    options = {"text": {"max_length": 4, "truncation": True}}
    close(
        ours.encode(TEXTS, processing_kwargs=options),
        theirs.encode(TEXTS, processing_kwargs=options),
    )
    with pytest.raises(InputError, match="processing_kwargs"):
        ours.encode(TEXTS, processing_kwargs={"text": {"max_length": 4, "truncation": False}})
    ours[0].query_length = theirs[0].query_length = 7
    assert (ours[0].query_length, ours[0].document_length) == (7, ours.max_seq_length)
    close(ours.encode_query(TEXTS), theirs.encode_query(TEXTS))
    close(ours.encode_document(TEXTS), theirs.encode_document(TEXTS))


def test_the_states_of_all_layers_are_the_networks(theirs, ours):
    for model in (ours, theirs):
        model.transformers_model.config.output_hidden_states = True
    with torch.no_grad():
        mine = ours(ours.preprocess(TEXTS))["all_layer_embeddings"]
        reference = theirs(theirs.preprocess(TEXTS))
    seen_BL = reference["attention_mask"].bool()
    assert len(mine) == len(reference["all_layer_embeddings"])
    for h_BLD, expected_BLD in zip(mine, reference["all_layer_embeddings"], strict=True):
        close(h_BLD[seen_BL], expected_BLD[seen_BL])


def test_a_loss_over_layers_gives_their_gradient(theirs, ours):
    from sentence_transformers.losses import AdaptiveLayerLoss, MultipleNegativesRankingLoss

    gradients = []
    for model in (theirs, ours):
        model.eval()
        loss = AdaptiveLayerLoss(model, MultipleNegativesRankingLoss(model), n_layers_per_step=-1)
        loss([model.preprocess(TEXTS), model.preprocess(["food", "lamp", "dog"])], None).backward()
        table = model.transformers_model.get_input_embeddings()
        gradients.append(table.weight.grad)
    np.testing.assert_allclose(gradients[1], gradients[0], atol=1e-4, rtol=1e-3)


def test_added_normalisation_is_saved_in_the_recipe(ours, tmp_path):
    ours.append(Normalize())
    vectors = ours.encode(TEXTS)
    close(np.linalg.norm(vectors, axis=1), 1)
    ours.save(str(tmp_path / "saved"))
    assert embedlm.load(tmp_path / "saved").recipe.normalize
    close(SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(TEXTS), vectors)


def test_it_opens_a_folder_with_their_options(folder, theirs):
    options = {"prompts": {"query": "ask: "}, "truncate_dim": 8, "similarity_fn_name": "dot"}
    ours = EmbedderSentenceTransformer(folder, device="cpu", **options)
    reference = SentenceTransformer(folder, device="cpu", **options)
    close(ours.encode_query(TEXTS), reference.encode_query(TEXTS))
    assert (ours.prompts, ours.similarity_fn_name) == (reference.prompts, "dot")
    half = EmbedderSentenceTransformer(folder, model_kwargs={"dtype": "float16"})
    assert half.dtype == torch.float16
    for refused in (
        {"model_kwargs": {"device_map": "auto"}},
        {"processor_kwargs": {"padding_side": "left"}},
        {"backend": "onnx"},
    ):
        with pytest.raises(UnsupportedError, match=r"device_map|processor_kwargs|onnx"):
            EmbedderSentenceTransformer(folder, **refused)


LONG = ["roots drink water, " * 9 + "light", "a law was passed, " * 9 + "light"]


def test_a_limit_set_on_the_tokenizer_is_honoured(theirs, ours):
    ours.tokenizer.model_max_length = theirs.tokenizer.model_max_length = 5
    assert ours.max_seq_length == theirs.max_seq_length == 5
    assert ours.preprocess(LONG)["input_ids"].shape == (2, 5)
    close(ours.encode(LONG), theirs.encode(LONG))
    ours.tokenizer.model_max_length = theirs.tokenizer.model_max_length = 9
    close(ours.encode_query(LONG), theirs.encode_query(LONG))


def test_a_side_set_on_the_tokenizer_is_honoured(theirs, ours, tmp_path):
    for model in (ours, theirs):
        model.max_seq_length = 8
        model.tokenizer.truncation_side = "left"
    vectors = ours.encode(LONG)
    close(vectors, theirs.encode(LONG))
    close(ours.encode_query(LONG), theirs.encode_query(LONG))
    assert (
        ours.preprocess(LONG)["input_ids"].tolist() == theirs.preprocess(LONG)["input_ids"].tolist()
    )
    ours.save(str(tmp_path / "saved"))
    close(embedlm.load(tmp_path / "saved", device="cpu").encode(LONG), vectors)
    ours.tokenizer.truncation_side = theirs.tokenizer.truncation_side = "right"
    close(ours.encode(LONG), theirs.encode(LONG))


@pytest.mark.parametrize("place", [0, 1, 2, -1, slice(1, None)])
def test_the_embedders_own_modules_cannot_be_deleted(ours, place):
    with pytest.raises(UnsupportedError, match="normalize"):
        del ours[place]
    assert len(ours) == 2


def test_an_added_module_can_be_deleted(ours):
    before = ours.encode(TEXTS)
    ours.append(Normalize())
    del ours[2]
    np.testing.assert_array_equal(ours.encode(TEXTS), before)
