"""A backbone: a network, its tokenizer, and the two ways to run token ids through it.

Packed is the way all is done where it is proven equal: one row without padding. Padded is the slow
path that is always right, and the only one for architectures whose positions are not per token
(T5's relative bias, ALiBi).

Nothing of a backbone changes once it is loaded: what differs from pass to pass is an argument of
the pass, and runs through a view of the network (see views.py), so that any number of threads may
run passes of different kinds at once.

Shapes: T tokens of a pack, D width of a state, V vocabulary, B sequences, L longest of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from embedlm.backbone.adapters import Adapters, base_weights, check_adapter
from embedlm.backbone.company import Company, Rows, group_keys, run_in_groups
from embedlm.backbone.direction import set_direction
from embedlm.backbone.images import Pixels, image_inputs
from embedlm.backbone.inputs import looked_up, packed_inputs, padded_inputs, taken
from embedlm.backbone.language_head import lacks_head, logits_of, stand_in
from embedlm.backbone.layers import Tapped, Wanted, find_layers, states_before
from embedlm.backbone.layout import Kept, Layout, layout
from embedlm.backbone.positions import (
    LengthRope,
    configured_positions,
    counted,
    find_length_rope,
    learns_positions,
    original_frequencies,
)
from embedlm.backbone.quantised import Kind
from embedlm.backbone.quiet import quiet
from embedlm.backbone.table import table_of
from embedlm.backbone.views import View, ViewCache, copy_structure
from embedlm.errors import InputError, UnsupportedError

__all__ = ["Backbone", "Rows"]


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False, kw_only=True)
class Backbone:
    """A network ready to turn rows of token ids into token states."""

    network: nn.Module = field(repr=False)
    """The body, without a language-model head; it runs as `implementation` says."""
    tokenizer: Any = field(repr=False)
    name: str
    """The folder or hub id that it was loaded from."""
    head: nn.Module | None = field(default=None, repr=False)
    """The language model's own layers after the body, where they were loaded."""
    adapters: Adapters | None = field(default=None, repr=False)
    """The switchable ones."""
    merged: tuple[Path, ...] = field(default=(), repr=False)
    """The folders of those that are part of the weights."""
    causal: bool = True
    """Whether no layer sees what follows a token, unless a pass says otherwise."""
    packs: bool = False
    """Whether packed passes were proven equal to padded ones."""
    padded: str = "sdpa"
    """The attention implementation of padded passes: sdpa or eager."""
    static: bool = False
    """Whether a token's state is its embedding, and no layer is run."""
    quantised: Kind | None = None
    """In which 8-bit numbers the layers' products run, if they do."""
    sharded: bool = False
    """Whether the weights are split over processes (FSDP2)."""
    config: Any = field(init=False, repr=False)
    """The network's."""
    text_config: Any = field(init=False, repr=False)
    """That of its text part."""
    _views: ViewCache = field(default_factory=ViewCache, init=False, repr=False)
    first_position: int | None = 0
    """The position id of a row's first token; None where the network counts by itself."""
    uncounted: int | None = None
    """The token id that takes no position of its own (RoBERTa's padding); None: each takes one."""
    company: Company = "any"
    """Which rows a padded pass may hold."""
    width: int | None = None
    """Of a token state, as it was measured; None: as the config says."""
    length_rope: LengthRope | None = field(init=False)
    """How its rotary frequencies depend on the longest row of a pass, if they do."""
    _accepts: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        config: Any = self.network.config
        object.__setattr__(self, "config", config)
        object.__setattr__(self, "text_config", config.get_text_config())
        accepts = frozenset(inspect.signature(self.network.forward).parameters)
        object.__setattr__(self, "_accepts", accepts)
        object.__setattr__(self, "length_rope", find_length_rope(self.network))

    def rebuilt(self, **facts: Any) -> Backbone:
        """Return a backbone of which some facts differ; the views of this one are not taken."""
        return replace(self, **facts)

    def twin(self, *, causal: bool | None = None) -> Backbone:
        """Return a backbone of the same weights whose network's structure is its own.

        Args:
            causal: the direction of its attention; None: as here.
        """
        network = copy_structure(self.network)
        causal = self.causal if causal is None else causal
        if causal != self.causal:
            set_direction(network, causal=causal)
        return self.rebuilt(network=network, causal=causal)

    # -- facts --------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' dtype."""
        return next(p.dtype for p in self.network.parameters() if p.is_floating_point())

    @property
    def layers(self) -> nn.ModuleList:
        """The list of layers."""
        return find_layers(self.network, self.layer_count)

    @property
    def layer_count(self) -> int:
        """How many layers there are; 0 where the config does not say, and only the last is read."""
        return int(getattr(self.text_config, "num_hidden_layers", None) or 0)

    @property
    def implementation(self) -> str:
        """The attention implementation that passes run with where nothing forbids it."""
        return "packed" if self.packs else self.padded

    @property
    def shares_prefixes(self) -> bool:
        """Whether a prefix's keys and values may be computed once for many rows."""
        return self.packs and self.causal and self.length_rope is None

    @property
    def dim(self) -> int:
        """Width of a token state."""
        if self.static:
            return int(self.network.get_input_embeddings().weight.shape[1])  # type: ignore[operator]
        return int(self.width or self.text_config.hidden_size)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""
        return int(self.text_config.vocab_size)

    @property
    def max_positions(self) -> int | None:
        """How many tokens the positions allow; None where nothing in the files says so."""
        limit = None if self.static else self._table_size()
        declared = getattr(self.tokenizer, "model_max_length", None)
        if declared and declared < 1_000_000:
            return min(int(declared), limit) if limit else int(declared)
        return limit

    @property
    def positions(self) -> int | None:
        """How many tokens a learned table of positions has; None where positions are computed."""
        return None if self.static or not learns_positions(self.network) else self._table_size()

    def _table_size(self) -> int | None:
        size = configured_positions(self.text_config)
        return size - (self.first_position or 0) if size and size > 0 else size

    # -- running ------------------------------------------------------------------------------

    def run(
        self,
        rows: Rows,
        *,
        prefix: int = 0,
        layers: tuple[int, ...] = (-1,),
        unseen: Sequence[int] = (),
        kept: Kept | None = None,
        positions: Rows | None = None,
        adapter: str | None = None,
        causal: bool | None = None,
        apart: bool = False,
        images: Sequence[Pixels] = (),
    ) -> Tensor:
        """Return the states of the prefix and then of each row's own tokens, h_TD.

        Args:
            rows: token ids; with `prefix`, every row begins with the same `prefix` ids.
            prefix: tokens shared by all rows, computed once (packed and causal only).
            layers: indices into the hidden states; several are averaged, or stand side by side.
            unseen: tokens at each row's end that no token looks at (padded path only).
            kept: what calls with the same prefix keep of it (packed only).
            positions: of each row's tokens, where they are not 0, 1, 2, ...
            adapter: the switchable adapter that runs; None: the base alone.
            causal: the direction of attention; None: the backbone's own.
            apart: the states of several layers stand side by side, D being the sum of their widths.
            images: one a row, whose tokens are in it (padded path only); empty: none.

        Raises:
            InputError: an adapter or layer that the model does not have.
            UnsupportedError: positions for a network that computes its own.
        """
        packed = self.packs and not any(unseen) and not images
        self._check_pass(adapter, positions, prefix, packed)
        if self.static:
            return looked_up(self.network, rows, prefix, self.device)
        causal = self.causal if causal is None else causal
        wanted = Wanted.of(layers, self.layer_count, apart=apart)
        # In a packed pass the layout alone tells the direction.
        view = View(
            "packed" if packed else self.padded,
            self.causal if packed else causal,
            adapter,
            tapped=wanted.indices != (self.layer_count,),
        )

        def run(rows: Rows, unseen: Any, positions: Rows | None, images: Any) -> Tensor:
            if packed:
                return self._run_packed(view, wanted, rows, prefix, kept, positions, causal)
            return self._run_padded(view, wanted, rows, unseen, positions, images)

        keys = group_keys(rows, positions, "any" if packed else self.company, self.length_rope)
        return run_in_groups(keys, run, rows, unseen, positions, images)

    def _check_pass(self, adapter: str | None, positions: Any, prefix: int, packed: bool) -> None:
        """Refuse what a pass of this network cannot be asked for."""
        check_adapter(self.adapters, adapter)
        if positions is not None and self.first_position is None:
            raise UnsupportedError(f"{self.name!r} computes its own positions; give none")
        if prefix and not self.static and not (packed and self.length_rope is None):
            raise InputError(f"{self.name!r} cannot share prefixes; see `shares_prefixes`")

    def _run_packed(
        self,
        view: View,
        wanted: Wanted,
        rows: Rows,
        prefix: int,
        kept: Kept | None,
        positions: Rows | None,
        causal: bool,
    ) -> Tensor:
        """Run all rows as one row without padding; h_TD."""
        before_PD = kept.states if kept is not None else None
        held = 0 if before_PD is None else prefix
        ids_1T, positions_1T = packed_inputs(
            rows,
            positions or counted(rows, self.uncounted),
            prefix,
            held,
            self.first_position or 0,
            self.device,
        )
        lengths = tuple(len(row) - prefix for row in rows)
        with layout(Layout(lengths, causal, prefix, held > 0), kept):
            h_TD = self._forward(view, wanted, self._inputs(ids_1T, positions_1T, None))[0]
        if before_PD is not None:
            h_TD = torch.cat([before_PD, h_TD])
        if kept is not None:
            kept.keep(h_TD)
        return h_TD

    def _run_padded(
        self,
        view: View,
        wanted: Wanted,
        rows: Rows,
        unseen: Sequence[int],
        positions: Rows | None,
        images: Sequence[Pixels],
    ) -> Tensor:
        """Run the rows padded on the right; h_TD without the padding."""
        pad = getattr(self.text_config, "pad_token_id", None)
        ids_BL, positions_BL, seen_BL, mask_BL = padded_inputs(
            rows,
            positions or counted(rows, self.uncounted),
            unseen,
            int(pad) if pad is not None and 0 <= int(pad) < self.vocab_size else 0,
            self.first_position or 0,
            self.device,
        )
        inputs = self._inputs(ids_BL, positions_BL, seen_BL)
        inputs |= image_inputs(self._view(view), images, ids_BL, mask_BL) if images else {}
        return self._forward(view, wanted, inputs)[mask_BL.bool()]

    def _inputs(self, ids: Tensor, positions: Tensor, mask: Tensor | None) -> dict[str, Any]:
        """Return the arguments of a pass."""
        positions_given = None if self.first_position is None else positions
        return taken(self._accepts, self.text_config, ids, positions_given, mask)

    def _forward(self, view: View, wanted: Wanted, inputs: Mapping[str, Any]) -> Tensor:
        """Run a view of the network; the states that are wanted."""
        network = self._view(view)

        def forward() -> Tensor:
            with original_frequencies(network) if self.length_rope else nullcontext():
                return network(**inputs).last_hidden_state  # type: ignore[no-any-return]

        if not view.tapped:
            return forward()
        return wanted.joined(states_before(wanted.indices, self.layer_count, forward))

    def check_head(self) -> nn.Module:
        """Return the language-model head.

        Raises:
            UnsupportedError: the model was loaded without its head, or has none.
        """
        if self.head is None:
            raise lacks_head(self.name)
        return self.head

    def logits(self, h_TD: Tensor) -> Tensor:
        """Return the language-model head's logits of final states, logits_TV.

        Raises:
            UnsupportedError: the model was loaded without its head, or has none.
        """
        return logits_of(self.check_head(), h_TD)

    def language_model(self, *, causal: bool = True, adapter: str | None = None) -> nn.Module:
        """Return body and head as one model, with attention that keeps keys and values.

        Raises:
            InputError: no such adapter.
            UnsupportedError: the model was loaded without its head, or has none.
        """
        check_adapter(self.adapters, adapter)
        self.check_head()
        return self._view(View(self.padded, causal, adapter, writes=True))

    def _view(self, view: View) -> nn.Module:
        """Return a view of the network; its own where that is what is wanted."""
        if self.adapters is None and view == View(self.implementation, self.causal):
            return self.network
        return self._views.get(view, partial(self._new_view, view), self.network.training)

    def _new_view(self, view: View) -> nn.Module:
        if view.tapped:
            base = self._view(view._replace(tapped=False))
            layers = enumerate(find_layers(base, self.layer_count))
            return copy_structure(base, {id(x): Tapped(x, index) for index, x in layers})
        network: Any = self._assembled() if view.writes else copy_structure(self.network)
        with quiet():
            network.set_attn_implementation(view.attention(self.device))
        if view.causal != self.causal:
            set_direction(network, causal=view.causal)
        if self.adapters is not None:
            self.adapters.activate(network, view.adapter)
        return network  # type: ignore[no-any-return]

    def _assembled(self) -> nn.Module:
        """Return a copy of the structure of body and head (where it was loaded) as one model."""
        memo: dict[int, Any] = {}
        body = copy_structure(self.network, memo)
        if self.head is None:
            return body
        memo[id(stand_in(self.head))] = body
        return copy_structure(self.head, memo)

    # -- saving -------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write config, weights (with the head, where it was loaded) and switchable adapters.

        Of a static model it is the table of embeddings alone, all that it reads.

        Raises:
            UnsupportedError: the weights are in 8 bits.
        """
        if self.quantised:
            raise UnsupportedError(
                f"{self.name!r} runs in {self.quantised}; load it in another dtype to save"
            )
        alone = self.static and self.adapters is None
        network: Any = table_of(self.network) if alone else self._assembled()
        state = network.state_dict()
        with quiet():
            if self.adapters is None:
                network.save_pretrained(folder, state_dict=state)
            else:
                network.save_pretrained(folder, state_dict=base_weights(self.adapters, state))
                self.adapters.save(folder / "adapters", network, state)
