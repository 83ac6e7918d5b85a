"""Loading a backbone: files, direction of attention, implementation, and the proofs of both."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from embedlm.backbone import attention, norms, prepacked
from embedlm.backbone.adapter_files import chosen_tokenizer
from embedlm.backbone.adapters import apply_adapters, check_vocabulary
from embedlm.backbone.company import Company
from embedlm.backbone.config import load_config, raw_config, stored_by
from embedlm.backbone.devices import choose_device, choose_dtype
from embedlm.backbone.direction import asks_for_bidirectional, set_direction
from embedlm.backbone.language_head import detach_head, has_body
from embedlm.backbone.memory import bound_kernel_caches, is_out_of_memory, keep_freed
from embedlm.backbone.network import Backbone
from embedlm.backbone.positions import measured_positions
from embedlm.backbone.probe import (
    company,
    layers_looking_ahead,
    looks_ahead,
    packing_is_exact,
    probe_rows,
    prove_attention,
    states_alone,
)
from embedlm.backbone.quantised import KINDS, Kind, quantise, share_inputs
from embedlm.backbone.quiet import quiet
from embedlm.backbone.table import is_table, load_table
from embedlm.backbone.towers import fill_with
from embedlm.backbone.weights import head_is_cheap, load_network
from embedlm.errors import EmbedLMError, ModelError, UnsupportedError
from embedlm.schema.recipe import Backbone as BackboneRecipe

__all__ = ["load_backbone"]

FIRST_FP8 = (8, 9)
"""The compute capability from which cards have products of fp8."""
IMPLEMENTATIONS = ("auto", "packed", "sdpa", "eager")
Head = bool | Literal["if_cheap"]


def _check_bytes(kind: Kind | None, recipe: BackboneRecipe, *, switchable: bool) -> None:
    """Refuse products in 8 bits where there are none, or their weights would change."""
    if kind and recipe.kind == "static":
        raise UnsupportedError(
            f"{kind} is for networks, and this recipe reads a table alone; take another dtype"
        )
    if kind and switchable:
        raise UnsupportedError(
            f"{kind} is for networks whose adapters are merged; take another dtype"
        )


def load_backbone(
    source: str,
    recipe: BackboneRecipe,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    head: Head = "if_cheap",
    attn: str = "auto",
    adapters: Sequence[Path] = (),
    merge: bool = True,
    more: Mapping[str, Any] | None = None,
    stored: str | None = None,
) -> Backbone:
    """Load the network and tokenizer of a folder or hub id and prove its attention.

    Args:
        source: folder or hub id.
        recipe: attention direction, sliding windows, static or not.
        device: None chooses CUDA, MPS or CPU.
        dtype: see `choose_dtype`; int8 and fp8 run the layers' products in 8 bits.
        head: whether to load the language-model head; "if_cheap": where it is the table of
            embeddings, and so costs no memory.
        attn: auto (packed where proven), packed, sdpa or eager.
        adapters: folders of adapters, in order.
        merge: merge them into the weights, or keep them switchable.
        more: further arguments of transformers' `from_pretrained`.
        stored: the numbers that dtype auto goes by; None: those that the config names.

    Raises:
        ModelError: nothing that can be loaded is there.
        UnsupportedError: the architecture cannot do what is asked.
    """
    if attn not in IMPLEMENTATIONS:
        raise ModelError(f"attn {attn!r} is not known; allowed: {', '.join(IMPLEMENTATIONS)}")
    bound_kernel_caches()
    keep_freed()
    target = choose_device(device)
    kind: Kind | None = dtype if dtype in KINDS else None
    _check_bytes(kind, recipe, switchable=not merge and len(adapters) > 0)
    if is_table(source):
        return _table(source, recipe, dtype, target, head=head is True, adapters=adapters)
    config = _config(source, recipe)
    # Adapters that stay switchable are of the body alone, unless its head is asked for too.
    cheap = head_is_cheap(config) and recipe.kind != "static" and (merge or not adapters)
    numbers = choose_dtype("auto" if kind else dtype, stored or config.dtype, target)
    wanted = cheap if head == "if_cheap" else head
    how: dict[str, Any] = {"implementation": "eager" if attn == "eager" else "sdpa", "more": more}
    load = partial(load_network, source, config, numbers, **how, towers=recipe.kind == "towers")
    network, whole = _network(load, source, wanted, needed=head is True)
    tokenizer = chosen_tokenizer(source, config, adapters, merge=merge)
    fill_with(network, tokenizer)
    with quiet():
        switchable = apply_adapters(network, adapters, merge=merge) if adapters else None
    if adapters:
        check_vocabulary(network, tokenizer, adapters)
    network = network.to(target)
    body = network if whole is None else detach_head(network)
    backbone = Backbone(
        network=body,
        tokenizer=tokenizer,
        name=source,
        head=network if whole else None,
        adapters=switchable,
        merged=tuple(adapters) if merge else (),
        static=recipe.kind == "static",
        padded=str(body.config._attn_implementation),  # type: ignore[union-attr]
    )
    return backbone if backbone.static else _finished(backbone, recipe.attention, attn, kind)


def _table(
    source: str,
    recipe: BackboneRecipe,
    dtype: str | torch.dtype,
    device: torch.device,
    *,
    head: bool,
    adapters: Sequence[Path],
) -> Backbone:
    """Return the backbone of a folder with a table of embeddings and no network.

    Raises:
        UnsupportedError: what is asked for needs a network.
    """
    lacking = "network" if recipe.kind != "static" else "layers for adapters" if adapters else ""
    if lacking or head:
        raise UnsupportedError(
            f"{source!r} holds a table of embeddings, and no {lacking or 'language-model head'}"
            ", which is asked for; take a recipe whose backbone is static (static-mean), or "
            "another model"
        )
    asked = dtype if dtype == "auto" else choose_dtype(dtype, None, device)
    network, tokenizer = load_table(source, asked)
    return Backbone(network=network.to(device), tokenizer=tokenizer, name=source, static=True)


def _network(
    load: Callable[..., tuple[nn.Module, list[str]]], source: str, with_head: bool, *, needed: bool
) -> tuple[nn.Module, bool | None]:
    """Return a network, and whether its head is whole; None: it was loaded without one.

    Args:
        load: `load_network` without its `head`.
        source: folder or hub id.
        with_head: whether the head is loaded too.
        needed: whether it is asked for.

    Raises:
        UnsupportedError: the head is needed and is missing, or cannot be read apart from the body.
    """
    with quiet():
        network, missing = load(head=with_head)
    if with_head and not has_body(network):
        if needed:
            raise UnsupportedError(
                f"{type(network).__name__} does not keep its head apart from its body, so that no "
                "sparse head can read it; take another model, or a recipe without one"
            )
        return _network(load, source, False, needed=False)
    if needed and missing:
        raise UnsupportedError(
            f"{source!r} has no language-model head (missing: {missing[0]}), which the "
            "recipe's sparse head needs; use a checkpoint saved with its head"
        )
    return network, not missing if with_head else None


def _config(source: str, recipe: BackboneRecipe) -> Any:
    """Return a model's config with the sliding windows that a recipe asks for.

    Raises:
        ModelError: layers would look at no token, and give vectors that look like any others.
    """
    config = load_config(source)
    text = config.get_text_config()
    if recipe.sliding_window != "keep":
        text.sliding_window = None if recipe.sliding_window == "off" else recipe.sliding_window
    window = text.sliding_window if hasattr(type(text), "sliding_window") else None
    if window is not None and window < 1:
        raise ModelError(
            f"{source}: sliding_window is {window}; allowed is a whole number above 0, or null "
            "for none (a recipe's `backbone: {sliding_window: off}` takes its place)"
        )
    return config


def _finished(backbone: Backbone, attention_asked: str, attn: str, kind: Kind | None) -> Backbone:
    """Return a freshly loaded backbone in its numbers and its attention.

    Attention is proven before products run in 8 bits: these turn the last bit of a number, in which
    two ways to run a row may differ, into a step of the scale.
    """
    how, instead = "on the tokens of a text alone", "take a model that reads text"
    method = stored_by(raw_config(backbone.name))
    if method is not None:
        how = f"on {backbone.device.type} with weights stored by {method}"
        instead = "take a checkpoint of plain weights, and dtype='int8' to run it in 8 bits"
    with _refused(backbone, how, instead):
        backbone = _proven(backbone, attention_asked, attn)
    norms.quicken(backbone.network)
    if kind is None:
        return backbone
    with _refused(backbone, f"in {kind}", "take another dtype"):
        return _in_bytes(backbone, kind)


@contextmanager
def _refused(backbone: Backbone, how: str, instead: str) -> Iterator[None]:
    """Run a network, and refuse it where that raises an error of its own."""
    try:
        with torch.no_grad(), quiet():
            yield
    except EmbedLMError:
        raise
    except Exception as error:  # the networks' own errors have no common base
        if is_out_of_memory(error):
            raise
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UnsupportedError(
            f"{type(backbone.network).__name__} cannot be run {how} ({said.removesuffix(': ')}); "
            f"{instead}"
        ) from error


def _proven(backbone: Backbone, attention_asked: str, attn: str) -> Backbone:
    """Return a freshly loaded backbone with its direction and implementation set and proven."""
    _check_reads_text(backbone)
    pad = getattr(backbone.text_config, "pad_token_id", None)
    row = [token for token in probe_rows(backbone, (12,))[0] if token != pad]
    first, uncounted = measured_positions(backbone.network, row)
    backbone = backbone.rebuilt(first_position=first, uncounted=uncounted)
    backbone = backbone.rebuilt(width=backbone.run([row]).shape[-1])
    direction, uniform = attention_asked, True
    if direction == "native":
        direction, uniform = _native(backbone)
    if attention_asked != "native" or (
        direction == "causal" and asks_for_bidirectional(raw_config(backbone.name))
    ):
        direction = attention_asked if attention_asked != "native" else "bidirectional"
        uniform = True
        set_direction(backbone.network, causal=direction == "causal")
        prove_attention(backbone, direction)
    backbone = backbone.rebuilt(causal=direction == "causal")
    alone = states_alone(backbone)
    backbone = backbone.rebuilt(company=company(backbone, alone))
    if attn not in ("auto", "packed"):
        return backbone
    return _packing(backbone, direction, alone if uniform else None, required=attn == "packed")


def _check_reads_text(backbone: Backbone) -> None:
    """Refuse a network that takes no token ids."""
    takes = list(inspect.signature(backbone.network.forward).parameters)
    if "input_ids" not in takes:
        raise UnsupportedError(
            f"{type(backbone.network).__name__} reads no text: it takes {takes[0]}. Take a model "
            "that reads token ids"
        )


def _native(backbone: Backbone) -> tuple[str, bool]:
    """Return the direction of attention as it is, and whether it is known to be every layer's."""
    row, other = probe_rows(backbone, (6, 6))
    try:
        ahead = layers_looking_ahead(backbone, row)
    except UnsupportedError:  # no layers that could be run apart
        return ("bidirectional" if looks_ahead(backbone, row, other) else "causal"), False
    return ("bidirectional" if any(ahead) else "causal"), len(set(ahead)) == 1


