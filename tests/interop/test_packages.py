"""Packages that ask for a SentenceTransformer take ours, or open the folder that we save."""

import numpy as np
import pytest

import embedlm

pytest.importorskip("sentence_transformers")

pytestmark = pytest.mark.filterwarnings("ignore")  # of these packages' own making
TEXTS = ["plants make food", "light falls on leaves", "the court ruled", "a law was passed"]


@pytest.fixture(scope="module")
def model(tiny_llama):
    recipe = embedlm.Recipe.load("plain-mean").override(
        {
            "prompt.query": "query: {text}",
            "prompt.document": "passage: {text}",
            "prompt.default": "passage: {text}",
        }
    )
    return embedlm.load(tiny_llama, recipe=recipe, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """Return a folder that any of the packages opens by sentence-transformers."""
    target = tmp_path_factory.mktemp("packages") / "model"
    model.save_pretrained(target)
    return str(target)


def close(a, b):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5)


def test_bertopic(model):
    bertopic = pytest.importorskip("bertopic")
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    backend = bertopic.backend._utils.select_backend(model.as_sentence_transformer())
    close(backend.embed_documents(TEXTS), model.encode(TEXTS))
    topics, _ = bertopic.BERTopic(
        embedding_model=model.as_sentence_transformer(),
        umap_model=PCA(2),
        hdbscan_model=KMeans(2, n_init=1, random_state=0),
    ).fit_transform(TEXTS * 3)
    assert topics[:4] == topics[4:8]
    assert set(topics) == {0, 1}


def test_keybert_ranks_words_by_our_vectors(model):
    keybert = pytest.importorskip("keybert")
    text = "plants make food from sunlight"
    words = keybert.KeyBERT(model.as_sentence_transformer()).extract_keywords(text, top_n=9)
    document = model.encode(text)
    for word, score in words:
        vector = model.encode(word)
        cosine = vector @ document / np.linalg.norm(vector) / np.linalg.norm(document)
        assert score == pytest.approx(cosine, abs=2e-4)  # it is rounded there


def test_setfit_fits_a_head(model):
    setfit = pytest.importorskip("setfit")
    head = pytest.importorskip("sklearn.linear_model").LogisticRegression(C=1e4)
    classifier = setfit.SetFitModel(model_body=model.as_sentence_transformer(), model_head=head)
    classifier.fit(TEXTS, [0, 0, 1, 1], num_epochs=1)
    assert classifier.predict(TEXTS).tolist() == [0, 0, 1, 1]


def test_mteb_takes_the_bridge_and_our_encoder(model):
    mteb = pytest.importorskip("mteb")
    from mteb.mocks import MockRetrievalTask, MockSTSTask

    from embedlm.interop.mteb import EmbedLMEncoder

    tasks = [MockSTSTask(), MockRetrievalTask()]
    scores = [
        [result.get_score() for result in mteb.evaluate(encoder, tasks, cache=None)]
        for encoder in (EmbedLMEncoder(model), model.as_sentence_transformer())
    ]
    assert scores[0] == pytest.approx(scores[1])


def test_chroma(model, folder):
    chromadb = pytest.importorskip("chromadb")
    from chromadb.utils.embedding_functions import SentenceTransformerEmbeddingFunction

    embed = SentenceTransformerEmbeddingFunction(model_name=folder)
    close(embed(TEXTS), model.encode(TEXTS))
    bridge = model.as_sentence_transformer()
    collection = chromadb.EphemeralClient().create_collection("texts")
    ids = [str(number) for number in range(len(TEXTS))]
    collection.add(ids=ids, documents=TEXTS, embeddings=bridge.encode_document(TEXTS))
    found = collection.query(query_embeddings=bridge.encode_query(TEXTS[2:3]), n_results=4)
    vectors, query = model.encode_document(TEXTS), model.encode_query(TEXTS[2])
    nearest = np.argsort(((vectors - query) ** 2).sum(1))
    assert found["ids"][0] == [ids[number] for number in nearest]


def test_the_class_of_langchain_huggingface(model, folder):
    package = pytest.importorskip("langchain_huggingface")
    embeddings = package.HuggingFaceEmbeddings(
        model_name=folder,
        encode_kwargs={"prompt_name": "document"},
        query_encode_kwargs={"prompt_name": "query"},
    )
    close(embeddings.embed_documents(TEXTS), model.encode_document(TEXTS))
    close(embeddings.embed_query(TEXTS[0]), model.encode_query(TEXTS[0]))


def test_the_class_of_llama_index_huggingface(model, folder):
    package = pytest.importorskip("llama_index.embeddings.huggingface")
    embedding = package.HuggingFaceEmbedding(
        folder,
        device="cpu",
        normalize=False,
        query_instruction="query: ",
        text_instruction="passage: ",
    )
    close(embedding.get_text_embedding_batch(TEXTS), model.encode_document(TEXTS))
    close(embedding.get_query_embedding(TEXTS[0]), model.encode_query(TEXTS[0]))


def test_the_components_of_haystack(model, folder):
    haystack = pytest.importorskip("haystack")
    package = pytest.importorskip(
        "haystack_integrations.components.embedders.sentence_transformers"
    )
    device = haystack.utils.ComponentDevice.from_str("cpu")
    options = {"model": folder, "device": device, "progress_bar": False}
    text = package.SentenceTransformersTextEmbedder(**options)
    text.warm_up()
    close(text.run(TEXTS[0])["embedding"], model.encode(TEXTS[0]))
    documents = package.SentenceTransformersDocumentEmbedder(**options)
    documents.warm_up()
    rows = documents.run([haystack.Document(content=text) for text in TEXTS])["documents"]
    close([row.embedding for row in rows], model.encode(TEXTS))
