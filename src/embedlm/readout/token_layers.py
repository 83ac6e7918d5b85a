"""Linear layers on token states: a weight for each token, and a smaller vector for each.

BGE-M3 (arXiv:2402.03216): w_t = relu(W_sparse h_t), the largest of a token's occurrences counting;
v_t = W_vectors h_t. ColBERT (arXiv:2004.12832) has the second alone.

Shapes: N tokens, D width of a state, E width of a token's vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from embedlm.backbone.config import raw_config, token_projection
from embedlm.backbone.tensors import read_tensors
from embedlm.errors import ModelError, UnsupportedError
from embedlm.readout.projection import Projection, ProjectionLayer, load_projection
from embedlm.readout.term_weights import SparseRow, best_terms

__all__ = [
    "TokenLayers",
    "load_token_layers",
    "new_token_layers",
    "save_token_layers",
    "spread",
    "token_weights",
    "unweighed",
    "weighs_tokens",
]

FILE = "token_layers.safetensors"
_FLAG = {"weight": "sparse_linear.pt", "vector": "colbert_linear.pt"}
"""FlagEmbedding's files."""
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class TokenLayers(nn.Module):
    """What a checkpoint has for reading single tokens."""

    def __init__(self, weight: nn.Linear | None, vector: nn.Module | None) -> None:
        super().__init__()
        self.weight = weight
        self.vector = vector


def new_token_layers(width: int, *, vector: bool) -> TokenLayers:
    """Return untrained layers: of a weight for each token, and of a vector as wide as its state."""
    return TokenLayers(nn.Linear(width, 1), nn.Linear(width, width) if vector else None)


def weighs_tokens(folder: Path) -> bool:
    """Tell whether a model folder has a layer that weighs tokens."""
    return any((folder / name).is_file() for name in (FILE, _FLAG["weight"]))


def load_token_layers(
    folder: Path, width: int, *, source: str, weight: bool, vector: bool
) -> TokenLayers:
    """Return the layers that a model folder has.

    Args:
        folder: of the model's small files.
        width: of a token state.
        source: folder or hub id, where the network's weights are.
        weight: whether the recipe reads weights of tokens.
        vector: whether it reads projected vectors of tokens.

    Raises:
        ModelError: files that cannot be read or do not fit.
        UnsupportedError: the recipe wants weights, and the folder has no layer for them.
    """
    found = {name: _linear(folder, name, width) for name in _FLAG}
    if weight and found["weight"] is None:
        raise UnsupportedError(
            f"{str(folder)!r} has no layer that weighs tokens ({_FLAG['weight']}), which the "
            "recipe's sparse head reads; take a checkpoint of BGE-M3's kind, or `weights: lm_head`"
        )
    own: nn.Module | None = found["vector"]
    if vector and own is None:
        own = load_projection(folder, width, tokens=True) or _among_weights(source, width)
    layers = TokenLayers(found["weight"], own if vector else None)
    return layers.eval().requires_grad_(False)


def _among_weights(source: str, width: int) -> Projection | None:
    """Return the projection that stands among a network's weights (ColBERT, ColPali, ColQwen2).

    Raises:
        ModelError: it does not fit the network.
    """
    prefix = token_projection(raw_config(source))
    if prefix is None:
        return None
    state = read_tensors(source, *_WEIGHTS, prefix=prefix)
    name = f"{prefix}weight"
    if not state:
        raise ModelError(f"the weights in {source!r} lack {name}, the projection of token states")
    shape = tuple(state["weight"].shape) if "weight" in state else ()
    if len(shape) != 2 or shape[1] != width:
        raise ModelError(
            f"the projection {name} in {source!r} has the shape {shape}, but the model's "
            f"states have {width} numbers; the weights are not of one model"
        )
    layer = ProjectionLayer(width, shape[0], bias="bias" in state, activation="Identity")
    layer.linear.load_state_dict(state)
    return Projection([layer])


def _linear(folder: Path, name: str, width: int) -> nn.Linear | None:
    if (folder / FILE).is_file():
        state = read_tensors(folder, FILE, prefix=f"{name}.")
    else:
        state = read_tensors(folder, _FLAG[name])
    if not state:
        return None
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    rows = 1 if name == "weight" else (shapes.get("weight") or (0,))[0]
    if shapes not in ({"weight": (rows, width)}, {"weight": (rows, width), "bias": (rows,)}):
        told = ", ".join(f"{key} {shape}" for key, shape in shapes.items())
        wanted = "one number" if name == "weight" else "a vector"
        raise ModelError(
            f"the layer {_FLAG[name]} in {str(folder)!r} has {told}; one that makes {wanted} of a "
            f"state of this model has a weight ({rows if name == 'weight' else 'any'}, {width}), "
            "and maybe a bias; the folder's parts are not of one model"
        )
    layer = nn.Linear(width, rows, bias="bias" in state)
    layer.load_state_dict(state)
    return layer


def save_token_layers(layers: TokenLayers, folder: Path) -> None:
    """Write the linear layers beside a model's other files; projections are written as such."""
    state: dict[str, Tensor] = {}
    for name in _FLAG:
        layer: Any = getattr(layers, name)
        if isinstance(layer, nn.Linear):
            for key, value in layer.state_dict().items():
                state[f"{name}.{key}"] = value.contiguous().cpu()
    if state:
        save_file(state, folder / FILE)


def unweighed(tokenizer: Any) -> list[int]:
    """Return the ids of tokens that are no terms, as FlagEmbedding has them: CLS, EOS, pad, unk."""
    found = (getattr(tokenizer, f"{name}_token_id", None) for name in ("cls", "eos", "pad", "unk"))
    return sorted({int(index) for index in found if index is not None})


def spread(
    w_N: Tensor,
    ids_N: Tensor,
    text_N: Tensor,
    shape: Any,
    left_out: Sequence[int],
) -> Tensor:
    """Return each text's weights over the vocabulary with their gradient, w_BV.

    Args:
        w_N: of all texts' tokens.
        ids_N: their token ids.
        text_N: which text each is of.
        shape: (B, V).
        left_out: token ids that have no weight.
    """
    w_X = w_N.new_zeros(shape[0] * shape[1])
    place_N = text_N * shape[1] + ids_N
    w_BV = w_X.scatter_reduce(0, place_N, w_N, "amax", include_self=False).view(shape)
    return w_BV.index_fill(1, torch.tensor(left_out, dtype=torch.long, device=w_BV.device), 0.0)


def token_weights(
    w_N: npt.NDArray[np.float32],
    ids: list[npt.NDArray[np.int64]],
    top_k: int | None,
    left_out: Sequence[int],
) -> list[SparseRow]:
    """Return each text's vocabulary ids with the largest weight of their occurrences.

    Args:
        w_N: of the texts' tokens, text after text.
        ids: the token ids of each text.
        top_k: keep the largest k.
        left_out: token ids that have no weight.
    """
    rows, start = [], 0
    for own in ids:
        weights = w_N[start : start + len(own)]
        start += len(own)
        wrong = ~np.isfinite(weights)
        if wrong.any():  # no cut may hide them: `check_finite` tells of them
            ids_of, first = np.unique(own[wrong], return_index=True)
            rows.append((ids_of, weights[wrong][first]))
            continue
        distinct, where = np.unique(own, return_inverse=True)
        best = np.full(len(distinct), -np.inf, dtype=np.float32)
        np.maximum.at(best, where, weights)
        keep = np.flatnonzero((best != 0) & ~np.isin(distinct, left_out))
        kept, largest = best_terms(best, keep, top_k)
        rows.append((distinct[kept], largest))
    return rows
