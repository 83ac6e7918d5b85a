"""Score every tuning-free method on one language model: the tables of docs/results.md.

    python benchmarks/methods_table.py MODEL --data DATA --work DIR
    python benchmarks/methods_table.py MODEL --data DATA --work DIR --tasks scifact --documents 600
    python benchmarks/methods_table.py MODEL --data DATA --work DIR --table

Each method's results on a task are a file of DIR, as `embedlm evaluate -o` writes it; what is there
is not computed again, so that a run which was stopped goes on with the method it was at.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import embedlm
from embedlm.errors import EmbedLMError
from embedlm.evaluation.results import ResultFile, read_results, write_results
from embedlm.evaluation.tasks import Run, found_tasks, select
from embedlm.readout.heads import HEADS

METHODS: Mapping[str, Mapping[str, Any]] = {
    "static-mean": {},
    "static-tfidf": {},
    "static-sif": {},
    "plain-last": {},
    "plain-mean": {},
    "weighted-mean": {},
    "inner-mean": {},
    "echo": {},
    "echo-last": {},
    "echo-zero-shot": {},
    "promptsth": {},
    "promptsum": {},
    "prompteol": {},
    "prompteol-icl": {},
    "pretended-cot": {},
    "knowledge-enhancement": {},
    "metaeol": {},
    "promptreps": {},
    "one-pass": {},
    # A rewritten sentence seldom needs more, and a small model seldom ends one.
    "geneol": {"transform.max_new_tokens": 32},
}
"""The recipes, and what is changed of them. promptbert needs a mask token."""


def run(method: str, task: str, file: Path, args: argparse.Namespace) -> None:
    """Score a method on a task and write the results."""
    recipe = embedlm.Recipe.load(method).override(dict(METHODS.get(method, {})))
    model = embedlm.load(args.model, recipe=recipe, dtype=args.dtype, device=args.device)
    tasks = {task: select([task])[task].model_copy(update=cut(task, args))}
    paths, _ = found_tasks(tasks, args.data)
    words = args.words if tasks[task].kind == "retrieval" else None
    options = {"max_length": args.max_length} if args.max_length else {}
    scored = Run(model, tasks, paths, words, options)
    results = list(scored.results())
    write_results(file, results, scored.described(), data=scored.data)


def cut(task: str, args: argparse.Namespace) -> dict[str, int]:
    """Return what makes a task smaller."""
    name = "documents" if select([task])[task].kind == "retrieval" else "sample"
    count: int | None = getattr(args, name)
    return {} if count is None else {name: count}


def files(args: argparse.Namespace) -> Iterator[tuple[str, str, Path]]:
    """Yield each task, method and file, whose folder is named after all settings."""
    for task in args.tasks:
        settings: dict[str, Any] = {**cut(task, args), "max-length": args.max_length}
        settings["words"] = args.words if select([task])[task].kind == "retrieval" else None
        settings["dtype"] = None if args.dtype == "auto" else args.dtype
        settings["device"] = args.device
        parts = [f"{name}-{value}" for name, value in settings.items() if value is not None]
        for method in args.methods:
            yield task, method, args.work / "-".join([task, *parts]) / f"{method}.json"


def told(found: ResultFile) -> str:
    """Return a result's score, interval, and those of its heads where there are several."""
    (result,) = found.results
    low, high = result.interval
    named = {head: result.more.get(f"{head}_{result.metric}") for head in (*HEADS, "hybrid")}
    heads = [f"{head} {value:.3f}" for head, value in named.items() if value is not None]
    more = f" ({', '.join(heads)})" if len(heads) > 1 else ""
    return f"{result.score:.3f} [{low:.3f}, {high:.3f}]{more}"


def table(args: argparse.Namespace) -> str:
    """Return what has been measured as Markdown."""
    cells: dict[str, dict[str, str]] = {method: {} for method in args.methods}
    for task, method, file in files(args):
        if file.is_file():
            cells[method][task] = told(read_results(file))
    lines = [f"| recipe | {' | '.join(args.tasks)} |", "|---" * (len(args.tasks) + 1) + "|"]
    for method, row in cells.items():
        lines.append(f"| `{method}` | {' | '.join(row.get(task, '') for task in args.tasks)} |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder, hub id or GGUF file")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--work", type=Path, required=True, help="folder of the results")
    parser.add_argument("--methods", default=",".join(METHODS), help="recipes")
    parser.add_argument("--tasks", default="stsb_test,scifact")
    parser.add_argument("--documents", type=int, help="of a corpus; without it all")
    parser.add_argument("--sample", type=int, help="pairs of a file of pairs; without it all")
    parser.add_argument("--words", type=int, help="words read of a document; without it all")
    parser.add_argument("--max-length", type=int, help="tokens of a prompt; without it all")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", help="cpu, cuda or mps; without it the fastest one here")
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    args = parser.parse_args()
    args.methods, args.tasks = args.methods.split(","), args.tasks.split(",")
    return args


def main() -> None:
    """Score what is missing and print the table."""
    args = arguments()
    for task, method, file in () if args.table else files(args):
        if file.is_file():
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        try:
            run(method, task, file, args)
        except EmbedLMError as error:
            print(f"{method}, {task}: {error}", file=sys.stderr, flush=True)
            continue
        seconds = time.perf_counter() - start
        print(f"{method}, {task}: {told(read_results(file))}, {seconds:.0f} s", flush=True)
    print(table(args))


if __name__ == "__main__":
    main()
