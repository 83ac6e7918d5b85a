"""`embedlm refine`: false negatives among those that training records already have."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from embedlm.cli._options import AS_LOADED, Json, Loading, natural, path, repeated
from embedlm.cli._record_options import AS_RECORDS, Instruction, RecordJobOptions, RecordsPath
from embedlm.cli._values import counted, emit
from embedlm.cli.mine import UNJUDGED, Judges, model_of, reranker_of, tell_left_out, tell_unread

__all__ = ["EXAMPLES", "NAME", "command"]

NAME = "refine"
EXAMPLES = r"""Examples:
  embedlm refine mined.jsonl -o refined.jsonl --filter perc_pos=0.95
  embedlm refine mined.jsonl -o refined.jsonl -m Qwen/Qwen3-Embedding-0.6B \
      --filter margin_pos=0.05
  embedlm refine mined.jsonl -o refined.jsonl --filter veto=0 \
      --reranker BAAI/bge-reranker-v2-m3
  embedlm refine mined.jsonl -o refined.jsonl \
      --llm http://localhost:8000/v1#small --llm http://localhost:8000/v1#large"""


@Parameter(name="*", group="Rules")
@dataclass(frozen=True)
class Rules:
    """Which negatives are left out."""

    filter: Annotated[
        tuple[str, ...],
        repeated(
            "Rule against false negatives, without it none: abs=0.7, margin_pos=0.05, "
            "perc_pos=0.95, veto=0",
            "--filter",
            "NAME=X",
        ),
    ] = ()
    seed: Annotated[int, natural("Seed of the language models.")] = 0
    instruction: Instruction = None


NO_RULES = Rules()


def command(
    records: RecordsPath,
    /,
    *,
    model: Annotated[
        str | None,
        path(
            "Folder, hub id or GGUF file of an embedder, or bm25, whose scores the filters "
            "compare; without it the built-in model.",
            ["--model", "-m"],
            "MODEL",
            group="Model",
        ),
    ] = None,
    loading: Loading = AS_LOADED,
    reranker: Annotated[
        str | None, path("Folder or hub id of a re-ranker, for veto.", None, "MODEL")
    ] = None,
    output: Annotated[str, path("A .jsonl file.", ["--output", "-o"])],
    rules: Rules = NO_RULES,
    judges: Judges = UNJUDGED,
    job: RecordJobOptions = AS_RECORDS,
    json: Json = False,
) -> None:
    """Take false negatives out of records, or make positives of them; nothing is searched."""
    from embedlm.mining import Filters, refine

    filters = Filters.of(rules.filter)  # refused before a model is loaded
    report = refine(
        records,
        model=model_of(model, loading),
        output=output,
        filters=filters,
        seed=rules.seed,
        reranker=None if reranker is None else reranker_of(reranker, loading),
        instruction=rules.instruction,
        **asdict(judges),
        **job.options(),
    ).report
    if json:
        emit(report)
    else:
        _tell(report, output)


def _tell(report: dict[str, Any], output: str) -> None:
    """Print the report in a few lines."""
    print(
        f"{report['negatives']:,} of {counted(report['given'], 'negative')} kept in "
        f"{report['written']:,} of {counted(report['records'], 'record')}, in {output}"
    )
    tell_left_out(report)
    tell_unread(report)
