"""Proofs made at load: what a token can see, and that packed states equal padded ones.

A flag in a config proves nothing: architectures ignore it, sliding-window layers may keep their
mask, one attention implementation may lose it. So each layer is run twice on the same input, the
second time with all but the first token changed: the first token's output moves if, and only if,
the layer looks ahead.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from embedlm.backbone.company import Company
from embedlm.backbone.layout import Layout, layout
from embedlm.backbone.network import Backbone
from embedlm.errors import UnsupportedError

__all__ = [
    "company",
    "layers_looking_ahead",
    "looks_ahead",
    "packing_is_exact",
    "probe_rows",
    "prove_attention",
    "states_alone",
]

_LENGTHS = (9, 5, 5, 1)
"""Lengths of the probe's sequences: a group of equals, one alone, one of a single token."""
_WINDOWS = (
    "sliding_window",
    "attention_chunk_size",
    "window_size",
    "local_attention",
    "index_topk",
)
"""Names of what limits how far a token sees, in configs and modules."""
_SHORT_WINDOW = 3
_SHORT_TABLE = 128
"""Positions of a network whose packed rows are tried at more than its length."""
_FAILURES = (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError)


def probe_rows(backbone: Backbone, lengths: tuple[int, ...]) -> list[list[int]]:
    """Return rows of arbitrary token ids of those lengths; none stands for an image or the like."""
    generator = torch.Generator().manual_seed(0)
    high = backbone.vocab_size
    low = min(10, high - 1)
    ids = torch.randint(low, high, (sum(lengths),), generator=generator)
    special = _special_ids(backbone.config)
    ordinary = next((index for index in range(low, high) if index not in special), low)
    rows = (part.tolist() for part in ids.split(list(lengths)))
    return [[ordinary if token in special else token for token in row] for row in rows]


def _special_ids(config: Any) -> set[int]:
    """Return the ids that a config gives a meaning of their own."""
    fields = {**config.to_dict(), **config.get_text_config().to_dict()}
    return {
        value
        for name, value in fields.items()
        if str(name).endswith(("_token_id", "_token_index")) and isinstance(value, int)
    }


def layers_looking_ahead(backbone: Backbone, row: list[int]) -> list[bool]:
    """Return for each layer whether the first token of a row sees the ones after it."""
    # A twin, for others may be running the backbone and would run into the hooks.
    twin = backbone.twin().rebuilt(adapters=None)
    calls: dict[int, tuple[Any, Any]] = {}

    def record(layer: nn.Module, args: Any, kwargs: Any) -> None:
        # A cache that the run filled would stand before the tokens of the next one.
        kept = {name: None if isinstance(x, Cache) else x for name, x in kwargs.items()}
        calls[id(layer)] = (args, kept)

    layers = twin.layers
    hooks = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
    with layout(Layout((len(row),), twin.causal)), torch.no_grad():
        twin.run([row])
        for hook in hooks:
            hook.remove()
        try:
            return [_moves(layer, *calls[id(layer)], first=0) for layer in layers]
        except (*_FAILURES, LookupError) as error:
            raise UnsupportedError(
                f"the layers of {type(backbone.network).__name__} cannot be run apart ({error})"
            ) from error


def looks_ahead(backbone: Backbone, row: list[int], other: list[int]) -> bool:
    """Tell whether the state of a row's first token depends on the tokens after it."""
    changed = [row[0], *other[1:]]
    before_D, after_D = (backbone.run([x])[0].float() for x in (row, changed))
    return bool((before_D - after_D).abs().max() > 1e-6 * before_D.abs().max().clamp_min(1e-6))


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


def _trial_rows(backbone: Backbone) -> list[list[int]]:
    """Return rows of several lengths; the longest has a mask token, which ESM counts."""
    rows = probe_rows(backbone, _LENGTHS)
    mask = getattr(backbone.text_config, "mask_token_id", None)
    if isinstance(mask, int) and 0 <= mask < backbone.vocab_size:
        rows[0][1] = mask
    return rows


