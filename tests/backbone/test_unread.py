"""Tensors of a checkpoint that nothing reads stop the load, unless they are harmless."""

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

import embedlm
from embedlm.errors import ModelError
from tests.models import ENCODER, GPT2, GQA, SMALL, T5, build_tokenizer

DISTIL = {"vocab_size": 400, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
PUBLISHED = {
    "masked and next sentence heads": (tf.BertForPreTraining, tf.BertConfig(**ENCODER)),
    "masked head": (tf.RobertaForMaskedLM, tf.RobertaConfig(**ENCODER)),
    "classifier of an encoder": (
        tf.XLMRobertaForSequenceClassification,
        tf.XLMRobertaConfig(**ENCODER),
    ),
    "discriminator": (tf.ElectraForPreTraining, tf.ElectraConfig(**ENCODER, embedding_size=32)),
    "masked head of DistilBERT": (tf.DistilBertForMaskedLM, tf.DistilBertConfig(**DISTIL)),
    "answers": (tf.DistilBertForQuestionAnswering, tf.DistilBertConfig(**DISTIL)),
    "masked head of DeBERTa": (tf.DebertaV2ForMaskedLM, tf.DebertaV2Config(**ENCODER)),
    "head and decoder": (
        tf.ModernBertForMaskedLM,
        tf.ModernBertConfig(**SMALL, cls_token_id=1, sep_token_id=2),
    ),
    "decoder": (tf.T5ForConditionalGeneration, tf.T5Config(**T5)),
    "language model": (tf.LlamaForCausalLM, tf.LlamaConfig(**GQA)),
    "classifier of a decoder": (tf.LlamaForSequenceClassification, tf.LlamaConfig(**GQA)),
    "GPT-2": (tf.GPT2LMHeadModel, tf.GPT2Config(**GPT2)),
}


def saved(network, folder):
    network.save_pretrained(folder)
    build_tokenizer("decoder").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", PUBLISHED)
def test_heads_for_other_tasks_may_be_left_out(kind, tmp_path):
    network_class, config = PUBLISHED[kind]
    model = embedlm.load(saved(network_class(config), tmp_path), recipe="plain-mean")
    assert model.encode("plants").shape == (model.dim,)


@pytest.mark.parametrize(
    "name", ["linear.weight", "head.weight", "model.layers.9.mlp.gate_proj.weight", "dense.bias"]
)
def test_a_tensor_that_nothing_reads_is_named(name, tmp_path):
    network = tf.Qwen3Model(tf.Qwen3Config(**GQA, head_dim=8))
    saved(network, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file(
        {**state, name: torch.ones(64, 32)},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        embedlm.load(tmp_path, recipe="plain-mean")


def test_a_buffer_that_is_computed_anew_may_be_left_out(tmp_path):
    saved(tf.LlamaModel(tf.LlamaConfig(**GQA)), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    old = {"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file({**state, **old}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    embedlm.load(tmp_path, recipe="plain-mean")
