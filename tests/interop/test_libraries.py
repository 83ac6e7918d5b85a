"""The classes for other libraries give the Embedder's vectors, and behave as their kind does."""

import asyncio

import numpy as np
import pytest

import embedlm
from embedlm.errors import InputError

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
    saved = EmbedLMTextEmbedder(str(tiny_llama), "plain-mean").to_dict()
    assert EmbedLMTextEmbedder.from_dict(saved).run("light")["embedding"]
    with pytest.raises(InputError, match="text"):
        embedder.run(documents)


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
