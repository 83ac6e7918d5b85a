"""How likely a local model finds given answers: labels to choose from, or one whole text.

Shapes: B rows, T tokens, V vocabulary, C tokens of the longest continuation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from embedlm.errors import GenerationError
from embedlm.generation.generator import Answer, Question
from embedlm.generation.local import LocalGenerator

__all__ = ["scored"]

_TOKENS = 8_192
"""Tokens of rows that are read at once."""


def scored(writer: Any, questions: Sequence[Question]) -> Iterator[Answer]:
    """Yield the scores of questions that all have the same labels, or all a continuation.

    Raises:
        GenerationError: the generator is no model on this machine, so it scores nothing.
    """
    if hasattr(writer, "score"):  # a generator of the caller's own
        for scores in writer.score(questions):
            yield Answer("", scores=tuple(map(float, scores)))
        return
    if not isinstance(writer, LocalGenerator):
        raise GenerationError(
            f"{writer.name} only writes; to score answers take a local model, or an endpoint that "
            "gives log-probabilities"
        )
    labels = questions[0].labels
    rows = [writer.ids(one.chat) for one in questions]
    if not labels:
        ends = [_tokens(writer, str(one.continuation)) for one in questions]
        for total, row in zip(_likelihoods(writer, rows, ends), rows, strict=True):
            yield Answer("", prompt_tokens=len(row), scores=(total,))
        return
    every = [_tokens(writer, label) for label in labels]
    repeated = [row for row in rows for _ in every]
    totals = _likelihoods(writer, repeated, every * len(rows))
    for at, row in enumerate(rows):
        scores = tuple(totals[at * len(every) : (at + 1) * len(every)])
        best = labels[max(range(len(every)), key=scores.__getitem__)]
        yield Answer(best, prompt_tokens=len(row), scores=scores)


def _tokens(writer: LocalGenerator, text: str) -> list[int]:
    """Return the tokens of an answer; behind a line's label it begins with a blank."""
    text = text if writer.templated else f" {text}"
    ids = writer.tokenizer(text, add_special_tokens=False)["input_ids"]
    return [int(one) for one in ids]


def _likelihoods(
    writer: LocalGenerator, rows: Sequence[list[int]], ends: Sequence[list[int]]
) -> list[float]:
    """Return the summed log-probability of each end behind its row; one row read is shared."""
    totals: dict[int, float] = {}
    # One token behind one row: all such ends of a row are read from the same logits.
    single: dict[tuple[int, ...], list[int]] = {}
    for at, (row, end) in enumerate(zip(rows, ends, strict=True)):
        key = (*row,) if len(end) == 1 else (*row, -1, at)
        single.setdefault(key, []).append(at)
    batch: list[list[int]] = []
    longest = 0
    for places in single.values():
        size = len(rows[places[0]]) + len(ends[places[0]])
        if batch and max(longest, size) * (len(batch) + 1) > _TOKENS:
            totals |= _read(writer, rows, ends, batch)
            batch, longest = [], 0
        batch.append(places)
        longest = max(longest, size)
    if batch:
        totals |= _read(writer, rows, ends, batch)
    return [totals[at] for at in range(len(rows))]


@torch.inference_mode()
def _read(
    writer: LocalGenerator,
    rows: Sequence[list[int]],
    ends: Sequence[list[int]],
    batch: Sequence[list[int]],
) -> dict[int, float]:
    """Read rows padded on the left, each with all of its end but the last token."""
    texts = [[*rows[places[0]], *ends[places[0]][:-1]] for places in batch]
    longest, width = max(map(len, texts)), max(len(ends[places[0]]) for places in batch)
    pads = [longest - len(text) for text in texts]
    ids_BT = torch.tensor([[0] * pad + text for pad, text in zip(pads, texts, strict=True)])
    mask_BT = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads])
    log_p_BCV = torch.log_softmax(writer.network.last_logits(ids_BT, mask_BT, width).float(), -1)
    totals: dict[int, float] = {}
    for row, places in enumerate(batch):
        for at in places:
            totals[at] = float(_of(log_p_BCV[row], ends[at]))
    return totals


def _of(log_p_CV: Tensor, end: list[int]) -> Tensor:
    chosen = torch.tensor(end, device=log_p_CV.device)[:, None]
    return log_p_CV[-len(end) :].gather(1, chosen).double().sum()
