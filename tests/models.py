"""Tiny random models of every architecture the tests run on, saved like published ones."""

from pathlib import Path

import torch
import transformers as tf
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "This sentence : 'plants make food from sunlight.' means in one word:",
    "Instruct: retrieve passages. Query: how do plants make food?",
    "Rewrite the sentence: the quick brown fox jumps over the lazy dog.",
    "A committee met on Tuesday to review the irrigation plan; members asked why.",
    "Photosynthesis converts light energy into chemical energy stored in glucose.",
] * 4
VOCAB = 400
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GQA = {**SMALL, "num_key_value_heads": 2}
GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 256,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
T5 = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "d_ff": 48,
    "d_kv": 8,
    "num_layers": 3,
    "num_heads": 4,
    "initializer_factor": 3.0,
}
ENCODER = {**SMALL, "type_vocab_size": 2}

DECODERS = {
    "llama": (tf.LlamaConfig, GQA),
    "mistral-sliding": (tf.MistralConfig, {**GQA, "sliding_window": 6}),
    "qwen2": (tf.Qwen2Config, GQA),
    "qwen3": (tf.Qwen3Config, {**GQA, "head_dim": 8}),
    "gemma": (tf.GemmaConfig, {**GQA, "head_dim": 8}),
    "gemma2": (tf.Gemma2Config, {**GQA, "head_dim": 8, "sliding_window": 6}),
    "gemma3": (tf.Gemma3TextConfig, {**GQA, "head_dim": 8, "sliding_window": 6}),
    "gpt2": (tf.GPT2Config, GPT2),
    "gpt-neox": (tf.GPTNeoXConfig, SMALL),
    "opt": (tf.OPTConfig, {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3}),
    "phi": (tf.PhiConfig, SMALL),
}
ENCODERS = {
    "bert": (tf.BertConfig, ENCODER),
    "xlm-r": (tf.XLMRobertaConfig, {**ENCODER, "pad_token_id": 1, "bos_token_id": 0}),
    "t5": (tf.T5Config, T5),
}
# Positions by a bias on the scores, or attention of their own: never packed.
STUBBORN = {
    "bloom": (tf.BloomConfig, {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "gpt-neo": (
        tf.GPTNeoConfig,
        {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 6,
            "max_position_embeddings": 256,
        },
    ),
}
ALL = {**DECODERS, **ENCODERS, **STUBBORN}


def build_tokenizer(kind="decoder", max_length=200):
    """A byte-level BPE tokenizer: BOS in front for decoders, CLS and SEP around for encoders."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    single = {"decoder": "<s> $A", "encoder": "<s> $A </s>", "t5": "$A </s>"}[kind]
    ids = [("<s>", 1), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        mask_token="<mask>",
        cls_token="<s>",
        sep_token="</s>",
        model_max_length=max_length,
    )


def build(name: str, folder: Path, *, dtype=torch.float32, head: bool = True, **changes) -> Path:
    """Save a tiny random model of that architecture and return its folder."""
    config_class, options = ALL[name]
    torch.manual_seed(sum(map(ord, name)))
    config = config_class(**{**options, **changes})
    config.dtype = dtype
    kind = "t5" if name == "t5" else "encoder" if name in ENCODERS else "decoder"
    if name == "t5":
        loader = tf.T5EncoderModel
    elif name in ENCODERS:
        loader = tf.AutoModelForMaskedLM if head else tf.AutoModel
    else:
        loader = tf.AutoModelForCausalLM if head else tf.AutoModel
    model = loader(config) if name == "t5" else loader.from_config(config)
    model.to(dtype).save_pretrained(folder)
    max_length = changes.get("max_position_embeddings", 200)
    build_tokenizer(kind, max_length).save_pretrained(folder)
    return folder
