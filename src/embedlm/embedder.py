"""The façade: text in, vectors out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt
import torch

from embedlm.backbone import Backbone
from embedlm.backbone.adapters import check_adapter
from embedlm.encode.engine import Engine
from embedlm.encode.executor import Executor
from embedlm.encode.inputs import (
    check_demonstrations,
    check_instructions,
    check_lead,
    check_texts,
)
from embedlm.encode.items import Item, Part, Share
from embedlm.encode.options import AUTO, Options
from embedlm.encode.precision import finish_vectors
from embedlm.errors import InputError
from embedlm.jobs.progress import progress
from embedlm.prompt.lead import with_lead
from embedlm.prompt.render import RenderedBatch, Renderer, Request
from embedlm.readout import Embeddings, PackStates, Readout, frequency
from embedlm.readout.embeddings import scores
from embedlm.readout.heads import requested_heads
from embedlm.schema.recipe import Recipe

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Embedder"]

Array = npt.NDArray[Any]
Instructions = str | Sequence[str] | None
Demonstrations = Sequence[Mapping[str, str]] | None
Names = Sequence[str] | None
_STREAM_WINDOW = 4096


class Embedder:
    """A language model and a recipe: encodes texts into vectors.

    Made by `embedlm.load`. `encode` takes sentence-transformers' spellings too.
    """

    def __init__(
        self, readout: Readout, executor: Executor, *, name: str, generator: Any = None
    ) -> None:
        """Join a readout with the prompt of its recipe.

        Args:
            readout: the network, the recipe and the checkpoint's layers.
            executor: runs that network.
            name: what the model is called in messages and cards: a folder or hub id.
            generator: writes the texts that a recipe such as geneol rewrites; None: the model.
        """
        self.readout, self.executor = readout, executor
        self.name, self.generator = name, generator
        self.renderer = Renderer(
            readout.backbone.tokenizer,
            readout.recipe.prompt,
            boundary=readout.pooling.boundary,
            limit=readout.backbone.max_positions,
            positions=readout.backbone.positions,
        )

    def with_recipe(self, recipe: Any) -> Embedder:
        """Return an embedder of the same network by another recipe.

        Weights, statistics and generator stay; layers that only the new recipe reads are loaded.

        Args:
            recipe: a name, path, mapping or `Recipe`.

        Raises:
            UnsupportedError: the recipe wants the network itself otherwise (its attention, sliding
                windows, adapters); load the model with it.
        """
        return self._with(self.readout.with_recipe(Recipe.load(recipe)), self.executor)

    def with_backbone(self, backbone: Backbone) -> Embedder:
        """Return an embedder by the same recipe over another form of the network (in training)."""
        return self._with(self.readout.with_backbone(backbone), Executor(backbone))

    def _with(self, readout: Readout, executor: Executor) -> Embedder:
        return Embedder(readout, executor, name=self.name, generator=self.generator)

    # -- facts --------------------------------------------------------------------------------

    @property
    def recipe(self) -> Recipe:
        """How the model is prompted and read."""
        return self.readout.recipe

    @property
    def backbone(self) -> Backbone:
        """The network."""
        return self.readout.backbone

    tokenizer = property(lambda self: self.backbone.tokenizer, doc="The transformers tokenizer.")
    device = property(lambda self: self.backbone.device, doc="Where the network is.")

    @property
    def dim(self) -> int:
        """Width of a dense vector, unless a call says another."""
        return self.recipe.dim or self.readout.dense_width

    @property
    def max_length(self) -> int | None:
        """Tokens that a rendered text may have; None: no limit."""
        return self.renderer.max_length(None)

    max_seq_length = max_length
    similarity_fn_name = property(lambda self: self.recipe.similarity)

    def get_sentence_embedding_dimension(self) -> int:
        """Return the width of a dense vector (sentence-transformers' name)."""
        return self.dim

    get_embedding_dimension = get_sentence_embedding_dimension

    def __repr__(self) -> str:
        return (
            f"Embedder({self.name!r}, recipe={self.recipe.name!r}, dim={self.dim}, "
            f"attention={'causal' if self.backbone.causal else 'bidirectional'}, "
            f"{self.backbone.implementation}, {self.device}, {self.backbone.dtype})"
        )

    # -- rendering ----------------------------------------------------------------------------

    def render(
        self,
        texts: Any,
        role: str | None = None,
        instruction: Instructions = None,
        demonstrations: Demonstrations = None,
        *,
        max_length: int | None = None,
    ) -> RenderedBatch | list[RenderedBatch]:
        """Return what the model will see: ids, segments, text; a list where prompts are several."""
        checked = check_texts(texts)
        request = Request(role, check_demonstrations(demonstrations), max_length)
        instructions = check_instructions(instruction, len(checked))
        batches = self.renderer.render(checked.texts, request, instructions)
        return batches if len(batches) > 1 else batches[0]

    # -- encoding -----------------------------------------------------------------------------

    @overload
    def encode(
        self, texts: Any, role: Any = ..., *, convert_to_tensor: Literal[True], **options: Any
    ) -> torch.Tensor: ...

    @overload
    def encode(
        self,
        texts: Any,
        role: str | None = ...,
        instruction: Instructions = ...,
        demonstrations: Demonstrations = ...,
        heads: Literal["dense"] | None = ...,
        **options: Any,
    ) -> Array: ...

    @overload
    def encode(self, texts: Any, role: str | None = ..., *, heads: Any, **options: Any) -> Any: ...

    def encode(
        self,
        texts: Any,
        role: str | None = None,
        instruction: Instructions = None,
        demonstrations: Demonstrations = None,
        heads: Any = None,
        dim: int | None = None,
        precision: str | None = "float32",
        normalize: bool | None = None,
        batch_tokens: int | None = None,
        show_progress: bool | None = None,
        *,
        max_length: int | None = None,
        adapter: str | None = AUTO,
        **spellings: Any,
    ) -> Any:
        """Return vectors of texts, in their order.

        Args:
            texts: a string (one vector, 1-D), or a list of strings, of `{"text": ...}`, or of rows
                of token ids, which are run as they are.
            role: None, "query", "document" or a name the recipe defines.
            instruction: one string or one per text; None takes the recipe's, "" means none.
            demonstrations: list of `{"instruct": ..., "query": ..., "response": ...}`.
            heads: names or `{name: options}`; None takes the recipe's.
            dim: truncate to this width, then renormalise if normalised; None takes the recipe's.
            precision: float32, float16, int8, uint8, binary or ubinary.
            normalize: None takes the recipe's.
            batch_tokens: tokens run at once.
            show_progress: None shows a bar for long jobs on a terminal.
            max_length: in tokens; shortens the text, not the prompt.
            adapter: a switchable adapter's name, or None for the base alone; "auto" takes the one
                that the recipe gives the role.
            **spellings: sentence-transformers' names: show_progress_bar, normalize_embeddings,
                prompt_name, truncate_dim, prompt (in place of the recipe's), convert_to_tensor;
                convert_to_numpy, batch_size and device are taken and change nothing.

        Returns:
            One dense head: an array (n, dim), or (dim,) for a single string. Anything else:
            `Embeddings`. A type checker takes the recipe for one with a dense head alone where
            `heads` is not given.

        Raises:
            InputError: texts or options that cannot be used.
        """
        options = Options.of(
            spellings,
            role=role,
            instruction=instruction,
            demonstrations=check_demonstrations(demonstrations),
            heads=heads,
            dim=dim,
            precision=precision,
            normalize=normalize,
            batch_tokens=batch_tokens,
            show_progress=show_progress,
            max_length=max_length,
            adapter=adapter,
        )
        checked = check_texts(texts, ids=True)
        outputs = self._encode(checked.parts, options)
        if isinstance(outputs, Embeddings):
            return outputs
        vectors = outputs[0] if checked.single else outputs
        return torch.from_numpy(vectors) if options.as_tensor else vectors

    def encode_query(self, texts: Any, **options: Any) -> Any:
        """Encode with role "query"."""
        return self.encode(texts, **{"role": "query", **options})

    def encode_document(self, texts: Any, **options: Any) -> Any:
        """Encode with role "document"."""
        return self.encode(texts, **{"role": "document", **options})

    def stream(self, texts: Iterable[Any], **options: Any) -> Iterator[Any]:
        """Yield the vectors of an iterable one by one, in order and with bounded memory."""
        if isinstance(texts, str | Mapping):
            raise InputError("texts is a single text; give an iterable of texts, or call encode")
        source = iter(texts)
        while window := list(islice(source, _STREAM_WINDOW)):
            yield from self.encode(window, **options)

    def _encode(self, parts: Sequence[Part], options: Options) -> Any:
        readout = self._readout(options.heads, options.role)
        request = Request(options.role, options.demonstrations, options.max_length)
        checked = check_instructions(options.instruction, len(parts))
        instructions: Sequence[str | None] = checked or [None] * len(parts)
        items = [Item(part, one) for part, one in zip(parts, instructions, strict=True)]
        number = {item: index for index, item in enumerate(dict.fromkeys(items))}
        shares = self._shares(list(number), options.show_progress)
        budget, adapter = self.executor.budget(options.batch_tokens), self._adapter(options)
        renderer = with_lead(self.renderer, check_lead(options.lead, parts), options.role)
        engine = Engine(self.executor, renderer, readout, budget, adapter)
        with progress(options.show_progress, len(shares)) as bar:
            collectors = engine.run(shares, len(number), request, bar)
        order_n = np.array([number[item] for item in items], dtype=np.int64)
        outputs = {
            head.kind: collector.value(order_n)
            for head, collector in zip(readout.heads, collectors, strict=True)
        }
        return self._finish(outputs, options)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the switchable adapters."""
        loaded = self.backbone.adapters
        return () if loaded is None else loaded.names

    def _adapter(self, options: Options) -> str | None:
        """Return the adapter that serves a call."""
        if options.adapter != AUTO:
            check_adapter(self.backbone.adapters, options.adapter)
            return options.adapter
        roles = self.recipe.backbone.adapter_roles
        name = roles.get(options.role or "default", options.role)
        if name in self.adapters:
            return name
        return self.adapters[0] if len(self.adapters) == 1 and not roles else None

    def _readout(self, heads: Any, role: str | None) -> Readout:
        """Return the readout with the heads that a call asks for."""
        several = self.recipe.transform is not None or len(self.renderer.templates(role)) > 1
        chosen = requested_heads(heads, self.recipe, several=several, trained=self.readout.trained)
        return self.readout if heads is None else self.readout.with_heads(chosen)

    def _shares(self, items: list[Item], show_progress: bool | None) -> list[Share]:
        """Return the items, or all variants of each where the recipe rewrites texts."""
        if self.recipe.transform is None:
            return [Share(item, index) for index, item in enumerate(items)]
        from embedlm.transform import transform_items

        writer = self.generator or self
        return transform_items(items, self.recipe.transform, writer, show_progress=show_progress)

    def vectors_of(self, states: PackStates) -> Array:
        """Return the dense vectors, (n, dim), of token states that were run elsewhere."""
        dense = requested_heads("dense", self.recipe, several=False)
        (v_nD,) = self.readout.with_heads(dense).read(states)
        return finish_vectors(v_nD.cpu().numpy(), self.recipe, self.readout.statistics, Options())

    def _finish(self, outputs: dict[str, Any], options: Options) -> Any:
        """Return what a call asks for: dense vectors in its width, length and precision."""
        if "dense" in outputs:
            vectors, statistics = outputs["dense"], self.readout.statistics
            outputs["dense"] = finish_vectors(vectors, self.recipe, statistics, options)
        return outputs["dense"] if list(outputs) == ["dense"] else Embeddings(**outputs)

    # -- corpus statistics --------------------------------------------------------------------

    def fit(self, texts: Iterable[Any]) -> Embedder:
        """Learn token frequencies and common components from a corpus (static-tfidf, static-sif).

        Unfitted, the frequency of a token is taken from its rank in the vocabulary (Zipf's law).
        Returns the embedder itself.
        """
        texts = check_texts(texts).texts
        if not texts:
            raise InputError("fit needs at least one text")
        rows = (self.renderer.render([text], Request(), segments=False)[0].ids[0] for text in texts)
        statistics = frequency.count(rows, self.backbone.vocab_size)
        self.readout = self.readout.with_statistics(statistics)
        if self.recipe.pooling.remove_components:
            vectors = self.encode(texts, normalize=False, show_progress=False)
            statistics = statistics.with_components(vectors, self.recipe.pooling.remove_components)
            self.readout = self.readout.with_statistics(statistics)
        return self

    # -- scores -------------------------------------------------------------------------------

    def similarity(
        self, a: Any, b: Any, heads: Names = None, weights: Sequence[float] | None = None
    ) -> npt.NDArray[np.float32]:
        """Return the scores of every a with every b, (n, m).

        Cosine or dot for dense, dot for sparse, MaxSim for multi-vector, or their weighted sum.
        """
        return scores(a, b, heads, weights, recipe=self.recipe, pairwise=False)

    def similarity_pairwise(
        self, a: Any, b: Any, heads: Names = None, weights: Sequence[float] | None = None
    ) -> npt.NDArray[np.float32]:
        """Return the scores of a[i] with b[i], (n,)."""
        return scores(a, b, heads, weights, recipe=self.recipe, pairwise=True)

    # -- saving -------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, **card: Any) -> None:
        """Save a model for `load`, and for sentence-transformers where it can express the method.

        Args:
            folder: new, empty, or that of a model, which is replaced.
            **card: license (an identifier of the hub), base_model, scores (numbers by task).
        """
        from embedlm.persistence import Card, save

        save(self, Path(folder), Card(**card))

    def as_sentence_transformer(self) -> SentenceTransformer:
        """Return a SentenceTransformer around this model, with the same weights and vectors."""
        from embedlm.interop.sentence_transformers import bridge

        return bridge(self)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle or a copy holds."""
        self.executor.unpack()
        return self.__dict__

    def push_to_hub(self, repo: str, **options: Any) -> str:
        """Save the model to a repository of the Hugging Face hub and return its address.

        Args:
            repo: "owner/name"; created if it is not there.
            **options: private, token, revision and message; and those of `save_pretrained`.

        Raises:
            ModelError: the hub cannot be reached, or refuses.
        """
        from embedlm.persistence import push

        return push(self, repo, **options)
