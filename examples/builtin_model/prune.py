"""Cut a language model to its first layers and its most used tokens.

    python prune.py MODEL.gguf DATA/plaintext/plaintext_en.txt.xz DATA/snli_devtest/dev.jsonl.gz \\
        --layers 8 --vocabulary 16384 -o WORK/pruned

The tokenizer stays a valid BPE: a token is kept only with the two tokens that it is merged from.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import lzma
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer, GgufConfig

FIELDS = ("premise", "hypothesis", "s1", "s2", "q", "d", "text")


def read_texts(path: Path) -> Iterator[str]:
    """Yield the paragraphs of a corpus (.xz) or the texts of records (.jsonl.gz)."""
    if path.suffix == ".xz":
        with lzma.open(path, "rt", encoding="utf-8") as file:
            yield from file
        return
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            yield from (record[name] for name in FIELDS if isinstance(record.get(name), str))


def count_tokens(tokenizer: Any, texts: Iterator[str]) -> Counter[int]:
    """Count the ids of all texts."""
    counts: Counter[int] = Counter()
    while batch := list(itertools.islice(texts, 4096)):
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            counts.update(encoding.ids)
    return counts


def kept_ids(
    vocabulary: dict[str, int],
    merges: Sequence[Sequence[str]],
    special: Sequence[int],
    counts: Counter[int],
    size: int,
) -> list[int]:
    """Return the ids to keep, ascending.

    A token counts for the tokens it is merged from too, so that these never rank below it; with a
    tie the earlier merge goes first.
    """
    total = {i: counts[i] for i in vocabulary.values()}
    rank = {vocabulary[a + b]: n for n, (a, b) in reversed(list(enumerate(merges)))}
    for a, b in reversed(merges):
        for part in {a, b}:
            total[vocabulary[part]] += total[vocabulary[a + b]]
    always = [i for i in total if i not in rank] + list(special)
    merged = sorted(rank, key=lambda i: (-total[i], rank[i]))
    return sorted(list(dict.fromkeys([*always, *merged]))[:size])


def cut_tokenizer(state: dict[str, Any], keep: Sequence[int]) -> dict[str, Any]:
    """Return the state of `tokenizer.json` with the kept ids alone, numbered anew."""
    new = {old: n for n, old in enumerate(keep)}
    model = state["model"]
    vocabulary = {token: new[i] for token, i in model["vocab"].items() if i in new}
    merges = [(a, b) for a, b in model["merges"] if all(t in vocabulary for t in (a, b, a + b))]
    added = [{**token, "id": new[token["id"]]} for token in state["added_tokens"]]
    return {
        **state,
        "added_tokens": added,
        "model": {**model, "vocab": vocabulary, "merges": [list(pair) for pair in merges]},
    }


def cut_model(model: Any, keep: Sequence[int], layers: int) -> Any:
    """Keep the first layers and the kept rows of the embedding, in place."""
    model.layers = model.layers[:layers]
    rows = model.get_input_embeddings().weight.data[list(keep)].clone()
    model.set_input_embeddings(torch.nn.Embedding.from_pretrained(rows, freeze=False))
    new = {old: n for n, old in enumerate(keep)}
    config = model.config
    config.num_hidden_layers, config.vocab_size = layers, len(keep)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
        old = getattr(config, name, None)
        setattr(config, name, None if old is None else new.get(old))
    return model


def check_round_trip(tokenizer: Any, texts: Sequence[str]) -> None:
    """Raise ValueError unless every text comes back from its ids."""
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != text:
            raise ValueError(f"the cut tokenizer does not give back {text!r}")


def main() -> None:
    """Write the cut model and its tokenizer as a plain folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a .gguf file")
    parser.add_argument("texts", type=Path, nargs="+", help="texts to count tokens in")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=16_384)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()

    source: dict[str, Any] = {"gguf_file": args.model.name}
    model = AutoModel.from_pretrained(
        args.model.parent,
        **source,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    tokenizer = AutoTokenizer.from_pretrained(args.model.parent, **source)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    texts = itertools.chain.from_iterable(read_texts(path) for path in args.texts)
    counts = count_tokens(tokenizer.backend_tokenizer, texts)
    special = [token["id"] for token in state["added_tokens"]]
    keep = kept_ids(
        state["model"]["vocab"], state["model"]["merges"], special, counts, args.vocabulary
    )
    tokenizer.save_pretrained(args.output)
    (args.output / "tokenizer.json").write_text(
        json.dumps(cut_tokenizer(state, keep), ensure_ascii=False), encoding="utf-8"
    )
    cut_model(model, keep, args.layers).to(torch.bfloat16).save_pretrained(args.output)
    cut = AutoTokenizer.from_pretrained(args.output)
    sample = list(itertools.islice(read_texts(args.texts[0]), 20_000))
    check_round_trip(
        cut, [*sample[::10], "naïve café – 12,345 µg/mL 東京 🙂\n\tdef f(x): return x"]
    )
    before = sum(len(ids) for ids in tokenizer(sample, add_special_tokens=False)["input_ids"])
    after = sum(len(ids) for ids in cut(sample, add_special_tokens=False)["input_ids"])
    print(f"{len(keep)} tokens, {args.layers} layers; texts are {after / before - 1:+.1%} longer")


if __name__ == "__main__":
    main()
