"""One command from a folder of documents to a model that searches them better, or to the news that
none was found: chunks, queries, negatives, tuning, evaluation, and the better of two models."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from embedlm.adaptation.chunks import Chunk, Corpus, cut, documents_digest, read_corpus
from embedlm.adaptation.derived import Query
from embedlm.adaptation.estimate import estimated
from embedlm.adaptation.evaluating import Examination, examination, judged
from embedlm.adaptation.given import Asked, read_queries
from embedlm.adaptation.models import Models
from embedlm.adaptation.queries import Divided, divide, made_queries, write_parts
from embedlm.adaptation.report import card_part, made_report, markdown
from embedlm.adaptation.selection import select_records
from embedlm.adaptation.settings import WRITTEN, Settings
from embedlm.adaptation.steps import REPORT, Steps, check_output, opened
from embedlm.adaptation.tuning import plan_of
from embedlm.embedder import Embedder
from embedlm.errors import InputError
from embedlm.evaluation.results import Result
from embedlm.jobs import Reject, new_folder
from embedlm.jobs.atomic import write_text
from embedlm.jobs.json_files import read_json, write_json
from embedlm.jobs.names import real_path
from embedlm.loader import load
from embedlm.mining import mine, score
from embedlm.rerank import is_reranker
from embedlm.training import train
from embedlm.training.trackers import EventHandler

__all__ = ["adapt"]

MODEL = "model"
"""Folder of the model that is kept."""
_OWN = 4
"""Negatives of a query whose own passages a re-ranker orders."""
_SHOWN = 20
"""Documents and queries set aside that a report lists, each kind."""


def adapt(
    documents: str | Path,
    model: str | Path | None = None,
    output: str | Path | None = None,
    *,
    queries: str | Path | None = None,
    llm: Any = None,
    pipeline: str | Path | None = None,
    teacher: Any = None,
    reranker: Any = None,
    kinds: Any = None,
    recipe: Any = None,
    suite: str | Path | None = None,
    data: str | Path | None = None,
    text_field: str = "text",
    device: Any = None,
    dry_run: bool = False,
    price: float | None = None,
    restart: bool = False,
    on_event: EventHandler | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Adapt a model to documents; keep the tuned model only if it is better for sure.

    Args:
        documents: a file, a folder, or a folder of BEIR's form (with corpus.jsonl).
        model: the base, a folder or hub id; None: the built-in model.
        output: a folder for model, report and data; None only with `dry_run`.
        queries: a file of queries with positives: texts, or ids of documents.
        llm: writes queries: a folder, a hub id or http://host/v1#model.
        pipeline: by which it does, a name or file of `synthesize`; None: questions.
        teacher: an embedder or re-ranker (folder or hub id) whose scores are distilled.
        reranker: a re-ranker, where `teacher` does not name it.
        kinds: kinds of queries: title, heading, first_sentence, keywords, cloze, question, given,
            llm; None: given where there are queries, else the six derived ones; and llm where there
            is one.
        recipe: of the base; None takes its own.
        suite: the general suite, a name or .yaml file; None: quick, where there are data.
        data: folder of the data sets; None takes $EMBEDLM_DATA.
        text_field: the field of records that holds the text.
        device: None chooses CUDA, MPS or CPU.
        dry_run: return what would be done, with time and cost, and write nothing.
        price: of a million tokens of the language model, for `dry_run`.
        restart: discard what the output folder holds of an earlier run.
        on_event: receives "begin" and "end" of each step, and the events of `train`.
        **options: chunk_tokens (128), per_chunk (2: derived queries of a chunk), queries_limit
            (800: to train on), held_out (0.2: share of the documents), negatives (of a query;
            None: 1, or 4 for a re-ranker to order), filters (of mining; perc_pos=0.95 and
            consistency=20), train (adapter or all), rank (16), batch (16), steps (None: two
            rounds, 48 at most), learning_rate (None: 5e-4, or 1e-4 where nothing teaches),
            seed (0).

    Returns:
        The report, see docs/adapt.md; with `dry_run` the plan.

    Raises:
        InputError: an option or an input that cannot be used, or too few documents or queries.
        JobError: the output folder holds another run, or the job cannot be finished; what is
            finished is kept.
        MissingExtraError: an adapter is to be trained, and peft is not installed.
        GenerationError: the language model cannot be asked; its answers until then are kept.
    """
    options = _renamed(options)
    if options.get("negatives") is None:
        ordered = reranker is not None or (isinstance(teacher, str | Path) and is_reranker(teacher))
        options["negatives"] = _OWN if ordered else 1
    if options.get("learning_rate") is None:
        taught = teacher is not None or reranker is not None
        options["learning_rate"] = _RATE if taught else _RATE_ALONE
    settings = Settings.of(kinds, queries is not None, llm is not None, **options)
    if price is not None and not (dry_run and llm is not None):
        raise InputError(
            "price is for dry_run with a language model (llm), which tells what that would cost; "
            "leave it out"
        )
    if output is None and not dry_run:
        raise InputError("no output was given; name a folder for the model and the report")
    if output is not None:
        check_output(Path(output), [documents, queries, model, teacher, reranker, llm])
    exam = examination(suite, data)
    corpus = read_corpus(documents, text_field)
    models = Models.of(model, recipe, teacher, reranker, llm, pipeline, device)
    models.check()
    run = _Run(settings, corpus, models, exam, queries, on_event or (lambda *_: None))
    if dry_run:
        return estimated(settings, models, run.chunks, run.divided(run.expected), price)
    run.divided(run.expected)  # too few documents or queries are told before anything is written
    with opened(real_path(str(output)), run.manifest(), run.on_event) as steps:
        return run.to_end(steps, restart=restart)


