"""What training on a GPU is made of: all texts as token ids in its memory, batches drawn there.

A sentence has its ids in both tokenizers, and the sentences of a document lie one after another, so
that a passage is a range of the teacher's ids, and one of the student's after its first sentence,
which the student reads in another form: without a space before it.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from student import MAX_TOKENS, Spans, Student, attend_all
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

SHARES = {"sentence": 0.2, "short": 0.15, "title": 0.05, "phrase": 0.1, "passage": 0.5}
"""Share of each kind among the texts."""
WHOLE = 0.4
"""Share of passages that reach the limit of tokens; the others' lengths are log-uniform."""
SHORTEST = 16
"""Tokens of a passage, at least, where its document has them."""
PHRASES = 400_000
CANDIDATES = 3072
"""Texts drawn for a batch, of which as many are taken as its tokens allow."""
ROOM = 1536
"""Texts of a batch, at most: the place that is kept for where they begin."""


def read_documents(path: Path) -> list[list[str]]:
    """Return the sentences of each document."""
    blocks = path.read_text(encoding="utf-8").split("\n\n")
    return [block.split("\n") for block in blocks if block]


def draw_phrases(sentences: Sequence[str], count: int, seed: int = 0) -> Iterator[str]:
    """Yield 2 to 10 consecutive words of sentences, as people type into a search box."""
    rng = random.Random(seed)
    for _ in range(count):
        words = rng.choice(sentences).split()
        size = rng.randint(2, 10)
        start = rng.randrange(max(1, len(words) - size + 1))
        yield " ".join(words[start : start + size]).strip(" .,;:\"'()")


