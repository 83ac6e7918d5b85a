"""A backbone: a network, its tokenizer, and the two ways to run token ids through it.

Packed is the way all is done where it is proven equal: one row without padding. Padded is the slow
path that is always right, and the only one for architectures whose positions are not per token
(T5's relative bias, ALiBi).

Shapes: T tokens of a pack, D width of a state, V vocabulary, B sequences, L longest of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from embedlm.backbone import attention
from embedlm.backbone.adapters import Adapters
from embedlm.backbone.compiling import Compiling
from embedlm.backbone.files import quiet
from embedlm.backbone.head_input import GivenStates
from embedlm.backbone.memory import put
from embedlm.backbone.probe import find_layers
from embedlm.backbone.quantised import Kind
from embedlm.errors import InputError, UnsupportedError

__all__ = ["Backbone", "Rows"]

Rows = Sequence[Sequence[int]]


class _Stop(Exception):  # noqa: N818 (no error: a way out)
    """Ends a forward pass once the states that were asked for are there."""


_POSITION_TABLES = ("wpe", "embed_positions", "position_embeddings", "position_embedding")
"""Names of modules that hold a learned vector a position (GPT-2, OPT, BERT and their kin)."""


class Backbone:
    """A network ready to turn rows of token ids into token states."""

    def __init__(self, model: nn.Module, tokenizer: Any, *, name: str) -> None:
        self.model = model
        network: Any = model
        self.config: Any = network.config
        self.tokenizer = tokenizer
        self.name = name
        self.head: nn.Module | None = None
        self.adapters: Adapters | None = None
        self.adapter_folders: tuple[Path, ...] = ()
        self._states = GivenStates()
        self.static = False
        self.sharded = False
        self.quantised: Kind | None = None  # the layers' products
        self.budget: int | None = None  # tokens that fit, once a pack did not
        self.causal = True
        self.packs = False
        self.compiling: Compiling | None = None
        self.text_config: Any = self.config.get_text_config()
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

    @property
    def positions(self) -> int | None:
        """How many tokens a learned table of positions has; None where positions are computed."""
        tables = (name.rsplit(".", 1)[-1] for name, _ in self.model.named_modules())
        if self.static or not any(name in _POSITION_TABLES for name in tables):
            return None
        size = getattr(self.text_config, "max_position_embeddings", None)
        size = size or getattr(self.text_config, "n_positions", None)
        return int(size) - self._position_offset if size else None

    # -- running ------------------------------------------------------------------------------

    def run(
        self,
        rows: Rows,
        *,
        prefix: int = 0,
        layers: tuple[int, ...] = (-1,),
        unseen: Sequence[int] = (),
        kept: attention.Kept | None = None,
        positions: Rows | None = None,
    ) -> Tensor:
        """Return the states of the prefix and then of each row's own tokens, h_TD.

        Args:
            rows: token ids; with `prefix`, every row begins with the same `prefix` ids.
            prefix: tokens shared by all rows, computed once (packed and causal only).
            layers: indices into the hidden states; several are averaged.
            unseen: how many tokens at each row's end no token looks at (padded path only).
            kept: what calls with the same prefix keep of it (packed only).
            positions: of each row's tokens, where they are not 0, 1, 2, ...
        """
        if positions is not None and "position_ids" not in self._accepts:
            raise UnsupportedError(f"{self.name!r} has no positions that could be given")
        if any(unseen):
            return self._with_unseen(rows, layers, unseen)
        if self.static:
            flat = [*rows[0][:prefix], *(i for row in rows for i in row[prefix:])]
            table = self.model.get_input_embeddings()  # type: ignore[operator]
            return table(torch.tensor(flat, device=self.device))  # type: ignore[no-any-return]
        if self.packs:
            return self.packed_states(
                rows, prefix=prefix, layers=layers, kept=kept, positions=positions
            )
        if prefix:
            raise InputError("only a packed causal backbone shares prefixes")
        return self.padded_states(rows, layers=layers, positions=positions)

    def packed_states(
        self,
        rows: Rows,
        *,
        prefix: int = 0,
        layers: tuple[int, ...] = (-1,),
        kept: attention.Kept | None = None,
        positions: Rows | None = None,
    ) -> Tensor:
        """Run all rows as one row without padding; h_TD."""
        own = [len(row) - prefix for row in rows]
        before_PD = kept.states if kept is not None else None
        held = 0 if before_PD is None else prefix
        ids = [*rows[0][held:prefix], *(i for row in rows for i in row[prefix:])]
        given = positions or [range(len(row)) for row in rows]
        places = [*given[0][held:prefix], *(p for row in given for p in row[prefix:])]
        ids_1T, positions_1T = put(torch.tensor([ids, places]), self.device)[:, None]
        positions_1T = positions_1T + self._position_offset
        plan = attention.Layout(tuple(own), self.causal, prefix, held > 0)
        h_TD = self._packed(ids_1T, positions_1T, plan, layers, kept)
        if before_PD is not None:
            h_TD = torch.cat([before_PD, h_TD])
        if kept is not None:
            kept.keep(h_TD)
        return h_TD

    def _packed(
        self,
        ids_1T: Tensor,
        positions_1T: Tensor,
        plan: attention.Layout,
        layers: tuple[int, ...],
        kept: attention.Kept | None,
    ) -> Tensor:
        with attention.layout(plan, kept):
            if self.compiling is None or not self.compiling.suits(ids_1T.shape[1]):
                with torch.compiler.set_stance("force_eager"):
                    return self._forward(ids_1T, positions_1T, None, layers)[0]
            try:
                with self.compiling.step(ids_1T.shape[1]):
                    return self._forward(ids_1T, positions_1T, None, layers)[0]
            except Exception as error:
                if not self.compiling.give_up(error):
                    raise
                if kept is not None:
                    kept.begin()
                return self._forward(ids_1T, positions_1T, None, layers)[0]

    def _with_unseen(self, rows: Rows, layers: tuple[int, ...], unseen: Sequence[int]) -> Tensor:
        model: Any = self.model
        before = self.config._attn_implementation
        if self.packs:
            model.set_attn_implementation("sdpa")
        try:
            with torch.compiler.set_stance("force_eager"):
                return self.padded_states(rows, layers=layers, unseen=unseen)
        finally:
            if self.packs:
                model.set_attn_implementation(before)

    def padded_states(
        self,
        rows: Rows,
        *,
        layers: tuple[int, ...] = (-1,),
        unseen: Sequence[int] = (),
        positions: Rows | None = None,
    ) -> Tensor:
        """Run the rows padded on the right; h_TD without the padding."""
        longest = max(map(len, rows))
        pad = getattr(self.text_config, "pad_token_id", None)
        pad = int(pad) if pad is not None and 0 <= int(pad) < self.vocab_size else 0
        ids_BL = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
        mask_BL = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        seen_BL = mask_BL.clone()
        for row_L, row, hidden in zip(seen_BL, rows, unseen, strict=False):
            row_L[len(row) - hidden :] = 0
        given = positions or [range(len(row)) for row in rows]
        places = [[*row, *range(len(row), longest)] for row in given]
        positions_BL = torch.tensor(places, device=self.device) + self._position_offset
        h_BLD = self._forward(ids_BL.to(self.device), positions_BL, seen_BL.to(self.device), layers)
        return h_BLD[mask_BL.to(self.device).bool()]

    def _forward(
        self, ids: Tensor, positions: Tensor, mask: Tensor | None, layers: tuple[int, ...]
    ) -> Tensor:
        kwargs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in self._accepts:
            kwargs["position_ids"] = positions
        if "use_cache" in self._accepts:
            kwargs["use_cache"] = False
        if "token_type_ids" in self._accepts and hasattr(self.text_config, "type_vocab_size"):
            kwargs["token_type_ids"] = torch.zeros_like(ids)
        count = int(self.text_config.num_hidden_layers)
        wanted = [_layer_index(layer, count) for layer in layers]
        if wanted == [count]:
            return self.model(**kwargs).last_hidden_state  # type: ignore[no-any-return]
        states = self._hidden_states(kwargs, wanted, count)
        return torch.stack([states[i] for i in wanted]).mean(0)

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
        hooked = [layers[i] for i in sorted(set(wanted)) if i < count]
        hooks = [
            layers[i].register_forward_pre_hook(hook_for(i), with_kwargs=True)
            for i in sorted(set(wanted))
            if i < count
        ]
        # A hook is no part of a compiled layer: what is hooked runs uncompiled.
        compiled: list[Any] = [layer._compiled_call_impl for layer in hooked]
        for layer in hooked:
            layer._compiled_call_impl = None
        try:
            with suppress(_Stop):
                found[count] = self.model(**kwargs).last_hidden_state
        finally:
            for hook, layer, before in zip(hooks, hooked, compiled, strict=True):
                hook.remove()
                layer._compiled_call_impl = before
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

    def whole_model(self) -> Any:
        """Return body and head as one model again; `logits` cannot be used after that."""
        model: Any = self.head if self.head is not None else self.model
        if self.head is not None:
            setattr(model, str(model.base_model_prefix), self.model)
        return model

    def save(self, folder: Path) -> None:
        """Write config, weights (with the head, where it was loaded) and switchable adapters."""
        if self.quantised:
            raise UnsupportedError(
                f"{self.name!r} runs in {self.quantised}; load it in another dtype to save"
            )
        implementation = self.config._attn_implementation
        if self.compiling is not None:
            self.compiling.stop()
        model = self.whole_model()
        try:
            with quiet():
                if self.adapters is None:
                    model.save_pretrained(folder)
                else:
                    model.save_pretrained(folder, state_dict=self.adapters.base_weights())
                    self.adapters.save(folder / "adapters")
        finally:
            if self.head is not None:
                setattr(model, str(model.base_model_prefix), self._states)
            self.config._attn_implementation = implementation

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[None]:
        """Run what is inside with one of the switchable adapters, or with none.

        Raises:
            InputError: no such adapter.
        """
        if self.adapters is not None:
            with self.adapters.using(adapter):
                yield
            return
        if adapter is not None:
            raise InputError(
                f"adapter {adapter!r} is not loaded, nor is any other that can be switched; load "
                "the model with adapters=[...] and merge=False"
            )
        yield

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
        if hasattr(module, "create_position_ids_from_input_ids") and hasattr(module, "padding_idx"):
            return int(module.padding_idx) + 1  # type: ignore[arg-type]
    return 0
