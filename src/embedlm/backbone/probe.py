"""Proofs made at load: what a token can see, and that packed states equal padded ones.

A flag in a config proves nothing: architectures ignore it, sliding-window layers may keep their
mask, one attention implementation may lose it. So each layer is run twice on the same input, the
second time with all but the first token changed: the first token's output moves if, and only if,
the layer looks ahead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from embedlm.errors import UnsupportedError

if TYPE_CHECKING:
    from embedlm.backbone.network import Backbone

__all__ = [
    "find_layers",
    "layers_looking_ahead",
    "packing_is_exact",
    "probe_rows",
    "prove_attention",
]

_LENGTHS = (9, 5, 5, 1)
"""Lengths of the probe's sequences: a group of equals, one alone, one of a single token."""


def find_layers(model: nn.Module, count: int) -> nn.ModuleList:
    """Return the list of the model's layers.

    Raises:
        UnsupportedError: no list of `count` modules is found.
    """
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UnsupportedError(f"{type(model).__name__} has no list of {count} layers to probe")


def probe_rows(backbone: Backbone, lengths: tuple[int, ...]) -> list[list[int]]:
    """Return rows of arbitrary token ids of those lengths."""
    generator = torch.Generator().manual_seed(0)
    high = int(backbone.config.get_text_config().vocab_size)
    low = min(10, high - 1)
    ids = torch.randint(low, high, (sum(lengths),), generator=generator)
    return [part.tolist() for part in ids.split(list(lengths))]


def layers_looking_ahead(backbone: Backbone, ids: list[list[int]]) -> list[bool]:
    """Return for each layer whether the first token of the last row sees the ones after it."""
    calls: dict[int, tuple[Any, Any]] = {}

    def record(layer: nn.Module, args: Any, kwargs: Any) -> None:
        calls[id(layer)] = (args, kwargs)

    layers = backbone.layers
    hooks = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
    try:
        with backbone.rows_layout(ids), torch.no_grad():
            backbone.run_rows(ids)
            for hook in hooks:
                hook.remove()
            return [_moves(layer, *calls[id(layer)], first=0) for layer in layers]
    finally:
        for hook in hooks:
            hook.remove()


def _moves(layer: nn.Module, args: Any, kwargs: Any, first: int) -> bool:
    named = "hidden_states" in kwargs
    hidden = kwargs["hidden_states"] if named else args[0]
    changed = hidden.clone()
    generator = torch.Generator(device="cpu").manual_seed(1)
    noise = torch.randn(changed[:, first + 1 :].shape, generator=generator)
    spread = hidden.float().std().clamp_min(1e-3).to(hidden.dtype)
    changed[:, first + 1 :] += 3 * spread * noise.to(hidden)

    def first_state(states: Tensor) -> Tensor:
        out: Any = (
            layer(*args, **{**kwargs, "hidden_states": states})
            if named
            else layer(states, *args[1:], **kwargs)
        )
        states = out[0] if isinstance(out, tuple) else out
        return states[..., first, :].float().reshape(-1)

    before, after = first_state(hidden), first_state(changed)
    return bool((before - after).abs().max() > 1e-6 * before.abs().max().clamp_min(1e-6))


def prove_attention(backbone: Backbone, wanted: str) -> None:
    """Check that every layer's attention is what was asked for.

    Raises:
        UnsupportedError: some layer still sees the future, or does not see it.
    """
    ids = probe_rows(backbone, (6,))
    ahead = layers_looking_ahead(backbone, ids)
    expected = wanted == "bidirectional"
    wrong = [index for index, seen in enumerate(ahead) if seen != expected]
    if not wrong:
        return
    kind = type(backbone.model).__name__
    raise UnsupportedError(
        f"{kind} was asked for {wanted} attention, but layer{'s' if len(wrong) > 1 else ''} "
        f"{', '.join(map(str, wrong[:8]))}{'...' if len(wrong) > 8 else ''} of {len(ahead)} "
        f"{'do not look' if expected else 'look'} ahead (measured by changing the tokens after the "
        f"first, attention implementation {backbone.implementation!r}). This architecture cannot "
        f"do it; use backbone.attention: native, or another model"
    )


def packing_is_exact(backbone: Backbone, padded: str) -> bool:
    """Tell whether packed states equal the padded ones of another implementation.

    The packed implementation is set, and stays so.
    """
    ids = probe_rows(backbone, _LENGTHS)
    model: Any = backbone.model
    packed = backbone.config._attn_implementation
    try:
        found = backbone.packed_states(ids)
        model.set_attn_implementation(padded)
        wanted = backbone.padded_states(ids)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError):
        return False
    finally:
        model.set_attn_implementation(packed)
    tolerance = 1e-3 if wanted.dtype == torch.float32 else 5e-2
    error = (found.float() - wanted.float()).norm() / wanted.float().norm().clamp_min(1e-9)
    return bool(error < tolerance)
