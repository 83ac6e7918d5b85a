"""Latent attention: token states query a trained dictionary before they are pooled (NV-Embed).

x' = x + W_o attention(LN(x) W_q, LN(latents) W_kv);  y = x' + GEGLU-FFN(LN(x')).

Every token is treated alone: no token sees another here. Names of parts follow the published
checkpoints, whose weights load as they are. Source: Lee et al., arXiv:2405.17428, section 3.1.

Shapes: N tokens, M latents, D width, H heads, E width of a head.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import save_file
from torch import Tensor, nn

from embedlm.backbone import raw_config, read_tensors
from embedlm.errors import ModelError, RecipeError
from embedlm.schema.base import validated
from embedlm.schema.recipe import Latent

__all__ = ["LatentAttention", "load_latent", "save_latent"]

log = logging.getLogger(__name__)
FILE = "latent_attention.safetensors"
_PUBLISHED = "latent_attention_model."
_SIZES = {
    "latents": "num_latents_value",
    "heads": "num_cross_heads",
    "head_width": "cross_dim_head",
}
"""The layer's sizes, and their names in a published config."""
_WIDER = 4
"""The feed-forward layer's inner width, in widths of a state."""


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_width
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, x_ND: Tensor, latent_MD: Tensor) -> Tensor:
        """Return what the latents say to each token, out_ND."""
        q_HNE, k_HME, v_HME = (
            part.unflatten(-1, (self.heads, -1)).transpose(0, 1)
            for part in (self.to_q(x_ND), *self.to_kv(latent_MD).chunk(2, dim=-1))
        )
        out_1HNE = F.scaled_dot_product_attention(q_HNE[None], k_HME[None], v_HME[None])
        out_ND: Tensor = self.to_out(out_1HNE[0].transpose(0, 1).flatten(1))
        return out_ND


class _GatedGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """Return a * gelu(b) of the two halves a, b."""
        a, b = x.chunk(2, dim=-1)
        return a * F.gelu(b)


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        inner = _WIDER * width
        self.net = nn.Sequential(nn.Linear(width, 2 * inner), _GatedGelu(), nn.Linear(inner, width))

    def forward(self, x_ND: Tensor) -> Tensor:
        """Return the layer's output, out_ND."""
        out_ND: Tensor = self.net(x_ND)
        return out_ND


class _Normed(nn.Module):
    """A part with the norms before it."""

    def __init__(self, width: int, part: nn.Module, *, context: bool) -> None:
        super().__init__()
        self.fn = part
        self.norm = nn.LayerNorm(width)
        if context:
            self.norm_context = nn.LayerNorm(width)

    def forward(self, x_ND: Tensor, latent_MD: Tensor | None = None) -> Tensor:
        """Return the part's output on normed inputs, out_ND."""
        context = () if latent_MD is None else (self.norm_context(latent_MD),)
        out_ND: Tensor = self.fn(self.norm(x_ND), *context)
        return out_ND


class LatentAttention(nn.Module):
    """The layer between the last token states and the pooling."""

    def __init__(self, width: int, config: Latent) -> None:
        """Make an untrained layer; its weights depend on `config.seed` alone."""
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            head_width = config.head_width or width
            self.latents = nn.Parameter(torch.randn(config.latents, width))
            self.cross_attend_blocks = nn.ModuleList(
                [
                    _Normed(width, _Attention(width, config.heads, head_width), context=True),
                    _Normed(width, _FeedForward(width), context=False),
                ]
            )

    def forward(self, h_ND: Tensor) -> Tensor:
        """Return the token states after attention to the latents, out_ND."""
        attend, feed = self.cross_attend_blocks
        x_ND = h_ND.to(self.latents.dtype)
        x_ND = attend(x_ND, self.latents) + x_ND
        out_ND: Tensor = feed(x_ND) + x_ND
        return out_ND


def load_latent(source: str, width: int, config: Latent) -> LatentAttention:
    """Return the layer of a model folder or hub id, or an untrained one where there is none.

    A published checkpoint's own config says more than the recipe of its sizes.

    Raises:
        ModelError: weights that do not fit the recipe.
    """
    state = read_tensors(source, FILE)
    if not state:
        state = read_tensors(source, "model.safetensors", prefix=_PUBLISHED)
        config = _published(source, config) if state else config
    if not state:
        log.warning("%s has no latent attention: an untrained one stands in its place", source)
        return LatentAttention(width, config).eval().requires_grad_(False)
    _check_shapes(source, width, config, state)
    layer = LatentAttention(width, config)
    layer.load_state_dict(state)
    return layer.eval().requires_grad_(False)


def _check_shapes(source: str, width: int, config: Latent, state: Mapping[str, Tensor]) -> None:
    """Refuse weights of other shapes, before a layer of a damaged size takes the memory."""
    with torch.device("meta"):
        wanted = LatentAttention(width, config).state_dict()
    for name in sorted({*wanted, *state}):
        asked, found = (
            list(one[name].shape) if name in one else "nothing" for one in (wanted, state)
        )
        if asked != found:
            raise ModelError(
                f"the latent attention in {source!r} does not fit the recipe's pooling.latent: of "
                f"{name} there is {found}, and the recipe asks for {asked}"
            )


def _published(source: str, config: Latent) -> Latent:
    sizes = raw_config(source).get("latent_attention_config")
    if not isinstance(sizes, dict):
        return config
    named = {field: sizes.get(theirs) for field, theirs in _SIZES.items()}
    try:
        return validated(Latent, named, f"latent_attention_config in config.json of {source!r}")
    except RecipeError as error:
        raise ModelError(str(error)) from error


def save_latent(layer: LatentAttention, folder: Path) -> None:
    """Write the layer beside a model's other files."""
    weights = {name: value.contiguous().cpu() for name, value in layer.state_dict().items()}
    save_file(weights, folder / FILE)
