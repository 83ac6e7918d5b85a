"""Several heads of published systems equal the references: BGE-M3 and ColBERT."""

import json

import numpy as np
import pytest

import embedlm
from tests.parity import assert_close, expected, facts, folder, needs_parity, texts

pytestmark = needs_parity

M3, COLBERT = "07_bge_m3", "16_colbert_pylate"
both = pytest.mark.parametrize("source", ["layout", "recipe"])


def parts(wanted, name):
    return np.split(wanted[f"{name}_concat"], np.cumsum(wanted[f"{name}_lengths"])[:-1])


def assert_vectors(found, wanted):
    assert [len(one) for one in found] == [len(one) for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@both
def test_bge_m3_gives_three_outputs_from_one_pass(source, monkeypatch):
    model = embedlm.load(folder(M3), recipe=None if source == "layout" else "bge-m3")
    passes = []
    run = type(model.backbone).run
    monkeypatch.setattr(
        type(model.backbone), "run", lambda *a, **k: passes.append(1) or run(*a, **k)
    )
    found, wanted = model.encode(texts()), expected(M3)
    assert len(passes) == 1
    assert_close(found.dense, wanted["dense"], atol=2e-5)
    assert_vectors(found.multi_vector, parts(wanted, "colbert"))
    lexical = json.loads((folder(M3) / "expected_lexical_weights.json").read_text())
    for row, weights in zip(found.sparse, lexical, strict=True):
        assert {str(i) for i in row.indices} == set(weights)
        own = dict(zip(map(str, row.indices), row.data, strict=True))
        for token, weight in weights.items():
            assert own[token] == pytest.approx(weight, abs=2e-5)


def test_bge_m3_scores_as_the_reference():
    model, wanted = embedlm.load(folder(M3)), expected(M3)
    found = model.encode(texts())

    def score(**heads):
        total = sum(heads.values())
        return model.similarity(found, found, list(heads), [w / total for w in heads.values()])

    close = {"atol": 1e-4}
    assert_close(score(dense=1), wanted["score_dense"], **close)
    assert_close(score(sparse=1), wanted["score_sparse"], **close)
    assert_close(score(multi_vector=1), wanted["score_colbert"], **close)
    assert_close(score(dense=0.4, sparse=0.2), wanted["score_sparse_dense"], **close)
    every = score(dense=0.4, sparse=0.2, multi_vector=0.4)
    assert_close(every, wanted["score_colbert_sparse_dense"], **close)
    assert_close(score(sparse=1), wanted["lexical_score_pairwise"], **close)


@both
def test_colbert_expands_queries_and_skips_in_documents(source):
    model = embedlm.load(folder(COLBERT), recipe=None if source == "layout" else "colbert")
    wanted = expected(COLBERT)
    query = model.encode_query(texts()).multi_vector
    document = model.encode_document(texts()).multi_vector
    assert_vectors(query, parts(wanted, "query"))
    assert_vectors(document, parts(wanted, "document"))
    assert_close(model.similarity(query, document), wanted["scores"], atol=1e-3)
    alone = [model.encode_query(text).multi_vector[0] for text in texts()]
    assert_vectors(alone, parts(wanted, "query"))
    settings = facts(COLBERT)["settings"]
    assert {len(one) for one in query} == {settings["query_length"]}


@pytest.mark.parametrize("case", [M3, COLBERT])
def test_heads_are_saved(case, tmp_path):
    model = embedlm.load(folder(case))
    model.save_pretrained(tmp_path / "saved")
    again = embedlm.load(tmp_path / "saved")
    for role in ("query", "document"):
        before, after = model.encode(texts(), role=role), again.encode(texts(), role=role)
        for one, other in zip(before.multi_vector, after.multi_vector, strict=True):
            np.testing.assert_array_equal(one, other)
        if before.sparse is not None:
            assert (before.sparse != after.sparse).nnz == 0
