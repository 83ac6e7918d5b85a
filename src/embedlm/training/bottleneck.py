"""Objectives that rebuild a text from its vector, so that the vector learns without labels.

RetroMAE (Liu and Shao, arXiv:2205.12035): 30 % of the tokens are hidden from the encoder, and one
decoder layer rebuilds every token from the vector and from half of the others, a different half for
each. TSDAE (Wang et al., arXiv:2104.06979): 60 % of the words are deleted, and the decoder writes
the whole text from the vector and the tokens before.

Shapes: B texts of a pack, L longest of them in tokens, K = L + 1 keys, T tokens of a pack, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from embedlm.embedder import Embedder
from embedlm.encode.ids import segments_of
from embedlm.encode.plan import Pack, plan
from embedlm.prompt.render import RenderedBatch
from embedlm.prompt.segments import Segments
from embedlm.readout import PackStates
from embedlm.schema.tuning import Loss
from embedlm.training.language import cross_entropy, mask_token

__all__ = ["BOTTLENECK", "Bottleneck", "backward_bottleneck"]

BOTTLENECK = ("retromae", "tsdae")
HIDDEN, SEEN, DELETED = 0.3, 0.5, 0.6
"""Shares of tokens: hidden from RetroMAE's encoder, shown to its decoder, deleted by TSDAE."""


class Bottleneck(nn.Module):
    """The decoder: one attention layer whose queries know only the vector and their position."""

    def __init__(self, width: int, heads: int, positions: int) -> None:
        super().__init__()
        self.positions = nn.Embedding(positions, width)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.heads = heads

    def forward(self, v_BD: Tensor, e_BLD: Tensor, hidden_BLK: Tensor) -> Tensor:
        """Return the states from which the tokens are predicted, h_BLD.

        Args:
            v_BD: the texts' vectors.
            e_BLD: the embeddings of their tokens.
            hidden_BLK: true for the keys that a position must not attend to; key 0 is the vector.
        """
        positions_LD = self.positions.weight[: e_BLD.shape[1]]
        query_BLD = positions_LD + v_BD[:, None]
        keys_BKD = torch.cat([v_BD[:, None], e_BLD + positions_LD], dim=1)
        mask = hidden_BLK.repeat_interleave(self.heads, 0)
        attended_BLD, _ = self.attend(
            query_BLD, keys_BKD, keys_BKD, attn_mask=mask, need_weights=False
        )
        h_BLD = self.first(query_BLD + attended_BLD)
        return self.second(h_BLD + self.feed(h_BLD))  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class _RebuiltText:
    seen: list[int]
    """Token ids that the encoder sees."""
    whole: list[int]
    """Token ids of the whole text."""
    targets: list[int]
    """Positions of the tokens to rebuild: all but the special ones."""
    hidden: list[int]
    """Positions of the tokens that the encoder has to predict."""
    segments: Segments
    """The segment of each token that the encoder sees."""


def backward_bottleneck(
    embedder: Embedder,
    decoder: Bottleneck,
    texts: Sequence[str],
    loss: Loss,
    *,
    max_length: int,
    budget: int,
    rng: np.random.Generator,
    scale: float = 1.0,
) -> Tensor:
    """Add the objective's gradient to the parameters, pack by pack, and return the loss.

    The loss is the mean cross-entropy of the rebuilt tokens. RetroMAE adds that of the tokens that
    were hidden from the encoder.
    """
    rows = [_row(embedder, text, loss.kind, max_length, rng) for text in texts]
    rows = [row for row in rows if row.targets]
    device = embedder.backbone.device
    total = torch.zeros((), device=device)
    targets = sum(len(row.targets) for row in rows)
    hidden = max(1, sum(len(row.hidden) for row in rows))
    batch = RenderedBatch(
        [row.seen for row in rows], [np.zeros(len(row.seen), np.uint8) for row in rows], []
    )
    for pack in plan(batch.ids, budget, share=False):
        rebuilt, predicted = _rebuilt(embedder, decoder, rows, batch, pack, loss.kind, rng)
        part = rebuilt / targets + predicted / hidden
        (part * scale).backward()
        total += part.detach()
    return total


def _row(
    embedder: Embedder, text: str, kind: str, max_length: int, rng: np.random.Generator
) -> _RebuiltText:
    tokenizer = embedder.backbone.tokenizer
    special = set(tokenizer.all_special_ids)
    whole = [int(i) for i in tokenizer(text)["input_ids"][:max_length]]
    targets = [position for position, token in enumerate(whole) if token not in special]
    if kind == "tsdae":
        words = text.split()
        kept = [word for word in words if rng.random() >= DELETED] or words[:1]
        seen = [int(i) for i in tokenizer(" ".join(kept))["input_ids"]][:max_length]
        return _RebuiltText(seen, whole, targets, [], segments_of(np.array(seen), tokenizer))
    hidden = [position for position in targets if rng.random() < HIDDEN]
    seen, mask = list(whole), mask_token(tokenizer)
    for position in hidden:
        seen[position] = mask
    return _RebuiltText(seen, whole, targets, hidden, segments_of(np.array(whole), tokenizer))


def _rebuilt(
    embedder: Embedder,
    decoder: Bottleneck,
    rows: Sequence[_RebuiltText],
    batch: RenderedBatch,
    pack: Pack,
    kind: str,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Return two summed losses of a pack: the decoder's, and that of the hidden tokens."""
    backbone, readout = embedder.backbone, embedder.readout
    chosen = [rows[item] for item in pack.items.tolist()]
    seen = [row.seen for row in chosen]
    h_TD = backbone.run(seen)
    pooled_TD = h_TD if readout.layers == (-1,) else backbone.run(seen, layers=readout.layers)
    v_BD = readout.pool(PackStates(pooled_TD, seen, [row.segments for row in chosen]))
    longest = max(len(row.whole) for row in chosen)
    ids_BL = torch.zeros(len(chosen), longest, dtype=torch.long)
    hidden_BLK = torch.ones(len(chosen), longest, longest + 1, dtype=torch.bool)
    hidden_BLK[:, :, 0] = False
    for b, row in enumerate(chosen):
        n = len(row.whole)
        ids_BL[b, :n] = torch.tensor(row.whole)
        shown = np.tri(n, k=-1, dtype=bool)
        if kind == "retromae":
            shown = rng.random((n, n)) < SEEN
            np.fill_diagonal(shown, val=False)
        hidden_BLK[b, :n, 1 : n + 1] = torch.from_numpy(~shown)
    ids_BL = ids_BL.to(h_TD.device)
    table: Any = backbone.network.get_input_embeddings()  # type: ignore[operator]
    h_BLD = decoder(v_BD, table(ids_BL), hidden_BLK.to(h_TD.device))
    inner = torch.tensor([(b, p) for b, row in enumerate(chosen) for p in row.targets])
    b_N, p_N = inner.to(h_TD.device).unbind(1)
    rebuilt = cross_entropy(backbone, h_BLD[b_N, p_N], ids_BL[b_N, p_N])
    if not any(row.hidden for row in chosen):
        return rebuilt, rebuilt.new_zeros(())
    starts = np.cumsum([0, *(len(row.seen) for row in chosen)])
    places = [int(s) + p for s, row in zip(starts, chosen, strict=False) for p in row.hidden]
    wanted = torch.tensor([row.whole[p] for row in chosen for p in row.hidden], device=h_TD.device)
    h_ND = h_TD[torch.tensor(places, device=h_TD.device)]
    return rebuilt, cross_entropy(backbone, h_ND, wanted)
