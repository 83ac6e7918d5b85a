"""A pair's score depends on the pair alone, whatever network reads it and what runs with it."""

import numpy as np
import pytest
import transformers as tf
from tokenizers import processors

import embedlm
from embedlm.errors import InputError
from tests.models import VOCAB, build_tokenizer
from tests.rerank.test_rerank import classifier

LONG = "the quick brown fox jumps " * 12
PAIRS = [
    ("what do plants make?", "food"),
    ("what do plants make?", "plants make food from sunlight."),
    ("fox", "a </s> b"),
    ("who met?", "A committee met on Tuesday."),
    ("fox", LONG),
]
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GQA = {**SIZES, "num_key_value_heads": 2}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0, 8, 16, 32]}
SEQ2SEQ = {
    "d_model": 32,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
}
KINDS = {
    "longrope": tf.Phi3Config(
        **GQA,
        max_position_embeddings=256,
        original_max_position_embeddings=32,
        rope_scaling=LONGROPE,
    ),
    "dynamic NTK": tf.LlamaConfig(
        **GQA, max_position_embeddings=32, rope_scaling={"rope_type": "dynamic", "factor": 4.0}
    ),
    "reads its padding": tf.NystromformerConfig(**SIZES, num_landmarks=4, segment_means_seq_len=4),
    "convolutions": tf.ConvBertConfig(**SIZES, embedding_size=32),
    "counts its EOS": tf.BartConfig(**{**SIZES, **SEQ2SEQ, "max_position_embeddings": 300}),
}


def saved(config, tmp_path, longest=200):
    """Save a classifier whose tokenizer closes both texts with an EOS; return its folder."""
    config.save_pretrained(tmp_path / "base")
    tokenizer = build_tokenizer("encoder", longest)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 2)]
    )
    tokenizer.save_pretrained(tmp_path / "base")
    return classifier(tmp_path / "base", tmp_path / "cross")


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_does_not_depend_on_other_pairs(tmp_path, kind):
    reranker = embedlm.Reranker(saved(KINDS[kind], tmp_path), device="cpu")
    together = reranker.predict(PAIRS, probability=False)
    alone = [reranker.predict([pair], probability=False)[0] for pair in PAIRS]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    network = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "cross")
    tokenizer = reranker._network.tokenizer
    for (query, document), score in zip(PAIRS[:-1], alone, strict=False):
        inputs = tokenizer(query, document, return_tensors="pt")
        assert float(network(**inputs).logits.detach()) == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("kind", ["MPNet", "XLMRobertaXL", "Data2VecText", "Longformer"])
def test_a_long_pair_is_cut_where_the_table_of_positions_ends(tmp_path, kind):
    places = {"max_position_embeddings": 40, "pad_token_id": 1, "bos_token_id": 0}
    config = getattr(tf, f"{kind}Config")(**{**SIZES, **places})
    config.attention_window = [4, 4]  # of Longformer
    reranker = embedlm.Reranker(saved(config, tmp_path), device="cpu")
    assert reranker.max_length == 38
    assert reranker.predict([("fox", LONG), ("a", "b")]).shape == (2,)


def test_a_pair_without_tokens_is_told(tmp_path):
    config = tf.LlamaConfig(**GQA)
    folder = saved(config, tmp_path)
    tokenizer = build_tokenizer("decoder")
    tokenizer.save_pretrained(folder)  # it adds nothing around a pair
    with pytest.raises(InputError, match="pair 1 has no tokens: its query and document are empty"):
        embedlm.Reranker(folder).predict([("a", "b"), ("", "")])
