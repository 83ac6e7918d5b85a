"""Language modelling objectives: next token, masked next token, and the rebuilding of a text.

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
"""ntp: next token; mntp: a masked token from the state before it (LLM2Vec); mlm: from its own;
retromae and tsdae: see bottleneck.py."""
_ROWS = 512
"""Rows of logits held at once."""


@dataclass(frozen=True, slots=True)
class _Row:
    ids: list[int]
    """What the model sees."""
    predicting: list[int]
    """The positions whose states predict a token."""
    targets: list[int]
    """The tokens that they should predict."""


def mask_token(tokenizer: Any) -> int:
    """Return the id of the mask, or of "_" for a tokenizer that has none (LLM2Vec).

    Raises:
        UnsupportedError: neither is in the vocabulary.
    """
    if tokenizer.mask_token_id is not None:
        return int(tokenizer.mask_token_id)
    ids = tokenizer("_", add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise UnsupportedError(
            "the tokenizer has neither a mask token nor a token for '_', which masked objectives "
            "write in a hidden token's place; add a mask token to it"
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
    chance: np.random.Generator,
    scale: float = 1.0,
) -> Tensor:
    """Add the objective's gradient to the parameters, pack by pack, and return the loss.

    Args:
        backbone: with its language-model head.
        texts: of the batch.
        loss: of kind ntp, mntp or mlm; option `replace` "all" writes the mask for every hidden
            token, "bert" for 80 % of them, 10 % being random tokens and 10 % left as they are.
        max_length: tokens of a text that are read.
        budget: tokens of a pack.
        probability: of a token being hidden.
        chance: draws what is hidden.
        scale: of the gradient.

    Returns:
        Mean cross-entropy over the predicted tokens of this process's texts.
    """
    rows = _rows(backbone, texts, loss, max_length, probability, chance)
    count = sum(len(row.predicting) for row in rows)
    packs = list(plan([row.ids for row in rows], budget, share=False)) if count else []
    device = backbone.device
    # The next token would be seen in both directions (GritLM's generative part is causal).
    causal = True if loss.kind == "ntp" else None
    total = torch.zeros((), device=device)
    every = sum_over_processes(count)  # of all processes: their gradients are added up
    for pack in packs:
        chosen = [rows[item] for item in pack.items.tolist()]
        h_TD = backbone.run([row.ids for row in chosen], causal=causal)
        starts = np.cumsum([0, *(len(row.ids) for row in chosen)])
        index = [
            int(start) + position
            for start, row in zip(starts, chosen, strict=False)
            for position in row.predicting
        ]
        target_N = torch.tensor([token for row in chosen for token in row.targets], device=device)
        h_ND = h_TD[torch.tensor(index, device=device)]
        part = cross_entropy(backbone, h_ND, target_N)
        shards = process_count() if backbone.sharded else 1  # their gradients are means
        (part * (shards * scale / every)).backward()
        total += part.detach() / count
    if backbone.sharded:  # all processes run a sharded network as often
        for _ in range(max_over_processes(len(packs)) - len(packs)):
            (backbone.run([[0]]).sum() * 0).backward()
    return total


def cross_entropy(backbone: Backbone, h_ND: Tensor, target_N: Tensor) -> Tensor:
    """Return the sum over states of -log p(token | state)."""
    total = h_ND.new_zeros((), dtype=torch.float32)
    for h, target in zip(h_ND.split(_ROWS), target_N.split(_ROWS), strict=True):
        logits = backbone.logits(h).float()
        total = total + functional.cross_entropy(logits, target, reduction="sum")
    return total


def _rows(
    backbone: Backbone,
    texts: Sequence[str],
    loss: Loss,
    max_length: int,
    probability: float,
    chance: np.random.Generator,
) -> list[_Row]:
    tokenizer = backbone.tokenizer
    encoded = tokenizer(list(texts), truncation=False)["input_ids"]
    cut = [[int(i) for i in ids[:max_length]] for ids in encoded]
    if loss.kind == "ntp":
        return [_Row(ids, list(range(len(ids) - 1)), ids[1:]) for ids in cut if len(ids) > 1]
    special = set(tokenizer.all_special_ids)
    mask, bert = mask_token(tokenizer), loss.options.get("replace", "bert") == "bert"
    rows = []
    for ids in cut:
        if len(ids) < 2:
            continue
        may = [p for p, token in enumerate(ids) if token not in special and p > 0]
        hidden = [p for p in may if chance.random() < probability]
        seen = list(ids)
        for position in hidden:
            draw = chance.random()
            if not bert or draw < 0.8:
                seen[position] = mask
            elif draw < 0.9:
                seen[position] = int(chance.integers(backbone.vocab_size))
        at = [p - 1 for p in hidden] if loss.kind == "mntp" else hidden
        rows.append(_Row(seen, at, [ids[p] for p in hidden]))
    return rows
