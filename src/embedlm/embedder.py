"""The façade: text in, vectors out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt
import torch

from embedlm.backbone import Backbone
from embedlm.encode.call import (
    Gathered,
    adapter_names,
    check_finite,
    items_of,
    order_of,
    run_shares,
    serving_adapter,
    token_statistics,
)
from embedlm.encode.engine import Engine
from embedlm.encode.executor import Executor
from embedlm.encode.inputs import (
    check_demonstrations,
    check_instructions,
    check_lead,
    check_texts,
)
from embedlm.encode.items import Item, Part, Share
from embedlm.encode.options import AUTO, UNSET, Options, texts_of
from embedlm.encode.precision import RANGE_OPTIONS, finish_vectors, fitted_ranges, vector_form
from embedlm.encode.roles import Roles
from embedlm.errors import InputError
from embedlm.persistence.saving import Saving
from embedlm.prompt.lead import with_lead
from embedlm.prompt.render import RenderedBatch, Renderer, Request
from embedlm.readout import Embeddings, PackStates, Readout
from embedlm.readout.embeddings import scores
from embedlm.readout.heads import requested_heads
from embedlm.readout.quantized import Ranges
from embedlm.schema.arguments import check_arguments, check_names
from embedlm.schema.recipe import Recipe

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Embedder"]

Array = npt.NDArray[Any]
Instructions = str | Sequence[str] | None
Demonstrations = Sequence[Mapping[str, str]] | None
Names = Sequence[str] | None
_STREAM_WINDOW = 4096


class Embedder(Saving, Roles):
    """A language model and a recipe: encodes texts into vectors.

    Made by `embedlm.load`. `encode` takes sentence-transformers' spellings too.
    """

    def __init__(
        self,
        readout: Readout,
        executor: Executor,
        *,
        name: str,
        generator: Any = None,
        ranges: Ranges | None = None,
        routes: Mapping[str | None, Embedder] | None = None,
    ) -> None:
        """Join a readout with the prompt of its recipe.

        Args:
            readout: the network, the recipe and the checkpoint's layers.
            executor: runs that network.
            name: what the model is called in messages and cards: a folder or hub id.
            generator: writes the texts that a recipe such as geneol rewrites; None: the model.
            ranges: of int8 and uint8 vectors, see `fit_ranges`.
            routes: what reads the texts of each role, where that is not this one.
        """
        self.ranges, self.routes = ranges or Ranges(), routes or {}
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

        Weights, token statistics and generator stay; layers that only it reads are loaded.

        Args:
            recipe: a name, path, mapping or `Recipe`.

        Raises:
            UnsupportedError: the recipe wants the network itself otherwise (its attention, sliding
                windows, adapters); load the model with it.
        """
        self.check_one_route("read by another recipe")
        limit = self.backbone.max_positions if isinstance(recipe, str) else None
        readout = self.readout.with_recipe(Recipe.load(recipe).within(limit))
        same = readout.recipe.gives_vectors_of(self.recipe)
        return self._with(readout, self.executor, self.ranges if same else None)

    def with_backbone(self, backbone: Backbone) -> Embedder:
        """Return one by the same recipe over another form of the network, without its ranges."""
        self.check_one_route("changed")
        return self._with(self.readout.with_backbone(backbone), Executor(backbone))

    def _with(self, readout: Readout, executor: Executor, ranges: Ranges | None = None) -> Embedder:
        name, generator = self.name, self.generator
        return Embedder(readout, executor, name=name, generator=generator, ranges=ranges)

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
    adapters = property(lambda self: adapter_names(self.backbone), doc="Switchable adapters.")

    @property
    def dim(self) -> int:
        """Width of a dense vector, unless a call says another."""
        return self.recipe.dim or self.readout.dense_width

    @property
    def max_length(self) -> int | None:
        """Tokens that a rendered text may have; None: no limit."""
        return self.renderer.max_length(None)

    @property
    def writer_name(self) -> str | None:
        """The name of what rewrites texts before they are embedded; None: nothing does."""
        from embedlm.generation import resolve_generator

        rewrites = self.recipe.transform is not None
        return resolve_generator(self.generator or self).name if rewrites else None

    max_seq_length = max_length
    similarity_fn_name = property(lambda self: self.recipe.similarity)

    def get_sentence_embedding_dimension(self) -> int:
        """Return the width of a dense vector (sentence-transformers' name)."""
        return self.dim

    get_embedding_dimension = get_sentence_embedding_dimension

    def __repr__(self) -> str:
        attention = "causal" if self.backbone.causal else "bidirectional"
        facts = f"recipe={self.recipe.name!r}, dim={self.dim}, attention={attention}"
        how = f"{self.backbone.implementation}, {self.device}, {self.backbone.dtype}"
        return f"Embedder({self.name!r}, {facts}, {how})"

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
        check_arguments("encode", role=role, max_length=max_length)
        checked = check_texts(texts)
        request = Request(role, check_demonstrations(demonstrations), max_length)
        instructions = check_instructions(instruction, len(checked))
        batches = self.route(role).renderer.render(checked.texts, request, instructions)
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
        texts: Any = UNSET,
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
        ranges: Any = None,
        **spellings: Any,
    ) -> Any:
        """Return vectors of texts, in their order.

        Args:
            texts: a string (one vector, 1-D), or a list of strings, of `{"text": ..., "image":
                ...}` (a path, bytes or PIL image; either may lack), or of rows of token ids.
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
            ranges: (2, dim) minima and maxima, of int8 and uint8; None takes those that
                `fit_ranges` found.
            **spellings: sentence-transformers' names: sentences, show_progress_bar, prompt_name,
                normalize_embeddings, truncate_dim, prompt (in place of the recipe's),
                convert_to_tensor, batch_size (which changes nothing), convert_to_numpy, device.

        Returns:
            One dense head: an array (n, dim), or (dim,) for a single string. Anything else:
            `Embeddings`. A type checker takes the recipe for one with a dense head alone where
            `heads` is not given.

        Raises:
            InputError: texts, images or options that cannot be used.
            NotFiniteError: the model gave NaN or infinity.
        """
        texts = texts_of(texts, spellings)
        named: dict[str, Any] = {"role": role, "instruction": instruction, "heads": heads}
        named |= {"demonstrations": check_demonstrations(demonstrations), "max_length": max_length}
        named |= {"dim": dim, "precision": precision, "normalize": normalize, "ranges": ranges}
        named |= {"batch_tokens": batch_tokens, "show_progress": show_progress, "adapter": adapter}
        options = Options.of(spellings, self.device, **named)
        checked = check_texts(texts, all_kinds=True)
        outputs = self._encode(checked.parts, options)
        if isinstance(outputs, Embeddings):
            return outputs
        vectors = outputs[0] if checked.single else outputs
        return torch.from_numpy(vectors) if options.as_tensor else vectors

    def stream(self, texts: Iterable[Any], **options: Any) -> Iterator[Any]:
        """Yield the vectors of an iterable of texts one by one, in order; see `encode`."""
        if isinstance(texts, str | Mapping):
            raise InputError("texts is a single text; give an iterable of texts, or call encode")
        check_arguments("stream", texts=texts)
        source = iter(texts)
        windows = iter(lambda: list(islice(source, _STREAM_WINDOW)), [])
        return (vector for window in windows for vector in self.encode(window, **options))

    def _encode(self, parts: Sequence[Part], options: Options) -> Any:
        route = self.route(options.role)
        readout = route.readout_of(options.heads, options.role)
        options.check_heads([head.kind for head in readout.heads])
        outputs = route.gather(readout, parts, options).by_kind(readout)
        check_finite(outputs, parts, route.backbone)
        facts = readout.recipe, readout.statistics, options, self.ranges
        if "dense" in outputs:
            outputs["dense"] = finish_vectors(outputs["dense"], *facts)
        return outputs["dense"] if list(outputs) == ["dense"] else Embeddings(**outputs)

    def gather(self, readout: Readout, parts: Sequence[Part], options: Options) -> Gathered:
        """Return what the heads of a readout over this network give, before it is finished."""
        items = items_of(parts, options)
        unique = list(dict.fromkeys(items))
        shares = self._shares(unique, options.show_progress)
        budget = self.executor.budget(options.batch_tokens)
        adapter = serving_adapter(self.backbone, self.recipe, options)
        renderer = with_lead(self.renderer, check_lead(options.lead, parts), options.role)
        engine = Engine(self.executor, renderer, readout, budget, adapter)
        return Gathered(run_shares(engine, shares, len(unique), options), order_of(items, unique))

    def readout_of(self, heads: Any, role: str | None) -> Readout:
        """Return the readout with the heads that a call asks for."""
        if (route := self.route(role)) is not self:
            return route.readout_of(heads, role)
        several = self.recipe.transform is not None or len(self.renderer.templates(role)) > 1
        chosen = requested_heads(heads, self.recipe, several=several, trained=self.readout.trained)
        return self.readout if heads is None else self.readout.with_heads(chosen)

    def _shares(self, items: list[Item], show_progress: bool | None) -> list[Share]:
        """Return the items, or all variants of each where the recipe rewrites texts."""
        if self.recipe.transform is None:
            return [Share(item, index) for index, item in enumerate(items)]
        from embedlm.transform import transform_items

        self.executor.lay_out()  # before the model itself writes, as before it embeds
        writer = self.generator or self
        return transform_items(items, self.recipe.transform, writer, show_progress=show_progress)

    def vectors_of(self, states: PackStates) -> Array:
        """Return the dense vectors, (n, dim), of token states that were run elsewhere."""
        dense = requested_heads("dense", self.recipe, several=False)
        (v_nD,) = self.readout.with_heads(dense).read(states)
        return finish_vectors(v_nD.cpu().numpy(), self.recipe, self.readout.statistics, Options())

    # -- corpus statistics --------------------------------------------------------------------

    def fit(self, texts: Iterable[Any]) -> Embedder:
        """Learn token frequencies and common components from a corpus (static-tfidf, static-sif).

        Unfitted, the frequency of a token is taken from its rank in the vocabulary (Zipf's law).
        `save_pretrained` keeps what was learnt. Returns the embedder itself.
        """
        self.check_one_route("fitted")
        texts = check_texts(texts).texts
        statistics = token_statistics(self.renderer, texts, self.backbone.vocab_size)
        if count := self.recipe.pooling.remove_components:
            weighed = self._with(self.readout.with_statistics(statistics), self.executor)
            width = weighed.readout.dense_width
            vectors = weighed.encode(
                texts, heads="dense", dim=width, normalize=False, show_progress=False
            )
            statistics = statistics.with_components(vectors, count)
        self.readout = self.readout.with_statistics(statistics)
        self.ranges = Ranges()  # those of other vectors
        return self

    def fit_ranges(self, texts: Iterable[Any], **options: Any) -> Embedder:
        """Learn each dimension's range from a corpus, for int8 and uint8; returns itself.

        Each width has ranges of its own (`dim`), and each form; `save_pretrained` keeps them all.

        Args:
            texts: like those that will be encoded.
            **options: of `encode`: role, instruction, dim, normalize, ...

        Raises:
            InputError: no texts, or texts whose vectors are all the same.
        """
        check_names("fit_ranges", options, RANGE_OPTIONS)
        vectors = self.encode(texts, heads="dense", **options)
        call = Options(dim=options.get("dim"), normalize=options.get("normalize"))
        readout = self.route(options.get("role")).readout
        form = vector_form(call, readout.recipe, readout.dense_width)
        self.ranges = self.ranges.with_form(form, fitted_ranges(vectors))
        return self

    # -- scores -------------------------------------------------------------------------------

    def similarity(
        self, a: Any, b: Any, heads: Names = None, weights: Sequence[float] | None = None
    ) -> npt.NDArray[np.float32]:
        """Return the scores of every a with every b, (n, m); each is vectors or `Embeddings`.

        Cosine or dot for dense, dot for sparse, MaxSim for multi-vector, or their weighted sum.
        """
        return scores(a, b, heads, weights, self.recipe, False, self.dim, self.ranges)

    def similarity_pairwise(
        self, a: Any, b: Any, heads: Names = None, weights: Sequence[float] | None = None
    ) -> npt.NDArray[np.float32]:
        """Return the scores of a[i] with b[i], (n,); as `similarity` otherwise."""
        return scores(a, b, heads, weights, self.recipe, True, self.dim, self.ranges)

    # -- other forms --------------------------------------------------------------------------

    def as_sentence_transformer(self) -> SentenceTransformer:
        """Return a SentenceTransformer around this model, with the same weights and vectors."""
        from embedlm.interop.sentence_transformers import bridge

        return bridge(self)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle or a copy holds."""
        self.executor.unpack()
        return self.__dict__
