"""A model in training: text in, embeddings with gradients out, by the path that `encode` takes.

Shapes: T tokens of a pack, N texts of all packs, R texts of a pack, D width of a vector, V
vocabulary, L longest text in tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from embedlm.backbone import Backbone
from embedlm.embedder import Embedder
from embedlm.encode.plan import Pack, plan
from embedlm.encode.run import pack_states
from embedlm.errors import UnsupportedError
from embedlm.prompt.render import RenderedBatch, Request
from embedlm.schema.recipe import Head
from embedlm.training.devices import largest

__all__ = ["Ask", "Plan", "Student", "modules_of"]


@dataclass(frozen=True, slots=True)
class Ask:
    """Texts of one role that are embedded together."""

    texts: tuple[str, ...]
    role: str | None
    instructions: tuple[str, ...] | None = None
    demonstrations: tuple[tuple[dict[str, str], ...], ...] | None = None
    """Those of each text; None: none of its own."""
    max_length: int | None = None
    adapter: str | None = None
    """Of the switchable adapters; None: the base alone."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a batch's texts are embedded: chunk by chunk, and then put in order."""

    chunks: tuple[Callable[[], Tensor], ...]
    order_N: Tensor
    """Where each text's row is found in the chunks' rows."""
    longest: int
    """Tokens of the longest text of all processes."""


def modules_of(embedder: Embedder) -> nn.ModuleDict:
    """Return all of a model that has parameters, by the part's name."""
    modules = nn.ModuleDict({"backbone": embedder.backbone.network})
    if embedder.backbone.head is not None:
        modules["head"] = embedder.backbone.head
    for name, part in embedder.readout.parts.modules().items():
        modules[name] = part
    return modules


class Student:
    """Embeds with gradients."""

    def __init__(self, embedder: Embedder, heads: Sequence[Head], budget: int) -> None:
        """Take the model to be trained.

        Args:
            embedder: whose network is trained in place.
            heads: what is read out; a vector holds all of them, one after the other.
            budget: tokens of a chunk.

        Raises:
            UnsupportedError: a recipe whose vectors are averages over several prompts.
        """
        if embedder.recipe.transform is not None or len(embedder.renderer.templates(None)) > 1:
            raise UnsupportedError(
                f"recipe {embedder.recipe.name!r} averages several prompts or rewritten texts, "
                "which is not trained; take a recipe with one prompt, such as prompteol"
            )
        embedder.executor.plain()
        self.embedder, self.budget = embedder, budget
        self.readout = embedder.readout.with_heads(heads)
        self.extra = nn.ModuleDict()
        """What learns with the model and is thrown away after the stage."""
        self.denoise = embedder.recipe.pooling.denoise

    @property
    def backbone(self) -> Backbone:
        """The network that is trained."""
        return self.embedder.backbone

    def rebuild(self, **facts: Any) -> None:
        """Take up what was done to the network: it was wrapped by adapters, split, replaced.

        Args:
            **facts: of the backbone, those that differ.
        """
        backbone = self.backbone.rebuilt(**facts)
        self.embedder = self.embedder.with_backbone(backbone)
        self.embedder.executor.plain()
        self.readout = self.readout.with_backbone(backbone)

    def modules(self) -> nn.ModuleDict:
        """Return everything with parameters, by the part's name."""
        modules = modules_of(self.embedder)
        if len(self.extra):
            modules["extra"] = self.extra
        return modules

    def plan(self, asks: Sequence[Ask]) -> Plan:
        """Render texts and return the chunks that embed them, asks after asks in order."""
        chunks: list[Callable[[], Tensor]] = []
        items: list[int] = []
        start = 0
        rendered = [self._render(ask) for ask in asks]
        longest = largest(max(len(ids) for batch in rendered for ids in batch.ids))
        for ask, batch in zip(asks, rendered, strict=True):
            share = self.backbone.packs and self.backbone.causal and not batch.unseen
            # A shared prefix would share its dropout too.
            share = share and not self._drops()
            for pack in plan(batch.ids, self.budget, share=share):
                own = ask.adapter
                chunks.append(lambda b=batch, p=pack, a=own: self._run(b, p, longest, a))  # type: ignore[misc]
                items += [start + item for item in pack.items.tolist()]
            start += len(ask.texts)
        order_N = torch.empty(start, dtype=torch.long)
        order_N[torch.tensor(items)] = torch.arange(start)
        return Plan(tuple(chunks), order_N.to(self.backbone.device), longest)

    def nothing(self) -> Tensor:
        """Run one token and return its state: a process that is done keeps in step."""
        ids = [[int(self.backbone.text_config.vocab_size) - 1]]
        return self.backbone.run(ids)

    def _drops(self) -> bool:
        """Tell whether a forward pass draws random numbers."""
        return any(
            module.training
            and ((isinstance(module, nn.Dropout) and module.p > 0) or _rate(module) > 0)
            for module in self.backbone.network.modules()
        )

    def _render(self, ask: Ask) -> RenderedBatch:
        renderer = self.embedder.renderer
        if ask.demonstrations is None:
            request = Request(ask.role, None, ask.max_length)
            return renderer.render(list(ask.texts), request, ask.instructions)[0]
        whole: RenderedBatch | None = None
        for index, text in enumerate(ask.texts):
            request = Request(ask.role, ask.demonstrations[index], ask.max_length)
            own = None if ask.instructions is None else [ask.instructions[index]]
            one = renderer.render([text], request, own)[0]
            if whole is None:
                whole = one
                continue
            whole.ids += one.ids
            whole.segments += one.segments
            whole.text += one.text
            whole.unseen += one.unseen
        assert whole is not None
        return whole

    def _run(self, batch: RenderedBatch, pack: Pack, longest: int, adapter: str | None) -> Tensor:
        """Return what all heads read from a pack, v_RX."""

        run = partial(self.backbone.run, adapter=adapter)
        states = pack_states(run, self.readout, batch, pack, denoise=self.denoise)
        return self.readout.gradient_rows(states, longest)


def _rate(module: nn.Module) -> float:
    """Return a layer's attention dropout, where it has such."""
    rate = getattr(module, "attention_dropout", 0.0)
    return float(rate) if isinstance(rate, int | float) else 0.0
