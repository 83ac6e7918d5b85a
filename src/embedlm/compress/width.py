"""Which neurons of a network's feed-forward blocks are kept, and the weights that these have.

A neuron counts for what it adds to its block's output: the mean size of its activation over the
tokens of texts (Muralidharan et al., arXiv:2407.14679), times the norm of the weights that carry it
on (Sun et al., arXiv:2306.11695).

Shapes: T tokens of a pack, I neurons of a block, D width of a state.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from embedlm.embedder import Embedder
from embedlm.errors import InputError, UnsupportedError
from embedlm.prompt.render import Request

__all__ = ["TEXTS", "kept_neurons", "with_neurons"]

TEXTS = 2000
"""Texts on which neurons are measured, at most."""
_TOKENS = 1 << 16
"""Tokens after which no more texts are read."""
_LONGEST = 1024
"""Tokens of a text that are run."""
_PACK = 2048
"""Tokens that run at once."""
_INTO = re.compile(r"(?:mlp\.(?:gate|up)_proj|intermediate\.dense)\.(?:weight|bias)")
_OUT_OF = re.compile(r"(mlp\.down_proj|output\.dense)\.weight")
"""Weights with a row, and with a column, for each neuron, by their names within a layer."""


def kept_neurons(embedder: Embedder, texts: Iterable[str], layers: int, size: int) -> list[Tensor]:
    """Return which neurons are kept in each of the first layers, ascending.

    Args:
        embedder: the whole model, with plain weights; adapters that can be switched do not count.
        texts: that the neurons are measured on, by the prompt of the model's recipe.
        layers: how many are measured: what runs after them is not asked for.
        size: how many neurons of a layer are kept.

    Raises:
        InputError: the texts have no tokens.
        UnsupportedError: no layer runs (a static model).
    """
    backbone = embedder.backbone
    if backbone.static:
        raise UnsupportedError(
            f"{embedder.name!r} runs no layers by its recipe, so that no neuron can be measured; "
            "leave `intermediate` out"
        )
    rows = _first_rows(embedder, texts)
    if not rows:
        raise InputError("the texts have no tokens on which neurons could be measured; give others")
    outward = [_outward(layer) for layer in itertools.islice(backbone.layers, layers)]
    sums = [torch.zeros(linear.in_features, device=linear.weight.device) for linear in outward]
    with torch.no_grad(), ExitStack() as hooks:
        for linear, sum_I in zip(outward, sums, strict=True):
            hook = linear.register_forward_pre_hook(_adding_to(sum_I))
            hooks.callback(hook.remove)
        for pack in _packs(rows):
            backbone.run(pack, layers=(layers,))
        worth = [s_I * m.weight.norm(dim=0) for s_I, m in zip(sums, outward, strict=True)]
    order = (worth_I.argsort(descending=True, stable=True) for worth_I in worth)
    return [order_I[:size].sort().values.cpu() for order_I in order]


def with_neurons(name: str, tensor: Tensor, keep_I: Tensor) -> Tensor:
    """Return a tensor of a layer with the neurons that are kept.

    Args:
        name: its name within the layer.
        tensor: is returned as it is where it has nothing for each neuron.
        keep_I: which they are.
    """
    if _INTO.fullmatch(name):
        return tensor.index_select(0, keep_I)
    return tensor.index_select(1, keep_I) if _OUT_OF.fullmatch(name) else tensor


def _first_rows(embedder: Embedder, texts: Iterable[str]) -> list[Sequence[int]]:
    """Return the token ids of the first texts, as the model's recipe renders them."""
    first = list(itertools.islice(texts, TEXTS))
    batches = embedder.renderer.render(first, Request(), segments=False)
    rows, tokens = [], 0
    for ids in itertools.chain.from_iterable(zip(*(b.ids for b in batches), strict=True)):
        if tokens >= _TOKENS:
            break
        if len(ids):
            rows.append(ids[:_LONGEST])
            tokens += len(rows[-1])
    return rows


def _packs(rows: Iterable[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Yield rows of one length together, so that none is padded and every token counts once."""
    for length, alike in itertools.groupby(sorted(rows, key=len), len):
        while pack := list(itertools.islice(alike, max(1, _PACK // length))):
            yield pack


def _outward(layer: nn.Module) -> Any:
    """Return the linear layer whose inputs are the activations of a layer's neurons."""
    return next(
        module
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear) and _OUT_OF.fullmatch(f"{name}.weight")
    )


def _adding_to(sum_I: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """Return a hook that adds the size of every neuron's activations to a sum."""

    def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sum_I.add_(inputs[0].flatten(0, -2).abs().sum(0))

    return add
