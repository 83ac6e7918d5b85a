"""Proofs made at load: what a token can see, and that packed states equal padded ones.

A flag in a config proves nothing: architectures ignore it, sliding-window layers may keep their
mask, one attention implementation may lose it. So each layer is run twice on the same input, the
second time with all but the first token changed: the first token's output moves if, and only if,
the layer looks ahead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from embedlm.backbone.layout import Layout, layout
from embedlm.backbone.network import Backbone
from embedlm.errors import UnsupportedError

__all__ = [
    "layers_looking_ahead",
    "packing_is_exact",
    "probe_rows",
    "prove_attention",
]

_LENGTHS = (9, 5, 5, 1)
"""Lengths of the probe's sequences: a group of equals, one alone, one of a single token."""


def probe_rows(backbone: Backbone, lengths: tuple[int, ...]) -> list[list[int]]:
    """Return rows of arbitrary token ids of those lengths."""
    generator = torch.Generator().manual_seed(0)
    high = backbone.vocab_size
    low = min(10, high - 1)
    ids = torch.randint(low, high, (sum(lengths),), generator=generator)
    return [part.tolist() for part in ids.split(list(lengths))]


def layers_looking_ahead(backbone: Backbone, row: list[int]) -> list[bool]:
    """Return for each layer whether the first token of a row sees the ones after it."""
    # A twin, for others may be running the backbone and would run into the hooks.
    twin = backbone.twin().rebuilt(adapters=None)
    calls: dict[int, tuple[Any, Any]] = {}

    def record(layer: nn.Module, args: Any, kwargs: Any) -> None:
        calls[id(layer)] = (args, kwargs)

    layers = twin.layers
    hooks = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
    with layout(Layout((len(row),), twin.causal)), torch.no_grad():
        twin.run([row])
        for hook in hooks:
            hook.remove()
        return [_moves(layer, *calls[id(layer)], first=0) for layer in layers]


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


def prove_attention(backbone: Backbone, direction: str) -> None:
    """Check that every layer's attention is what was asked for.

    Raises:
        UnsupportedError: some layer still sees the future, or does not see it.
    """
    (row,) = probe_rows(backbone, (6,))
    ahead = layers_looking_ahead(backbone, row)
    expected = direction == "bidirectional"
    wrong = [index for index, seen in enumerate(ahead) if seen != expected]
    if not wrong:
        return
    kind = type(backbone.network).__name__
    raise UnsupportedError(
        f"{kind} was asked for {direction} attention, but layer{'s' if len(wrong) > 1 else ''} "
        f"{', '.join(map(str, wrong[:8]))}{'...' if len(wrong) > 8 else ''} of {len(ahead)} "
        f"{'do not look' if expected else 'look'} ahead (measured by changing the tokens after the "
        f"first, attention implementation {backbone.implementation!r}). This architecture cannot "
        f"do it; use backbone.attention: native, or another model"
    )


def packing_is_exact(backbone: Backbone) -> bool:
    """Tell whether a backbone's packed states equal those of padded passes."""
    rows = probe_rows(backbone, _LENGTHS)
    try:
        packed_TD = backbone.run(rows)
        padded_TD = backbone.rebuilt(packs=False, network=_padded(backbone)).run(rows)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError):
        return False
    tolerance = 1e-3 if padded_TD.dtype == torch.float32 else 5e-2
    size = padded_TD.float().norm().clamp_min(1e-9)
    error = (packed_TD.float() - padded_TD.float()).norm() / size
    return bool(error < tolerance)


def _padded(backbone: Backbone) -> nn.Module:
    """Return a view of a backbone's network that runs padded passes."""
    network: Any = backbone.twin().network
    network.set_attn_implementation(backbone.padded)
    return network  # type: ignore[no-any-return]