_NAMES = ("chunk_tokens", "per_chunk", "queries_limit", "held_out", "negatives", "filters", "train")
_RATE, _RATE_ALONE = 5e-4, 1e-4
"""Learning rates with a teacher or re-ranker, and by InfoNCE alone, which lowers a good model."""
_MORE = ("rank", "batch", "steps", "learning_rate", "seed")


def _renamed(options: Mapping[str, Any]) -> dict[str, Any]:
    from embedlm.schema.arguments import check_names

    check_names("adapt", options, [*_NAMES, *_MORE])
    return {
        ("queries" if name == "queries_limit" else name): value for name, value in options.items()
    }


@dataclass
class _Run:
    """A run: its inputs, and what is made of them when it is first needed."""

    settings: Settings
    corpus: Corpus
    models: Models
    exam: Examination
    queries: str | Path | None
    on_event: EventHandler

    @cached_property
    def chunks(self) -> list[Chunk]:
        """The chunks of all documents."""
        tokenizer = self.models.base.tokenizer
        found = list(cut(self.corpus.documents, tokenizer, self.settings.chunk_tokens))
        if not found:
            raise InputError(
                f"no chunk of {self.settings.chunk_tokens} tokens holds a text that could be "
                "searched for; give documents with sentences, or longer chunks (chunk_tokens)"
            )
        return found

    @cached_property
    def given(self) -> Asked | None:
        """The caller's queries."""
        return None if self.queries is None else read_queries(self.queries, self.chunks)

    @property
    def to_write(self) -> list[Chunk]:
        """The chunks for which the language model writes queries."""
        if self.models.writer is None:
            return []
        return self.chunks[:: -(-len(self.chunks) // self.settings.queries)]

    @property
    def expected(self) -> list[Query]:
        """Stand-ins for the queries that the language model would write."""
        return [Query(f"of {one.id}", WRITTEN, one, one.passage) for one in self.to_write]

    def divided(self, written: list[Query]) -> Divided:
        """Return all queries in three parts."""
        asking = made_queries(self.chunks, self.settings, self.given, written)
        return divide(asking, self.chunks, self.settings)

    def manifest(self) -> dict[str, Any]:
        """Return all that the outputs depend on."""
        asked = None
        if self.given is not None:
            asked = [
                [own[0].text, *(query.chunk.id for query in own)] for own in self.given.queries
            ]
        return {
            "version": 1,
            "documents": documents_digest(self.corpus.documents),
            "queries": asked and _digest(asked),
            **self.models.facts(),
            "suite": {name: task.model_dump() for name, task in self.exam.tasks.items()},
            "settings": self.settings.facts(),
        }

    def to_end(self, steps: Steps, *, restart: bool) -> dict[str, Any]:
        """Do every step that no earlier run has finished; return the report."""
        steps.begin(restart=restart)
        finished = steps.report()
        if finished is not None:
            return finished
        facts = self.made(steps)
        trained = steps.run("tuned", lambda: self.tuned(steps, facts["selected"]["train"]))
        tuned = steps.work / "tuned" / "model"
        results = self.results(steps, None)
        others = self.results(steps, tuned) if trained["best_step"] else None
        verdict = judged(results, others)
        report = made_report(
            verdict,
            results,
            others,
            {**facts, "trained": trained, "run": steps.manifest},
            self.exam.why_none,
        )
        source = tuned if verdict.kept == "tuned" else self.kept_base(steps)
        self.write_model(steps.out / MODEL, source, report)
        write_text(steps.out / "report.md", markdown(report))
        write_json(steps.out / REPORT, report, indent=1)
        steps.end()
        return steps.report() or report

    # -- data ---------------------------------------------------------------------------------

    def made(self, steps: Steps) -> dict[str, Any]:
        """Make the records to train on; return what is told of them."""
        written = steps.run("written", lambda: self.written(steps)) if self.models.writer else None
        asked = steps.run("asked", lambda: self.asked(steps, written))
        mined = steps.run("mined", lambda: self.mined(steps))
        source = steps.work / "mined.jsonl"
        if self.models.reranker is not None:
            steps.run("scored", lambda: self.scored(steps))
            source = steps.work / "scored.jsonl"
        scored = self.models.reranker is not None
        selected = steps.run("selected", lambda: select_records(source, steps.data, scored=scored))
        return {**asked, "mined": mined, "selected": selected}

    def written(self, steps: Steps) -> dict[str, Any]:
        """Let the language model write a query for each chunk, up to the number to train on."""
        assert self.models.writer is not None
        file = steps.work / "written.jsonl"
        found, aside = self.models.writer.write(self.to_write, file, self.settings.seed)
        return {"queries": found, "set_aside": [_told(one) for one in aside]}

    def asked(self, steps: Steps, written: Mapping[str, Any] | None) -> dict[str, Any]:
        """Divide documents and queries into parts, and write these."""
        by_id = {chunk.id: chunk for chunk in self.chunks}
        own = [
            Query(text, WRITTEN, by_id[id], by_id[id].passage)
            for text, id in ([] if written is None else written["queries"])
        ]
        divided = self.divided(own)
        searched = write_parts(divided, self.chunks, steps.data, steps.work)
        aside = {
            "documents": [_told(one) for one in self.corpus.set_aside],
            "queries": [_told(one) for one in self.given.set_aside] if self.given else [],
            "llm": [] if written is None else written["set_aside"],
        }
        return {
            "documents": len(self.corpus.documents),
            "chunks": len(self.chunks),
            "searched": searched,
            "split": divided.split.by,
            "queries": divided.counts(),
            "ambiguous": divided.ambiguous,
            "set_aside": {name: found[:_SHOWN] for name, found in aside.items() if found},
            "set_aside_counts": {name: len(found) for name, found in aside.items() if found},
        }

    def mined(self, steps: Steps) -> dict[str, Any]:
        """Mine negatives, and leave out queries whose passage the search does not find."""
        report = mine(
            steps.work / "records.jsonl",
            steps.work / "passages.jsonl",
            model=self.models.miners,
            output=steps.work / "mined.jsonl",
            k=self.settings.negatives,
            filters=self.settings.rules(),
        ).report
        return {
            "records": report["records"],
            "written": report["written"],
            "negatives": report["negatives"],
            "short": report["short"]["records"],
            "dropped": {rule: found["count"] for rule, found in report["dropped"].items()},
            "set_aside": {why: found["count"] for why, found in report["set_aside"].items()},
        }

    def scored(self, steps: Steps) -> dict[str, Any]:
        """Write the re-ranker's scores into the records."""
        report = score(
            steps.work / "mined.jsonl",
            reranker=self.models.reranker,
            output=steps.work / "scored.jsonl",
        ).report
        return {"written": report["written"], "scores": report["scores"]}

    # -- models -------------------------------------------------------------------------------

    def tuned(self, steps: Steps, queries: int) -> dict[str, Any]:
        """Tune the base; return how it went."""
        taught = self.models.taught_by
        plan = plan_of(
            self.settings,
            model=self.models.source,
            recipe=self.models.recipe,
            teacher=self.models.teacher_source,
            scored=taught == "reranker",
            queries=queries,
            prompts={
                role: _prompt_tokens(self.models.base, role) for role in ("query", "document")
            },
            save_dtype=self.models.save_dtype,
            data=steps.data,
        )
        folder = steps.work / "tuned"
        train(plan, folder, device=self.models.device, on_event=self.on_event)
        summary: dict[str, Any] = read_json(folder / "stage-1-adapt" / "summary.json")
        learnt = "InfoNCE" if taught is None else f"listwise distillation ({taught}) and InfoNCE"
        how = f"LoRA of rank {self.settings.rank}" if self.settings.train == "adapter" else "all"
        facts = {"objective": learnt, "train": how, "batch": self.settings.batch}
        return {**facts, "learning_rate": self.settings.learning_rate, **summary}

    def results(self, steps: Steps, folder: Path | None) -> list[Result]:
        """Return the results of the base (None) or of the model in a folder."""
        name = "base" if folder is None else "tuned"
        self.on_event("begin", {"step": f"evaluate {name}", "finished": False})
        model = self.models.base
        if folder is not None:
            model = load(str(folder), device=self.models.device)
        found = self.exam.score(model, steps.data, steps.work / "results")
        self.on_event("end", {"step": f"evaluate {name}", "score": found[0].score})
        return found

    def kept_base(self, steps: Steps) -> Path:
        """Return a folder of the base by its recipe; one that is written bears the model's name."""
        source = Path(self.models.source)
        if not source.is_dir() or self.models.recipe is not None:
            source = steps.work / "base" / MODEL
            self.models.base.save_pretrained(source)
        return source

    def write_model(self, target: Path, source: Path, report: Mapping[str, Any]) -> None:
        """Write the model that is kept: the tuned one with its card, or the base as it is."""
        with new_folder(target) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
            if report["kept"] == "tuned":
                card = folder / "README.md"
                text = card.read_text(encoding="utf-8").rstrip() if card.is_file() else ""
                write_text(card, f"{text}\n\n{card_part(report)}")


def _told(reject: Reject) -> dict[str, Any]:
    return {"file": reject.file, "line": reject.line, "error": reject.error}


def _digest(value: Any) -> str:
    from embedlm.jobs.manifest import facts_digest

    return facts_digest({"value": value})


def _prompt_tokens(model: Embedder, role: str) -> int:
    """Return how many tokens a role's prompt has without a text; of several the longest."""
    rendered = model.render([""], role=role)
    batches = rendered if isinstance(rendered, list) else [rendered]
    return max(len(batch.ids[0]) for batch in batches)
