"""Models of several heads, and re-rankers, as models of mteb.

`embedlm.interop.mteb.EmbedLMEncoder` is the dense one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.embedder import Embedder
from embedlm.errors import InputError, require
from embedlm.evaluation.ranking_tasks import ranked_by_head
from embedlm.interop.models import embedder_of
from embedlm.interop.mteb import EmbedLMEncoder, model_metadata
from embedlm.loader import load
from embedlm.rerank import Reranker
from embedlm.rerank.reranker import is_reranker
from embedlm.schema.arguments import check_names

__all__ = ["EmbedLMReranker", "EmbedLMSearch", "mteb_model", "opened"]


_OF_RERANKERS = ("device", "dtype", "adapters", "max_length")


def opened(model: Any, **options: Any) -> Embedder | Reranker:
    """Return an embedder or a re-ranker, or load the one that a folder or hub id holds.

    Args:
        model: either, or a folder or hub id; None: the built-in model.
        **options: of `embedlm.load`; a re-ranker takes device, dtype and adapters.

    Raises:
        InputError: another option, and the model is a re-ranker.
    """
    if isinstance(model, Embedder | Reranker):
        return model
    if model is not None and is_reranker(model):
        check_names("a re-ranker", options, _OF_RERANKERS)
        return Reranker(model, **options)
    return load(model, **options)


def mteb_model(model: Any, **options: Any) -> EmbedLMEncoder | EmbedLMReranker:
    """Return the model of mteb for what is given: dense, of several heads, or a re-ranker.

    Args:
        model: an Embedder, a Reranker, or a folder or hub id; None: the built-in model.
        **options: of `Embedder.encode`.

    Raises:
        InputError: options, and the model is a re-ranker.
    """
    found = opened(model)
    if isinstance(found, Reranker):
        if options:
            raise InputError(
                f"the model is a re-ranker, which has no {', '.join(options)}; leave these out"
            )
        return EmbedLMReranker(found)
    dense = [head.kind for head in found.recipe.heads] == ["dense"]
    return (EmbedLMEncoder if dense else EmbedLMSearch)(found, **options)


class EmbedLMSearch(EmbedLMEncoder):
    """Searches mteb's corpora by sparse, multi-vector and dense heads, and by their fusion.

    Retrieval and re-ranking are scored by mteb's search protocol; other tasks by the dense head.
    """

    def __init__(
        self,
        model: Any = None,
        *,
        recipe: Any = None,
        heads: Sequence[str] | None = None,
        instructions: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        """Take or load a model.

        Args:
            model: an Embedder, or what `embedlm.load` takes; None: the built-in model.
            recipe: as in `embedlm.load`; with an Embedder, the recipe that it changes to.
            heads: those that search; None: all of the recipe. Several with a sparse one are fused
                by min-max; of several others the first one searches.
            instructions: see `EmbedLMEncoder`.
            **options: those of `encode`, for every call.

        Raises:
            InputError: a head that the recipe does not define.
        """
        embedder = embedder_of(model, recipe)
        if heads is not None:
            changed = embedder.recipe.override({"heads": _some(embedder, heads)})
            embedder = embedder.with_recipe(changed)
        super().__init__(embedder, instructions=instructions, **options)
        kinds = [head.kind for head in embedder.recipe.heads]
        names = {"multi_vector": "late-interaction"}
        self.mteb_model_meta = self.mteb_model_meta.model_copy(
            update={
                "model_type": ["hybrid"]
                if len(kinds) > 1 and "sparse" in kinds
                else [names.get(kinds[0], kinds[0])]
            }
        )
        self._documents: Any = None
        self._ids: list[str] = []

    def index(
        self,
        corpus: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        encode_kwargs: Mapping[str, Any],
        num_proc: int | None = None,
        **_: Any,
    ) -> None:
        """Embed a corpus.

        Args:
            corpus: rows with id, text and perhaps title.
            task_metadata: says the instruction.
            hf_split: has no effect.
            hf_subset: has no effect.
            encode_kwargs: show_progress_bar; batch_size has no effect.
            num_proc: has no effect.
            **_: nothing.
        """
        kind = require("mteb.types", "mteb").PromptType.document
        self._ids = list(corpus["id"])
        self._documents = self.vectors(
            _document_texts(corpus), task_metadata, kind, **_shown(encode_kwargs)
        )

    def search(
        self,
        queries: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        top_k: int,
        encode_kwargs: Mapping[str, Any],
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        num_proc: int | None = None,
        **_: Any,
    ) -> dict[str, dict[str, float]]:
        """Return the best documents of each query with their scores.

        Args:
            queries: rows with id and text, and perhaps instruction.
            task_metadata: says the instruction.
            hf_split: has no effect.
            hf_subset: has no effect.
            top_k: documents of a query.
            encode_kwargs: show_progress_bar; batch_size has no effect.
            top_ranked: the only documents that a query ranks.
            num_proc: has no effect.
            **_: nothing.
        """
        kind = require("mteb.types", "mteb").PromptType.query
        names = list(queries["id"])
        asked = self.vectors(_query_texts(queries), task_metadata, kind, **_shown(encode_kwargs))
        depth = len(self._ids) if top_ranked is not None else top_k
        runs = ranked_by_head(self.model, asked, self._documents, self._ids, names, depth)
        main = runs["hybrid" if "hybrid" in runs else next(iter(runs))]
        if top_ranked is None:
            return {name: dict(list(main[name].items())[:top_k]) for name in names}
        allowed = {name: set(top_ranked.get(name, ())) for name in names}
        return {
            name: {d: score for d, score in main[name].items() if d in allowed[name]}
            for name in names
        }


def _some(embedder: Embedder, heads: Sequence[str]) -> list[Any]:
    """Return those heads of the recipe that have the names, in the recipe's form."""
    known: dict[str, Any] = {head.kind: head for head in embedder.recipe.heads}
    for name in heads:
        if name not in known:
            raise InputError(
                f"the recipe {embedder.recipe.name!r} defines no head {name!r}; allowed: "
                f"{', '.join(known)}"
            )
    return [json.loads(known[name].model_dump_json()) for name in heads]


