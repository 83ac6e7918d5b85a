"""Mines hard negatives: passages that a search finds for a query and that do not answer it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedlm.errors import InputError
from embedlm.mining.corpus import Rows
from embedlm.mining.negatives_job import Files, Running, miners_of, reranker_of, run_job
from embedlm.mining.outputs import Mined
from embedlm.mining.relabel import MOST
from embedlm.mining.settings import Judging, Settings

if TYPE_CHECKING:
    from embedlm.rerank import Reranker

__all__ = ["mine"]


def mine(
    records: Rows,
    corpus: Rows | None = None,
    *,
    model: Any = None,
    output: str | Path | None = None,
    k: int = 5,
    filters: Any = None,
    window: Any = None,
    sample: int | None = None,
    seed: int = 0,
    reranker: Reranker | str | Path | None = None,
    rerank: int = 0,
    llm: Any = None,
    judge: str = "rlhn",
    mode: str = "relabel",
    most: int = MOST,
    instruction: str | None = None,
    text_field: str | None = None,
    form: str = "records",
    rejects: str | Path | None = None,
    work: str | Path | None = None,
    restart: bool = False,
    block: int | None = None,
    show_progress: bool | None = None,
) -> Mined:
    """Add k hard negatives to each record.

    Candidates are ranked by one model, or by several whose lists are fused. Known positives of a
    query (those of all records that have it), copies of them and the query itself are never
    candidates. The list is read deeper until k candidates are left.

    Args:
        records: a file, or objects with a query and positives, in any of the layouts of
            `data.records`.
        corpus: a file, or passages as texts or objects; None: the documents of the records.
        model: an `Embedder`, a folder or hub id, "bm25", or a list of these; None: the built-in
            model.
        output: a .jsonl file; None returns the rows.
        k: negatives for each query.
        filters: {"perc_pos": 0.95} or ["perc_pos=0.95"]; see `mining.filters`.
        window: the first and the last rank of candidates, (11, 100) or "11-100".
        sample: draw the negatives from so many candidates that are left; None takes the hardest.
        seed: of sampling and of the language models.
        reranker: a `Reranker`, a folder or a hub id; its logits are compared by the filter veto.
        rerank: put the first so many candidates in the re-ranker's order.
        llm: a generator (see `generation.resolve_generator`), or two, that judge what was mined.
        judge: rlhn or arhn; see `mining.relabel`.
        mode: what becomes of false negatives: relabel (as positives), remove, or drop the record.
        most: a record with more false negatives is left out.
        instruction: of the queries that have none; None takes the recipe's.
        text_field: the field with a passage's text; None: text, passage, document or contents.
        form: records, sentence-transformers, flagembedding or tevatron.
        rejects: file for records and passages that cannot be read; None: the first one is an error.
        work: folder for vectors and indexes, kept for other runs; None: OUT.work, removed at the
            end.
        restart: discard what an earlier run has finished.
        block: records that are worked on together; a kill loses one block.
        show_progress: None shows a bar for long jobs on a terminal.

    Raises:
        InputError: an input or an option that cannot be used.
        RecordError: a bad record, with file and line.
        JobError: the job cannot be started, continued or finished; finished blocks are kept.
        GenerationError: a language model cannot be asked; its answers until then are kept.
    """
    judging = Judging.of(llm, judge, mode, most)
    settings = Settings.of(
        judging,
        reranker is not None,
        k=k,
        filters=filters,
        window=window,
        sample=sample,
        seed=seed,
        rerank=rerank,
        form=form,
    )
    if text_field is not None and corpus is None:
        raise InputError(
            f"text_field is {text_field!r}, and no corpus was given whose field it would be; give "
            "one, or leave it out"
        )
    files = Files(records, corpus, output, rejects, work, text_field)
    running = Running(block, restart, show_progress)
    return run_job(
        files, settings, lambda: (miners_of(model, instruction), reranker_of(reranker)), running
    )
