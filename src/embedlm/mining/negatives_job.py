"""Jobs over the negatives of records: what is read and written, by which models, and the report."""

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
from embedlm.mining.settings import Settings, whole

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["Files", "Running", "miners_of", "reranker_of", "run_job"]

BLOCK = 2048
"""Records of a block."""
BLOCK_OF_JUDGED = 16
"""Records of a block whose candidates another model reads, which takes much longer."""
BM25 = "bm25"


@dataclass(frozen=True, slots=True)
class Files:
    """What is read and written."""

    records: Rows
    corpus: Rows | None
    output: str | Path | None
    rejects: str | Path | None
    work: str | Path | None
    text_field: str | None


@dataclass(frozen=True, slots=True)
class Running:
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


def run_job(
    files: Files,
    settings: Settings,
    models: Callable[[], tuple[list[Miner], Any]],
    running: Running,
    kind: type[NegativeMiner] = NegativeMiner,
) -> Mined:
    """Do a job, or go on with one that was begun.

    Args:
        files: that are read and written.
        settings: of the job.
        models: loads what ranks and the re-ranker, once the files are checked.
        running: how the job runs.
        kind: turns the records of a block into findings.
    """
    with opened(files.output, f"{kind.verb}d.jsonl") as out:
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
            facts, size = _facts(kind, settings, rankings, file), running.size(settings, reranker)
            job = RecordJob(
                records=file,
                out=out,
                form=settings.form,
                manifest={**facts, "block": size},
                size=size,
                restart=running.restart,
                rejects=aside,
                bad=bad,
                label=kind.verb,
                show_progress=running.show_progress,
            )
            prepare = _preparation(
                kind(rankings, settings, file, facts), folder, running.show_progress
            )
            report = job.run(
                prepare,
                lambda summary: kind.reported(_report(summary, settings, facts, job, corpus)),
            )
            rows = None if files.output is not None else read_rows_of(out)
    return Mined(report, rows)


def miners_of(model: Any, instruction: str | None) -> list[Miner]:
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


def reranker_of(reranker: Any) -> Any:
    """Return a re-ranker, loaded where a folder or hub id names it."""
    from embedlm.rerank import Reranker

    return Reranker(reranker) if isinstance(reranker, str | Path) else reranker


def _facts(
    kind: type[NegativeMiner], settings: Settings, rankings: Rankings, file: RecordFile
) -> dict[str, Any]:
    """Return what the output depends on."""
    rules = settings.rules
    return {
        **({} if kind is NegativeMiner else {"job": kind.verb}),
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
    miner: NegativeMiner, folder: Path, show_progress: bool | None
) -> Callable[[], Work]:
    def prepare() -> Work:
        for one in miner.rankings.miners:
            one.prepare(miner.rankings.corpus, folder, show_progress)
        return miner

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
        "given": counts["given"],
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
