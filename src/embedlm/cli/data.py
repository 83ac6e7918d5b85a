"""`embedlm data`: what files of training records hold, and other forms of them."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from cyclopts import App, Parameter

from embedlm.cli._options import AS_LOADED, Json, Loading, flag, natural, path, repeated, whole
from embedlm.cli._values import counted, emit
from embedlm.errors import InputError

__all__ = ["app"]

app = App(
    name="data",
    help="Look into files of training records, and write them in other forms.",
    help_epilogue="""Examples:
  embedlm data inspect records.jsonl
  embedlm data inspect records.jsonl --against test-queries.jsonl --near --json
  embedlm data convert scifact/ --from beir -o scifact.jsonl
  embedlm data convert mined.jsonl --to beir -o mined-beir
  embedlm data sets
  embedlm data get nq -o nq.jsonl --limit 10000""",
)


@Parameter(name="*", group="Inspection")
@dataclass(frozen=True)
class Looking:
    """What is looked for."""

    against: Annotated[
        tuple[str, ...],
        repeated("Evaluation set whose texts are looked for in the records", "--against", "FILE"),
    ] = ()
    near: Annotated[bool, flag("Count near-duplicates of queries (MinHash), too.")] = False
    samples: Annotated[int, natural("Records to show, drawn by the seed.")] = 3
    seed: Annotated[int, natural("Seed of the samples.")] = 0


AS_SEEN = Looking()


@app.command(
    name="inspect",
    help_epilogue="""Examples:
  embedlm data inspect records.jsonl
  embedlm data inspect records.jsonl --against test-queries.jsonl --near --json""",
)
def inspect(
    records: Annotated[str, path("Records with a query and positives.", "RECORDS", None)],
    /,
    *,
    looking: Looking = AS_SEEN,
    model: Annotated[
        str | None,
        path(
            "Embedder by whose vectors queries are compared with those of --against, too.",
            ["--model", "-m"],
            "MODEL",
            group="Model",
        ),
    ] = None,
    loading: Loading = AS_LOADED,
    json: Json = False,
) -> None:
    """Tell what records hold: counts, lengths, duplicates, languages, leaks, samples."""
    from embedlm.evaluation.inspection import inspect_records

    if model is None and loading != AS_LOADED:
        raise InputError("options of a model were given, and none (--model); name it, or leave out")
    if model is not None and not looking.against:
        raise InputError(
            "--model compares queries with those of --against, which was not given; give both"
        )
    embedder = None if model is None else loading.load(model)
    found = inspect_records(records, model=embedder, **asdict(looking))
    if json:
        emit(found)
    else:
        _tell(found)


def _tell(found: dict[str, Any]) -> None:
    print(f"{counted(found['records'], 'record')} in {found['file']} ({found['form']})")
    for side, texts in found["texts"].items():
        if texts["count"]:
            words = texts["words"]
            print(
                f"  {side + ':':10} {texts['count']:,} ({texts['distinct']:,} distinct), words "
                f"{words['least']:.0f} to {words['most']:.0f}, median {words['median']:.0f}"
            )
    print(
        f"  a record: {found['positives_per_record']:.1f} positives, "
        f"{found['negatives_per_record']:.1f} negatives; without negatives "
        f"{found['without_negatives']:,}, with instruction {found['with_instruction']:,}, with "
        f"scores {found['with_scores']:,}"
    )
    if found["repeated_queries"]:
        print(f"  repeated queries: {found['repeated_queries']:,}")
    for name, finding in found["findings"].items():
        if finding["count"]:
            at = ", ".join(str(one["record"]) for one in finding["examples"])
            print(f"  {name}: {finding['count']:,} (records {at})")
    if found["languages"]:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in found["languages"].items())
        print(f"  languages: {shares}")
    if found["leaks"] is not None:
        _tell_leaks(found["leaks"])
    for one in found["samples"]:
        print(f"  e.g. {one['query'][:80]!r} -> {one['positives'][0][:80]!r}")
    _tell_bad(found["bad"])


def _tell_bad(found: dict[str, Any]) -> None:
    if found["count"]:
        print(f"records that cannot be used: {found['count']:,}", file=sys.stderr)
        for bad in found["examples"]:
            print(f"  {bad['error']}", file=sys.stderr)


def _tell_leaks(leaks: dict[str, Any]) -> None:
    print(f"  leaks by words: {leaks['by_words']['count']:,}")
    for one in leaks["by_words"]["examples"]:
        print(f"    record {one['record']}: {one['text'][:80]!r}")
    if "by_vectors" in leaks:
        near = leaks["by_vectors"]
        print(f"  leaks by vectors: {near['count']:,} of {near['compared']:,} compared")
        for one in near["examples"]:
            print(f"    {one['cosine']:.4f} {one['query'][:60]!r} is like {one['text'][:60]!r}")


@app.command(
    name="convert",
    help_epilogue="""Examples:
  embedlm data convert scifact/ --from beir -o scifact.jsonl
  embedlm data convert mined.jsonl --to beir -o mined-beir""",
)
def convert(
    source: Annotated[str, path("Records: a file, or a folder of the form.", "INPUT", None)],
    /,
    *,
    output: Annotated[str, path("A .jsonl file, or a new folder.", ["--output", "-o"])],
    from_form: Annotated[
        str,
        Parameter(
            name="--from",
            metavar="FORM",
            help="records (any layout that is one file), beir, mteb, gpl, tevatron2, automodel or "
            "medi.",
        ),
    ] = "records",
    to_form: Annotated[
        str,
        Parameter(
            name="--to",
            metavar="FORM",
            help="records, sentence-transformers, flagembedding, tevatron, e5 (files); beir, mteb, "
            "gpl, tevatron2, automodel (folders).",
        ),
    ] = "records",
    corpus: Annotated[str | None, path("Passages that a tevatron2 file names.")] = None,
    split: Annotated[
        str | None,
        Parameter(
            metavar="NAME",
            help="Judgements of beir and mteb that are read or written; without it train.",
        ),
    ] = None,
    skip_missing: Annotated[
        bool,
        flag("Leave out queries and passages that are named and not there, and say how many."),
    ] = False,
    json: Json = False,
) -> None:
    """Write records in another form; a bad record ends it, with its file and line."""
    from embedlm.data.conversion import convert as converted

    missing: Counter[str] | None = Counter() if skip_missing else None
    unusable: Counter[str] = Counter()
    forms: Any = {"from_form": from_form, "to_form": to_form, "corpus": corpus, "split": split}
    count = converted(source, output, **forms, left_out=missing, unusable=unusable)
    _tell_written(json, "record", count, output, {**(missing or {}), **unusable}, skip_missing)


def _tell_written(
    json: bool, what: str, count: int, output: str, left_out: dict[str, int], always: bool = False
) -> None:
    if json:
        told = {"left_out": left_out} if left_out or always else {}
        emit({f"{what}s": count, "output": output, **told})
        return
    print(f"{counted(count, what)} in {output}")
    for reason, number in left_out.items():
        print(f"left out: {number:,} {reason}", file=sys.stderr)


@app.command(
    name="sets",
    help_epilogue="""Examples:
  embedlm data sets
  embedlm data sets --json > sets.json""",
)
def sets(*, json: Json = False) -> None:
    """List the public data sets and mixtures, with their licences."""
    from embedlm.data.public import mixtures, public_sets

    found, mixed = public_sets(), mixtures()
    if json:
        emit(
            {
                "sets": {name: one.model_dump(mode="json") for name, one in found.items()},
                "mixtures": {name: one.model_dump(mode="json") for name, one in mixed.items()},
            }
        )
        return
    width = max(map(len, found))
    for name, one in found.items():
        where = one.hub or f"not on a hub: {one.note}"
        print(f"{name:{width}}  {one.task}; {where}; licence: {one.license}")
    for name, mixture in mixed.items():
        print(f"{name:{width}}  {len(mixture.sets)} sets: {mixture.about}")


@app.command(
    name="get",
    help_epilogue="""Examples:
  embedlm data get nq -o nq.jsonl --limit 10000
  embedlm data get e5 -o e5.jsonl""",
)
def get(
    name: Annotated[str, Parameter(help="Of a data set or mixture; embedlm data sets lists them.")],
    /,
    *,
    output: Annotated[str, path("A .jsonl file.", ["--output", "-o"])],
    source: Annotated[
        str | None, path("Another hub id, or a folder, with the same columns.", None, "ID")
    ] = None,
    config: Annotated[
        str | None,
        Parameter(metavar="NAME", help="Another configuration than the one that is listed."),
    ] = None,
    split: Annotated[
        str | None, Parameter(metavar="NAME", help="Another split than the one that is listed.")
    ] = None,
    limit: Annotated[int | None, whole("Rows at most; without it all.")] = None,
    seed: Annotated[int, natural("Seed by which a mixture's shares are drawn.")] = 0,
    json: Json = False,
) -> None:
    """Fetch a public data set or mixture from the hub, with its licence in every row."""
    from embedlm.data.conversion import write_rows
    from embedlm.data.public import public_rows

    left_out: Counter[str] = Counter()
    rows = public_rows(
        name,
        source=source,
        config=config,
        split=split,
        limit=limit,
        seed=seed,
        left_out=left_out,
    )
    _tell_written(json, "row", write_rows(rows, output), output, left_out)
