"""`embedlm adapt`: from a folder of documents to a model that searches them better."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from embedlm.cli._options import (
    Data,
    Device,
    Json,
    RecipeName,
    flag,
    natural,
    number,
    path,
    repeated,
    whole,
)
from embedlm.cli._values import emit
from embedlm.cli.train import event_line

__all__ = ["EXAMPLES", "NAME", "command", "tell_plan"]

NAME = "adapt"
EXAMPLES = r"""Examples:
  embedlm adapt docs/ -o adapted --dry-run
  embedlm adapt docs/ -o adapted
  embedlm adapt docs/ -m Qwen/Qwen3-0.6B -r prompteol -o adapted \
      --teacher Qwen/Qwen3-Embedding-0.6B
  embedlm adapt corpus.jsonl -m model/ -o adapted --queries log.jsonl \
      --reranker BAAI/bge-reranker-v2-m3
  embedlm adapt docs/ -o adapted --llm http://localhost:8000/v1#model"""


@Parameter(name="*", group="Queries")
@dataclass(frozen=True)
class Queries:
    """Where queries come from, and how documents are cut."""

    queries: Annotated[
        str | None,
        path("Queries with positives: texts, or ids of documents; without it they are made."),
    ] = None
    llm: Annotated[
        str | None,
        path(
            "Language model that writes queries: a folder, GGUF file, hub id or "
            "http://host/v1#model.",
            metavar="MODEL",
        ),
    ] = None
    pipeline: Annotated[
        str | None,
        path(
            "Pipeline of embedlm synthesize, a name or file, by which --llm writes; without it "
            "questions.",
            metavar="PIPELINE",
        ),
    ] = None
    kinds: Annotated[
        tuple[str, ...],
        repeated(
            "Kinds of queries: title, heading, first_sentence, keywords, cloze, question, given, "
            "llm; without it all that can be had",
            "--kind",
            "KIND",
        ),
    ] = ()
    per_chunk: Annotated[int, whole("Queries that are derived from a chunk, at most.")] = 2
    queries_limit: Annotated[int, whole("Queries to train on, at most.", "--max-queries")] = 800
    chunk_tokens: Annotated[int, whole("Tokens of a chunk, at most.")] = 128
    held_out: Annotated[
        float, number("Share of the documents whose queries say what was gained.")
    ] = 0.2
    text_field: Annotated[
        str, Parameter(metavar="FIELD", help="Field of records that holds the text.")
    ] = "text"


@Parameter(name="*", group="Training")
@dataclass(frozen=True)
class Training:
    """What the model learns from, and for how long."""

    teacher: Annotated[
        str | None,
        path("Embedder or re-ranker whose order of passages is learnt.", metavar="MODEL"),
    ] = None
    reranker: Annotated[
        str | None, path("Re-ranker, where --teacher would not know it as one.", metavar="MODEL")
    ] = None
    negatives: Annotated[
        int | None,
        whole("Passages that do not answer, for each query; without it 1, or 4 with a re-ranker."),
    ] = None
    filter: Annotated[
        tuple[str, ...],
        repeated(
            "Rule of embedlm mine; without it perc_pos=0.95 and consistency=20",
            "--filter",
            "NAME=X",
        ),
    ] = ()
    train: Annotated[
        str, Parameter(metavar="WHAT", help="adapter (LoRA) or all (every weight).")
    ] = "adapter"
    rank: Annotated[int | None, whole("Rank of the LoRA adapter; without it 16.")] = None
    batch: Annotated[int, whole("Queries of a step.")] = 16
    steps: Annotated[
        int | None, whole("Steps; without it two rounds through the queries, 48 at most.")
    ] = None
    learning_rate: Annotated[
        float | None,
        number("The largest learning rate; without it 5e-4, or 1e-4 where nothing teaches."),
    ] = None
    seed: Annotated[int, natural("Seed of all that is drawn.")] = 0


@Parameter(name="*", group="Model")
@dataclass(frozen=True)
class Base:
    """What is adapted."""

    model: Annotated[
        str | None,
        path(
            "Folder or hub id of the base; without it the built-in model.",
            ["--model", "-m"],
            "MODEL",
        ),
    ] = None
    recipe: RecipeName = None
    device: Device = None


@Parameter(name="*", group="Evaluation")
@dataclass(frozen=True)
class General:
    """On what else both models are scored."""

    suite: Annotated[
        str | None,
        path(
            "General suite, a name or a .yaml file; without it quick, where there are data.",
            metavar="SUITE",
        ),
    ] = None
    data: Data = None


AS_MADE, AS_TRAINED, AS_BUILT, AS_KNOWN = Queries(), Training(), Base(), General()


