"""Writes a model's scores into records, which a student is then trained to give (distillation)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from embedlm.data import TrainingRecord, check_form
from embedlm.errors import InputError
from embedlm.generation import Cache, Generator, resolve_generator
from embedlm.jobs import Reject
from embedlm.jobs.manifest import facts_digest
from embedlm.mining.corpus import Rows, prepare_records
from embedlm.mining.judging import ask_for, block_of, filled, prompts_digest, shown
from embedlm.mining.outputs import Mined, check_paths, opened, read_rows_of
from embedlm.mining.rankings import Block, DenseMiner
from embedlm.mining.record_job import Finding, RecordJob, Summary, Work, rounded, work_folder
from embedlm.mining.settings import whole

__all__ = ["score"]

BLOCK = 64
"""Records of a block."""
HIGHEST = 10
"""The best score that a language model gives."""


class Scorer(Protocol):
    """Scores documents for queries."""

    def identity(self) -> dict[str, Any]:
        """Return what decides the scores; `name` and `kind` are written into the records."""

    def scores(self, records: Sequence[TrainingRecord]) -> list[list[float] | None]:
        """Return the score of each document of each record; None: it cannot be scored."""


class EmbedderScorer:
    """Scores by the similarity of vectors."""

    def __init__(self, model: Any, instruction: str | None) -> None:
        self.miner = DenseMiner(model, instruction)

    def identity(self) -> dict[str, Any]:
        """Return the model's content."""
        return {"name": self.miner.model.name, **self.miner.identity(), "kind": "embedder"}

    def scores(self, records: Sequence[TrainingRecord]) -> list[list[float] | None]:
        """Encode queries and documents; see `Scorer.scores`."""
        block = Block([one.query for one in records], [one.instruction for one in records])
        counts = [len(one.documents) for one in records]
        rows = np.repeat(np.arange(len(records)), counts)
        texts = [document.text for one in records for document in one.documents]
        found = self.miner.text_scores(block, rows, texts)
        return [part.tolist() for part in np.split(found, np.cumsum(counts)[:-1])]


class RerankerScorer:
    """Scores by a re-ranker's logits."""

    def __init__(self, reranker: Any, instruction: str | None) -> None:
        if instruction is not None and not reranker.method.takes_instruction:
            raise InputError(
                f"an instruction was given, but the method {reranker.method.name!r} has no place "
                "for one; leave it out"
            )
        self.reranker, self.instruction = reranker, instruction

    def identity(self) -> dict[str, Any]:
        """Return the re-ranker's content."""
        model = facts_digest(self.reranker.identity())
        facts = {"name": self.reranker.name, "model": model, "instruction": self.instruction}
        return {**facts, "kind": "reranker"}

    def scores(self, records: Sequence[TrainingRecord]) -> list[list[float] | None]:
        """Read each query with its documents; see `Scorer.scores`."""
        found: list[list[float] | None] = []
        for one in records:
            own = one.instruction if self.reranker.method.takes_instruction else None
            texts = [document.text for document in one.documents]
            instruction = self.instruction if own is None else own
            scores = self.reranker.score(
                one.query, texts, instruction=instruction, probability=False
            )
            found.append(scores.tolist())
        return found


class WriterScorer:
    """Scores from 0 to 10 that a language model writes."""

    def __init__(self, llm: Generator, seed: int) -> None:
        self.llm, self.seed = llm, seed

    def identity(self) -> dict[str, Any]:
        """Return the model's name and the prompt."""
        facts = {"name": self.llm.name, "prompts": prompts_digest(), "seed": self.seed}
        return {**facts, "kind": "llm"}

    def scores(self, records: Sequence[TrainingRecord]) -> list[list[float] | None]:
        """Ask about each document; see `Scorer.scores`."""
        questions = {
            (i, j): filled("score", query=one.query, passage=shown(document.text))
            for i, one in enumerate(records)
            for j, document in enumerate(one.documents)
        }
        cache = Cache()
        try:
            values = ask_for(self.llm, cache, questions, _grade, self.seed)
        finally:
            cache.close()
        found: list[list[float] | None] = []
        for i, one in enumerate(records):
            scores = [values.get((i, j)) for j in range(len(one.documents))]
            whole_row = [value for value in scores if value is not None]
            found.append(whole_row if len(whole_row) == len(scores) else None)
        return found


def _grade(_: Any, answer: str) -> float | None:
    """Return the score that an answer holds; None: another form."""
    text = block_of(answer, "score") or ""
    return float(text) if text.isdecimal() and int(text) <= HIGHEST else None


