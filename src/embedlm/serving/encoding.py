"""What requests ask of a model, in a form in which like requests run together."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from embedlm.embedder import Embedder
from embedlm.encode.inputs import check_demonstrations
from embedlm.encode.items import Item as EncodeItem
from embedlm.encode.items import Pictured
from embedlm.encode.options import AUTO
from embedlm.encode.rendered import Rendered, rendered
from embedlm.encode.shown import shown_prompts
from embedlm.prompt.render import RenderedBatch, Renderer, Request
from embedlm.readout import Embeddings, Readout
from embedlm.rerank import Reranker
from embedlm.serving.failures import TooLongError
from embedlm.serving.pictures import measured

__all__ = ["Encoding", "Item", "Output", "Prepared", "Ranking", "Served", "Text"]

_EACH = 16
"""Characters that take as long as what is done for each text, however short."""

Text = str | Rendered | Pictured | tuple[int, ...]
"""A text, one that is rendered, an image, or a row of token ids of the model's own."""
Item = tuple[Text, str | None]
"""What is embedded, with its instruction; None: the recipe's."""
Output = dict[str, Any]
"""Of one text: a vector, a pair of term ids and weights, or a matrix, by head."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is known of texts before they are run."""

    items: Sequence[Item]
    """To be run."""
    tokens: list[int]
    """Of each, prompt and all."""
    truncated: list[int]
    """Which were shortened."""