def _ids(job: tuple[Path, Sequence[str], str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of some sentences, and how many each has."""
    path, texts, before = job
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are as many as the cores
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = [
        e.ids for e in tokenizer.encode_batch([before + t for t in texts], add_special_tokens=False)
    ]
    flat = np.fromiter(chain.from_iterable(ids), np.int32)
    return flat, np.array([len(x) for x in ids], np.int64)


def encode_all(
    path: Path, texts: Sequence[str], before: str, processes: int
) -> tuple[Tensor, Tensor]:
    """Return all ids in one tensor, and where each sentence starts."""
    size = 8192
    jobs = [(path, texts[i : i + size], before) for i in range(0, len(texts), size)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        parts = pool.map(_ids, jobs, chunksize=1)
    flat = torch.from_numpy(np.concatenate([p[0] for p in parts]))
    counts = torch.from_numpy(np.concatenate([p[1] for p in parts]))
    return flat, functional.pad(counts.cumsum(0), (1, 0))


def identity(folder: Path, student: Path, teacher: Path) -> str:
    """Return what tells ids of these texts and tokenizers from others."""
    files = [*sorted(folder.glob("*.txt")), *(p / "tokenizer.json" for p in (student, teacher))]
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


@dataclass
class Corpus:
    """All texts as ids, on a device."""

    first_T: Tensor
    """The student's ids of each sentence as the first of its text."""
    student_T: Tensor
    """The student's ids of each sentence as it follows another."""
    teacher_T: Tensor
    first_starts_S: Tensor
    student_starts_S: Tensor
    teacher_starts_S: Tensor
    end_S: Tensor
    """The sentence that follows the last one of each sentence's document."""
    title_S: Tensor
    """The sentences that are titles of the paragraph after them."""
    parts: dict[str, tuple[int, int]]
    """First and last sentence (exclusive) of the documents and of each kind of short texts."""

    @classmethod
    def read(cls, folder: Path, student: Path, teacher: Path, processes: int) -> Corpus:
        """Tokenise a folder of corpus.py; the ids are kept beside it."""
        kept = folder / f"ids-{identity(folder, student, teacher)}.pt"
        if kept.is_file():
            stored: dict[str, Any] = torch.load(kept)
            return cls(**stored)
        documents, pairs = (read_documents(folder / f"{n}.txt") for n in ("documents", "pairs"))
        short = (folder / "short.txt").read_text(encoding="utf-8").splitlines()
        sentences = [s for d in chain(documents, pairs) for s in d]
        phrases = list(draw_phrases(sentences, PHRASES))
        ends = [len(d) for d in chain(documents, pairs)] + [1] * (len(short) + len(phrases))
        end_D = torch.tensor(ends).cumsum(0)
        texts = [*sentences, *short, *phrases]
        first = sum(map(len, documents))
        lengths = torch.tensor([len(p) for p in pairs])
        bounds = [0, len(sentences), len(sentences) + len(short), len(texts)]
        names = ("passage", "short", "phrase")
        ids = [
            encode_all(path / "tokenizer.json", texts, before, processes)
            for path, before in ((student, ""), (student, " "), (teacher, ""))
        ]
        forms = ("first", "student", "teacher")
        values: dict[str, Any] = {
            **{f"{form}_T": part[0] for form, part in zip(forms, ids, strict=True)},
            **{f"{form}_starts_S": part[1] for form, part in zip(forms, ids, strict=True)},
            "end_S": end_D.repeat_interleave(torch.tensor(ends)),
            "title_S": first + lengths.cumsum(0) - lengths,
            "parts": {n: (bounds[i], bounds[i + 1]) for i, n in enumerate(names)},
        }
        torch.save(values, kept.with_suffix(".part"))
        os.replace(kept.with_suffix(".part"), kept)
        return cls(**values)

    def to(self, device: str) -> Corpus:
        """Return it on a device."""
        moved: dict[str, Any] = {
            k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(self).items()
        }
        return Corpus(**moved)


class Batch(NamedTuple):
    """Some texts, as ranges of ids."""

    first_N: Tensor
    """Where the first sentence begins among the student's first sentences."""
    opening_N: Tensor
    """Tokens of the first sentence."""
    next_N: Tensor
    """Where the second one begins among the student's ids."""
    tokens_N: Tensor
    """The student's tokens of each text."""
    teacher_N: Tensor
    """Where each text begins among the teacher's ids."""
    pieces_N: Tensor
    """The teacher's tokens of each text."""

    def take(self, count: int) -> Batch:
        """Return the first texts."""
        return Batch(*(x[:count] for x in self))


def ranges(corpus: Corpus, first_N: Tensor, last_N: Tensor) -> Batch:
    """Return the texts of sentences `first` to `last` (exclusive), each cut at its limit."""
    start_N = corpus.first_starts_S[first_N]
    opening_N = corpus.first_starts_S[first_N + 1] - start_N
    next_N = corpus.student_starts_S[first_N + 1]
    tokens_N = opening_N + corpus.student_starts_S[last_N] - next_N
    teacher_N = corpus.teacher_starts_S[first_N]
    pieces_N = corpus.teacher_starts_S[last_N] - teacher_N
    tokens_N, pieces_N = tokens_N.clamp(1, MAX_TOKENS), pieces_N.clamp(1, MAX_TOKENS - 2)
    return Batch(start_N, opening_N, next_N, tokens_N, teacher_N, pieces_N)


def draw(corpus: Corpus, pairs: int = 0) -> Batch:
    """Draw a batch's candidates at random; `pairs` titles and their paragraphs stand first."""
    device, n = corpus.end_S.device, CANDIDATES
    kinds = torch.tensor(list(SHARES.values()), device=device)
    kind_N = torch.multinomial(kinds, n, replacement=True)
    first_N = torch.empty(n, dtype=torch.long, device=device)
    for number, name in enumerate(SHARES):
        if name == "title":
            drawn_N = corpus.title_S[torch.randint(len(corpus.title_S), (n,), device=device)]
        else:
            part = corpus.parts.get(name, corpus.parts["passage"])
            drawn_N = torch.randint(*part, (n,), device=device)
        first_N = torch.where(kind_N == number, drawn_N, first_N)
    low, high = math.log(SHORTEST), math.log(MAX_TOKENS)
    size_N = torch.rand(n, device=device).mul(high - low).add(low).exp()
    size_N = torch.where(torch.rand(n, device=device) < WHOLE, MAX_TOKENS, size_N).long()
    stop_N = torch.searchsorted(corpus.student_starts_S, corpus.student_starts_S[first_N] + size_N)
    is_passage_N = kind_N == list(SHARES).index("passage")
    last_N = torch.where(is_passage_N, torch.minimum(stop_N, corpus.end_S[first_N]), first_N + 1)
    last_N = torch.maximum(last_N, first_N + 1)
    if pairs:
        at = torch.randint(len(corpus.title_S), (pairs,), device=device)
        title_N = corpus.title_S[at]
        first_N = torch.cat([title_N, title_N + 1, first_N])
        last_N = torch.cat([title_N + 1, corpus.end_S[title_N], last_N])
    return ranges(corpus, first_N, last_N)


def cut(batch: Batch, tokens: int) -> Batch:
    """Keep as many texts as have so many of the student's tokens."""
    return batch.take(min(int((batch.tokens_N.cumsum(0) <= tokens).sum()), ROOM - 1))


class Rows(NamedTuple):
    """Texts back to back: the place of each token in its text, its text, and where they lie."""

    place_T: Tensor
    text_T: Tensor
    spans: Spans


def lay(count_N: Tensor, size: int) -> Rows:
    """Lay texts back to back; what is left of `size` is one more text."""
    all_N = torch.cat([count_N, (size - count_N.sum())[None]])
    ends_N = all_N.cumsum(0)
    text_T = torch.repeat_interleave(all_N, output_size=size)
    place_T = torch.arange(size, device=count_N.device) - (ends_N - all_N)[text_T]
    starts_N = functional.pad(ends_N, (0, max(0, ROOM - len(ends_N))), value=size)
    return Rows(place_T, text_T, Spans(functional.pad(starts_N, (1, 0)).int(), MAX_TOKENS))


def mean_by_text(h_TD: Tensor, rows: Rows, count: int) -> Tensor:
    """Return the mean state of each of the first `count` texts, in float32."""
    total_ND = h_TD.new_zeros(count + 1, h_TD.shape[1], dtype=torch.float32)
    total_ND = total_ND.index_add(0, rows.text_T.clamp_max(count), h_TD.float())
    sizes_N = torch.bincount(rows.text_T, minlength=count + 1)[:count]
    return total_ND[:count] / sizes_N[:, None]


def student_means(student: Student, corpus: Corpus, batch: Batch, size: int) -> Tensor:
    """Return the student's mean states (N, D) of a batch of at most `size` tokens."""
    rows = lay(batch.tokens_N, size)
    first_T, opening_T, next_T = (
        functional.pad(x, (0, 1))[rows.text_T]
        for x in (batch.first_N, batch.opening_N, batch.next_N)
    )
    later_T = rows.place_T - opening_T
    ids_T = torch.where(
        later_T < 0,
        corpus.first_T[(first_T + rows.place_T).clamp_max(len(corpus.first_T) - 1)],
        corpus.student_T[(next_T + later_T).clamp(0, len(corpus.student_T) - 1)],
    )
    turn = (student.cos_LH[rows.place_T], student.sin_LH[rows.place_T])
    h_TD = student.embed_tokens(ids_T.long())
    for layer in student.layers:
        h_TD = layer(h_TD, turn, rows.spans, student.causal)
    return mean_by_text(student.norm(h_TD), rows, len(batch.tokens_N))


class Bert(torch.nn.Module):
    """The teacher: a BERT without padding, mean pooling over all tokens, unit vectors."""

    def __init__(self, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
        super().__init__()
        self.weights = weights
        self.layer_count, self.heads = config["num_hidden_layers"], config["num_attention_heads"]
        self.eps = config["layer_norm_eps"]

    @classmethod
    def load(cls, folder: Path, device: str, dtype: torch.dtype = torch.bfloat16) -> Bert:
        """Open a folder of transformers."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "model.safetensors")
        return cls({name: weight.to(device, dtype) for name, weight in weights.items()}, config)

    def _linear(self, name: str, x_TD: Tensor) -> Tensor:
        return functional.linear(x_TD, *(self.weights[f"{name}.{n}"] for n in ("weight", "bias")))

    def _norm(self, name: str, x_TD: Tensor) -> Tensor:
        weight, bias = (self.weights[f"{name}.{n}"] for n in ("weight", "bias"))
        return functional.layer_norm(x_TD, x_TD.shape[-1:], weight, bias, self.eps)

    @torch.no_grad()
    def forward(self, ids_T: Tensor, rows: Rows, count: int) -> Tensor:
        """Return unit vectors (N, E) in float32."""
        words, places, types = (
            self.weights[f"embeddings.{name}_embeddings.weight"]
            for name in ("word", "position", "token_type")
        )
        h_TD = self._norm("embeddings.LayerNorm", words[ids_T] + places[rows.place_T] + types[0])
        for number in range(self.layer_count):
            name = f"encoder.layer.{number}"
            q_THD, k_THD, v_THD = (
                self._linear(f"{name}.attention.self.{n}", h_TD).unflatten(-1, (self.heads, -1))
                for n in ("query", "key", "value")
            )
            o_TD = attend_all(q_THD, k_THD, v_THD, rows.spans, causal=False).flatten(1)
            o_TD = self._linear(f"{name}.attention.output.dense", o_TD)
            h_TD = self._norm(f"{name}.attention.output.LayerNorm", h_TD + o_TD)
            inner_TF = functional.gelu(self._linear(f"{name}.intermediate.dense", h_TD))
            o_TD = self._linear(f"{name}.output.dense", inner_TF)
            h_TD = self._norm(f"{name}.output.LayerNorm", h_TD + o_TD)
        return functional.normalize(mean_by_text(h_TD, rows, count))


def teacher_vectors(teacher: Bert, corpus: Corpus, batch: Batch, ends: tuple[int, int]) -> Tensor:
    """Return the teacher's unit vectors (N, E); `ends` are the ids around each text."""
    count_N = batch.pieces_N + 2
    rows = lay(count_N, int(count_N.sum()))
    at_T = functional.pad(batch.teacher_N - 1, (0, 1))[rows.text_T] + rows.place_T
    ids_T = corpus.teacher_T[at_T.clamp(0, len(corpus.teacher_T) - 1)].long()
    last_T = rows.place_T + 1 == functional.pad(count_N, (0, 1))[rows.text_T]
    ids_T = torch.where(rows.place_T == 0, ends[0], torch.where(last_T, ends[1], ids_T))
    vectors_NE: Tensor = teacher(ids_T, rows, len(count_N))
    return vectors_NE
