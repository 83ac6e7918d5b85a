"""The façade: text in, vectors out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from embedlm.backbone import Backbone, with_head
from embedlm.encode.engine import Engine, Job, Results, default_budget
from embedlm.encode.inputs import (
    AUTO,
    Options,
    check_demonstrations,
    check_instructions,
    check_texts,
    led,
    translate_spellings,
)
from embedlm.encode.precision import quantize, truncate
from embedlm.errors import InputError
from embedlm.jobs.progress import progress
from embedlm.prompt.render import RenderedBatch, Renderer, Request
from embedlm.readout import frequency, similarity
from embedlm.readout.embeddings import Embeddings, scores
from embedlm.readout.latent import LatentAttention
from embedlm.readout.projection import Projection
from embedlm.readout.requested import needs_lm_head, wanted_heads
from embedlm.readout.sparse import stack
from embedlm.readout.token_layers import TokenLayers
from embedlm.schema.recipe import Dense, Head, MultiVector, Recipe, Sparse

__all__ = ["Embedder"]

Array = npt.NDArray[Any]
_STREAM_WINDOW = 4096


class Embedder:
    """A language model and a recipe: encodes texts into vectors.

    Made by `embedlm.load`. Takes sentence-transformers' spellings too, so that libraries which call
    a SentenceTransformer can be given one of these.
    """

    def __init__(
        self,
        backbone: Backbone,
        recipe: Recipe,
        *,
        name: str,
        max_length: int | dict[str, int] | None = None,
        generator: Any = None,
        projection: Projection | None = None,
        latent: LatentAttention | None = None,
        token_layers: TokenLayers | None = None,
    ) -> None:
        if max_length is not None:
            recipe = recipe.override({"prompt.max_length": max_length})
        self.backbone = backbone
        self.recipe = recipe
        self.name = name
        self.generator = generator
        self.projection = projection
        self.latent = latent
        self.token_layers = token_layers
        self.renderer = Renderer(
            backbone.tokenizer,
            recipe.prompt,
            boundary=recipe.pooling.boundary,
            limit=backbone.max_positions,
            positions=backbone.positions,
        )
        self._statistics: frequency.Statistics | None = None

    # -- facts --------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer."""
        return self.backbone.tokenizer

    @property
    def device(self) -> Any:
        """Where the model is."""
        return self.backbone.device

    @property
    def dim(self) -> int:
        """Width of a dense vector."""
        projection = self.projection
        return self.backbone.dim if projection is None else projection.out_features

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
        instruction: str | Sequence[str] | None = None,
        demonstrations: Sequence[Mapping[str, str]] | None = None,
        *,
        max_length: int | None = None,
    ) -> RenderedBatch | list[RenderedBatch]:
        """Return what the model will see: ids, segments and text of every prompt.

        A recipe with several prompts gives a list, one rendered batch a prompt.
        """
        given = check_texts(texts)
        request = Request(role, check_demonstrations(demonstrations), max_length)
        instructions = check_instructions(instruction, len(given.items))
        batches = self.renderer.render(given.items, request, instructions)
        return batches if len(batches) > 1 else batches[0]

    # -- encoding -----------------------------------------------------------------------------

    def encode(
        self,
        texts: Any,
        role: str | None = None,
        instruction: str | Sequence[str] | None = None,
        demonstrations: Sequence[Mapping[str, str]] | None = None,
        heads: Any = None,
        dim: int | None = None,
        precision: str = "float32",
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
            dim: truncate to this width, then renormalise if normalised.
            precision: float32, float16, int8, uint8, binary or ubinary.
            normalize: None takes the recipe's.
            batch_tokens: tokens run at once.
            show_progress: None shows a bar for long jobs on a terminal.
            max_length: in tokens; shortens the text, not the prompt.
            adapter: a switchable adapter's name, or None for the base alone; "auto" takes the one
                that the recipe gives the role.
            **spellings: sentence-transformers' names: show_progress_bar, normalize_embeddings,
                prompt_name, truncate_dim, prompt (written before each text), convert_to_tensor;
                convert_to_numpy, batch_size and device are taken and change nothing.

        Returns:
            One dense head: array (n, dim). Anything else: `Embeddings`.

        Raises:
            InputError: texts or options that cannot be used.
        """
        foreign = translate_spellings(spellings)
        options = Options(
            role=foreign.get("role", role),
            instruction=instruction,
            demonstrations=check_demonstrations(demonstrations),
            heads=heads,
            dim=foreign.get("dim", dim),
            precision=precision,
            normalize=foreign.get("normalize", normalize),
            batch_tokens=batch_tokens,
            show_progress=foreign.get("show_progress", show_progress),
            max_length=max_length,
            adapter=adapter,
        )
        given = check_texts(texts, ids=True)
        items = led(given.items, foreign.get("prompt"))
        found = self._encode(items, options)
        if not isinstance(found, np.ndarray):
            return found
        found = found[0] if given.single else found
        return torch.from_numpy(found) if foreign.get("convert_to_tensor") else found

    def encode_query(self, texts: Any, **options: Any) -> Any:
        """Encode with role "query"."""
        return self.encode(texts, **{"role": "query", **options})

    def encode_document(self, texts: Any, **options: Any) -> Any:
        """Encode with role "document"."""
        return self.encode(texts, **{"role": "document", **options})

    def stream(self, texts: Iterable[Any], **options: Any) -> Iterator[Any]:
        """Yield the vectors of an iterable one by one, in order and with bounded memory."""
        source = iter(texts)
        while window := list(islice(source, _STREAM_WINDOW)):
            yield from self.encode(window, **options)

    def _encode(self, items: list[str], options: Options) -> Any:
        wanted = self._heads(options.heads, options.role)
        request = Request(options.role, options.demonstrations, options.max_length)
        own = check_instructions(options.instruction, len(items))
        instructions: Sequence[str | None] = own if own is not None else [None] * len(items)
        keys = list(zip(items, instructions, strict=True))
        place = {key: index for index, key in enumerate(dict.fromkeys(keys))}
        jobs = self._jobs(list(place), options.show_progress)
        engine = Engine(
            self.backbone,
            self.renderer,
            self.recipe.pooling,
            wanted,
            options.batch_tokens or default_budget(self.backbone),
            self._token_weights(),
            self.projection,
            self.latent,
            self.token_layers,
        )
        chosen = self.backbone.using(self._adapter(options))
        with chosen, progress(options.show_progress, len(jobs)) as bar:
            results = engine.run(jobs, len(place), request, bar)
        order = np.array([place[key] for key in keys], dtype=np.int64)
        return self._finish(results, order, wanted, options)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the switchable adapters."""
        loaded = self.backbone.adapters
        return () if loaded is None else loaded.names

    def _adapter(self, options: Options) -> str | None:
        """Return the adapter that serves a call."""
        if options.adapter != AUTO:
            return options.adapter
        roles = self.recipe.backbone.adapter_roles
        name = roles.get(options.role or "default", options.role)
        if name in self.adapters:
            return name
        return self.adapters[0] if len(self.adapters) == 1 and not roles else None

    def _heads(self, heads: Any, role: str | None) -> tuple[Head, ...]:
        several = self.recipe.transform is not None or len(self.renderer.templates(role)) > 1
        wanted = wanted_heads(heads, self.recipe, several=several)
        if any(needs_lm_head(head) for head in wanted) and self.backbone.head is None:
            self.backbone = with_head(self.backbone, self.recipe.backbone)
        return wanted

    def _jobs(
        self, distinct: list[tuple[str, str | None]], show_progress: bool | None
    ) -> list[Job]:
        if self.recipe.transform is None or not all(isinstance(one, str) for one, _ in distinct):
            return [Job(text, own, i, 1.0) for i, (text, own) in enumerate(distinct)]
        from embedlm.transform import transform_texts

        variants = transform_texts(
            [text for text, _ in distinct],
            self.recipe.transform,
            self.generator or self,
            show_progress=show_progress,
        )
        return [
            Job(text, own, index, 1 / (1 + len(rewritten)))
            for index, ((original, own), rewritten) in enumerate(
                zip(distinct, variants, strict=True)
            )
            for text in (original, *rewritten)
        ]

    def _finish(
        self,
        results: Results,
        order: npt.NDArray[np.int64],
        heads: tuple[Head, ...],
        options: Options,
    ) -> Any:
        unit = self.recipe.normalize if options.normalize is None else options.normalize
        dense: Array | None = None
        if results.dense is not None:
            vectors = results.dense[order]
            if self._statistics is not None:
                vectors = self._statistics.remove_components(vectors)
            if options.dim is not None:
                vectors = truncate(vectors, options.dim, renormalize=False)
            if unit:
                vectors = similarity.normalize(vectors)
            dense = quantize(vectors, options.precision)
        if len(heads) == 1 and isinstance(heads[0], Dense):
            return dense
        sparse = multi = None
        if results.sparse or any(isinstance(h, Sparse) for h in heads):
            sparse = stack([results.sparse[i] for i in order.tolist()], self.backbone.vocab_size)
        if any(isinstance(h, MultiVector) for h in heads):
            multi = [results.multi_vector[i] for i in order.tolist()]
        return Embeddings(dense, sparse, multi)

    # -- corpus statistics --------------------------------------------------------------------

    def fit(self, texts: Iterable[Any]) -> Embedder:
        """Learn token frequencies and common components from a corpus (static-tfidf, static-sif).

        Unfitted, the frequency of a token is taken from its rank in the vocabulary (Zipf's law).
        Returns the embedder itself.
        """
        items = check_texts(texts).items
        if not items:
            raise InputError("fit needs at least one text")
        self._statistics = None
        counted = frequency.count(
            (self.renderer.render([text], Request(), segments=False)[0].ids[0] for text in items),
            self.backbone.vocab_size,
        )
        self._statistics = counted
        if self.recipe.pooling.remove_components:
            vectors = self.encode(items, normalize=False, show_progress=False)
            self._statistics = counted.with_components(
                vectors, self.recipe.pooling.remove_components
            )
        return self

    def _token_weights(self) -> npt.NDArray[np.float32] | None:
        pooling = self.recipe.pooling
        if pooling.weights == "none":
            return None
        known = self._statistics or frequency.zipf(self.backbone.vocab_size)
        return known.idf() if pooling.weights == "idf" else known.sif(pooling.sif_a)

    # -- scores -------------------------------------------------------------------------------

    def similarity(
        self,
        a: Any,
        b: Any,
        heads: Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Return the scores of every a with every b, (n, m).

        Cosine or dot for dense, dot for sparse, MaxSim for multi-vector, or their weighted sum.
        """
        return scores(a, b, heads, weights, recipe=self.recipe, pairwise=False)

    def similarity_pairwise(
        self,
        a: Any,
        b: Any,
        heads: Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
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