@dataclass(frozen=True, eq=False)
class Served:
    """A model under a name."""

    name: str
    model: Any

    @cached_property
    def places(self) -> dict[str, str]:
        """What the library's errors call it, and how it is called here; see `failures.called`."""
        parts = [self.model, *getattr(self.model, "routes", {}).values()]
        names = {name for one in parts for name in (one.name, getattr(one, "backbone", one).name)}
        return dict.fromkeys(names, self.name)

    @cached_property
    def states(self) -> Embedder:
        """The same network, read token by token."""
        whole = {"multi_vector": {"over": "all", "normalize": False, "projection": "none"}}
        return self.model.with_recipe(self.model.recipe.override({"heads": [whole]}))  # type: ignore[no-any-return]

    @cached_property
    def reads_segments(self) -> Callable[[bool, str | None, str | None], bool]:
        """Tells whether states, heads and a role ask which segment a token belongs to."""

        @lru_cache(maxsize=64)
        def reads(states: bool, heads: str | None, role: str | None) -> bool:
            asked = Encoding(served=self, states=states, heads=heads, role=role)
            return asked._readout.reads_segments

        return reads


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """What a request asks of a model; requests with equal ones run together."""

    served: Served
    role: str | None = None
    demonstrations: str | None = None
    """As JSON; None: the recipe's."""
    heads: str | None = None
    """As JSON; None: the recipe's."""
    dim: int | None = None
    precision: str = "float32"
    normalize: bool | None = None
    max_length: int | None = None
    adapter: str | None = AUTO
    states: bool = False
    """Whether the last layer's states of all tokens are wanted, in place of the heads'."""
    instructed: bool = False
    """Whether the items bring instructions of their own."""
    ids: bool = False
    """Whether the items are rows of token ids."""
    pictured: bool = False
    """Whether there are images among the items."""

    @property
    def embedder(self) -> Embedder:
        """What runs."""
        model: Embedder = self.served.states if self.states else self.served.model
        return model

    @property
    def renderer(self) -> Renderer:
        """What renders texts of its role."""
        return self.embedder.route(self.role).renderer

    def prepare(
        self, items: Sequence[Item], *, truncate: bool, instead: str = "shorten it"
    ) -> Prepared:
        """Render texts, count their tokens, and find what would be shortened.

        Args:
            items: what is embedded.
            truncate: whether texts that are too long are shortened.
            instead: what the caller can do where they are not.

        Raises:
            TooLongError: a text is longer than the model reads, and `truncate` is false.
            InputError: texts, images or options that cannot be used.
        """
        if self.pictured:
            return self._with_images(items, truncate=truncate, instead=instead)
        if self.ids:
            return Prepared(items, [len(text) for text, _ in items if isinstance(text, tuple)], [])
        found = rendered(
            self.renderer,
            [text for text, _ in items],
            self.role,
            self._instructions(items),
            self._demonstrations(),
            max_length=self.max_length,
            segments=self.served.reads_segments(self.states, self.heads, self.role),
        )
        truncated = [index for index, one in enumerate(found) if one.truncated]
        if truncated and not truncate:
            raise TooLongError(f"{self._too_long(truncated, found)}; {instead}")
        ready = [(one, instruction) for one, (_, instruction) in zip(found, items, strict=True)]
        return Prepared(ready, [one.tokens for one in found], truncated)

    def _with_images(self, items: Sequence[Item], *, truncate: bool, instead: str) -> Prepared:
        """Return what `prepare` does, for items some of which have images."""
        ready, tokens, cut = list(items), [0] * len(items), []
        places = [i for i, (one, _) in enumerate(items) if not isinstance(one, Pictured)]
        if places:
            words = replace(self, pictured=False)
            found = words.prepare([items[i] for i in places], truncate=True)
            for place, item, count in zip(places, found.items, found.tokens, strict=True):
                ready[place], tokens[place] = item, count
            cut = [places[one] for one in found.truncated]
        request = Request(self.role, check_demonstrations(self._demonstrations()), self.max_length)
        model = self.embedder.route(self.role)
        for place, (one, instruction) in enumerate(items):
            if isinstance(one, Pictured):
                own = (instruction or "") if self.instructed else None
                tokens[place], shortened = measured(model, EncodeItem(one, own), request)
                cut += [place] if shortened else []
        if cut and not truncate:
            raise TooLongError(
                f"input {min(cut)} is too long for the model {self.served.name!r}; {instead}"
            )
        return Prepared(ready, tokens, sorted(cut))

    def length(self, items: Sequence[Item]) -> int:
        """Return about how many characters `prepare` reads, an item being some at least."""
        asked = len(items) * (_EACH + len(self.demonstrations or ""))
        texts = sum(len(text) for text, _ in items if isinstance(text, str))
        if self.pictured:
            texts += sum(text.cost for text, _ in items if isinstance(text, Pictured))
        return asked + texts + sum(len(text) for _, text in items if text)

    def shown(self, items: Sequence[Item]) -> list[list[dict[str, Any]]]:
        """Return for each text its prompts, as `embedlm render` shows them.

        Raises:
            InputError: texts or options that cannot be used.
        """
        return shown_prompts(self._rendered(items), self._readout, self.role)

    def _rendered(self, items: Sequence[Item]) -> RenderedBatch | list[RenderedBatch]:
        return self.embedder.render(
            [text for text, _ in items],
            self.role,
            self._instructions(items),
            self._demonstrations(),
            max_length=self.max_length,
        )

    @property
    def _readout(self) -> Readout:
        heads = None if self.heads is None else json.loads(self.heads)
        return self.embedder.readout_of(heads, self.role)

    def _too_long(self, truncated: Sequence[int], found: Sequence[Rendered]) -> str:
        first = truncated[0]
        more = f" (and {len(truncated) - 1} more)" if len(truncated) > 1 else ""
        return (
            f"input {first}{more} is too long for the model {self.served.name!r}, which reads "
            f"{found[first].kept} tokens of it, prompt and all"
        )

    def run(self, items: Sequence[Item]) -> list[Output]:
        """Return the outputs of items, each by head."""
        found: Any = self.embedder.encode(  # type: ignore[call-overload, misc]  # too many unions
            [text for text, _ in items],
            self.role,
            self._instructions(items),
            self._demonstrations(),
            None if self.heads is None else json.loads(self.heads),
            self.dim,
            self.precision,
            self.normalize,
            max_length=self.max_length,
            adapter=self.adapter,
            show_progress=False,
        )
        if not isinstance(found, Embeddings):
            return [{"dense": row} for row in np.asarray(found)]
        return [
            {head: _row(found[head], index) for head in found.heads} for index in range(len(items))
        ]

    def _instructions(self, items: Sequence[Item]) -> list[str] | None:
        return [text or "" for _, text in items] if self.instructed else None

    def _demonstrations(self) -> Any:
        return None if self.demonstrations is None else json.loads(self.demonstrations)


def _row(values: Any, index: int) -> npt.NDArray[Any] | tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return one text's output: a vector, a matrix, or the ids and weights of its terms."""
    if isinstance(values, csr_matrix):
        start, stop = values.indptr[index : index + 2]
        return values.indices[start:stop], values.data[start:stop]
    return np.asarray(values[index])


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Pairs to be scored; requests with equal ones run together."""

    served: Served
    instruction: str | None = None
    probability: bool | None = None

    def run(self, items: Sequence[tuple[str, str]]) -> list[float]:
        """Return the score of each (query, document)."""
        reranker: Reranker = self.served.model
        found = reranker.predict(
            list(items), instruction=self.instruction, probability=self.probability
        )
        return [float(score) for score in np.atleast_1d(found)]
