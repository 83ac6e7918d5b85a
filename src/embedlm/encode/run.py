"""Runs packs through a backbone and turns their token states into the heads' outputs.

Shapes: T tokens of a pack, N pooled tokens, B rows, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedlm.backbone import Backbone
from embedlm.backbone.attention import Kept
from embedlm.backbone.memory import put
from embedlm.encode.plan import Pack
from embedlm.errors import InputError, UnsupportedError
from embedlm.prompt.render import SEGMENT_ID, RenderedBatch
from embedlm.prompt.truncate import Ids
from embedlm.readout.latent import LatentAttention
from embedlm.readout.pooling import POOL, Tokens
from embedlm.readout.projection import Projection
from embedlm.readout.sparse import SparseRow, sparse_rows
from embedlm.readout.token_layers import TokenLayers, token_weights
from embedlm.schema.recipe import Dense, Head, MultiVector, Pooling, Sparse

__all__ = [
    "Output",
    "Picked",
    "layers_of",
    "needs_segments",
    "pooled",
    "run_pack",
    "states_of",
    "template_states",
    "token_states",
    "tokens_of",
]

Over = str | tuple[str, ...]


_NONE = np.empty(0, dtype=np.int64)


@dataclass(slots=True)
class Output:
    """What a pack gave, a row a text."""

    dense: Tensor | None = None
    sparse: list[SparseRow] = field(default_factory=list)
    multi_vector: list[npt.NDArray[np.float32]] = field(default_factory=list)


def needs_segments(pooling: Pooling, heads: Sequence[Head]) -> bool:
    """Tell whether pooling asks which segment a token belongs to."""
    overs = [pooling.over, *(h.over for h in heads if not isinstance(h, Dense))]
    return pooling.denoise or any(over not in ("all", None) for over in overs)


@dataclass(frozen=True, slots=True)
class Picked:
    """Which tokens of a pack are pooled; R counts the tokens of its texts, one after another."""

    rows: list[Ids]
    place_N: npt.NDArray[np.int64]
    """Of R."""
    count_B: npt.NDArray[np.int64]
    begin_B: npt.NDArray[np.int64]
    """Where each text begins in R."""

    @classmethod
    def of(cls, batch: RenderedBatch, pack: Pack, over: Over) -> Picked:
        """Pick the tokens of the wanted segments.

        Where nothing of them is left (an empty text, say), the last token is pooled: a defined
        vector in place of the references' NaN.
        """
        rows = [batch.ids[item] for item in pack.items.tolist()]
        length_B = np.fromiter(map(len, rows), np.int64, len(rows))
        begin_B = np.cumsum(length_B) - length_B
        if over == "all":
            return cls(rows, np.arange(length_B.sum()), length_B, begin_B)
        wanted = np.zeros(len(SEGMENT_ID), dtype=bool)
        wanted[[SEGMENT_ID[name] for name in over]] = True
        mask_R = wanted[np.concatenate([batch.segments[item] for item in pack.items.tolist()])]
        count_B = np.add.reduceat(mask_R, begin_B, dtype=np.int64)
        nothing_B = count_B == 0
        mask_R[(begin_B + length_B - 1)[nothing_B]] = True
        return cls(rows, np.flatnonzero(mask_R), np.maximum(count_B, 1), begin_B)

    def ids(self) -> npt.NDArray[np.int64]:
        """Return the picked tokens' ids, ids_N."""
        return np.fromiter(chain.from_iterable(self.rows), np.int64)[self.place_N]

    def ids_by_text(self) -> list[npt.NDArray[np.int64]]:
        """Return the same, a text apart."""
        return np.split(self.ids(), np.cumsum(self.count_B)[:-1])

    def tokens(
        self,
        prefix: int,
        device: torch.device,
        weight_V: npt.NDArray[np.float32] | None = None,
        weighted_total: bool = False,
    ) -> Tokens:
        """Return where their states are, in those of a pack with such a shared prefix."""
        count_B = self.count_B
        text_N = np.repeat(np.arange(len(count_B)), count_B)
        index_N = self.place_N
        if prefix:
            place_N = index_N - self.begin_B[text_N]
            index_N = np.where(place_N < prefix, place_N, index_N - prefix * text_N)
        weight_N = None
        if weight_V is not None:
            weight_N = put(torch.from_numpy(weight_V[self.ids()]), device)
        index, text, start, count = (
            put(torch.from_numpy(x), device)
            for x in (index_N, text_N, np.cumsum(count_B) - count_B, count_B)
        )
        whole = not prefix and int(index_N[-1]) + 1 == len(index_N)
        return Tokens(index, text, start, count, weight_N, weighted_total, whole)


