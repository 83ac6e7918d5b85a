"""Loading a backbone: files, direction of attention, implementation, and the proofs of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from embedlm.backbone import attention
from embedlm.backbone.adapters import apply_adapters
from embedlm.backbone.compiling import Compiling
from embedlm.backbone.direction import set_direction
from embedlm.backbone.files import (
    choose_device,
    choose_dtype,
    load_config,
    load_network,
    load_tokenizer,
    quiet,
)
from embedlm.backbone.memory import bound_kernel_caches
from embedlm.backbone.network import Backbone
from embedlm.backbone.prepacked import processor
from embedlm.backbone.probe import (
    layers_looking_ahead,
    packing_is_exact,
    probe_rows,
    prove_attention,
)
from embedlm.backbone.quantised import KINDS, Kind, quantise
from embedlm.errors import ModelError, UnsupportedError
from embedlm.schema.recipe import Backbone as BackboneRecipe

__all__ = ["load_backbone", "with_head"]

FIRST_FP8 = (8, 9)
"""The compute capability from which cards have products of fp8."""
TRIAL_ROW = 32
IMPLEMENTATIONS = ("auto", "packed", "sdpa", "eager")


def _settle(backbone: Backbone, wanted: str, attn: str) -> None:
    """Set and prove direction and implementation."""
    set_direction(backbone, wanted)
    uniform = True
    if wanted == "native":
        ahead = layers_looking_ahead(backbone, probe_rows(backbone, (6,)))
        wanted = "bidirectional" if any(ahead) else "causal"
        uniform = len(set(ahead)) == 1
    else:
        prove_attention(backbone, wanted)
    backbone.causal = wanted == "causal"
    if attn in ("auto", "packed"):
        _settle_packed(backbone, wanted, uniform, attn == "packed")


def _settle_packed(backbone: Backbone, wanted: str, uniform: bool, required: bool) -> None:
    """Switch to the packed implementation where it is proven equal to the one before."""
    model: Any = backbone.model
    before = backbone.config._attn_implementation
    model.set_attn_implementation(attention.NAME)
    # GPT-Neo, say, has attention of its own and stays as it was.
    taken = backbone.implementation == "packed"
    if uniform and taken and packing_is_exact(backbone, before):
        prove_attention(backbone, wanted)
        backbone.packs = True
        backbone.compiling = _compiling(backbone)
        return
    model.set_attn_implementation(before)
    if required:
        raise UnsupportedError(
            f"{type(model).__name__} cannot run packed: its packed states differ from the padded "
            "ones. Use attn='auto', which takes the padded path"
        )


def _compiling(backbone: Backbone) -> Compiling:
    """Return what decides on compiling; its trials are rows of 32 tokens."""

    def trial(tokens: int) -> None:
        backbone.packed_states([[0] * TRIAL_ROW] * (tokens // TRIAL_ROW)).sum().item()

    first, config = type(backbone.layers[0]).__name__, backbone.text_config
    size = f"{len(backbone.layers)} x {getattr(config, 'hidden_size', '?')}"
    place = processor() if backbone.device.type == "cpu" else str(backbone.device)
    kind = backbone.quantised or str(backbone.dtype)
    return Compiling(backbone.layers, trial, f"{first} {size} {kind}, {place}")


def load_backbone(
    source: str,
    recipe: BackboneRecipe,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    head: bool = False,
    attn: str = "auto",
    adapters: Sequence[Path] = (),
    merge: bool = True,
) -> Backbone:
    """Load the network and tokenizer of a folder or hub id and prove its attention.

    Args:
        source: folder or hub id.
        recipe: attention direction, sliding windows, static or not.
        device: None chooses CUDA, MPS or CPU.
        dtype: see `choose_dtype`.
        head: also load the language-model head.
        attn: auto (packed where proven), packed, sdpa or eager.
        adapters: folders of adapters, in order.
        merge: merge them into the weights, or keep them switchable.

    Raises:
        ModelError: nothing that can be loaded is there.
        UnsupportedError: the architecture cannot do what is asked.
    """
    if attn not in IMPLEMENTATIONS:
        raise ModelError(f"attn {attn!r} is not known; allowed: {', '.join(IMPLEMENTATIONS)}")
    bound_kernel_caches()
    place = choose_device(device)
    config = load_config(source)
    if recipe.sliding_window != "keep":
        window = None if recipe.sliding_window == "off" else int(recipe.sliding_window)
        config.get_text_config().sliding_window = window
    narrow: Kind | None = dtype if dtype in KINDS else None
    with quiet():
        network, missing_head = load_network(
            source,
            config,
            choose_dtype("auto" if narrow else dtype, config, place),
            head=head,
            implementation="eager" if attn == "eager" else "sdpa",
        )
    if head and missing_head:
        raise UnsupportedError(
            f"{source!r} has no language-model head (missing: {missing_head[0]}), which the "
            "recipe's sparse head needs; use a checkpoint saved with its head"
        )
    with quiet():
        switchable = apply_adapters(network, adapters, merge=merge) if adapters else None
    if narrow and (switchable is not None or recipe.kind == "static"):
        raise UnsupportedError(
            f"{narrow} is for networks whose adapters are merged; take another dtype"
        )
    network = network.to(place)
    body: nn.Module = network.base_model if head else network  # type: ignore[assignment]
    backbone = Backbone(body, load_tokenizer(source), name=source)
    backbone.adapters = switchable
    backbone.adapter_folders = tuple(adapters)
    if head:
        setattr(network, str(network.base_model_prefix), backbone._states)
        backbone.head = network
    if recipe.kind == "static":
        backbone.static = True
        return backbone
    if narrow:
        _to_bytes(backbone, narrow)
    with torch.no_grad(), quiet():
        _settle(backbone, recipe.attention, attn)
    if switchable is not None:
        backbone.compiling = None  # each switch would compile anew
    return backbone


def _to_bytes(backbone: Backbone, kind: Kind) -> None:
    """Put the layers' products in 8 bits.

    Raises:
        UnsupportedError: there are none that could be, or the device has no such products.
    """
    if backbone.device.type not in ("cpu", "cuda"):
        raise UnsupportedError(f"{backbone.device.type} has no products of {kind}; take bfloat16")
    if (
        kind == "fp8"
        and backbone.device.type == "cuda"
        and torch.cuda.get_device_capability(backbone.device) < FIRST_FP8
    ):
        raise UnsupportedError(
            f"{torch.cuda.get_device_name(backbone.device)} has no products of fp8; take int8 or "
            "bfloat16"
        )
    if not quantise(backbone.layers, kind):
        raise UnsupportedError(
            f"{backbone.name!r} has no plain linear layers to run in {kind}; take another dtype"
        )
    backbone.quantised = kind


def with_head(backbone: Backbone, recipe: BackboneRecipe) -> Backbone:
    """Return the same backbone, loaded once more with its language-model head."""
    return load_backbone(
        backbone.name,
        recipe,
        device=backbone.device,
        dtype=backbone.quantised or backbone.dtype,
        head=True,
        attn=backbone.implementation if not backbone.packs else "auto",
        adapters=backbone.adapter_folders,
        merge=backbone.adapters is None,
    )