def states_alone(backbone: Backbone) -> list[Tensor]:
    """Return the states of some rows, each run in a padded pass of its own.

    Raises:
        UnsupportedError: the same row gives other states when it is run again.
    """
    padded = backbone.rebuilt(packs=False, network=_padded(backbone))
    rows = _trial_rows(backbone)
    states = [padded.run([row]) for row in rows]
    # What overflows is told when a text is encoded, by the text's name.
    finite = bool(states[-1].isfinite().all())
    if finite and not _equal(backbone, [padded.run(rows[-1:])], states[-1:]):
        raise UnsupportedError(
            f"{type(backbone.network).__name__} gives the same text another state when it is run "
            "again, so that its vectors mean nothing; take another model"
        )
    return states


def company(backbone: Backbone, alone: list[Tensor]) -> Company:
    """Return which rows a padded pass may hold without changing the states they have alone."""
    padded = backbone.rebuilt(packs=False, network=_padded(backbone))
    rows = _trial_rows(backbone)
    ways: tuple[Company, ...] = ("any", "equal lengths")
    for way in ways:
        if _runs_equal(padded.rebuilt(company=way), rows, alone):
            return way
    return "none"


def packing_is_exact(backbone: Backbone, alone: list[Tensor]) -> bool:
    """Tell whether a backbone's packed states equal those of rows that are run alone."""
    rows = _trial_rows(backbone)
    if not _runs_equal(backbone, rows, alone) or not _windows_are_exact(backbone, rows):
        return False
    # CLIP's text network refuses a packed row that is longer than a single text may be.
    table = backbone.positions
    more = 1 + (table or 0) // sum(map(len, rows)) if table and table <= _SHORT_TABLE else 1
    return more == 1 or _runs_equal(backbone, rows * more, alone * more)


def _windows_are_exact(backbone: Backbone, rows: list[list[int]]) -> bool:
    """Tell whether windows that are longer than the probe's rows are packed as they are padded.

    They are made short in copies of the structure, for a mask may mean another window than the
    number that attention is told (EmbeddingGemma 2 counts it to both sides), or none is told.
    """
    packed = backbone.twin()
    if not _shorten_windows(packed.network):
        return True
    padded = packed.rebuilt(packs=False, network=_padded(packed))
    try:
        alone = [padded.run([row]) for row in rows]
    except _FAILURES:
        return False
    return _runs_equal(packed, rows, alone)


def _shorten_windows(network: Any) -> bool:
    """Make the windows and chunks of a network's attention short; tell whether it has any."""
    modules = dict(network.named_modules())
    found = {id(x): x for x in (getattr(m, "config", None) for m in modules.values()) if x}
    found |= {id(x): x for x in (config.get_text_config() for config in found.values())}
    changed = [_shorten(config) for config in found.values()]
    if not any(changed):
        return False
    with suppress(Exception), torch.device("meta"):  # else what is packed will differ
        fresh = dict(type(network)(network.config).named_modules())
        for name, module in modules.items():
            for field in _WINDOWS if module._modules else ():  # others are shared by all copies
                if isinstance(getattr(fresh.get(name), field, None), int):
                    setattr(module, field, getattr(fresh[name], field))
    return True


def _shorten(config: Any) -> bool:
    changed = False
    for field in _WINDOWS:
        size = getattr(config, field, None)
        if isinstance(size, int) and not isinstance(size, bool) and size > _SHORT_WINDOW:
            setattr(config, field, _SHORT_WINDOW)
            changed = True
    return changed


def _runs_equal(backbone: Backbone, rows: list[list[int]], alone: list[Tensor]) -> bool:
    try:
        h_TD = backbone.run(rows)
    except _FAILURES:
        return False
    return _equal(backbone, list(h_TD.split([len(row) for row in rows])), alone)


def _equal(backbone: Backbone, found: list[Tensor], expected: list[Tensor]) -> bool:
    found_TD, expected_TD = torch.cat(found).float(), torch.cat(expected).float()
    tolerance = 5e-2 if backbone.dtype != torch.float32 else 1e-3 if backbone.quantised else 1e-4
    error = (found_TD - expected_TD).norm() / expected_TD.norm().clamp_min(1e-9)
    return bool(error < tolerance)


def _padded(backbone: Backbone) -> nn.Module:
    """Return a view of a backbone's network that runs padded passes."""
    network: Any = backbone.twin().network
    network.set_attn_implementation(backbone.padded)
    return network  # type: ignore[no-any-return]
