"""Queries that a language model writes from passages, by a pipeline of `embedlm synthesize`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedlm.adaptation.chunks import Chunk
from embedlm.data import Source, TrainingRecord, training_records
from embedlm.errors import InputError
from embedlm.generation import Generator, Question, resolve_generator
from embedlm.jobs import Reject
from embedlm.jobs.manifest import facts_digest
from embedlm.schema.pipeline import Pipeline
from embedlm.synthesis import synthesize
from embedlm.synthesis.asking import Asker
from embedlm.synthesis.stages import needs

__all__ = ["PIPELINE", "Writer"]

PIPELINE = "questions"
"""The pipeline that writes queries where none is named."""


@dataclass(frozen=True, slots=True)
class Writer:
    """A language model, and the pipeline by which it writes queries."""

    llm: Generator
    pipeline: Pipeline
    searching: Mapping[str, Any]
    """The models with which a pipeline searches and filters, as `synthesize` takes them."""

    @classmethod
    def of(cls, llm: Any, pipeline: Any, base: Any, reranker: Any) -> Writer:
        """Check that the pipeline writes queries for passages.

        Args:
            llm: a folder, a hub id, http://host/v1#model, or a `Generator`.
            pipeline: a name or file; None: `questions`.
            base: the model to be adapted, which searches where the pipeline does.
            reranker: filters where the pipeline does; None: there is none.

        Raises:
            InputError: the pipeline reads no passages, or needs a re-ranker.
        """
        chosen = Pipeline.load(pipeline or PIPELINE)
        if chosen.input != "passages":
            raise InputError(
                f"the pipeline {chosen.name!r} reads {chosen.input}; name one that reads passages"
            )
        needed = needs(chosen)
        if "llm" not in needed:
            raise InputError(f"the pipeline {chosen.name!r} asks no language model; name another")
        if "reranker" in needed and reranker is None:
            raise InputError(f"the pipeline {chosen.name!r} filters by a re-ranker; name one")
        searching = {"model": base} if needed & {"corpus", "model"} else {}
        filtering = {"reranker": reranker} if "reranker" in needed else {}
        return cls(resolve_generator(llm), chosen, {**searching, **filtering})

    @property
    def name(self) -> str:
        """The language model's."""
        return self.llm.name

    def facts(self) -> dict[str, Any]:
        """Return what tells its queries from those of others."""
        digest = facts_digest(self.pipeline.model_dump(mode="json"))
        return {"name": self.name, "pipeline": self.pipeline.name, "prompts": digest}

    def write(
        self, chunks: Sequence[Chunk], file: Path, seed: int
    ) -> tuple[list[list[str]], list[Reject]]:
        """Return the queries that passed the checks, each with its chunk's id, and the others.

        Args:
            chunks: those that are asked about.
            file: the pipeline's output; a run that was stopped goes on.
            seed: of what the pipeline draws.

        Raises:
            GenerationError: the model cannot be asked; its answers until then are in the cache.
        """
        rejects = file.with_suffix(".rejects.jsonl")
        synthesize(
            self.pipeline,
            [{"id": chunk.id, "text": chunk.passage} for chunk in chunks],
            llm=self.llm,
            output=file,
            seed=seed,
            rejects=rejects,
            block=16,
            **self.searching,
        )
        known = {chunk.id for chunk in chunks}
        found: list[list[str]] = []
        for record in training_records(Source(file)):
            assert isinstance(record, TrainingRecord), record.error  # we have written the file
            own = record.positives[0].id
            if own in known:
                found.append([record.query, str(own)])
        return found, list(map(_reject, rejects.read_text(encoding="utf-8").splitlines()))

    def example(self, chunk: Chunk, seed: int) -> Question:
        """Return the first question that is asked about a chunk."""
        step = next(one for one in self.pipeline.steps if one.kind == "generate")
        item = {"id": chunk.id, "passage": chunk.passage, "passage_id": chunk.id}
        return next(Asker(step, seed).conversation(item))


def _reject(line: str) -> Reject:
    """Return what a pipeline has set aside, under its chunk's id."""
    aside = json.loads(line)
    item = json.loads(aside["record"])
    return Reject(str(item["id"]), aside["line"], aside["error"], str(item.get("query", "")))