def score(
    records: Rows,
    *,
    model: Any = None,
    reranker: Any = None,
    llm: Any = None,
    output: str | Path | None = None,
    instruction: str | None = None,
    seed: int = 0,
    form: str = "records",
    rejects: str | Path | None = None,
    restart: bool = False,
    block: int | None = None,
    show_progress: bool | None = None,
) -> Mined:
    """Write one model's scores of all documents into records, and who gave them.

    An embedder gives similarities, a re-ranker logits, a language model whole numbers from 0 to 10.

    Args:
        records: a file, or objects with a query, positives and negatives.
        model: an `Embedder`, a folder or a hub id; a re-ranker's folder or id is known as one.
        reranker: a `Reranker`, a folder or a hub id, any causal language model's included.
        llm: a generator; see `generation.resolve_generator`.
        output: a .jsonl file; None returns the rows.
        instruction: of the queries that have none.
        seed: of the language model.
        form: records, sentence-transformers, flagembedding or tevatron.
        rejects: file for records that cannot be read; None: the first one is an error.
        restart: discard what an earlier run has finished.
        block: records that are worked on together.
        show_progress: None shows a bar for long jobs on a terminal.

    Raises:
        InputError: none or several of model, reranker and llm; or an input that cannot be used.
        RecordError: a bad record, with file and line.
        JobError: the job cannot be started, continued or finished; finished blocks are kept.
        GenerationError: a language model cannot be asked; its answers until then are kept.
    """
    check_form(form)
    size = BLOCK if block is None else whole("block", block)
    scorer = _scorer(model, reranker, llm, instruction, whole("seed", seed, 0))
    with opened(output, "scored.jsonl") as out:
        aside = check_paths(out, rejects, [records])
        with work_folder(out, None, [records]) as folder:
            bad: list[Reject] = []
            file = prepare_records(records, folder, None if rejects is None else bad)
            by = scorer.identity()
            facts = {"version": 1, "records": file.lines.digest, "scorer": by, "form": form}
            job = RecordJob(
                records=file,
                out=out,
                form=form,
                manifest={**facts, "block": size},
                size=size,
                restart=restart,
                rejects=aside,
                bad=bad,
                label="score",
                show_progress=show_progress,
            )
            report = job.run(lambda: _work(scorer, by), lambda found: _report(found, job, by))
            rows = None if output is not None else read_rows_of(out)
    return Mined(report, rows)


def _work(scorer: Scorer, by: dict[str, Any]) -> Work:
    return lambda records, summary: _scored(scorer, by, records, summary)


def _scorer(model: Any, reranker: Any, llm: Any, instruction: str | None, seed: int) -> Scorer:
    """Return what gives the scores."""
    from embedlm.loader import load
    from embedlm.rerank import Reranker, is_reranker

    given = [name for name, one in (("model", model), ("reranker", reranker), ("llm", llm)) if one]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} were given; scores come from one: give one")
    if llm is not None:
        if instruction is not None:
            raise InputError("an instruction is for embedders and re-rankers; leave it out")
        return WriterScorer(resolve_generator(llm), seed)
    if seed:
        raise InputError(
            f"seed is {seed}: it is a language model's (llm), and none was given; leave it out"
        )
    if isinstance(model, str | Path) and is_reranker(model):
        reranker, model = model, None
    if isinstance(reranker, str | Path):
        reranker = Reranker(reranker)
    if reranker is not None:
        return RerankerScorer(reranker, instruction)
    if model is None or isinstance(model, str | Path):
        model = load(model)
    return EmbedderScorer(model, instruction)


def _scored(
    scorer: Scorer, by: dict[str, Any], records: list[TrainingRecord], summary: Summary
) -> list[Finding]:
    """Return the records with their scores."""
    told = {key: by[key] for key in ("kind", "name", "model") if key in by}
    findings = []
    for record, scores in zip(records, scorer.scores(records), strict=True):
        if scores is None:
            reason = "score: an answer could not be read twice"
            summary.counts["set_aside"] += 1
            summary.example("set_aside", {"query": record.query})
            findings.append(Finding(record, reason))
            continue
        for document, value in zip(record.documents, scores, strict=True):
            document.score = rounded(value)
        record.provenance["scores"] = {"by": "embedlm score", **told}
        summary.counts["written"] += 1
        summary.counts["scores"] += len(scores)
        findings.append(Finding(record))
    return findings


def _report(summary: Summary, job: RecordJob, by: dict[str, Any]) -> dict[str, Any]:
    counts = summary.counts
    return {
        "output": job.out.name,
        "records": len(job.records),
        "written": counts["written"],
        "scores": counts["scores"],
        "set_aside": {
            "count": counts["set_aside"],
            "examples": summary.examples.get("set_aside", []),
        },
        "unreadable": len(job.bad),
        "scorer": by,
    }
