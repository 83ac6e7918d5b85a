"""Language-modelling objectives: the next token, masked tokens, and rebuilding a text.

Shapes: T tokens of a pack, N predicted tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from embedlm.backbone import Backbone
from embedlm.encode.plan import plan
from embedlm.errors import UnsupportedError
from embedlm.schema.tuning import Loss
from embedlm.training.devices import max_over_processes, process_count, sum_over_processes

__all__ = ["LANGUAGE", "backward_language", "cross_entropy", "mask_token"]

LANGUAGE = ("ntp", "mntp", "mlm", "retromae", "tsdae")
"""ntp predicts the next token; mntp predicts a masked token from the state before it (LLM2Vec), mlm
from its own state; for retromae and tsdae see bottleneck.py."""
_ROWS = 512
"""Rows of logits in memory at once."""


@dataclass(frozen=True, slots=True)
class _MaskedText:
    ids: list[int]
    """Token ids that the model sees."""
    positions: list[int]
    """Positions whose states predict a token."""
    targets: list[int]
    """The token that each of these positions should predict."""


def mask_token(tokenizer: Any) -> int:
    """Return the id of the mask token, or of "_" if the tokenizer has no mask token (LLM2Vec).

    Raises:
        UnsupportedError: the vocabulary has neither.
    """
    if tokenizer.mask_token_id is not None:
        return int(tokenizer.mask_token_id)
    ids = tokenizer("_", add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise UnsupportedError(
            "the tokenizer has neither a mask token nor a token for '_' that masked objectives "
            "could put in place of a hidden token; add a mask token to it"
        )
    return int(ids[0])


def backward_language(
    backbone: Backbone,
    texts: Sequence[str],
    loss: Loss,
    *,
    max_length: int,
    budget: int,
    probability: float,
    rng: np.random.Generator,
    scale: float = 1.0,
) -> Tensor:
    """Add the objective's gradient to the parameters, pack by pack, and return the loss.

    Args:
        backbone: a network with its language-model head.
        texts: the texts of the batch.
        loss: a loss of kind ntp, mntp or mlm. Its option `replace` says what stands in place of a
            hidden token: "all" the mask; "bert" the mask for 80 %, a random token for 10 %, and
            the token itself for 10 %.
        max_length: tokens read of each text.
        budget: tokens in a pack.
        probability: probability that a token is hidden.
        rng: generator that draws the hidden tokens.
        scale: factor of the gradient.

    Returns:
        The mean cross-entropy over the predicted tokens of this process's texts.
    """
    rows = _rows(backbone, texts, loss, max_length, probability, rng)
    count = sum(len(row.positions) for row in rows)
    packs = list(plan([row.ids for row in rows], budget, share=False)) if count else []
    # The next token would be seen in both directions (GritLM's generative part is causal).
    causal = True if loss.kind == "ntp" else None
    total = torch.zeros((), device=backbone.device)
    every = sum_over_processes(count)  # over all processes, whose gradients are added up
    for pack in packs:
        chosen = [rows[item] for item in pack.items.tolist()]
        h_TD = backbone.run([row.ids for row in chosen], causal=causal)
        part = _pack_loss(backbone, h_TD, chosen)
        shards = process_count() if backbone.sharded else 1  # FSDP averages their gradients
        (part * (shards * scale / every)).backward()
        total += part.detach() / count
    if backbone.sharded:  # every process must run a sharded network equally often
        for _ in range(max_over_processes(len(packs)) - len(packs)):
            (backbone.run([[0]]).sum() * 0).backward()
    return total


def _pack_loss(backbone: Backbone, h_TD: Tensor, rows: Sequence[_MaskedText]) -> Tensor:
    """Return the sum over the predicted tokens of a pack of -log p(token | state)."""
    starts = np.cumsum([0, *(len(row.ids) for row in rows)])
    indices = [int(s) + p for s, row in zip(starts, rows, strict=False) for p in row.positions]
    targets = [token for row in rows for token in row.targets]
    device = backbone.device
    h_ND = h_TD[torch.tensor(indices, device=device)]
    return cross_entropy(backbone, h_ND, torch.tensor(targets, device=device))


def cross_entropy(backbone: Backbone, h_ND: Tensor, targets_N: Tensor) -> Tensor:
    """Return the sum over states of -log p(token | state)."""
    total = h_ND.new_zeros((), dtype=torch.float32)
    for h, targets in zip(h_ND.split(_ROWS), targets_N.split(_ROWS), strict=True):
        logits = backbone.logits(h).float()
        total = total + functional.cross_entropy(logits, targets, reduction="sum")
    return total


def _rows(
    backbone: Backbone,
    texts: Sequence[str],
    loss: Loss,
    max_length: int,
    probability: float,
    rng: np.random.Generator,
) -> list[_MaskedText]:
    tokenizer = backbone.tokenizer
    encoded = tokenizer(list(texts), truncation=False)["input_ids"]
    cut = [[int(i) for i in ids[:max_length]] for ids in encoded]
    if loss.kind == "ntp":
        return [_MaskedText(ids, list(range(len(ids) - 1)), ids[1:]) for ids in cut if len(ids) > 1]
    special = set(tokenizer.all_special_ids)
    mask, bert = mask_token(tokenizer), loss.options.get("replace", "bert") == "bert"
    rows = []
    for ids in cut:
        if len(ids) < 2:
            continue
        candidates = [p for p, token in enumerate(ids) if token not in special and p > 0]
        hidden = [p for p in candidates if rng.random() < probability]
        seen = list(ids)
        for position in hidden:
            draw = rng.random()
            if not bert or draw < 0.8:
                seen[position] = mask
            elif draw < 0.9:
                seen[position] = int(rng.integers(backbone.vocab_size))
        positions = [p - 1 for p in hidden] if loss.kind == "mntp" else hidden
        rows.append(_MaskedText(seen, positions, [ids[p] for p in hidden]))
    return rows
