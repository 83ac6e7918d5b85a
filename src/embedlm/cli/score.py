"""`embedlm score`: a model's scores in training records, for distillation."""

from __future__ import annotations

import sys
from typing import Annotated, Any

from embedlm.cli._options import AS_LOADED, Json, Loading, natural, path
from embedlm.cli._record_options import AS_RECORDS, Instruction, RecordJobOptions, RecordsPath
from embedlm.cli._values import emit
from embedlm.errors import InputError

__all__ = ["EXAMPLES", "NAME", "command"]

NAME = "score"
EXAMPLES = r"""Examples:
  embedlm score mined.jsonl -m BAAI/bge-reranker-v2-m3 -o scored.jsonl
  embedlm score mined.jsonl -m intfloat/e5-mistral-7b-instruct -o scored.jsonl
  embedlm score mined.jsonl --llm http://localhost:8000/v1#judge -o scored.jsonl"""


def command(
    records: RecordsPath,
    /,
    *,
    model: Annotated[
        str | None,
        path(
            "Folder or hub id of an embedder or of a re-ranker; without it, and without --reranker "
            "and --llm, the built-in embedder.",
            ["--model", "-m"],
            "MODEL",
            group="Model",
        ),
    ] = None,
    loading: Loading = AS_LOADED,
    reranker: Annotated[
        str | None,
        path(
            "Folder or hub id of a re-ranker whose files do not say that it is one, such as any "
            "causal language model.",
            None,
            "MODEL",
        ),
    ] = None,
    llm: Annotated[
        str | None,
        path(
            "Language model that writes a score from 0 to 10: a folder, GGUF file, hub id or "
            "http://host/v1#model.",
            None,
            "MODEL",
        ),
    ] = None,
    output: Annotated[str, path("A .jsonl file.", ["--output", "-o"])],
    instruction: Instruction = None,
    seed: Annotated[int, natural("Seed of the language model.")] = 0,
    job: RecordJobOptions = AS_RECORDS,
    json: Json = False,
) -> None:
    """Write a re-ranker's, an embedder's or a language model's scores into records."""
    from embedlm.mining import score

    scorer = _scorer(model, reranker, llm, loading)
    options = {"instruction": instruction, "seed": seed, **job.options()}
    report = score(records, output=output, **scorer, **options).report
    if json:
        emit(report)
    else:
        _tell(report, output)


def _tell(report: dict[str, Any], output: str) -> None:
    """Print the report in a line or two."""
    print(
        f"{report['scores']:,} scores in {report['written']:,} of {report['records']:,} records, "
        f"by {report['scorer']['kind']} {report['scorer']['name']}, in {output}"
    )
    if report["set_aside"]["count"]:
        print(f"records set aside: {report['set_aside']['count']:,}", file=sys.stderr)


def _scorer(
    model: str | None, reranker: str | None, llm: str | None, loading: Loading
) -> dict[str, Any]:
    """Return what gives the scores, loaded as the options say."""
    from embedlm.rerank import Reranker, is_reranker

    given = {"--model": model, "--reranker": reranker, "--llm": llm}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise InputError(f"{' and '.join(named)} were given; scores come from one model: give one")
    if model is not None and is_reranker(model):
        reranker = model
    if reranker is None and llm is None:
        return {"model": loading.load(model)}
    if loading.recipe is not None or loading.change or loading.generator is not None:
        raise InputError(
            f"--recipe, --set and --generator are for embedders, and {reranker or llm!r} is none; "
            "leave them out"
        )
    if reranker is None:
        if loading != AS_LOADED:
            raise InputError(
                "--adapter, --device and --dtype are for embedders and re-rankers, and --llm is "
                "neither; leave them out"
            )
        return {"llm": llm}
    options: dict[str, Any] = {"device": loading.device, "dtype": loading.dtype}
    return {"reranker": Reranker(reranker, adapters=loading.adapter, **options)}
