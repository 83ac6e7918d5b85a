"""Makes training records with a language model, as a pipeline says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embedlm.data import check_form
from embedlm.data.languages import check_language
from embedlm.errors import InputError
from embedlm.evaluation.contamination import HeldOut
from embedlm.generation import Cache, Generator, resolve_generator
from embedlm.jobs import Reject
from embedlm.jobs.manifest import facts_digest
from embedlm.mining.corpus import Corpus, Rows, prepare_corpus
from embedlm.mining.lines import Lines
from embedlm.mining.outputs import check_paths, opened, read_rows_of
from embedlm.mining.record_job import work_folder
from embedlm.mining.settings import whole
from embedlm.schema.pipeline import Pipeline
from embedlm.synthesis.items import prepare_items
from embedlm.synthesis.ranking import Ranker
from embedlm.synthesis.run import SynthesisJob
from embedlm.synthesis.stages import Tools, make_stages, needs

__all__ = ["Synthesized", "synthesize"]

BLOCK = 64
"""Items of a block."""
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Synthesized:
    """What a finished job made."""

    report: dict[str, Any]
    """What `OUT.report.json` holds: see docs/synthesize.md."""
    spent: dict[str, Any]
    """What this run asked for: requests, answers from the cache, tokens, and their cost."""
    records: list[dict[str, Any]] | None = None
    """The rows of the output, where no file was named for it."""


@dataclass(slots=True)
class _Models:
    """The models that a pipeline needs, resolved."""

    writer: Generator | None
    model: Any
    reranker: Any

    @classmethod
    def of(cls, pipeline: Pipeline, llm: Any, model: Any, reranker: Any) -> _Models:
        """Check that the pipeline gets what it needs, and nothing that it has no use for.

        Raises:
            InputError: a model is missing or is of no use.
        """
        needed = needs(pipeline)
        searched = needed & {"corpus", "model"}
        for name, given, wanted, why in (
            ("llm", llm, "llm" in needed, "asks a language model"),
            ("reranker", reranker, "reranker" in needed, "filters by a re-ranker"),
        ):
            if wanted and given is None:
                raise InputError(
                    f"the pipeline {pipeline.name!r} {why}; name one (--{name}, {name}=)"
                )
            if given is not None and not wanted:
                raise InputError(f"the pipeline {pipeline.name!r} uses no {name}; leave it out")
        if model is not None and not searched:
            raise InputError(f"the pipeline {pipeline.name!r} uses no model; leave it out")
        return cls(
            None if llm is None else resolve_generator(llm),
            _embedder(model) if searched else None,
            _reranker(reranker),
        )

    def identity(self, ranker: Ranker | None) -> dict[str, Any]:
        """Return what decides what they give."""
        return {
            "llm": None if self.writer is None else self.writer.name,
            "model": None if ranker is None else ranker.miner.identity(),
            "reranker": None if self.reranker is None else facts_digest(self.reranker.identity()),
        }


def _embedder(model: Any) -> Any:
    from embedlm.loader import load

    return model if model == "bm25" or hasattr(model, "encode") else load(model)


def _reranker(reranker: Any) -> Any:
    from embedlm.rerank import Reranker

    return Reranker(reranker) if isinstance(reranker, str | Path) else reranker


def synthesize(
    pipeline: str | Path | Mapping[str, Any] | Pipeline,
    rows: Rows | None = None,
    *,
    llm: Any = None,
    output: str | Path | None = None,
    count: int | None = None,
    languages: Sequence[str] = (),
    changes: Mapping[str, Any] | None = None,
    corpus: Rows | None = None,
    model: Any = None,
    reranker: Any = None,
    held_out: Sequence[str | Path] = (),
    seed: int = 0,
    prices: tuple[float, float] | None = None,
    form: str = "records",
    rejects: str | Path | None = None,
    block: int | None = None,
    restart: bool = False,
    work: str | Path | None = None,
    cache: str | Path | None = None,
    show_progress: bool | None = None,
) -> Synthesized:
    """Make training records as a pipeline says.

    A job that was stopped goes on where it was, and gives the same file. Answers are also kept in
    the cache of generated texts, so that another job does not pay for them twice.

    Args:
        pipeline: a name of `pipelines()`, a .yaml file, a mapping or a `Pipeline`.
        rows: the input that the pipeline reads: a file, a folder of documents, or values.
        llm: what writes: http://host/v1#model, a model folder, GGUF file or hub id, or a
            `generation.Generator`.
        output: a .jsonl file; None returns the rows.
        count: so many items of the input, drawn by the seed; where the pipeline reads none, so
            many requests for tasks or examples. None: all, or one.
        languages: what is written in, drawn for each item; the pipeline must draw a language.
        changes: fields of the pipeline that are replaced, e.g. {"steps.query.temperature": 0}.
        corpus: passages that steps search; None: the input, where that is passages.
        model: an embedder that searches, or "bm25"; None: the built-in one.
        reranker: a re-ranker, for filters that use one.
        held_out: files of an evaluation set; what holds their words is set aside.
        seed: of all that is drawn.
        prices: of a million tokens read, and of a million written.
        form: of the output; see `data.RECORD_FORMS`.
        rejects: file for what is set aside, records that cannot be read included; None: beside
            the output, and an unreadable record is an error (a passage without text is not).
        block: items that are kept together; a kill loses at most the ones in progress.
        restart: discard what an earlier run has finished.
        work: folder for vectors and indexes, kept for other runs.
        cache: file of the cache of generated texts; None: the default one.
        show_progress: None shows a bar for long jobs on a terminal.

    Raises:
        RecipeError: an unknown pipeline, or a field of one that is not allowed.
        InputError: an input, option or model that cannot be used.
        RecordError: a bad record, with file and line.
        GenerationError: the language model cannot be used; finished blocks and answers are kept.
        JobError: the job cannot be started, continued or finished.
    """
    chosen = _in_languages(Pipeline.load(pipeline).override(dict(changes or {})), languages)
    check_form(form)
    size = whole("block", BLOCK if block is None else block)
    whole("count", 1 if count is None else count)
    models = _Models.of(chosen, llm, model, reranker)
    with opened(output, "synthesized.jsonl") as out:
        inputs = [rows, corpus, *held_out]
        aside = check_paths(out, rejects, inputs)
        with closing(_cache(cache)) as store, work_folder(out, work, inputs) as folder:
            bad: list[Reject] = []
            kept = None if rejects is None else bad
            rows = _documents(rows)
            first = prepare_items(
                chosen, rows, folder, count=count, seed=seed, rejects=kept, empty=bad
            )
            ranker, searched = _searched(chosen, models, rows, corpus, folder, kept)
            if ranker is not None:
                ranker.prepare(folder, show_progress)
            tools = Tools(chosen, seed, store, models.writer, ranker, models.reranker)
            tools.held_out = HeldOut.read(held_out)
            facts = _facts(chosen, models, ranker, first, searched, tools)
            job = _job(facts, first, tools, out, aside, bad, form=form, size=size)
            job.restart, job.show_progress = restart, show_progress
            report = job.run()
            rows_made = None if output is not None else read_rows_of(out)
    return Synthesized(report, _cost(tools, prices), rows_made)


def _job(
    facts: dict[str, Any],
    first: Lines,
    tools: Tools,
    out: Path,
    aside: Path | None,
    bad: list[Reject],
    *,
    form: str,
    size: int,
) -> SynthesisJob:
    """Return the job of a pipeline."""
    told = {name: facts[name] for name in ("pipeline", "llm", "model", "reranker", "seed")}
    return SynthesisJob(
        first=first,
        stages=make_stages(tools),
        out=out,
        form=form,
        manifest={**facts, "form": form, "block": size},
        size=size,
        restart=False,
        rejects=aside,
        bad=bad,
        show_progress=None,
        facts=told,
    )


def _cache(path: str | Path | None) -> Cache:
    return Cache(None if path is None else Path(path))


def _in_languages(pipeline: Pipeline, languages: Sequence[str]) -> Pipeline:
    """Return the pipeline with other languages to draw from."""
    for name in languages:
        check_language(name)
    if not languages:
        return pipeline
    if "language" not in pipeline.draw:
        raise InputError(
            f"the pipeline {pipeline.name!r} draws no language; leave languages out, or write "
            "draw: {language: [...]} and {language} into its file"
        )
    return pipeline.override({"draw.language": list(languages)})


def _documents(rows: Rows | None) -> Rows | None:
    """Return the passages of a folder, as an index has them; anything else as it is."""
    if not isinstance(rows, str | Path) or not Path(rows).is_dir():
        return rows
    from embedlm.search import read_documents

    found = []
    for one in read_documents(rows):
        title = one.metadata.get("title")
        named = {"title": title} if isinstance(title, str) else {}
        found.append({"id": str(one.id), **named, "text": one.text})
    return found


def _searched(
    pipeline: Pipeline,
    models: _Models,
    rows: Rows | None,
    corpus: Rows | None,
    folder: Path,
    rejects: list[Reject] | None,
) -> tuple[Ranker | None, Corpus | None]:
    """Return what ranks the passages, and the passages."""
    needed = needs(pipeline)
    if "corpus" not in needed:
        if corpus is not None:
            raise InputError(f"the pipeline {pipeline.name!r} searches nothing; leave corpus out")
        return (Ranker(models.model, None) if "model" in needed else None), None
    passages = rows if corpus is None and pipeline.input == "passages" else _documents(corpus)
    if passages is None:
        raise InputError(f"the pipeline {pipeline.name!r} searches passages; give corpus")
    home = folder / "searched"
    home.mkdir(exist_ok=True)
    # What the input had is set aside already; of another corpus, a passage without text is no loss.
    found = prepare_corpus(passages, home, [] if corpus is None else rejects, empty=[])
    return Ranker(models.model, found), found


def _facts(
    pipeline: Pipeline,
    models: _Models,
    ranker: Ranker | None,
    first: Lines,
    searched: Corpus | None,
    tools: Tools,
) -> dict[str, Any]:
    """Return what the output depends on."""
    return {
        "version": 1,
        "pipeline": pipeline.name,
        "steps": facts_digest(pipeline.model_dump(mode="json")),
        "input": first.digest,
        "corpus": None if searched is None else searched.lines.digest,
        "held_out": facts_digest({"runs": sorted(tools.held_out.runs)}),
        "seed": tools.seed,
        **models.identity(ranker),
    }


def _cost(tools: Tools, prices: tuple[float, float] | None) -> dict[str, Any]:
    spent = asdict(tools.spent)
    if prices is not None:
        tokens = (spent["prompt_tokens"], spent["new_tokens"])
        spent["cost"] = sum(n * price / _MILLION for n, price in zip(tokens, prices, strict=True))
    return spent
