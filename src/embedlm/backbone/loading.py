"""A backbone: a network, its tokenizer, and the two ways to run token ids through it.

Packed is the way all is done where it is proven equal: one row without padding. Padded is the slow
path that is always right, and the only one for architectures whose positions are not per token
(T5's relative bias, ALiBi).

Shapes: T tokens of a pack, D width of a state, V vocabulary, B sequences, L longest of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from embedlm.backbone import attention
from embedlm.backbone._files import (
    choose_device,
    choose_dtype,
    load_config,
    load_network,
    load_tokenizer,
    quiet,
)
from embedlm.backbone.probe import (
    _probe_ids,
    find_layers,
    layers_looking_ahead,
    packing_is_exact,
    prove_attention,
)
from embedlm.errors import InputError, ModelError, UnsupportedError
from embedlm.recipe import Backbone as BackboneRecipe

__all__ = ["Backbone", "load_backbone"]

Rows = Sequence[Sequence[int]]
IMPLEMENTATIONS = ("auto", "packed", "sdpa", "eager")


class _Stop(Exception):
    """Ends a forward pass once the states that were asked for are there."""


class _States(nn.Module):
    """Stands in for the body of a model, so that its head can be run on given states."""

    def __init__(self) -> None:
        super().__init__()
        self.h_1TD: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPast:
        """Return the states that were put in."""
        return BaseModelOutputWithPast(last_hidden_state=self.h_1TD)


class Backbone:
    """A network ready to turn rows of token ids into token states."""

    def __init__(self, model: nn.Module, tokenizer: Any, *, name: str) -> None:
        self.model = model
        self.config: Any = model.config
        self.tokenizer = tokenizer
        self.name = name
        self.head: nn.Module | None = None
        self._states = _States()
        self.static = False
        self.causal = True
        self.packs = False
        self.text_config = self.config.get_text_config()
        self._accepts = set(inspect.signature(model.forward).parameters)
        self._position_offset = _position_offset(model)

    # -- facts --------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' dtype."""
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    @property
    def layers(self) -> nn.ModuleList:
        """The list of layers."""
        return find_layers(self.model, int(self.text_config.num_hidden_layers))

    @property
    def implementation(self) -> str:
        """The attention implementation in use."""
        name = str(self.config._attn_implementation)
        return "packed" if name == attention.NAME else name

    @property
    def dim(self) -> int:
        """Width of a token state."""
        if self.static:
            return int(self.model.get_input_embeddings().weight.shape[1])  # type: ignore[operator]
        width = getattr(self.text_config, "word_embed_proj_dim", None)
        return int(width or self.text_config.hidden_size)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""
        return int(self.text_config.vocab_size)

    @property
    def max_positions(self) -> int | None:
        """How many tokens the positions allow; None where nothing in the files says so."""
        limit = getattr(self.text_config, "max_position_embeddings", None)
        limit = limit or getattr(self.text_config, "n_positions", None)
        if self.static:
            limit = None
        elif limit is not None and limit > 0:
            limit = int(limit) - self._position_offset
        declared = getattr(self.tokenizer, "model_max_length", None)
        if declared and declared < 1_000_000:
            return min(int(declared), limit) if limit else int(declared)
        return limit

    # -- running ------------------------------------------------------------------------------

    def run(self, rows: Rows, *, prefix: int = 0, layers: tuple[int, ...] = (-1,)) -> Tensor:
        """Return the states of the prefix and then of each row's own tokens, h_TD.

        Args:
            rows: token ids; with `prefix`, every row begins with the same `prefix` ids.
            prefix: tokens shared by all rows, computed once (packed and causal only).
            layers: indices into the hidden states; several are averaged.
        """
        if self.static:
            flat = [*rows[0][:prefix], *(i for row in rows for i in row[prefix:])]
            table = self.model.get_input_embeddings()  # type: ignore[operator]
            return table(torch.tensor(flat, device=self.device))  # type: ignore[no-any-return]
        if self.packs:
            return self.packed_states(rows, prefix=prefix, layers=layers)
        if prefix:
            raise InputError("only a packed causal backbone shares prefixes")
        return self.padded_states(rows, layers=layers)

    def packed_states(
        self, rows: Rows, *, prefix: int = 0, layers: tuple[int, ...] = (-1,)
    ) -> Tensor:
        """Run all rows as one row without padding; h_TD."""
        own = [len(row) - prefix for row in rows]
        ids = [*rows[0][:prefix], *(i for row in rows for i in row[prefix:])]
        positions = [*range(prefix), *(p for n in own for p in range(prefix, prefix + n))]
        ids_1T = torch.tensor([ids], device=self.device)
        positions_1T = torch.tensor([positions], device=self.device) + self._position_offset
        with attention.layout(attention.Layout(tuple(own), self.causal, prefix)):
            h_1TD = self._forward(ids_1T, positions_1T, None, layers)
        return h_1TD[0]

    def padded_states(self, rows: Rows, *, layers: tuple[int, ...] = (-1,)) -> Tensor:
        """Run the rows padded on the right; h_TD without the padding."""
        longest = max(map(len, rows))
        pad = getattr(self.text_config, "pad_token_id", None)
        pad = int(pad) if pad is not None and 0 <= int(pad) < self.vocab_size else 0
        ids_BL = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
        mask_BL = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        positions_1L = torch.arange(longest)[None] + self._position_offset
        positions_BL = positions_1L.expand(len(rows), -1).to(self.device)
        h_BLD = self._forward(
            ids_BL.to(self.device), positions_BL, mask_BL.to(self.device), layers
        )
        return h_BLD[mask_BL.to(self.device).bool()]

    def _forward(
        self, ids: Tensor, positions: Tensor, mask: Tensor | None, layers: tuple[int, ...]
    ) -> Tensor:
        kwargs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in self._accepts:
            kwargs["position_ids"] = positions
        if "use_cache" in self._accepts:
            kwargs["use_cache"] = False
        if "token_type_ids" in self._accepts and getattr(self.text_config, "type_vocab_size", 0):
            kwargs["token_type_ids"] = torch.zeros_like(ids)
        count = int(self.text_config.num_hidden_layers)
        wanted = [_layer_index(layer, count) for layer in layers]
        if wanted == [count]:
            return self.model(**kwargs).last_hidden_state  # type: ignore[no-any-return]
        states = self._hidden_states(kwargs, wanted, count)
        return torch.stack([states[i] for i in wanted]).mean(0) if len(wanted) > 1 else states[
            wanted[0]
        ]

    def _hidden_states(
        self, kwargs: dict[str, Any], wanted: list[int], count: int
    ) -> dict[int, Tensor]:
        """Return the states that enter the wanted layers, and stop after the last of them."""
        found: dict[int, Tensor] = {}
        last = max(wanted)

        def hook_for(index: int) -> Any:
            def hook(_: nn.Module, args: Any, named: Any) -> None:
                found[index] = named["hidden_states"] if "hidden_states" in named else args[0]
                if index == last:
                    raise _Stop

            return hook

        layers = self.layers
        hooks = [
            layers[i].register_forward_pre_hook(hook_for(i), with_kwargs=True)
            for i in set(wanted)
            if i < count
        ]
        try:
            found[count] = self.model(**kwargs).last_hidden_state
        except _Stop:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def logits(self, h_TD: Tensor) -> Tensor:
        """Return the language-model head's logits of final states, logits_TV.

        Raises:
            UnsupportedError: the model was loaded without a head, or has none.
        """
        if self.head is None:
            raise UnsupportedError(
                f"{self.name!r} has no language-model head, which a sparse head needs; load a "
                "checkpoint of a causal or masked language model with its head"
            )
        self._states.h_1TD = h_TD[None]
        try:
            dummy = torch.zeros(1, len(h_TD), dtype=torch.long, device=h_TD.device)
            return self.head(input_ids=dummy).logits[0]  # type: ignore[no-any-return]
        finally:
            self._states.h_1TD = None

    def save(self, folder: Path) -> None:
        """Write config and weights (with the head, where it was loaded) as safetensors."""
        model: Any = self.head if self.head is not None else self.model
        implementation = self.config._attn_implementation
        if self.head is not None:
            setattr(model, str(model.base_model_prefix), self.model)
        try:
            with quiet():
                model.save_pretrained(folder)
        finally:
            if self.head is not None:
                setattr(model, str(model.base_model_prefix), self._states)
            self.config._attn_implementation = implementation

    # -- for the probe ------------------------------------------------------------------------

    def run_rows(self, rows: Rows) -> Tensor:
        """Run rows by the implementation in use."""
        packed = self.implementation == "packed"
        return self.packed_states(rows) if packed else self.padded_states(rows)

    @contextmanager
    def rows_layout(self, rows: Rows) -> Iterator[None]:
        """Hold the layout of rows, for running single layers on them."""
        lengths = tuple(map(len, rows))
        inside = attention.layout(attention.Layout(lengths, self.causal))
        with inside if self.implementation == "packed" else nullcontext():
            yield


