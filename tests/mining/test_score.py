"""Scores in records are those of the model itself."""

import json

import numpy as np
import pytest

import embedlm
from embedlm.errors import InputError, ModelError
from embedlm.mining import score
from embedlm.rerank import Reranker, is_reranker


@pytest.fixture
def pairs(records, corpus):
    return [
        {**one, "negatives": [corpus[i + 40]["text"]] * (i % 3)} for i, one in enumerate(records)
    ]


def test_an_embedder_writes_its_similarities(model, pairs):
    found = score(pairs, model=model).records
    assert len(found) == len(pairs)
    for before, after in zip(pairs, found, strict=True):
        texts = [*before["positives"], *before["negatives"]]
        query = model.encode_query([before["query"]])
        expected = model.similarity(query, model.encode_document(texts))[0]
        np.testing.assert_allclose(after["scores"], expected, atol=1e-6)
        assert after["provenance"]["scores"]["kind"] == "embedder"


def test_a_reranker_writes_its_logits(tiny_llama, pairs):
    reranker = embedlm.Reranker(tiny_llama, device="cpu")
    found = score(pairs, reranker=reranker, block=5).records
    for before, after in zip(pairs, found, strict=True):
        texts = [*before["positives"], *before["negatives"]]
        expected = reranker.score(before["query"], texts, probability=False)
        np.testing.assert_allclose(after["scores"], expected, atol=1e-6)


def test_the_command_knows_a_cross_encoder_by_its_class(run, tmp_path, pairs, cross_encoder):
    source, out = tmp_path / "pairs.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(one) + "\n" for one in pairs))
    done = run("score", source, "-m", cross_encoder, "-o", out, "--device", "cpu", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["scorer"]["kind"] == "reranker"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    expected = embedlm.Reranker(cross_encoder, device="cpu").score(
        pairs[0]["query"], pairs[0]["positives"], probability=False
    )
    np.testing.assert_allclose(rows[0]["scores"], expected, atol=1e-6)


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory):
    import torch
    import transformers as tf

    from tests.models import ENCODER, build_tokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("cross") / "model"
    config = tf.BertConfig(**ENCODER, num_labels=1)
    tf.BertForSequenceClassification(config).save_pretrained(folder)
    build_tokenizer("encoder").save_pretrained(folder)
    return folder


def test_scores_come_from_one_model(model, pairs, tiny_llama, tmp_path, run):
    with pytest.raises(InputError, match="model and llm were given"):
        score(pairs, model=model, llm="http://127.0.0.1:9/v1#m")
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(one) + "\n" for one in pairs))
    told = run("score", source, "-m", tiny_llama, "--llm", "x", "-o", tmp_path / "o.jsonl")
    assert "--model and --llm were given" in told.one_line()
    told = run("score", source, "--reranker", tiny_llama, "-r", "echo", "-o", tmp_path / "o.jsonl")
    assert "are for embedders" in told.one_line()


@pytest.mark.parametrize("name", ["builtin", "builtin-base"])
def test_the_built_in_models_score_by_name(name, pairs, tmp_path, run):
    """They are embedders, of which no folder of that name has to be there."""
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(one) + "\n" for one in pairs[:3]))
    recipe = ["-r", "plain-mean"] if name == "builtin-base" else []
    done = run("score", source, "-m", name, *recipe, "-o", tmp_path / "scored.jsonl")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert all(-1.001 <= score <= 1.001 for row in rows for score in row["scores"])


@pytest.mark.parametrize("name", ["builtin", "builtin-base"])
def test_no_built_in_model_is_a_reranker(name):
    assert not is_reranker(name)
    with pytest.raises(ModelError, match="comes with EmbedLM and is no re-ranker"):
        Reranker(name)