def command(
    documents: Annotated[
        str,
        path(
            "Documents: a folder of text (.txt, .md, .html, .pdf) or records (.jsonl, .csv, .tsv, "
            ".parquet), one such file, or a folder of BEIR's form.",
            "FILE_OR_DIR",
            None,
        ),
    ],
    /,
    *,
    output: Annotated[
        str | None,
        path(
            "Folder for the model, the report and the data; only --dry-run goes without.",
            ["--output", "-o"],
            "DIR",
        ),
    ] = None,
    base: Base = AS_BUILT,
    queries: Queries = AS_MADE,
    training: Training = AS_TRAINED,
    general: General = AS_KNOWN,
    dry_run: Annotated[
        bool, flag("Print what would be done, with time and cost, and write nothing.")
    ] = False,
    price: Annotated[
        float | None, number("Price of a million tokens of the language model, for --dry-run.")
    ] = None,
    restart: Annotated[bool, flag("Discard what the output folder holds and start again.")] = False,
    json: Json = False,
) -> None:
    """Adapt a model to documents: queries, negatives, tuning, evaluation; the better model is kept.

    The tuned model takes the place of the base only if it is better for sure on
    queries of documents that it has not seen. A run that was stopped goes on
    where it was.
    """
    from embedlm.adaptation import adapt

    chosen = {**asdict(base), **asdict(queries), **asdict(training), **asdict(general)}
    chosen["kinds"], chosen["filters"] = chosen["kinds"] or None, chosen.pop("filter") or None
    running: dict[str, Any] = {"dry_run": dry_run, "price": price, "restart": restart}
    report = adapt(documents, output=output, on_event=_Teller(), **running, **chosen)
    if json:
        emit(report)
    elif dry_run:
        tell_plan(report)
    else:
        _tell(report, str(output))


class _Teller:
    """Tells on standard error what is done, and how long each step took."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def __call__(self, kind: str, values: Mapping[str, Any]) -> None:
        """Print the line of an event."""
        if kind == "begin":
            self.start = time.monotonic()
            line = None if values["finished"] else f"{values['step']} ..."
        elif kind == "end":
            kept = " (finished before)" if values.get("finished") else f" {self._seconds()}"
            line = f"{values['step']}{kept}{_fact(values)}"
        else:
            line = event_line(kind, dict(values))
        if line is not None:
            print(line, file=sys.stderr, flush=True)

    def _seconds(self) -> str:
        return f"({time.monotonic() - self.start:.0f} s)"


def _fact(values: Mapping[str, Any]) -> str:
    """Return the most telling fact of a step."""
    step = values["step"]
    if step == "written":
        return f": {len(values['queries']):,} queries, {len(values['set_aside']):,} set aside"
    if step == "asked":
        counts = {part: sum(own.values()) for part, own in values["queries"].items()}
        told = ", ".join(f"{part} {count:,}" for part, count in counts.items())
        return f": {values['documents']:,} documents, {values['chunks']:,} chunks; queries: {told}"
    if step == "mined":
        return f": {values['negatives']:,} negatives for {values['written']:,} queries"
    if step == "selected":
        return f": {values['train']:,} to train on, {values['dev']:,} to choose by"
    if step == "tuned":
        return f": best step {values['best_step']} of {values['steps']}"
    return f": nDCG@10 {values['score']:.4f}" if "score" in values else ""


def _tell(report: Mapping[str, Any], output: str) -> None:
    """Print the report in a few lines."""
    for name in ("before", "tuned"):
        scores = report[name]
        if scores is not None:
            low, high = scores["interval"]
            told = {"before": "base", "tuned": "tuned"}[name]
            print(f"{told:<6} nDCG@10 {scores['ndcg@10']:.4f}  [{low:.4f}, {high:.4f}]")
    general = report["general"]
    for task, row in {} if general is None else general["tasks"].items():
        low, high = row["interval"]
        print(
            f"  {task:<20} {row['metric']:<10} {row['a']:.4f} -> {row['b']:.4f}  "
            f"({row['difference']:+.4f} [{low:+.4f}, {high:+.4f}])"
        )
    print(f"kept: {report['kept']}; {report['why']}")
    for name, count in report["set_aside_counts"].items():
        first = report["set_aside"][name][0]
        print(f"set aside, {name}: {count:,} (the first: {first['error']})", file=sys.stderr)
    print(f"the model is in {output}/model, the report in {output}/report.md")


def tell_plan(plan: Mapping[str, Any]) -> None:
    """Print what would be done."""
    print(f"{plan['documents']:,} documents, {plan['chunks']:,} chunks, {plan['tokens']:,} tokens")
    for part, counts in plan["queries"].items():
        told = ", ".join(f"{kind} {count:,}" for kind, count in counts.items())
        print(f"queries, {part}: {sum(counts.values()):,} ({told})")
    print(f"divided by {plan['split']}; {plan['steps']:,} steps of training")
    if plan["llm"] is not None:
        llm = plan["llm"]
        cost = "" if llm["cost"] is None else f", cost {llm['cost']}"
        print(
            f"queries by {llm['name']}: {llm['requests']:,} requests, about "
            f"{llm['prompt_tokens']:,} tokens read and {llm['answer_tokens']:,} written{cost}"
        )
    for name, seconds in plan["seconds"].items():
        print(f"  {name:<14} about {_duration(seconds)}")
    print(f"about {_duration(plan['total_seconds'])} in all, without the general suite")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
