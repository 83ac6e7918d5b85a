"""`embedlm rerank`: passages, ordered by a model that reads each together with the query."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from embedlm.cli._options import (
    AS_WRITTEN,
    Adapters,
    Device,
    Dtype,
    Json,
    PassageOptions,
    TextPath,
    TopK,
    path,
)
from embedlm.cli._values import show_hits

__all__ = ["EXAMPLES", "NAME", "command"]

NAME = "rerank"
EXAMPLES = r"""Examples:
  embedlm rerank docs/ "how do I resume a job?" -m Qwen/Qwen3-Reranker-0.6B
  embedlm rerank hits.jsonl "photosynthesis" -m BAAI/bge-reranker-v2-m3 \
      --top-k 3 --json"""


def command(
    source: TextPath,
    query: Annotated[str, Parameter(name="QUERY", help="The question to answer.")],
    /,
    *,
    model: Annotated[
        str,
        path(
            "Folder, hub id or GGUF file: a cross-encoder, or any causal language model.",
            ["--model", "-m"],
            "MODEL",
        ),
    ],
    method: Annotated[
        str | None,
        Parameter(
            metavar="METHOD",
            help="How a pair is read: cross-encoder, qwen3-reranker, qwen3-vl-reranker, zerank, "
            "mxbai-rerank-v2, ctxl-rerank-v2, bge-reranker-gemma, yes-no, or a .yaml file; "
            "without it the model's own.",
        ),
    ] = None,
    adapter: Adapters = (),
    device: Device = None,
    dtype: Dtype = "auto",
    top_k: TopK = 10,
    instruction: Annotated[
        str | None,
        Parameter(metavar="TEXT", help="The task's instruction; without it the method's."),
    ] = None,
    reading: PassageOptions = AS_WRITTEN,
    json: Json = False,
) -> None:
    """Print the passages of a file or folder by how well they answer a query."""
    from embedlm.rerank import Reranker
    from embedlm.search import Hit

    passages = reading.read(source)
    loaded = Reranker(model, method, device=device, dtype=dtype, adapters=adapter)
    texts = [passage.text for passage in passages]
    ranked = loaded.rank(query, texts, top_k, instruction=instruction)
    show_hits(
        [
            Hit(passages[match["corpus_id"]], match["score"], rank)
            for rank, match in enumerate(ranked, 1)
        ],
        json=json,
    )