def _layer_index(layer: int, count: int) -> int:
    index = layer if layer >= 0 else count + 1 + layer
    if not 0 <= index <= count:
        raise InputError(
            f"layer {layer} is not one of this model's: allowed are 0 (embeddings) to {count} "
            f"(last), or -1 to {-count - 1}"
        )
    return index


def _position_offset(model: nn.Module) -> int:
    """Return the first position id: padding_idx + 1 in the RoBERTa family, else 0."""
    for module in model.modules():
        if hasattr(module, "create_position_ids_from_input_ids") and hasattr(
            module, "padding_idx"
        ):
            return int(module.padding_idx) + 1  # type: ignore[arg-type]
    return 0


def _set_direction(backbone: Backbone, wanted: str) -> None:
    """Ask for the direction everywhere an architecture may read it; the probe tells the truth."""
    if wanted == "native":
        return
    causal = wanted == "causal"
    for config in {id(c): c for c in (backbone.config, backbone.text_config)}.values():
        config.is_causal = causal
    for module in backbone.model.modules():
        if isinstance(getattr(module, "is_causal", None), bool):
            module.is_causal = causal  # type: ignore[assignment]
        own = getattr(module, "config", None)
        if own is not None and own is not backbone.config:
            own.is_causal = causal


def _settle(backbone: Backbone, wanted: Literal["causal", "bidirectional", "native"], attn: str) -> None:
    """Set and prove direction and implementation."""
    _set_direction(backbone, wanted)
    if wanted == "native":
        ahead = layers_looking_ahead(backbone, _probe_ids(backbone, (6,)))
        backbone.causal = not any(ahead)
        wanted = "causal" if backbone.causal else "bidirectional"
        uniform = len(set(ahead)) == 1
    else:
        prove_attention(backbone, wanted)
        backbone.causal, uniform = wanted == "causal", True
    if attn in ("sdpa", "eager"):
        return
    before = backbone.config._attn_implementation
    model: Any = backbone.model
    model.set_attn_implementation(attention.NAME)
    padded_again = _Padded(backbone, before)
    taken = backbone.implementation == "packed"  # GPT-Neo, say, has attention of its own
    if uniform and taken and padded_again.packing_is_exact():
        prove_attention(backbone, wanted)
        backbone.packs = True
        return
    model.set_attn_implementation(before)
    if attn == "packed":
        raise UnsupportedError(
            f"{type(model).__name__} cannot run packed: its packed states differ from the padded "
            "ones. Use attn='auto', which takes the padded path"
        )


