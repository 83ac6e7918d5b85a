"""The models that a server has: by name, with their adapters."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from embedlm.embedder import Embedder
from embedlm.encode.options import AUTO
from embedlm.encode.prefix_cache import Counts
from embedlm.errors import InputError, closest
from embedlm.rerank import Reranker
from embedlm.serving.encoding import Served
from embedlm.serving.failures import UnknownNameError

__all__ = ["Models", "check_names", "short_name"]

_WINDOW = 4
"""Packs that are planned together."""


@dataclass(slots=True)
class Models:
    """All that are served, by name; the first of a kind answers where a request names none."""

    embedders: dict[str, Served] = field(default_factory=dict)
    rerankers: dict[str, Served] = field(default_factory=dict)

    @classmethod
    def of(cls, models: Mapping[str, Embedder | Reranker]) -> Models:
        """Return loaded models as served ones."""
        found = cls()
        for name, model in models.items():
            kind = found.rerankers if isinstance(model, Reranker) else found.embedders
            kind[name] = Served(name, model)
        return found

    @property
    def names(self) -> list[str]:
        """What requests may name: models, and models with an adapter."""
        with_adapters = [
            f"{served.name}:{adapter}"
            for served in self.embedders.values()
            for adapter in served.model.adapters
        ]
        return [*self.embedders, *with_adapters, *self.rerankers]

    @property
    def pack(self) -> int:
        """Tokens that run at once."""
        executors = [served.model.executor for served in self.embedders.values()]
        return max((executor.budget() for executor in executors), default=1536)

    @property
    def budget(self) -> int:
        """Tokens that a batch may have, so that packs are full and texts are sorted in it."""
        return _WINDOW * self.pack

    def add(self, served: Served) -> Served:
        """Serve another embedder, and return it as it is called: with a number after a taken name.

        The folders of two models may end in the same word.
        """
        named = (
            f"{served.name}-{count}" if count > 1 else served.name for count in itertools.count(1)
        )
        name = next(one for one in named if one not in self.names)
        self.embedders[name] = served if name == served.name else replace(served, name=name)
        return self.embedders[name]

    def keep_prefixes(self, limit: int) -> None:
        """Keep up to `limit` bytes of the prefixes of requests, for each model."""
        for served in self.embedders.values():
            served.model.executor.keep_prefixes(limit)

    def prefix_counts(self) -> dict[str, Counts]:
        """Return what the caches of prefixes have done, of the models that have one."""
        caches = {name: one.model.executor.prefixes for name, one in self.embedders.items()}
        return {name: cache.counts for name, cache in caches.items() if cache is not None}

    def embedder(self, name: str | None) -> tuple[Served, str | None]:
        """Return the model that a name stands for, and the adapter that it asks for.

        Raises:
            UnknownNameError: no such model, or it is no embedder.
        """
        if name is None and self.embedders:
            return next(iter(self.embedders.values())), AUTO
        if name in self.embedders:
            return self.embedders[name], AUTO
        base, sign, adapter = (name or "").rpartition(":")
        if sign and base in self.embedders and adapter in self.embedders[base].model.adapters:
            return self.embedders[base], adapter
        raise UnknownNameError(self._unknown(name, "embeds", "re-ranks", self.rerankers))

    def reranker(self, name: str | None) -> Served:
        """Return the re-ranker that a name stands for.

        Raises:
            UnknownNameError: no such model, or it is no re-ranker.
        """
        if name is None and self.rerankers:
            return next(iter(self.rerankers.values()))
        if name in self.rerankers:
            return self.rerankers[name]
        raise UnknownNameError(self._unknown(name, "re-ranks", "embeds", self.embedders))

    def _unknown(self, name: str | None, does: str, other: str, others: Mapping[str, Any]) -> str:
        listed = ", ".join(self.names)
        if name is None:
            return f"no model that {does} is served here; there are: {listed}"
        if name in others:
            return f"the model {name!r} {other}; one that {does} is needed. Served: {listed}"
        return f"the model {name!r} is not served; allowed: {listed}.{closest(name, self.names)}"


def short_name(model: str) -> str:
    """Return what a model is called: a hub id as it stands, a folder or file by its last part."""
    path = Path(model)
    return path.resolve().name if path.exists() else model


def check_names(names: Sequence[str]) -> None:
    """Refuse two models of one name.

    Raises:
        InputError: names it.
    """
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two models are called {name!r}; give one another name: NAME={name}")
