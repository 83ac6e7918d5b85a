"""The classes for other libraries give the Embedder's vectors, and behave as their kind does."""

import asyncio
import copy
import pickle

import numpy as np
import pytest

import embedlm
from embedlm.errors import InputError, UnsupportedError

TEXTS = ["plants make food", "light", "the quick brown fox", "a committee met"]


@pytest.fixture(scope="module")
def model(tiny_llama):
    recipe = embedlm.Recipe.load("plain-mean").override(
        {"prompt.query": "query: {text}", "prompt.document": "passage: {text}"}
    )
    return embedlm.load(tiny_llama, recipe=recipe, device="cpu", dtype="float32")


def close(a, b):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5)


def test_scikit_learn_pipeline(model):
    pytest.importorskip("sklearn")
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    from embedlm.interop.sklearn import EmbedderTransformer

    step = EmbedderTransformer(model, role="query", dim=8)
    close(step.transform(TEXTS), model.encode_query(TEXTS, dim=8))
    close(clone(step).fit_transform(np.array(TEXTS)[:, None]), model.encode_query(TEXTS, dim=8))
    assert len(step.get_feature_names_out()) == 8
    pipeline = make_pipeline(step, LogisticRegression())
    assert pipeline.fit(TEXTS, [0, 1, 0, 1]).predict(TEXTS).shape == (4,)
    grid = {"embeddertransformer__dim": [4, None]}
    assert GridSearchCV(pipeline, grid, cv=2).fit(TEXTS * 2, [0, 1, 0, 1] * 2).best_params_
    for wrong in ("light", np.array([TEXTS, TEXTS])):
        with pytest.raises(InputError, match="X"):
            step.transform(wrong)
    step.set_output(transform="default")
    other = clone(step)
    assert other.model is model  # a search makes no copies of the weights
    assert (other.get_params(), other._sklearn_output_config) == (
        step.get_params(),
        step._sklearn_output_config,
    )


def test_langchain(model):
    pytest.importorskip("langchain_core")
    from langchain_core.embeddings import Embeddings
    from langchain_core.vectorstores import InMemoryVectorStore

    from embedlm.interop.langchain import EmbedLMEmbeddings

    embeddings = EmbedLMEmbeddings(model, normalize=True)
    assert isinstance(embeddings, Embeddings)
    close(embeddings.embed_documents(TEXTS), model.encode_document(TEXTS, normalize=True))
    close(embeddings.embed_query("light"), model.encode_query("light", normalize=True))
    close(asyncio.run(embeddings.aembed_query("light")), embeddings.embed_query("light"))
    store = InMemoryVectorStore.from_texts(TEXTS, embeddings)
    assert len(store.similarity_search("light", k=2)) == 2
    with pytest.raises(InputError, match="one string"):
        embeddings.embed_documents("light")
    with pytest.raises(InputError, match="query is a list"):
        embeddings.embed_query(TEXTS)


def test_llamaindex(model):
    pytest.importorskip("llama_index.core")
    from embedlm.interop.llamaindex import EmbedLMEmbedding

    embedding = EmbedLMEmbedding(model, encode_options={"dim": 8})
    documents, query = model.encode_document(TEXTS, dim=8), model.encode_query("light", dim=8)
    close(embedding.get_text_embedding_batch(TEXTS), documents)
    close(embedding.get_text_embedding(TEXTS[0]), documents[0])
    close(embedding.get_query_embedding("light"), query)
    close(asyncio.run(embedding.aget_query_embedding("light")), query)
    assert embedding.to_dict()["class_name"] == "EmbedLMEmbedding"
    for wrong in (TEXTS, None):
        with pytest.raises(InputError, match="the query is a"):
            embedding._get_query_embedding(wrong)


def test_a_copy_of_llamaindexs_embedding_gives_its_vectors(model):
    pytest.importorskip("llama_index.core")
    from embedlm.interop.llamaindex import EmbedLMEmbedding

    embedding = EmbedLMEmbedding(model, encode_options={"dim": 8}, embed_batch_size=3)
    documents = model.encode_document(TEXTS, dim=8)
    for copied in (pickle.loads(pickle.dumps(embedding)), copy.deepcopy(embedding)):
        close(copied.get_text_embedding_batch(TEXTS), documents)
        assert (copied.embed_batch_size, copied.model_name) == (3, model.name)
        assert copied.to_dict() == embedding.to_dict()
    eight_bits = EmbedLMEmbedding(embedlm.load(device="cpu", dtype="int8"))
    with pytest.raises(UnsupportedError, match="another dtype"):
        pickle.dumps(eight_bits)


