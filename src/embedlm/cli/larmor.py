"""`embedlm larmor`: which embedder suits a corpus that has no labels."""

from __future__ import annotations

from typing import Annotated

from embedlm.cli._options import Json, natural, path, repeated, whole
from embedlm.cli._values import emit

__all__ = ["EXAMPLES", "NAME", "command"]

NAME = "larmor"
EXAMPLES = r"""A line for each model has nDCG@10 by the judgements, and the overlap (RBO) of its
best passages with the language model's own order; both together order the lines.

Examples:
  embedlm larmor corpus.jsonl -m bm25 -m Qwen/Qwen3-Embedding-0.6B \
      -m intfloat/e5-mistral-7b-instruct --llm http://localhost:8000/v1#judge
  embedlm larmor corpus.jsonl -m a -m b --llm model.gguf --count 20 --queries 2"""


def command(
    corpus: Annotated[str, path("Passages, a file.", "CORPUS", None)],
    /,
    *,
    model: Annotated[
        tuple[str, ...],
        repeated("Embedder to compare: a folder, a hub id or bm25", ["--model", "-m"], "MODEL"),
    ],
    llm: Annotated[
        str,
        path(
            "What writes and judges: a model folder, GGUF file, hub id or http://host/v1#model.",
            None,
            "MODEL",
        ),
    ],
    count: Annotated[int, whole("Passages that queries are written for.")] = 100,
    queries: Annotated[int, whole("Queries of each of them.")] = 10,
    depth: Annotated[int, whole("Best passages of a query that are judged.")] = 10,
    seed: Annotated[int, natural("Seed of the sample and the queries.")] = 0,
    output: Annotated[str | None, path("A .json file for the result.", ["--output", "-o"])] = None,
    json: Json = False,
) -> None:
    """Rank embedders for a corpus without labels, by a language model's queries and judgements."""
    from embedlm.synthesis import larmor

    found = larmor(
        model,
        corpus,
        llm=llm,
        count=count,
        queries=queries,
        depth=depth,
        seed=seed,
        output=output,
    )
    if json:
        emit(found)
        return
    print(
        f"{found['queries']:,} queries; {found['judged']:,} judgements, {found['relevant']:,} "
        f"highly relevant, {found['unread']:,} that are no label"
    )
    width = max(len(one["model"]) for one in found["ranking"])
    for rank, one in enumerate(found["ranking"], 1):
        print(f"{rank}  {one['model']:{width}}  nDCG@10 {one['ndcg@10']:.4f}  RBO {one['rbo']:.4f}")
