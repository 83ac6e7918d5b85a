"""Score the tuning-free recipes with one model: the table of docs/results.md.

    python benchmarks/quality.py --data DATA [--model builtin-base] [--out quality.jsonl]

Finished rows are kept in --out and not computed again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

import embedlm
from embedlm.errors import EmbedLMError
from embedlm.evaluation import evaluate
from embedlm.evaluation.tasks import select

RECIPES = (
    "static-mean,static-tfidf,static-sif,plain-last,plain-mean,weighted-mean,prompteol,"
    "prompteol-icl,promptsth,promptsum,pretended-cot,knowledge-enhancement,metaeol,geneol,"
    "promptreps,echo,echo-last,echo-zero-shot,promptbert"
)


def row(model: str, recipe: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return one recipe's scores, or why it has none."""
    try:
        chosen = embedlm.Recipe.load(recipe)
        if chosen.transform is not None:
            # Two dozen tokens hold a rewritten sentence, and a small model seldom ends one.
            chosen = chosen.override({"transform.max_new_tokens": 24})
        embedder = embedlm.load(model, recipe=chosen)
        results = evaluate(embedder, args.tasks, suite=args.suite, data=args.data, words=args.words)
    except EmbedLMError as error:
        return {"model": model, "recipe": recipe, "error": str(error)}
    return {
        "model": model,
        "recipe": recipe,
        "results": {
            result.task: {**result.scores(), "score": result.score, "seconds": result.seconds}
            for result in results
        },
    }


def table(rows: list[dict[str, Any]], tasks: list[str]) -> str:
    """Return the rows as Markdown."""
    lines = [f"| recipe | {' | '.join(tasks)} | seconds |", "|---" * (len(tasks) + 2) + "|"]
    for entry in rows:
        if "error" in entry:
            lines.append(
                f"| {entry['recipe']} | {entry['error'].split(';')[0]} |" + " |" * len(tasks)
            )
            continue
        results = entry["results"]
        cells = []
        for task in tasks:
            found = results[task]
            parts = [
                f"{name[:-8]} {found[name]:.3f}" for name in found if name.endswith("_ndcg@10")
            ]
            low, high = found["interval"]
            detail = f" ({', '.join(parts)})" if len(parts) > 1 else ""
            cells.append(f"{found['score']:.3f} [{low:.3f}, {high:.3f}]{detail}")
        seconds = sum(results[task]["seconds"] for task in tasks)
        lines.append(f"| {entry['recipe']} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Score what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--model", default="builtin-base")
    parser.add_argument("--recipes", default=RECIPES)
    parser.add_argument("--suite", default=None, help="a suite, in place of --tasks")
    parser.add_argument("--tasks", default=None, help="names; without it stsb_test,scifact")
    parser.add_argument("--words", type=int, default=None, help="words read of a document")
    parser.add_argument("--out", type=Path, default=Path("quality.jsonl"))
    args = parser.parse_args()
    if args.tasks is not None or args.suite is None:
        args.tasks = (args.tasks or "stsb_test,scifact").split(",")
    tasks = list(select(args.tasks, args.suite))
    known = (
        [json.loads(line) for line in args.out.read_text().splitlines()]
        if (args.out.is_file())
        else []
    )
    done = {(entry["model"], entry["recipe"]): entry for entry in known}
    rows = []
    for recipe in args.recipes.split(","):
        entry = done.get((args.model, recipe))
        if entry is None or ("results" in entry and set(tasks) - set(entry["results"])):
            entry = row(args.model, recipe, args)
            with args.out.open("a") as file:
                print(json.dumps(entry), file=file)
        rows.append(entry)
        print(table([entry], tasks).splitlines()[-1], file=sys.stderr, flush=True)
    print(f"{args.model}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print(table(rows, tasks))


if __name__ == "__main__":
    main()