def test_llamaindexs_embedding_is_written_down_and_read(model, tiny_llama):
    pytest.importorskip("llama_index.core")
    from embedlm.interop.llamaindex import EmbedLMEmbedding

    named = EmbedLMEmbedding(tiny_llama, recipe=model.recipe, encode_options={"dim": 8})
    for read in (
        EmbedLMEmbedding.from_json(named.to_json()),
        pickle.loads(pickle.dumps(named)),
        EmbedLMEmbedding.from_dict(EmbedLMEmbedding(model).to_dict() | named.to_dict()),
    ):
        close(read.get_query_embedding("light"), model.encode_query("light", dim=8))
        assert read.to_dict() == named.to_dict()
    held = EmbedLMEmbedding(model, encode_options={"dim": 8})
    with pytest.raises(InputError, match="was an Embedder"):
        EmbedLMEmbedding.from_json(held.to_json())
    given = EmbedLMEmbedding.from_dict(held.to_dict(), model=model)
    close(given.get_query_embedding("light"), model.encode_query("light", dim=8))


def test_llamaindexs_caches_tell_embeddings_apart(model):
    pytest.importorskip("llama_index.core")
    from llama_index.core.ingestion import IngestionPipeline
    from llama_index.core.schema import TextNode

    from embedlm.interop.llamaindex import EmbedLMEmbedding

    pipeline = IngestionPipeline(transformations=[EmbedLMEmbedding(model)])
    nodes = [TextNode(text=text, id_=str(number)) for number, text in enumerate(TEXTS)]
    pipeline.run(nodes=copy.deepcopy(nodes))
    last = model.with_recipe(model.recipe.override({"pooling.kind": "last"}))
    for other in (EmbedLMEmbedding(model, encode_options={"dim": 8}), EmbedLMEmbedding(last)):
        pipeline.transformations = [other]
        found = pipeline.run(nodes=copy.deepcopy(nodes))
        expected = other.embedder.encode_document(TEXTS, **other.encode_options)
        close([node.embedding for node in found], expected)


def test_haystack(model, tiny_llama):
    haystack = pytest.importorskip("haystack")
    from embedlm.interop.haystack import EmbedLMDocumentEmbedder, EmbedLMTextEmbedder

    documents = [haystack.Document(content=text, meta={"title": "t"}) for text in TEXTS]
    embedded = EmbedLMDocumentEmbedder(model).run(documents)["documents"]
    close([document.embedding for document in embedded], model.encode_document(TEXTS))
    assert documents[0].embedding is None
    titled = EmbedLMDocumentEmbedder(model, meta_fields_to_embed=["title"]).run(documents[:1])
    close(titled["documents"][0].embedding, model.encode_document(f"t\n{TEXTS[0]}"))
    embedder = EmbedLMTextEmbedder(model)
    close(embedder.run("light")["embedding"], model.encode_query("light"))
    with pytest.raises(InputError, match="saved pipeline"):
        embedder.to_dict()
    with pytest.raises(InputError, match="text is list"):
        embedder.run(documents)
    with pytest.raises(InputError, match="one string"):
        EmbedLMDocumentEmbedder(model, meta_fields_to_embed="title")


def test_haystack_keeps_its_pipelines(model, tiny_llama):
    haystack = pytest.importorskip("haystack")
    from embedlm.interop.haystack import EmbedLMTextEmbedder

    plain = {"name": "mine", "pooling": {"kind": "last"}}
    for place in (tiny_llama, str(tiny_llama)):
        for recipe in ("plain-mean", plain, model.recipe):
            embedder = EmbedLMTextEmbedder(place, recipe, {"dim": 8})
            pipeline = haystack.Pipeline()
            pipeline.add_component("embedder", embedder)
            saved = pipeline.dumps()
            haystack.core.serialization.allow_deserialization_module("embedlm.interop.haystack")
            read = haystack.Pipeline.loads(saved).get_component("embedder")
            close(read.run("light")["embedding"], embedder.run("light")["embedding"])


def test_options_are_checked_when_they_are_given(model):
    from embedlm.interop.models import dense_options

    assert dense_options({"dim": 8, "truncate_dim": 8, "heads": None}) == {
        "dim": 8,
        "truncate_dim": 8,
    }
    for wrong, told in (
        ({"normalise": True}, "Did you mean 'normalize'"),
        ({"heads": ["dense"]}, "dense head"),
        ({"dim": "8"}, "dim"),
        ({"precision": "int9"}, "precision"),
    ):
        with pytest.raises(InputError, match=told):
            dense_options(wrong)


def test_keybert(model):
    keybert = pytest.importorskip("keybert")
    words = keybert.KeyBERT(model.as_sentence_transformer()).extract_keywords(
        "plants make food from sunlight"
    )
    assert words


@pytest.mark.filterwarnings("ignore")  # of its own making
def test_setfit(model, tmp_path):
    setfit = pytest.importorskip("setfit")
    datasets = pytest.importorskip("datasets")
    classifier = setfit.SetFitModel(
        model_body=model.as_sentence_transformer(),
        model_head=pytest.importorskip("sklearn.linear_model").LogisticRegression(),
    )
    before = model.encode(TEXTS)
    rows = datasets.Dataset.from_dict({"text": TEXTS, "label": [0, 1, 0, 1]})
    arguments = setfit.TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, batch_size=4, report_to="none", use_amp=False
    )
    setfit.Trainer(classifier, arguments, train_dataset=rows).train()
    assert np.abs(model.encode(TEXTS) - before).max() > 1e-6
    assert len(classifier.predict(TEXTS)) == 4
