"""Mines hard negatives: passages that a search finds for a query and that do not answer it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedlm.errors import InputError
from embedlm.jobs import Reject
from embedlm.jobs.manifest import facts_digest
from embedlm.mining.corpus import Corpus, RecordFile, Rows, prepare_corpus, prepare_records
from embedlm.mining.negatives import NegativeMiner
from embedlm.mining.outputs import Mined, check_paths, opened, read_rows_of
from embedlm.mining.rankings import DenseMiner, Miner, Rankings, WordMiner
from embedlm.mining.record_job import RecordJob, Summary, Work, work_folder
from embedlm.mining.relabel import MOST
from embedlm.mining.settings import Judging, Settings, whole

if TYPE_CHECKING:
    from embedlm.embedder import Embedder
    from embedlm.rerank import Reranker

__all__ = ["mine"]

BLOCK = 2048
"""Records of a block."""
BLOCK_OF_JUDGED = 16
"""Records of a block whose candidates another model reads, which takes much longer."""
BM25 = "bm25"


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
    files = _Files(records, corpus, output, rejects, work, text_field)
    running = _Running(block, restart, show_progress)
    return _run(
        files, settings, lambda: (_miners(model, instruction), _reranker(reranker)), running
    )


@dataclass(frozen=True, slots=True)
class _Files:
    """What is read and written."""

    records: Rows
    corpus: Rows | None
    output: str | Path | None
    rejects: str | Path | None
    work: str | Path | None
    text_field: str | None


@dataclass(frozen=True, slots=True)
class _Running:
    """How a job runs."""

    block: int | None
    restart: bool
    show_progress: bool | None

    def size(self, settings: Settings, reranker: Any) -> int:
        """Return the number of records of a block."""
        if self.block is not None:
            return whole("block", self.block)
        slow = reranker is not None or settings.judging.llms
        return BLOCK_OF_JUDGED if slow else BLOCK


def _run(
    files: _Files,
    settings: Settings,
    models: Callable[[], tuple[list[Miner], Any]],
    running: _Running,
) -> Mined:
    """Mine, or go on with a job that was begun."""
    with opened(files.output, "mined.jsonl") as out:
        inputs = [files.records, files.corpus]
        aside = check_paths(out, files.rejects, inputs)
        miners, reranker = models()
        with work_folder(out, files.work, inputs) as folder:
            bad: list[Reject] = []
            kept = None if files.rejects is None else bad
            file = prepare_records(files.records, folder, kept)
            passages = file.documents() if files.corpus is None else files.corpus
            corpus = prepare_corpus(passages, folder, kept, files.text_field)
            rankings = Rankings(miners, corpus, reranker, settings.rerank)
            facts, size = _facts(settings, rankings, file), running.size(settings, reranker)
            job = RecordJob(
                records=file,
                out=out,
                form=settings.form,
                manifest={**facts, "block": size},
                size=size,
                restart=running.restart,
                rejects=aside,
                bad=bad,
                label="mine",
                show_progress=running.show_progress,
            )
            prepare = _preparation(rankings, settings, file, facts, folder, running.show_progress)
            report = job.run(
                prepare, lambda summary: _report(summary, settings, facts, job, corpus)
            )
            rows = None if files.output is not None else read_rows_of(out)
    return Mined(report, rows)


def _miners(model: Any, instruction: str | None) -> list[Miner]:
    """Return what ranks the passages."""
    from embedlm.loader import load

    given = list(model) if isinstance(model, list | tuple) else [model]
    if not given:
        raise InputError("model is an empty list; name a model, bm25, or several")
    miners: list[Miner] = []
    for one in given:
        if one == BM25:
            miners.append(WordMiner())
            continue
        embedder: Embedder = load(one) if one is None or isinstance(one, str | Path) else one
        if not hasattr(embedder, "encode"):
            raise InputError(f"model is {type(one).__name__}; give a folder, an Embedder or bm25")
        miners.append(DenseMiner(embedder, instruction))
    if instruction is not None and not any(isinstance(one, DenseMiner) for one in miners):
        raise InputError("an instruction was given, and bm25 reads none; leave it out")
    names = [facts_digest(miner.identity()) for miner in miners]
    if len(set(names)) < len(names):
        raise InputError("a model is given twice; a list fused with itself is the same list")
    return miners


def _reranker(reranker: Any) -> Any:
    """Return a re-ranker, loaded where a folder or hub id names it."""
    from embedlm.rerank import Reranker

    return Reranker(reranker) if isinstance(reranker, str | Path) else reranker


def _facts(settings: Settings, rankings: Rankings, file: RecordFile) -> dict[str, Any]:
    """Return what the output depends on."""
    rules = settings.rules
    return {
        "version": 1,
        "records": file.lines.digest,
        "corpus": rankings.corpus.lines.digest,
        "miners": [{"name": miner.name, **miner.identity()} for miner in rankings.miners],
        "k": rules.k,
        "filters": rules.filters.given(),
        "window": [rules.first, rules.last],
        "sample": rules.sample,
        "seed": rules.seed,
        "reranker": None
        if rankings.reranker is None
        else {
            "name": rankings.reranker.name,
            "model": facts_digest(rankings.reranker.identity()),
            "rerank": settings.rerank,
        },
        "judge": settings.judging.identity(),
        "form": settings.form,
    }


def _preparation(
    rankings: Rankings,
    settings: Settings,
    file: RecordFile,
    facts: Mapping[str, Any],
    folder: Path,
    show_progress: bool | None,
) -> Callable[[], Work]:
    def prepare() -> Work:
        for miner in rankings.miners:
            miner.prepare(rankings.corpus, folder, show_progress)
        return NegativeMiner(rankings, settings, file, facts)

    return prepare


def _report(
    summary: Summary, settings: Settings, facts: Mapping[str, Any], job: RecordJob, corpus: Corpus
) -> dict[str, Any]:
    counts, examples = summary.counts, summary.examples
    rules = sorted(name for name in counts if name.startswith("dropped:"))
    aside = sorted(name for name in counts if name.startswith("aside:"))
    return {
        "output": job.out.name,
        "records": len(job.records),
        "written": counts["written"],
        "set_aside": {
            name.partition(":")[2]: {"count": counts[name], "examples": examples.get(name, [])}
            for name in aside
        },
        "unreadable": len(job.bad),
        "passages": len(corpus),
        "duplicates": corpus.index.duplicates,
        "k": settings.rules.k,
        "negatives": counts["negatives"],
        "short": {
            "records": counts["short"],
            "missing": counts["missing"],
            "examples": examples.get("short", []),
        },
        "dropped": {
            name.partition(":")[2]: {"count": counts[name], "examples": examples.get(name, [])}
            for name in rules
        },
        "positives_added": counts["relabelled"],
        "instructions_unused": counts["instructions_unused"],
        **{name: facts[name] for name in ("miners", "filters", "window", "reranker", "judge")},
    }