def tokens_of(batch: RenderedBatch, pack: Pack, over: Over, device: torch.device) -> Tokens:
    """Return which rows of the pack's states are pooled for which of its texts."""
    return Picked.of(batch, pack, over).tokens(pack.prefix, device)


def run_pack(
    backbone: Backbone,
    batch: RenderedBatch,
    pack: Pack,
    pooling: Pooling,
    heads: Sequence[Head],
    *,
    allowed: Sequence[npt.NDArray[np.int64] | None] | None = None,
    weight_V: npt.NDArray[np.float32] | None = None,
    projection: Projection | None = None,
    latent: LatentAttention | None = None,
    token_layers: TokenLayers | None = None,
    skipped: npt.NDArray[np.int64] = _NONE,
    kept: Kept | None = None,
) -> Output:
    """Run a pack and read out every head from the same states.

    Args:
        backbone: runs the token ids.
        batch: the rendered texts.
        pack: which of them run.
        pooling: how states become a vector.
        heads: what is read out.
        allowed: for each text of the batch the vocabulary ids its sparse vector may use.
        weight_V: a weight for each id of the vocabulary.
        projection: the checkpoint's linear layers after pooling, for heads that want them.
        latent: what token states pass through before they are pooled.
        token_layers: the checkpoint's layers for single tokens.
        skipped: ids of tokens that have no vector of their own.
        kept: what the packs of one template keep of their prefix.
    """
    h_TD = states_of(backbone, batch, pack, pooling, kept)
    picked = Picked.of(batch, pack, pooling.over)
    tokens = picked.tokens(pack.prefix, h_TD.device, weight_V, pooling.weights == "idf")
    output = Output()
    for head in heads:
        if isinstance(head, Dense):
            output.dense = pooled(h_TD, tokens, pooling, latent)
            if pooling.denoise:
                output.dense = output.dense - template_states(
                    backbone, batch, pack, pooling, latent
                )
            if projection is not None and head.projection == "auto":
                output.dense = projection(output.dense)
        elif isinstance(head, Sparse) and head.weights == "token":
            output.sparse = _token_weights(batch, pack, h_TD, head, pooling, token_layers)
        elif isinstance(head, Sparse):
            may = [allowed[i] for i in pack.items.tolist()] if allowed is not None else None
            output.sparse = sparse_rows(backbone, h_TD, tokens, head, POOL[pooling.kind], may)
        else:
            output.multi_vector = _token_vectors(batch, pack, h_TD, head, skipped, token_layers)
    return output


def states_of(
    backbone: Backbone,
    batch: RenderedBatch,
    pack: Pack,
    pooling: Pooling,
    kept: Kept | None = None,
) -> Tensor:
    """Return the states that a pooling reads of a pack's tokens, h_TD."""
    rows = [batch.ids[item] for item in pack.items.tolist()]
    unseen = [batch.unseen[item] for item in pack.items.tolist()] if batch.unseen else ()
    return backbone.run(
        rows, prefix=pack.prefix, layers=layers_of(pooling), unseen=unseen, kept=kept
    )