def _shown(encode_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {"show_progress": encode_kwargs.get("show_progress_bar")}


def _document_texts(corpus: Any) -> list[str]:
    """Return what mteb takes for the text of a document: its title and its body."""
    titles = corpus["title"] if "title" in corpus.column_names else [""] * len(corpus)
    return [
        f"{title} {text}".strip() if title else text.strip()
        for title, text in zip(titles, corpus["text"], strict=True)
    ]


def _query_texts(queries: Any) -> list[str]:
    """Return what mteb takes for the text of a query: its text and its own instruction."""
    texts = list(queries["text"])
    if not all(isinstance(text, str) for text in texts):
        raise InputError(
            "the task's queries are conversations, which the search by heads does not read; take "
            "a task with plain queries, or EmbedLMEncoder"
        )
    if "instruction" not in queries.column_names:
        return texts
    told = queries["instruction"]
    return [text if own is None else f"{text} {own}" for text, own in zip(texts, told, strict=True)]


class EmbedLMReranker:
    """Scores mteb's pairs of queries and documents by a `Reranker`."""

    def __init__(self, model: Any, *, instructions: Mapping[str, str] | None = None) -> None:
        """Take or load a re-ranker.

        Args:
            model: a Reranker, or what `embedlm.Reranker` takes.
            instructions: in place of mteb's own, by the name or the type of a task.
        """
        self.model = model if isinstance(model, Reranker) else Reranker(model)
        self.instructions = dict(instructions or {})
        own = self.model.identity()
        if "model" in own:
            own["model"].pop("device")  # scores are of no device
        own.pop("software", None)
        facts = json.dumps([own, self.instructions], sort_keys=True, default=str)
        self.mteb_model_meta = model_metadata(
            self.model.name,
            hashlib.sha256(facts.encode()).hexdigest()[:40],
            self.model.parameters(),
            model_type=["cross-encoder"],
            use_instructions=self.model.method.takes_instruction,
        )

    def predict(
        self,
        inputs1: Any,
        inputs2: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **_: Any,
    ) -> npt.NDArray[np.float32]:
        """Return the score of each pair, (n,).

        Args:
            inputs1: mteb's batches of queries.
            inputs2: its batches of documents.
            task_metadata: says the instruction, told where the method has a place for one.
            hf_split: has no effect.
            hf_subset: has no effect.
            prompt_type: has no effect.
            **_: `batch_size` and `show_progress_bar`, which have no effect.
        """
        sides = [[t for batch in side for t in batch["text"]] for side in (inputs1, inputs2)]
        pairs = list(zip(*sides, strict=True))
        told = self._told(task_metadata) if self.model.method.takes_instruction else None
        if not pairs:
            return np.empty(0, np.float32)
        return np.asarray(self.model.predict(pairs, instruction=told), dtype=np.float32)

    def _told(self, task_metadata: Any) -> str | None:
        for name in (task_metadata.name, task_metadata.type):
            if name in self.instructions:
                return self.instructions[name]
        prompt = task_metadata.prompt
        return prompt.get("query") if isinstance(prompt, Mapping) else prompt
