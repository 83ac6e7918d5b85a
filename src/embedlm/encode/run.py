"""Runs packs through a backbone and turns their token states into the heads' outputs.

Shapes: T tokens of a pack, N pooled tokens, B rows, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedlm.backbone import Backbone
from embedlm.backbone.attention import Kept
from embedlm.encode.plan import Pack
from embedlm.errors import InputError, UnsupportedError
from embedlm.heads.latent import LatentAttention
from embedlm.heads.projection import Projection
from embedlm.heads.sparse import SparseRow, sparse_rows
from embedlm.heads.tokens import TokenLayers, token_weights
from embedlm.pooling import POOL, Tokens
from embedlm.prompt.render import SEGMENT_ID, RenderedBatch
from embedlm.recipe import Dense, Head, MultiVector, Pooling, Sparse

__all__ = [
    "Output",
    "needs_segments",
    "pooled",
    "run_pack",
    "states_of",
    "template_states",
    "token_states",
    "tokens_of",
]

Mask = npt.NDArray[np.bool_]
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


def _mask(segments: npt.NDArray[np.uint8], length: int, over: Over) -> Mask:
    """Return which tokens are pooled.

    Where nothing of the wanted segments is left (an empty text, say), the last token is pooled: a
    defined vector in place of the references' NaN.
    """
    if over == "all":
        return np.ones(length, dtype=bool)
    wanted = np.zeros(len(SEGMENT_ID), dtype=bool)
    wanted[[SEGMENT_ID[name] for name in over]] = True
    mask: Mask = wanted[segments]
    if not mask.any():
        mask[-1] = True
    return mask


def tokens_of(
    batch: RenderedBatch,
    pack: Pack,
    over: Over,
    device: torch.device,
    weight_V: npt.NDArray[np.float32] | None = None,
    weighted_total: bool = False,
) -> Tokens:
    """Return which rows of the pack's states are pooled for which of its texts."""
    index, counts, ids = [], [], []
    start = pack.prefix
    for item in pack.items.tolist():
        row = batch.ids[item]
        mask = _mask(batch.segments[item], len(row), over)
        places = np.flatnonzero(mask)
        index.append(np.where(places < pack.prefix, places, places - pack.prefix + start))
        counts.append(len(places))
        if weight_V is not None:
            ids.append(np.asarray(row, dtype=np.int64)[places])
        start += len(row) - pack.prefix
    count_B = np.asarray(counts, dtype=np.int64)
    weight_N = None
    if weight_V is not None:
        weight_N = torch.from_numpy(weight_V[np.concatenate(ids)]).to(device)
    return Tokens(
        index_N=torch.from_numpy(np.concatenate(index)).to(device),
        sequence_N=torch.from_numpy(np.repeat(np.arange(len(counts)), count_B)).to(device),
        starts_B=torch.from_numpy(np.cumsum(count_B) - count_B).to(device),
        counts_B=torch.from_numpy(count_B).to(device),
        weight_N=weight_N,
        weighted_total=weighted_total,
    )


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
    total = pooling.weights == "idf"
    tokens = tokens_of(batch, pack, pooling.over, h_TD.device, weight_V, total)
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
    return backbone.run(rows, prefix=pack.prefix, layers=_layers(pooling), unseen=unseen, kept=kept)


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
        layers=_layers(pooling),
        positions=[[place for _, place in key] for key in rows],
    )
    every = Pack(np.arange(len(rows)), 0)
    v_XD = pooled(h_TD, tokens_of(empty, every, pooling.over, h_TD.device), pooling, latent)
    own = [order[key] for key in keys]
    return v_XD[torch.tensor(own, device=v_XD.device)]


def _layers(pooling: Pooling) -> tuple[int, ...]:
    return pooling.layer if isinstance(pooling.layer, tuple) else (pooling.layer,)


def pooled(
    h_TD: Tensor, tokens: Tokens, pooling: Pooling, latent: LatentAttention | None
) -> Tensor:
    """Return one vector a text, v_BD."""
    if latent is None:
        return POOL[pooling.kind](h_TD, tokens)
    h_ND = latent(h_TD.index_select(0, tokens.index_N))
    every_N = torch.arange(len(h_ND), device=h_ND.device)
    return POOL[pooling.kind](h_ND, replace(tokens, index_N=every_N))


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
    tokens = tokens_of(batch, pack, over, h_TD.device)
    ids = [
        np.asarray(batch.ids[item])[_mask(batch.segments[item], len(batch.ids[item]), over)]
        for item in pack.items.tolist()
    ]
    return token_weights(layers.weight, tokens.states(h_TD), ids, head.top_k)


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
    tokens = tokens_of(batch, pack, head.over, h_TD.device)
    h_ND = token_states(h_TD, tokens, head, layers)
    vectors = np.split(h_ND.cpu().numpy(), tokens.starts_B.cpu().numpy()[1:])
    if not len(skipped):
        return vectors
    kept = []
    for item, own in zip(pack.items.tolist(), vectors, strict=True):
        ids = np.asarray(batch.ids[item])
        ids = ids[_mask(batch.segments[item], len(ids), head.over)]
        stays = ~np.isin(ids, skipped)
        kept.append(own[stays] if stays.any() else own)
    return kept
