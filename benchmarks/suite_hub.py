"""Small stand-ins for the models and data sets that sentence-transformers' tests take from the hub.

They lie in a folder with the layout of the hub's cache, so that every loader finds them by their
names with HF_HUB_OFFLINE=1. Their weights are random; their shapes are those of the originals.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

TINY = "sentence-transformers-testing/stsb-bert-tiny-safetensors"
COMMITS = {
    # test_load_with_revision asks for these two of the tiny model
    TINY: [
        "ba33022fdf0b0fc2643263f0726f44d0a07d0e24",
        "f3cb857cba53019a20df283396bcca179cf051a4",
    ],
    "sentence-transformers-testing/stsb-bert-tiny-lora": [
        "3b4f75bcb3dec36a7e05da8c44ee2f7f1d023b1a"
    ],
}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def bert_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Return an uncased WordPiece tokenizer, trained on a text."""
    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=4000, special_tokens=SPECIAL)
    pieces.train_from_iterator([text, *map(chr, range(33, 256))], trainer)
    pieces.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        model_max_length=512,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **dict(zip(names, SPECIAL, strict=True)),
    )


def bert(tokenizer: PreTrainedTokenizerFast, seed: int = 0, **shape: int) -> BertModel:
    """Return a BERT of the shape of BERT-tiny, but for what is given."""
    tiny = {"hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 512}
    torch.manual_seed(seed)
    return BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            num_attention_heads=2,
            initializer_range=0.2,
            **{**tiny, **shape},  # type: ignore[arg-type]
        )
    )


def network(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save a network of transformers with its tokenizer."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def sentence_transformer(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save a network with mean pooling in sentence-transformers' layout."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    plain = folder.with_name(folder.name + "-network")
    network(model, tokenizer, plain)
    transformer = Transformer(str(plain))
    pooling = Pooling(transformer.get_embedding_dimension())
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(
        str(folder), model_name=TINY
    )
    shutil.rmtree(plain)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save a tokenizer alone."""
    tokenizer.save_pretrained(folder)


def adapter(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save a low-rank adapter of the tiny model."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(target_modules=["query", "value"], base_model_name_or_path=TINY)
    tuned = get_peft_model(bert(tokenizer), config)
    tuned.peft_config["default"].base_model_name_or_path = TINY
    tuned.save_pretrained(str(folder))


def decoder(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save a small Llama."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    network(LlamaForCausalLM(config), tokenizer, folder)


def splade(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save a small SPLADE."""
    from sentence_transformers import SparseEncoder

    plain = folder.with_name(folder.name + "-network")
    torch.manual_seed(3)
    config = bert(tokenizer).config
    network(transformers.BertForMaskedLM(config), tokenizer, plain)
    SparseEncoder(str(plain), device="cpu").save(str(folder))
    shutil.rmtree(plain)


def cross_encoder(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save a small cross-encoder."""
    from sentence_transformers import CrossEncoder

    plain = folder.with_name(folder.name + "-network")
    config = bert(tokenizer).config
    config.num_labels = 1
    network(transformers.BertForSequenceClassification(config), tokenizer, plain)
    CrossEncoder(str(plain), device="cpu").save(str(folder))
    shutil.rmtree(plain)


def distilbert(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save a DistilBERT of two layers, in the width that tests count on."""
    torch.manual_seed(4)
    config = DistilBertConfig(vocab_size=len(tokenizer), n_layers=2, hidden_dim=1024)
    network(DistilBertModel(config), tokenizer, folder)


def builders(tokenizer: PreTrainedTokenizerFast) -> dict[str, Callable[[Path, int], None]]:
    """Return what writes each model, by its name on the hub."""

    def by(write: Callable[..., None]) -> Callable[[Path, int], None]:
        return lambda folder, _: write(tokenizer, folder)

    def tiny(folder: Path, seed: int) -> None:
        sentence_transformer(bert(tokenizer, seed), tokenizer, folder)

    def wide(folder: Path, seed: int) -> None:
        shape = {"hidden_size": 1024, "num_hidden_layers": 1, "intermediate_size": 64}
        sentence_transformer(bert(tokenizer, seed, **shape), tokenizer, folder)

    return {
        TINY: tiny,
        "sentence-transformers/all-MiniLM-L6-v2": tiny,
        "sentence-transformers/paraphrase-distilroberta-base-v1": tiny,
        "sentence-transformers-testing/stsb-bert-tiny-lora": by(adapter),
        "google-bert/bert-base-uncased": by(save_tokenizer),
        "distilbert/distilbert-base-uncased": by(distilbert),
        "hf-internal-testing/tiny-random-LlamaForCausalLM": by(decoder),
        "hf-internal-testing/tiny-random-BertLMHeadModel": lambda folder, _: network(
            bert(tokenizer), tokenizer, folder
        ),
        # A network, where the original has none: EmbedLM's models are networks.
        "sentence-transformers/static-retrieval-mrl-en-v1": wide,
        "sparse-encoder-testing/splade-bert-tiny-nq": by(splade),
        "cross-encoder-testing/reranker-bert-tiny-gooaq-bce": by(cross_encoder),
    }


def write_hub(cache: Path, text: str) -> None:
    """Write the models into a cache folder."""
    tokenizer = bert_tokenizer(text)
    for name, write in builders(tokenizer).items():
        place = cache / f"models--{name.replace('/', '--')}"
        for seed, commit in enumerate(COMMITS.get(name, ["0" * 40])):
            snapshot = place / "snapshots" / commit
            snapshot.parent.mkdir(parents=True, exist_ok=True)
            write(snapshot, seed)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(commit, encoding="utf-8")


def stsb() -> DatasetDict:
    """Return pairs of made-up sentences with scores, in the form of STS-B."""
    nouns = ["man", "woman", "dog", "cat", "plane", "guitar", "river", "child", "train", "horse"]
    verbs = ["plays", "sees", "eats", "drives", "paints", "finds"]
    lines = [f"A {a} {verb} the {b}." for a in nouns for verb in verbs for b in nouns]
    half = len(lines) // 2
    rows = {
        "sentence1": lines[:half],
        "sentence2": lines[half:],
        "score": [(i * 37 % 101) / 100 for i in range(half)],
    }
    part = Dataset.from_dict(rows)
    return DatasetDict({"train": part, "validation": part, "test": part})


def all_nli() -> Dataset:
    """Return pairs with a class, in the form of AllNLI's pair-class."""
    rows = stsb()["train"]
    return Dataset.from_dict(
        {
            "premise": rows["sentence1"],
            "hypothesis": rows["sentence2"],
            "label": [i % 3 for i in range(len(rows))],
        }
    )


def load_dataset(name: str, *arguments: Any, split: str | None = None, **options: Any) -> Any:
    """Return a stand-in for a data set of the hub.

    Raises:
        ConnectionError: there is none of that name, as without a network.
    """
    if name == "sentence-transformers/stsb":
        return stsb() if split is None else stsb()[split.split("[")[0]]
    if name == "sentence-transformers/all-nli":
        return all_nli()
    raise ConnectionError(f"no stand-in for {name}, {arguments}, {options}")


if __name__ == "__main__":
    write_hub(Path(sys.argv[1]), Path(sys.argv[2]).read_text(encoding="utf-8"))