def template_states(
    backbone: Backbone,
    batch: RenderedBatch,
    pack: Pack,
    pooling: Pooling,
    latent: LatentAttention | None = None,
) -> Tensor:
    """Return what is pooled of each prompt without its text, v_BD.

    What stands after the text keeps the positions that it has with it (PromptBERT,
    arXiv:2201.04337, section 3.2).

    Raises:
        InputError: a text without a prompt around it.
    """
    places = [np.flatnonzero(batch.segments[i] != SEGMENT_ID["text"]) for i in pack.items.tolist()]
    if not all(map(len, places)):
        raise InputError(
            "pooling.denoise takes the prompt's own state out of a vector, and there is no prompt "
            "around the text; set it to false or give a template"
        )
    items = pack.items.tolist()
    keys = [
        tuple((batch.ids[item][place], place) for place in kept.tolist())
        for item, kept in zip(items, places, strict=True)
    ]
    rows = dict(zip(keys, zip(items, places, strict=True), strict=True))
    order = {key: index for index, key in enumerate(rows)}
    empty = RenderedBatch(
        [[token for token, _ in key] for key in rows],
        [batch.segments[item][kept] for item, kept in rows.values()],
        [],
    )
    h_TD = backbone.run(
        empty.ids,
        layers=layers_of(pooling),
        positions=[[place for _, place in key] for key in rows],
    )
    every = Pack(np.arange(len(rows)))
    v_XD = pooled(h_TD, tokens_of(empty, every, pooling.over, h_TD.device), pooling, latent)
    own = [order[key] for key in keys]
    return v_XD[torch.tensor(own, device=v_XD.device)]


def layers_of(pooling: Pooling) -> tuple[int, ...]:
    """Return which hidden states a pooling reads."""
    return pooling.layer if isinstance(pooling.layer, tuple) else (pooling.layer,)


def pooled(
    h_TD: Tensor, tokens: Tokens, pooling: Pooling, latent: LatentAttention | None
) -> Tensor:
    """Return one vector a text, v_BD."""
    if latent is None:
        return POOL[pooling.kind](h_TD, tokens)
    h_ND = latent(h_TD.index_select(0, tokens.index_N))
    every_N = torch.arange(len(h_ND), device=h_ND.device)
    return POOL[pooling.kind](h_ND, replace(tokens, index_N=every_N, whole=True))


def _token_weights(
    batch: RenderedBatch,
    pack: Pack,
    h_TD: Tensor,
    head: Sparse,
    pooling: Pooling,
    layers: TokenLayers | None,
) -> list[SparseRow]:
    if layers is None or layers.weight is None:
        raise UnsupportedError(
            "the sparse head's `weights: token` needs a layer of the checkpoint that weighs "
            "tokens, and this model was loaded without one; load it with a recipe such as bge-m3"
        )
    over = pooling.over if head.over is None else head.over
    picked = Picked.of(batch, pack, over)
    h_ND = picked.tokens(pack.prefix, h_TD.device).states(h_TD)
    return token_weights(layers.weight, h_ND, picked.ids_by_text(), head.top_k)


def token_states(
    h_TD: Tensor, tokens: Tokens, head: MultiVector, layers: TokenLayers | None
) -> Tensor:
    """Return a vector for each token, h_ND."""
    h_ND = tokens.states(h_TD)
    if layers is not None and layers.vector is not None and head.projection == "auto":
        h_ND = layers.vector(h_ND)
    return torch.nn.functional.normalize(h_ND, dim=-1) if head.normalize else h_ND


def _token_vectors(
    batch: RenderedBatch,
    pack: Pack,
    h_TD: Tensor,
    head: MultiVector,
    skipped: npt.NDArray[np.int64],
    layers: TokenLayers | None,
) -> list[npt.NDArray[np.float32]]:
    picked = Picked.of(batch, pack, head.over)
    h_ND = token_states(h_TD, picked.tokens(pack.prefix, h_TD.device), head, layers)
    vectors = np.split(h_ND.cpu().numpy(), np.cumsum(picked.count_B)[:-1])
    if not len(skipped):
        return vectors
    kept = []
    for ids, own in zip(picked.ids_by_text(), vectors, strict=True):
        stays = ~np.isin(ids, skipped)
        kept.append(own[stays] if stays.any() else own)
    return kept
