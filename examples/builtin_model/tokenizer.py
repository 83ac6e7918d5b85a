"""Train the byte-level BPE tokenizer of the built-in model.

python tokenizer.py CORPUS.txt.xz -o WORK/tokenizer
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

from data import read_documents
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD, MASK = "<|bos|>", "<|eos|>", "<|pad|>", "<|mask|>"
RESERVED = [f"<|reserved_{i}|>" for i in range(8)]
SPECIAL_TOKENS = [BOS, EOS, PAD, MASK, *RESERVED]

# The GPT-4/Llama-3 split, but digits in pairs: three-digit groups would take a tenth of this
# small vocabulary.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def untrained_tokenizer() -> Tokenizer:
    """A byte-level BPE without merges: any string can be encoded, none becomes "unknown"."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sample_text(corpus: Path, bytes_per_source: int, seed: int) -> Iterator[str]:
    """Yield randomly chosen paragraphs, about `bytes_per_source` from each source."""
    rng = random.Random(seed)
    sources: dict[str, list[str]] = {}
    for document in read_documents(corpus):
        sources.setdefault(document.source, []).extend(document.text.split("\n"))
    for name in sorted(sources):
        paragraphs, budget = sources[name], bytes_per_source
        rng.shuffle(paragraphs)
        for paragraph in paragraphs:
            budget -= len(paragraph.encode())
            if budget < 0:
                break
            yield paragraph + "\n"


def train_tokenizer(text: Iterator[str], vocab_size: int) -> Tokenizer:
    """Learn the merges, then let the tokenizer put BOS in front of every text."""
    tokenizer = untrained_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BOS} $A",
                pair=f"{BOS} $A {BOS} $B:1",
                special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
            ),
        ]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json, as `AutoTokenizer` reads them."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        mask_token=MASK,
        additional_special_tokens=RESERVED,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)


def main() -> None:
    """Train on a sample of both sources and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, help="plain text, .xz")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the tokenizer")
    parser.add_argument("--vocab-size", type=int, default=12_288)
    parser.add_argument("--megabytes", type=int, default=20, help="text sampled from each source")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    text = sample_text(args.corpus, args.megabytes * 1_000_000, args.seed)
    tokenizer = train_tokenizer(text, args.vocab_size)
    save_tokenizer(tokenizer, args.out, args.max_length)
    print(f"{args.out}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
