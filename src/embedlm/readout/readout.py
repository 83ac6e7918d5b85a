"""From token states to outputs: one way for encoding, training and writing.

Shapes: T tokens of a pack, B texts, D width of a state, X columns of all heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedlm.backbone import Backbone
from embedlm.backbone.adapters import check_adapter_roles
from embedlm.backbone.layers import layer_at
from embedlm.backbone.memory import put
from embedlm.errors import UnsupportedError
from embedlm.readout import frequency, sinks
from embedlm.readout.head import Collector
from embedlm.readout.heads import make_heads
from embedlm.readout.new_projection import asked_projection
from embedlm.readout.parts import Parts
from embedlm.readout.pooling import Tokens, kinds_of, pooled
from embedlm.readout.states import PackStates
from embedlm.schema.heads import Head as HeadOptions
from embedlm.schema.recipe import Recipe

__all__ = ["OtherNetworkError", "Readout"]

_NETWORK_FIELDS = ("kind", "attention", "adapters", "merge", "sliding_window")
"""Fields of a recipe's backbone that are settled when a network is loaded."""


class OtherNetworkError(UnsupportedError):
    """A recipe that wants the network otherwise than it was loaded."""

    reason = ""
    """What differs, without what to do."""


class Readout:
    """A recipe's pooling and heads over a backbone's token states; it is never changed."""

    apart: ClassVar[bool] = False
    """Whether it takes the states of its layers side by side, and not averaged."""

    def __init__(
        self,
        backbone: Backbone,
        recipe: Recipe,
        parts: Parts,
        *,
        statistics: frequency.Statistics | None = None,
        heads: Sequence[HeadOptions] | None = None,
        trained: bool = False,
        norms: Mapping[tuple[int, ...], sinks.StateNorms] | None = None,
    ) -> None:
        """Join what is read with how it is read.

        Args:
            backbone: whose states are read.
            recipe: says how.
            parts: the checkpoint's layers.
            statistics: of a corpus, for poolings that weigh tokens by frequency.
            heads: None takes the recipe's.
            trained: whether the model was trained for the recipe's heads, so that it has no others.
            norms: how long states are, of those layers where it was measured.
        """
        self.backbone = backbone
        self.recipe = recipe
        self.parts = self._further = parts
        self.statistics = statistics
        self.trained = trained
        self.pooling = recipe.pooling
        self.heads = make_heads(recipe.heads if heads is None else heads)
        for head in self.heads:
            head.check(backbone)
        self._check_pooling()
        check_adapter_roles(backbone.adapters, recipe.backbone.adapter_roles)
        gives_dense = any(head.kind == "dense" for head in self.heads)
        if gives_dense and recipe.dim is not None and recipe.dim > self.dense_width:
            raise UnsupportedError(
                f"recipe {recipe.name!r} cuts vectors to dim {recipe.dim}, and those of "
                f"{backbone.name!r} have {self.dense_width}; allowed: 1 to {self.dense_width}"
            )
        self.norms = dict(norms or {})
        if self.pooling.exclude_sink == "norm":
            self.norms[self.layers] = sinks.measured(backbone, self.layers, self.norms)
        self.tells_of_sink = (
            self.pooling.gathers
            and not self.pooling.exclude_sink
            and sinks.reads_inner(backbone, self.layers)
        )

    def _check_pooling(self) -> None:
        """Refuse a pooling that reads states which no text reaches, or no image."""
        network = self.backbone
        over = self.pooling.over
        first = self.pooling.kind == "cls" and (over == "all" or "text" not in over)
        if first and network.causal and not network.static:
            raise UnsupportedError(
                f"pooling.kind: cls reads the state of the first token, and in {network.name!r} no "
                "token sees what follows it (measured): every text would get the same vector. Use "
                "pooling.kind: last or mean, or backbone.attention: bidirectional"
            )
        towers = self.recipe.backbone.kind == "towers"
        if towers and not {*self.layers} <= {-1, network.layer_count}:
            raise UnsupportedError(
                f"pooling.layer is {self.pooling.layer}, and the towers of {network.name!r} meet "
                "in one space after their last layer alone; leave it at -1"
            )

    # -- others like it -----------------------------------------------------------------------

    def with_recipe(self, recipe: Recipe, *, create: bool = False) -> Readout:
        """Return the readout of another recipe over the same backbone, with all parts.

        Common components of a corpus stay where they are those of the same vectors. `create` makes
        untrained token layers where the recipe needs some and there are none.

        Raises:
            OtherNetworkError: the recipe wants the network itself otherwise.
        """
        self._check_network(recipe)
        parts, statistics = self.parts.for_recipe(recipe, self.backbone, create=create), None
        if self.statistics is not None:
            same = recipe.gives_vectors_of(self.recipe)
            statistics = self.statistics if same else self.statistics.without_components()
        return Readout(self.backbone, recipe, parts, statistics=statistics, norms=self.norms)

    def _check_network(self, recipe: Recipe) -> None:
        """Refuse a recipe whose network differs from the one that is loaded."""
        loaded, asked = self.recipe.backbone, recipe.backbone
        direction = "causal" if self.backbone.causal else "bidirectional"
        if asked.attention in ("native", direction):
            asked = asked.model_copy(update={"attention": loaded.attention})
        for field in _NETWORK_FIELDS:
            if getattr(loaded, field) != getattr(asked, field):
                reason = (
                    f"recipe {recipe.name!r} has backbone.{field}: {getattr(asked, field)!r}, and "
                    f"{self.backbone.name!r} was loaded with {getattr(loaded, field)!r}"
                )
                error = OtherNetworkError(f"{reason}; load it anew with that recipe")
                error.reason = reason
                raise error

    def with_heads(self, heads: Sequence[HeadOptions]) -> Readout:
        """Return the same readout with other heads; layers that only they read are loaded once.

        Raises:
            ModelError: a projection of another form than the model's.
            UnsupportedError: the model has no such layers.
        """
        read = self.recipe.model_copy(update={"heads": tuple(heads)})
        parts = self._further.for_recipe(read, self.backbone)
        if asked_projection(read) is None:  # one that is made is that call's own
            self._further = parts
        return self._changed(heads=heads, parts=parts)

    def with_statistics(self, statistics: frequency.Statistics | None) -> Readout:
        """Return the same readout with the statistics of a corpus."""
        return self._changed(statistics=statistics)

    def with_norms(self, norms: Mapping[tuple[int, ...], sinks.StateNorms]) -> Readout:
        """Return the same readout that knows how long the states of further layers are."""
        return self._changed(norms={**self.norms, **norms})

    def with_backbone(self, backbone: Backbone) -> Readout:
        """Return the same readout over another form of the same network."""
        return self._changed(backbone=backbone)

    def _changed(self, **changes: Any) -> Readout:
        """Return a readout that differs in what is given alone."""
        arguments: dict[str, Any] = {
            "backbone": self.backbone,
            "recipe": self.recipe,
            "parts": self.parts,
            "statistics": self.statistics,
            "heads": [head.options for head in self.heads],
            "trained": self.trained,
            "norms": self.norms,
        }
        return Readout(**{**arguments, **changes})

    # -- facts --------------------------------------------------------------------------------

    @property
    def unfitted(self) -> bool:
        """Whether its recipe reads what is learnt from a corpus, and not all of that was learnt."""
        if not self.pooling.reads_statistics:
            return False
        learnt = self.statistics
        lacks = learnt is not None and learnt.components_KD is None
        return learnt is None or (lacks and self.pooling.remove_components > 0)

    @property
    def layers(self) -> tuple[int, ...]:
        """The hidden states that are read; several are averaged."""
        layer = self.pooling.layer
        chosen = layer if isinstance(layer, tuple) else (layer,)
        return tuple(layer_at(one, self.backbone.layer_count) for one in chosen)

    @property
    def pooled_width(self) -> int:
        """Width of what the pooling gives."""
        return self.backbone.dim * len(kinds_of(self.pooling.kind))

    @property
    def dense_width(self) -> int:
        """Width of a dense vector that is not cut."""
        dense = (head for head in self.heads if head.kind == "dense")
        return next((head.columns(self, 0) for head in dense), self.backbone.dim)

    @property
    def reads_segments(self) -> bool:
        """Whether it asks which segment a token belongs to."""
        overs = [self.pooling.over, *(head.over for head in self.heads)]
        return self.pooling.denoise or any(over not in ("all", None) for over in overs)

    @property
    def stop_words(self) -> str | None:
        """The stop-word list, where a head is restricted to a text's own words; else None."""
        return next((head.stop_words for head in self.heads if head.stop_words is not None), None)

    @cached_property
    def vocabulary_weights(self) -> npt.NDArray[np.float32] | None:
        """The weight of each id of the vocabulary in the pooling; None: all tokens weigh 1."""
        pooling = self.pooling
        if pooling.skip:
            weight_V = np.ones(self.backbone.vocab_size, np.float32)
            weight_V[self.token_ids(pooling.skip)] = 0
            return weight_V
        if pooling.weights == "none":
            return None
        statistics = self.statistics or frequency.zipf(self.backbone.vocab_size)
        return statistics.idf() if pooling.weights == "idf" else statistics.sif(pooling.sif_a)

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        return dict(self.backbone.tokenizer.get_vocab())

    def token_ids(self, tokens: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the ids of those tokens that are in the vocabulary."""
        known = self._vocabulary if tokens else {}
        return np.array(sorted(known[t] for t in tokens if t in known), dtype=np.int64)

    # -- reading ------------------------------------------------------------------------------

    def pooled_tokens(self, states: PackStates) -> Tokens:
        """Return which of a pack's states are pooled."""
        pooling = self.pooling
        return states.tokens(
            pooling.over,
            self.vocabulary_weights,
            weighted_total=pooling.weights == "idf" or bool(pooling.skip),
            places=pooling.boundary == "count_prompt",
        )

    def pool(self, states: PackStates) -> Tensor:
        """Return one vector a text, v_BD, in float32.

        Where the pooling takes the prompt's own state out (`denoise`), the pooled states of the
        prompts without their texts are subtracted (PromptBERT, arXiv:2201.04337, section 3.2).
        """
        tokens = self.pooled_tokens(states)
        v_BD = self._pooled(states.h_TD, tokens, self.kept(states, tokens))
        if self.pooling.empty == "zero":
            nothing_B = put(torch.from_numpy(states.nothing_B(self.pooling.over)), v_BD.device)
            v_BD = v_BD.masked_fill(nothing_B[:, None], 0)
        if states.template is None:
            return v_BD
        return v_BD - self.pool(states.template.states)[states.template.prompt_B]

    def kept(self, states: PackStates, tokens: Tokens) -> Tensor | None:
        """Tell for each pooled token whether it is no sink, (N,); None: all are taken."""
        if self.pooling.exclude_sink == "bos":
            return self.first_left_out(states)
        if not self.pooling.exclude_sink and not self.tells_of_sink:
            return None
        norm_T = states.h_TD.detach().float().norm(dim=-1)
        norm_N = norm_T.index_select(0, tokens.index_N)
        if self.pooling.exclude_sink:
            short_N = torch.le(norm_N, sinks.TIMES * self.norms[self.layers].typical)
            # What is no number is told of, not left out.
            return torch.logical_or(short_N, ~norm_N.isfinite())
        self.tells_of_sink = False  # the first pack tells: its texts' first tokens are in it
        in_mean_N = (tokens.counts_B > 1)[tokens.sequence_N]
        if bool((in_mean_N & (norm_N > sinks.TIMES * norm_T.median())).any()):
            sinks.warn_of_sink(self.backbone.name, self.layers)
        return None

    def first_left_out(self, states: PackStates) -> Tensor | None:
        """Tell for each pooled token whether it is not its row's first; None: all are taken."""
        if self.pooling.exclude_sink != "bos":
            return None
        first_N = states.picked(self.pooling.over).first_N()
        return put(torch.from_numpy(~first_N), states.h_TD.device)

    def _pooled(self, h_TD: Tensor, tokens: Tokens, keep_N: Tensor | None) -> Tensor:
        if self.parts.latent is None or self.pooling.latent is None:
            return pooled(h_TD, tokens, self.pooling.kind, keep_N)
        h_ND = self.parts.latent(h_TD.index_select(0, tokens.index_N))
        every_N = torch.arange(len(h_ND), device=h_ND.device)
        of_latent = replace(tokens, index_N=every_N, whole=True)
        return pooled(h_ND, of_latent, self.pooling.kind, keep_N)

    def read(self, states: PackStates) -> list[Any]:
        """Return the output of every head for a pack's texts, without a gradient."""
        return [head.read(self, states) for head in self.heads]

    def collectors(self, count: int) -> list[Collector]:
        """Return an empty collector for the outputs of each head for `count` texts."""
        return [head.collector(self, count) for head in self.heads]

    def gradient_rows(self, states: PackStates, longest: int) -> Tensor:
        """Return one row a text with what all heads read, one after another, v_BX.

        `longest` is the number of tokens of the batch's longest text.
        """
        return torch.cat([head.gradient_rows(self, states, longest) for head in self.heads], dim=1)

    def columns(self, longest: int) -> dict[str, int]:
        """Return how many columns of a gradient row belong to each head, in their order."""
        return {head.kind: head.columns(self, longest) for head in self.heads}