class _Padded:
    """Compares the packed path with the padded one of another implementation."""

    def __init__(self, backbone: Backbone, implementation: str) -> None:
        self.backbone, self.implementation = backbone, implementation

    def packing_is_exact(self) -> bool:
        """Tell whether both give the same states; leaves the packed implementation set."""
        return packing_is_exact(self)  # type: ignore[arg-type]

    @property
    def config(self) -> Any:
        """The backbone's config."""
        return self.backbone.config

    def padded_states(self, rows: Rows) -> Tensor:
        """Run the rows by the padded implementation."""
        model: Any = self.backbone.model
        model.set_attn_implementation(self.implementation)
        try:
            return self.backbone.padded_states(rows)
        finally:
            model.set_attn_implementation(attention.NAME)

    def packed_states(self, rows: Rows) -> Tensor:
        """Run the rows packed."""
        return self.backbone.packed_states(rows)


def load_backbone(
    source: str,
    recipe: BackboneRecipe,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    head: bool = False,
    attn: str = "auto",
) -> Backbone:
    """Load the network and tokenizer of a folder or hub id and prove its attention.

    Args:
        source: folder or hub id.
        recipe: attention direction, sliding windows, static or not.
        device: None chooses CUDA, MPS or CPU.
        dtype: see `choose_dtype`.
        head: also load the language-model head.
        attn: auto (packed where proven), packed, sdpa or eager.

    Raises:
        ModelError: nothing that can be loaded is there.
        UnsupportedError: the architecture cannot do what is asked.
    """
    if attn not in IMPLEMENTATIONS:
        raise ModelError(f"attn {attn!r} is not known; allowed: {', '.join(IMPLEMENTATIONS)}")
    place = choose_device(device)
    config = load_config(source)
    if recipe.sliding_window != "keep":
        window = None if recipe.sliding_window == "off" else int(recipe.sliding_window)
        config.get_text_config().sliding_window = window
    with quiet():
        network, missing_head = load_network(
            source,
            config,
            choose_dtype(dtype, config, place),
            head=head,
            implementation="eager" if attn == "eager" else "sdpa",
        )
    if head and missing_head:
        raise UnsupportedError(
            f"{source!r} has no language-model head (missing: {missing_head[0]}), which the "
            "recipe's sparse head needs; use a checkpoint saved with its head"
        )
    network = network.to(place)
    body: nn.Module = network.base_model if head else network  # type: ignore[assignment]
    backbone = Backbone(body, load_tokenizer(source), name=source)
    if head:
        setattr(network, str(network.base_model_prefix), backbone._states)
        backbone.head = network
    if recipe.kind == "static":
        backbone.static = True
        return backbone
    with torch.no_grad(), quiet():
        _settle(backbone, recipe.attention, attn)
    return backbone