def _packing(
    backbone: Backbone, direction: str, alone: list[torch.Tensor] | None, *, required: bool
) -> Backbone:
    """Return the backbone on packed attention where that is proven equal to rows run alone."""
    network: Any = backbone.network
    network.set_attn_implementation(attention.NAME)
    # GPT-Neo, say, has attention of its own and stays as it was.
    taken = network.config._attn_implementation == attention.NAME
    packed = backbone.rebuilt(packs=True)
    if alone is not None and taken and packing_is_exact(packed, alone):
        prove_attention(packed, direction)
        prepacked.prepare(packed.layers)
        return packed
    network.set_attn_implementation(backbone.padded)
    if required:
        raise UnsupportedError(
            f"{type(network).__name__} cannot run packed: its packed states differ from those of "
            "rows run alone. Use attn='auto', which takes the padded path"
        )
    return backbone


def _in_bytes(backbone: Backbone, kind: Kind) -> Backbone:
    """Return a freshly loaded backbone whose layers' products run in 8 bits.

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
    runs = [partial(backbone.run, [row]) for row in probe_rows(backbone, (12, 12))]
    share_inputs(backbone.layers, *runs)
    apart: Company = "equal lengths" if backbone.company == "any" else backbone.company
    return backbone.rebuilt(quantised=kind, company=apart)
