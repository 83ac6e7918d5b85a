"""The SentenceTransformer around an Embedder: the same vectors, settings, files and training."""

import copy
import pickle

import numpy as np
import pytest
import torch

import embedlm
from embedlm.errors import InputError, UnsupportedError

pytest.importorskip("sentence_transformers")
from sentence_transformers import SentenceTransformer

TEXTS = ["plants make food", "light", "the quick brown fox", "light", "a committee met"]
PREFIXES = {
    "prompt.query": "query: {text}",
    "prompt.document": "passage: {text}",
    "prompt.default": "passage: {text}",
    "normalize": True,
}


@pytest.fixture(scope="module")
def recipe():
    return embedlm.Recipe.load("plain-mean").override(PREFIXES)


@pytest.fixture
def model(tiny_llama, recipe):
    return embedlm.load(tiny_llama, recipe=recipe, device="cpu", dtype="float32")


def close(a, b):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5)


def test_it_is_one_and_gives_the_same_vectors(model):
    bridge = model.as_sentence_transformer()
    assert isinstance(bridge, SentenceTransformer)
    close(bridge.encode(TEXTS), model.encode(TEXTS))
    close(bridge.encode_query(TEXTS), model.encode_query(TEXTS))
    close(bridge.encode_document(TEXTS), model.encode_document(TEXTS))
    close(bridge.encode(TEXTS, prompt_name="query"), model.encode(TEXTS, role="query"))
    assert bridge.prompts == {"query": "query: ", "document": "passage: ", "default": "passage: "}
    assert bridge.get_embedding_dimension() == model.dim
    assert bridge.max_seq_length == model.max_length


SEVERAL = {"name": "several", "prompt": {"default": ["one: {text}", "two: {text} !"]}}


@pytest.mark.parametrize("name", ["prompteol", SEVERAL, "plain-last", "static-mean", "e5-mistral"])
def test_every_kind_of_recipe_gives_the_same_vectors(tiny_llama, name):
    model = embedlm.load(tiny_llama, recipe=name, device="cpu", dtype="float32")
    bridge = model.as_sentence_transformer()
    close(bridge.encode(TEXTS), model.encode(TEXTS))
    close(bridge.encode_query(TEXTS), model.encode_query(TEXTS))
    close(bridge.encode_document(TEXTS), model.encode_document(TEXTS))


def test_settings_mean_what_they_mean_there(model, tmp_path):
    """sentence-transformers itself opens the saved folder, and is the reference."""
    bridge = model.as_sentence_transformer()
    bridge.save(str(tmp_path / "saved"))
    reference = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    for options in [
        {},
        {"prompt": "title: "},
        {"prompt": ""},
        {"prompt_name": "query"},
        {"truncate_dim": 7},
        {"truncate_dim": 7, "normalize_embeddings": True},
        {"convert_to_tensor": True},
        {"precision": None},
        {"precision": "ubinary"},
    ]:
        ours, theirs = bridge.encode(TEXTS, **options), reference.encode(TEXTS, **options)
        assert type(ours) is type(theirs), options
        close(ours, theirs)
    assert isinstance(bridge.encode(TEXTS, convert_to_numpy=False), list)
    assert bridge.encode([]).shape == reference.encode([]).shape
    assert bridge.encode("light").shape == (model.dim,)
    for ours, theirs in zip(
        bridge.encode(TEXTS, output_value="token_embeddings"),
        reference.encode(TEXTS, output_value="token_embeddings"),
        strict=True,
    ):
        close(ours, theirs)
    row = bridge.encode(TEXTS, output_value=None)[0]
    close(row["sentence_embedding"], reference.encode(TEXTS[0]))


def test_a_changed_prompt_is_used_and_saved(model, tmp_path):
    bridge = model.as_sentence_transformer()
    bridge.prompts["query"] = "ask: "
    bridge.max_seq_length = 9
    vectors = bridge.encode_query(TEXTS)
    assert not np.allclose(vectors, model.encode_query(TEXTS), atol=1e-3)
    bridge.save(str(tmp_path / "saved"))
    close(embedlm.load(tmp_path / "saved").encode_query(TEXTS), vectors)
    close(SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode_query(TEXTS), vectors)


def test_other_files_of_the_folder_stay(model, tmp_path):
    (tmp_path / "training_args.bin").write_text("kept")
    bridge = model.as_sentence_transformer()
    bridge.save(str(tmp_path), create_model_card=False)
    assert (tmp_path / "training_args.bin").read_text() == "kept"
    assert not (tmp_path / "README.md").exists()
    bridge.save_pretrained(str(tmp_path))
    assert 'SentenceTransformer("' in (tmp_path / "README.md").read_text()


def test_a_prompt_around_the_text_is_saved_unchanged_or_not(tiny_llama, tmp_path):
    bridge = embedlm.load(tiny_llama, recipe="prompteol", device="cpu").as_sentence_transformer()
    vectors = bridge.encode(TEXTS)
    bridge.save(str(tmp_path / "saved"))
    opened = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True, device="cpu")
    close(opened.encode(TEXTS), vectors)
    bridge.prompts["query"] = "ask: "
    with pytest.raises(UnsupportedError, match="cannot be saved"):
        bridge.save(str(tmp_path / "other"))


