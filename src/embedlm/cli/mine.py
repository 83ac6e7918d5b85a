"""`embedlm mine`: hard negatives for training records."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from embedlm.cli._options import AS_LOADED, Json, Loading, natural, path, repeated, whole
from embedlm.cli._record_options import AS_RECORDS, Instruction, RecordJobOptions, RecordsPath
from embedlm.cli._values import emit
from embedlm.errors import InputError

__all__ = ["EXAMPLES", "NAME", "UNJUDGED", "Judges", "command"]
__all__ += ["model_of", "reranker_of", "tell_left_out", "tell_unread"]

NAME = "mine"
BM25 = "bm25"
EXAMPLES = r"""Examples:
  embedlm mine records.jsonl --corpus corpus.jsonl -o mined.jsonl -k 5
  embedlm mine records.jsonl --corpus corpus.jsonl -o mined.jsonl -k 5 \
      -m Qwen/Qwen3-Embedding-0.6B --filter perc_pos=0.95
  embedlm mine records.jsonl --corpus corpus.jsonl -o mined.jsonl \
      -m bm25 --window 11-100
  embedlm mine records.jsonl --corpus corpus.jsonl -o mined.jsonl \
      --llm http://localhost:8000/v1#small --llm http://localhost:8000/v1#large"""


@Parameter(name="*", group="Candidates")
@dataclass(frozen=True)
class Candidates:
    """Which passages may be negatives."""

    k: Annotated[int, whole("Negatives for each query.", ["--negatives", "-k"])] = 5
    filter: Annotated[
        tuple[str, ...],
        repeated(
            "Rule against false negatives, without it none: shift=10, abs=0.7, margin_pos=0.05, "
            "perc_pos=0.95, veto=0, consistency=50",
            "--filter",
            "NAME=X",
        ),
    ] = ()
    window: Annotated[
        str | None,
        Parameter(metavar="A-B", help="First and last rank of candidates: 11-100; without it all."),
    ] = None
    sample: Annotated[
        int | None,
        whole("Draw the negatives from N candidates; without it take the hardest.", "--sample"),
    ] = None
    seed: Annotated[int, natural("Seed of what is drawn and of language models.")] = 0
    rerank: Annotated[int, natural("Put the first N candidates in the re-ranker's order.")] = 0
    text_field: Annotated[
        str | None,
        Parameter(
            metavar="FIELD",
            help="Field of a passage's text; without it text, passage, document or contents.",
        ),
    ] = None
    instruction: Instruction = None
    work: Annotated[
        str | None, path("Folder for vectors and indexes, kept for other runs.", None, "DIR")
    ] = None

    def options(self) -> dict[str, Any]:
        """Return the options of `embedlm.mine`."""
        options = asdict(self)
        return {"filters": options.pop("filter"), **options}


@Parameter(name="*", group="Judges")
@dataclass(frozen=True)
class Judges:
    """Which language models judge what was mined, and what follows."""

    llm: Annotated[
        tuple[str, ...],
        repeated(
            "Language model that judges the negatives: a folder, GGUF file, hub id or "
            "http://host/v1#model; a second one judges again what the first flags",
            "--llm",
            "MODEL",
        ),
    ] = ()
    judge: Annotated[
        str, Parameter(metavar="METHOD", help="How language models judge: rlhn or arhn.")
    ] = "rlhn"
    mode: Annotated[
        str,
        Parameter(
            metavar="MODE",
            help="What becomes of false negatives: relabel (as positives), remove, or drop (the "
            "record).",
        ),
    ] = "relabel"
    most: Annotated[int, natural("Leave out records with more than N false negatives.")] = 8


AS_FOUND, UNJUDGED = Candidates(), Judges()


def command(
    records: RecordsPath,
    /,
    *,
    corpus: Annotated[
        str | None,
        path("Passages to mine from; without it the documents of the records.", "--corpus"),
    ] = None,
    model: Annotated[
        str | None,
        path(
            "Folder, hub id or GGUF file of an embedder, or bm25; without it the built-in model.",
            ["--model", "-m"],
            "MODEL",
            group="Model",
        ),
    ] = None,
    loading: Loading = AS_LOADED,
    miner: Annotated[
        tuple[str, ...],
        repeated("bm25 or an embedder, whose list is fused with the model's", "--miner", "MODEL"),
    ] = (),
    reranker: Annotated[
        str | None, path("Folder or hub id of a re-ranker, for --rerank and veto.", None, "MODEL")
    ] = None,
    output: Annotated[str, path("A .jsonl file.", ["--output", "-o"])],
    candidates: Candidates = AS_FOUND,
    judges: Judges = UNJUDGED,
    job: RecordJobOptions = AS_RECORDS,
    json: Json = False,
) -> None:
    """Add hard negatives to records: passages that a search finds and that do not answer."""
    from embedlm.mining import Filters, mine

    chosen = candidates.options()
    chosen["filters"] = Filters.of(chosen["filters"])  # refused before a model is loaded
    report = mine(
        records,
        corpus,
        model=_miners(model, miner, loading),
        output=output,
        reranker=None if reranker is None else reranker_of(reranker, loading),
        **chosen,
        **asdict(judges),
        **job.options(),
    ).report
    if json:
        emit(report)
    else:
        _tell(report, output)


def _miners(model: str | None, others: Sequence[str], loading: Loading) -> list[Any]:
    """Return what ranks; the options of loading are the first one's, but for the device."""
    import embedlm

    device = loading.device
    return [
        model_of(model, loading),
        *(n if n == BM25 else embedlm.load(n, device=device) for n in others),
    ]


def model_of(model: str | None, loading: Loading) -> Any:
    """Return an embedder, loaded as the options say, or bm25.

    Raises:
        InputError: options of a model, and bm25 has none.
    """
    if model != BM25:
        return loading.load(model)
    if loading != AS_LOADED:
        raise InputError("options of a model were given, and bm25 has none; leave them out")
    return model


def reranker_of(name: str, loading: Loading) -> Any:
    """Return the re-ranker, where the embedder is, too."""
    from embedlm.rerank import Reranker

    return Reranker(name, device=loading.device)


def _tell(report: dict[str, Any], output: str) -> None:
    """Print the report in a few lines."""
    print(
        f"{report['negatives']:,} negatives for {report['written']:,} of {report['records']:,} "
        f"records from {report['passages']:,} passages, in {output}"
    )
    tell_left_out(report)
    short = report["short"]
    if short["records"]:
        print(
            f"records with fewer than {report['k']} negatives: {short['records']:,} "
            f"({short['missing']:,} missing); widen the window or the filters",
            file=sys.stderr,
        )
    tell_unread(report)


def tell_left_out(report: dict[str, Any]) -> None:
    """Print what rules and judges left out or changed."""
    for rule, found in report["dropped"].items():
        print(f"  left out, {rule}: {found['count']:,}")
    for reason, found in report["set_aside"].items():
        print(f"  records set aside, {reason}: {found['count']:,}")
    if report["positives_added"]:
        print(f"  {report['positives_added']:,} negatives became positives")


def tell_unread(report: dict[str, Any]) -> None:
    """Print how many instructions of records no model reads."""
    if report["instructions_unused"]:
        print(
            f"records with an instruction that no model reads: {report['instructions_unused']:,}",
            file=sys.stderr,
        )
