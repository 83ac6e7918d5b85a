"""A model in training: it embeds texts with gradients, by the same path as `encode`.

Shapes: N texts of all packs, R texts of one pack, X columns of all heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from embedlm.backbone import Backbone
from embedlm.embedder import Embedder
from embedlm.encode.plan import Pack, plan
from embedlm.encode.run import pack_states
from embedlm.errors import UnsupportedError
from embedlm.prompt.render import RenderedBatch, Request
from embedlm.readout.term_weights import text_token_ids
from embedlm.schema.recipe import Head
from embedlm.training.devices import max_over_processes

__all__ = ["EmbeddingPlan", "TextRequest", "TrainableEmbedder", "dropout_rates", "modules_of"]


@dataclass(frozen=True, slots=True)
class TextRequest:
    """Texts of one role that are embedded together."""

    texts: tuple[str, ...]
    role: str | None
    instructions: tuple[str, ...] | None = None
    """One instruction for each text; None takes the recipe's."""
    demonstrations: tuple[tuple[dict[str, str], ...], ...] | None = None
    """Few-shot examples for each text; None takes the recipe's."""
    max_length: int | None = None
    """Longest text in tokens; None takes the recipe's limit."""
    adapter: str | None = None
    """Name of the switchable adapter that embeds these texts; None runs the base without one."""


@dataclass(frozen=True, slots=True)
class EmbeddingPlan:
    """The chunks that embed a batch's texts, and how to restore the order of the texts."""

    chunks: tuple[Callable[[], Tensor], ...]
    order_N: Tensor
    """Position of each text's row in the concatenated output of all chunks."""
    longest: int
    """Length in tokens of the longest text in any process."""


def modules_of(embedder: Embedder) -> nn.ModuleDict:
    """Return all modules of a model that have parameters, under the name of their part."""
    modules = nn.ModuleDict({"backbone": embedder.backbone.network})
    if embedder.backbone.head is not None:
        modules["head"] = embedder.backbone.head
    for name, part in embedder.readout.parts.modules().items():
        modules[name] = part
    return modules


class TrainableEmbedder:
    """An embedder whose vectors carry gradients."""

    def __init__(self, embedder: Embedder, heads: Sequence[Head], budget: int) -> None:
        """Prepare an embedder for training.

        Args:
            embedder: the model; its network is trained in place.
            heads: the heads to read out; one row holds the output of all of them, side by side.
            budget: tokens in a chunk.

        Raises:
            UnsupportedError: the recipe averages vectors over several prompts.
        """
        if embedder.recipe.transform is not None or len(embedder.renderer.templates(None)) > 1:
            raise UnsupportedError(
                f"recipe {embedder.recipe.name!r} averages several prompts or rewritten texts and "
                "cannot be trained; choose a recipe with one prompt, such as prompteol"
            )
        embedder.executor.plain()
        self.embedder, self.budget = embedder, budget
        self.heads = tuple(heads)
        self.readout = embedder.readout.with_heads(heads)
        self.extra = nn.ModuleDict()
        """Modules that are trained with the model and discarded after the stage."""
        self.denoise = embedder.recipe.pooling.denoise

    @property
    def backbone(self) -> Backbone:
        """The network that is trained."""
        return self.embedder.backbone

    def rebuild(self, **changes: Any) -> None:
        """Rebuild the embedder after its network was wrapped by adapters, sharded or replaced.

        Args:
            **changes: attributes of the backbone that have new values.
        """
        backbone = self.backbone.rebuilt(**changes)
        self.embedder = self.embedder.with_backbone(backbone)
        self.embedder.executor.plain()
        self.readout = self.readout.with_backbone(backbone)

    def modules(self) -> nn.ModuleDict:
        """Return all modules that have parameters, under the name of their part."""
        modules = modules_of(self.embedder)
        if len(self.extra):
            modules["extra"] = self.extra
        return modules

    def plan_chunks(self, requests: Sequence[TextRequest]) -> EmbeddingPlan:
        """Render the texts of all requests, in order, and return the chunks that embed them."""
        chunks: list[Callable[[], Tensor]] = []
        items: list[int] = []
        start = 0
        rendered = [self._render(request) for request in requests]
        longest = max_over_processes(max(len(ids) for batch in rendered for ids in batch.ids))
        for request, batch in zip(requests, rendered, strict=True):
            share = self.backbone.shares_prefixes and not batch.unseen
            # A shared prefix would share its dropout too.
            share = share and not self._has_dropout()
            words = self._words(request)
            for pack in plan(batch.ids, self.budget, share=share):
                chunks.append(partial(self._run, batch, pack, longest, request, words))
                items += [start + item for item in pack.items.tolist()]
            start += len(request.texts)
        order_N = torch.empty(start, dtype=torch.long)
        order_N[torch.tensor(items)] = torch.arange(start)
        return EmbeddingPlan(tuple(chunks), order_N.to(self.backbone.device), longest)

    def run_idle(self) -> Tensor:
        """Run one token: a process without further chunks must keep in step with the others."""
        ids = [[int(self.backbone.text_config.vocab_size) - 1]]
        return self.backbone.run(ids)

    def _has_dropout(self) -> bool:
        """Tell whether a forward pass draws random numbers."""
        return any(
            module.training
            and (
                (isinstance(module, nn.Dropout) and module.p > 0)
                or any(rate > 0 for rate in dropout_rates(module).values())
            )
            for module in self.backbone.network.modules()
        )

    def _render(self, request: TextRequest) -> RenderedBatch:
        renderer = self.embedder.renderer
        if request.demonstrations is None:
            options = Request(request.role, None, request.max_length)
            return renderer.render(list(request.texts), options, request.instructions)[0]
        whole: RenderedBatch | None = None
        for index, text in enumerate(request.texts):
            options = Request(request.role, request.demonstrations[index], request.max_length)
            instruction = None if request.instructions is None else [request.instructions[index]]
            single = renderer.render([text], options, instruction)[0]
            if whole is None:
                whole = single
                continue
            whole.ids += single.ids
            whole.segments += single.segments
            whole.text += single.text
            whole.unseen += single.unseen
        assert whole is not None
        return whole

    def _words(self, request: TextRequest) -> list[npt.NDArray[np.int64]] | None:
        """Return the vocabulary ids of each text's own words, where a head is bound to them."""
        stop_words = self.readout.stop_words
        if stop_words is None:
            return None
        return text_token_ids(list(request.texts), self.backbone.tokenizer, stop_words)

    def _run(
        self,
        batch: RenderedBatch,
        pack: Pack,
        longest: int,
        request: TextRequest,
        words: list[npt.NDArray[np.int64]] | None,
    ) -> Tensor:
        """Return the output of all heads for the texts of a pack, v_RX."""
        run = partial(self.backbone.run, adapter=request.adapter)
        how: dict[str, Any] = {"role": request.role, "denoise": self.denoise, "words": words}
        states = pack_states(run, self.readout, batch, pack, **how)
        return self.readout.gradient_rows(states, longest)


def dropout_rates(module: nn.Module) -> dict[str, float]:
    """Return the rates of dropout that a layer holds as numbers, by the names of its attributes."""
    return {
        name: value
        for name, value in vars(module).items()
        if "dropout" in name and isinstance(value, float)
    }