def test_what_cannot_be_honoured_is_refused(model, tiny_llama):
    bridge = model.as_sentence_transformer()
    with pytest.raises(InputError, match="processing_kwargs"):
        bridge.encode(TEXTS, processing_kwargs={"text": {"truncation": False}})
    with pytest.raises(ValueError, match="prompt"):
        bridge.encode(TEXTS, prompt_name="nothing")
    several = embedlm.load(tiny_llama, recipe=SEVERAL, device="cpu").as_sentence_transformer()
    with pytest.raises(UnsupportedError, match="several prompts"):
        several.encode(TEXTS, output_value="token_embeddings")


def test_modules_that_are_added_are_run_and_not_lost(model, tmp_path):
    bridge = model.as_sentence_transformer()
    bridge.append(torch.nn.Module())
    bridge[-1].forward = lambda features: {
        **features,
        "sentence_embedding": 2 * features["sentence_embedding"],
    }
    close(bridge.encode(TEXTS), 2 * model.encode(TEXTS))
    with pytest.raises(UnsupportedError, match="added"):
        bridge.save(str(tmp_path / "saved"))


def test_equal_texts_run_once(model, monkeypatch):
    bridge, rows = model.as_sentence_transformer(), []
    run = type(model.executor).run

    def counted(self, ids, **options):
        rows.extend(ids)
        return run(self, ids, **options)

    monkeypatch.setattr(type(model.executor), "run", counted)
    bridge.encode(["light"] * 50, batch_size=1)
    assert len(rows) == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_independent(model, copied):
    bridge = model.as_sentence_transformer()
    vectors = bridge.encode_query(TEXTS)
    other = copied(bridge)
    close(other.encode_query(TEXTS), vectors)
    with torch.no_grad():
        next(other.parameters()).zero_()
    close(bridge.encode_query(TEXTS), vectors)


def test_moving_and_casting_reach_the_embedder(model):
    bridge = model.as_sentence_transformer()
    vectors = bridge.encode(TEXTS)
    close(bridge.to("cpu").encode(TEXTS), vectors)
    assert bridge.double().dtype == torch.float64
    close(bridge.encode(TEXTS), vectors)
    close(model.encode(TEXTS), vectors)


def test_features_reach_the_network_with_a_gradient(model):
    bridge = model.as_sentence_transformer()
    before = bridge.encode_query(TEXTS)
    features = bridge.preprocess(TEXTS, prompt="query: ")
    vectors = bridge(features)["sentence_embedding"]
    close(vectors.detach(), before)
    vectors[:, 0].sum().backward()
    assert all(p.grad is not None for p in model.backbone.network.parameters())
    torch.optim.SGD(bridge.parameters(), lr=0.1).step()
    after = bridge.encode_query(TEXTS)
    assert np.abs(after - before).max() > 1e-4
    close(model.encode_query(TEXTS), after)


def test_its_trainer_tunes_the_network(model, tmp_path):
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    bridge = model.as_sentence_transformer()
    before = bridge.encode(TEXTS)
    pairs = {"anchor": [*TEXTS[:3], TEXTS[4]] * 4, "positive": ["a", "b", "c", "d"] * 4}
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to=[],
        save_steps=3,
        use_cpu=True,
        prompts={"anchor": "query: "},
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    rows, loss = datasets.Dataset.from_dict(pairs), MultipleNegativesRankingLoss(bridge)
    SentenceTransformerTrainer(bridge, arguments, rows, loss=loss).train()
    after = bridge.encode(TEXTS)
    assert np.abs(after - before).max() > 1e-3
    close(model.encode(TEXTS), after)
    close(embedlm.load(tmp_path / "checkpoint-3").encode(TEXTS), after)


def test_its_evaluators_and_miner_take_it(model):
    from sentence_transformers.evaluation import (
        EmbeddingSimilarityEvaluator,
        InformationRetrievalEvaluator,
    )

    bridge = model.as_sentence_transformer()
    similar = EmbeddingSimilarityEvaluator(TEXTS[:3], TEXTS[2:5], [0.1, 0.5, 0.9])
    assert similar(bridge)
    documents = {str(i): text for i, text in enumerate(dict.fromkeys(TEXTS))}
    relevant = {key: {key} for key in documents}
    scores = InformationRetrievalEvaluator(documents, documents, relevant)(bridge)
    assert 0 < scores["cosine_ndcg@10"] <= 1
    datasets = pytest.importorskip("datasets")
    from sentence_transformers.util import mine_hard_negatives

    pairs = datasets.Dataset.from_dict({"query": TEXTS[:3], "answer": ["a", "b", "c"]})
    mined = mine_hard_negatives(pairs, bridge, corpus=["d", "e", "f", "g"], verbose=False)
    assert {"query", "answer", "negative"} <= set(mined.column_names)
