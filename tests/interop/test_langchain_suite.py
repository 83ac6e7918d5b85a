"""LangChain's own tests of embedding models."""

import pytest

import embedlm

suite = pytest.importorskip("langchain_tests.integration_tests")


class TestEmbedLM(suite.EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self):
        from embedlm.interop.langchain import EmbedLMEmbeddings

        return EmbedLMEmbeddings

    @property
    def embedding_model_params(self):
        return {"model": embedlm.load()}
