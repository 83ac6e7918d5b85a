"""`embedlm encode`: a file of texts to a file of vectors."""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from embedlm.cli._common import (
    AS_IS,
    AS_LOADED,
    Json,
    Loading,
    Model,
    Prompting,
    Quoting,
    TextField,
    emit,
    flag,
    parse_heads,
    repeated,
)
from embedlm.errors import InputError

if TYPE_CHECKING:
    from embedlm.bulk import Encoded
    from embedlm.embedder import Embedder

__all__ = ["EXAMPLES", "NAME", "command"]

NAME = "encode"
EXAMPLES = r"""To go on with a job that was stopped, give the same command again.

Examples:
  embedlm encode texts.txt -o vectors.npy
  embedlm encode docs.jsonl -m Qwen/Qwen3-0.6B -r prompteol -o docs.parquet
  embedlm encode docs.jsonl --precision int8 \
      --calibration sample.jsonl -o docs.npy
  embedlm encode docs.csv --text-field body --keep title \
      --rejects bad.jsonl -o docs.jsonl
  embedlm encode docs.jsonl -m Qwen/Qwen3-0.6B -r promptreps \
      --heads dense,sparse -o docs.npz
  embedlm encode corpus/ --workers 4 -o vectors/
  embedlm encode corpus/ --ray local -o vectors/
  zcat texts.gz | embedlm encode - -o vectors.npy"""


def command(
    source: Annotated[
        str,
        Parameter(
            name="FILE",
            allow_leading_hyphen=True,
            help=".txt (each line is a text), .md, .html or .pdf (each paragraph), .jsonl, .csv, "
            ".tsv or .parquet, each also with .gz, .xz or .zst; or a folder of these; - reads "
            "standard input.",
        ),
    ],
    /,
    *,
    output: Annotated[
        str,
        Parameter(
            name=["--output", "-o"],
            metavar="FILE",
            help="A .npy, .npz, .parquet or .jsonl file; a folder where the input is one.",
        ),
    ],
    model: Model = None,
    loading: Loading = AS_LOADED,
    prompting: Prompting = AS_IS,
    heads: Annotated[
        str | None,
        Parameter(
            metavar="HEAD,...",
            help="dense, sparse, multi_vector, as far as the recipe defines them; with options "
            "dense,{sparse: {top_k: 128}}.",
        ),
    ] = None,
    dim: Annotated[
        int | None, Parameter(metavar="N", help="Keep only the first N dimensions.")
    ] = None,
    precision: Annotated[
        str,
        Parameter(metavar="TYPE", help="float32, float16, int8, uint8, binary or ubinary."),
    ] = "float32",
    normalize: Annotated[
        bool | None, Parameter(help="Whether vectors have length 1; without it as the recipe says.")
    ] = None,
    max_length: Annotated[
        int | None,
        Parameter(metavar="N", help="Shorten the text, not the prompt, to N tokens in all."),
    ] = None,
    batch_tokens: Annotated[
        int | None, Parameter(metavar="N", help="Run up to N tokens through the model at once.")
    ] = None,
    format: Annotated[
        str | None,
        Parameter(
            metavar="FORMAT",
            help="The input's format, where its name does not tell it: txt, md, html, pdf, jsonl, "
            "csv, tsv or parquet, each also with its compression: jsonl.gz.",
        ),
    ] = None,
    text_field: TextField = "text",
    quoting: Quoting = None,
    id_field: Annotated[
        str,
        Parameter(
            metavar="FIELD", help="Field or column that holds the id; else the line number is it."
        ),
    ] = "id",
    keep: Annotated[
        tuple[str, ...],
        repeated("Field to copy into .jsonl or .parquet", metavar="FIELD"),
    ] = (),
    rejects: Annotated[
        str | None,
        Parameter(
            metavar="FILE", help="File for bad records; without it the first one stops the job."
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        Parameter(
            metavar="FILE",
            help="Texts that set the ranges of int8 and uint8; without it the first block does.",
        ),
    ] = None,
    fit: Annotated[
        str | None,
        Parameter(
            metavar="FILE",
            help="Texts from which the recipes static-tfidf and static-sif count word frequencies.",
        ),
    ] = None,
    restart: Annotated[bool, flag("Discard what an earlier run has finished.")] = False,
    compile: Annotated[
        bool | None,
        Parameter(
            help="Whether to compile the model first; without it a file that is long enough to "
            "repay it is."
        ),
    ] = None,
    block: Annotated[
        int | None,
        Parameter(metavar="N", help="Records of a block, which is what a stopped job loses."),
    ] = None,
    workers: Annotated[
        int | None,
        Parameter(
            metavar="N",
            help="Processes that encode, each with the model; they take the GPUs in turn.",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        Parameter(
            metavar="ADDRESS", help="local, or the address of a Ray cluster whose workers encode."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Encode the texts of a file, of any size, into a file of vectors."""
    if source.startswith("-") and source != "-":
        raise InputError(f"unknown option {source!r}. See: embedlm encode --help")
    from embedlm.bulk import encode_file, encode_folder
    from embedlm.bulk.requests import WorkerSettings
    from embedlm.bulk.workers import open_pool

    requested = parse_heads(heads)
    load = partial(_load, loading, model, requested, fit, text_field)
    embedder = load()
    options = {
        "heads": requested,
        "dim": dim,
        "precision": precision,
        "normalize": normalize,
        "max_length": max_length,
        "batch_tokens": batch_tokens,
        **prompting.options(),
    }
    settings = WorkerSettings(load, options, rejects is not None)
    with open_pool(settings, workers, ray) as pool:
        job = {
            "input_format": format,
            "text_field": text_field,
            "id_field": id_field,
            "keep": keep,
            "quoting": quoting,
            "rejects": rejects,
            "calibration": calibration,
            "restart": restart,
            "compile": compile,
            "block": block,
            "pool": pool,
            **options,
        }
        if Path(source).is_dir():
            reports = encode_folder(embedder, source, output, **job)
        else:
            reports = [encode_file(embedder, source, output, **job)]
    for report in reports:
        _show(report, rejects, json=json)


def _show(report: Encoded, rejects: str | None, *, json: bool) -> None:
    """Print how many texts were encoded, and to which file."""
    if json:
        emit(asdict(report))
        return
    what = f"{report.rows} texts" + (f" x {report.dim}" if report.dim else "")
    aside = f", {report.rejected} set aside in {rejects}" if rejects is not None else ""
    resumed = (
        f", {report.resumed} of {report.blocks} blocks were already there" if report.resumed else ""
    )
    print(f"{what} -> {report.output}{aside}{resumed}", file=sys.stderr)


def _load(
    loading: Loading, model: str | None, heads: Any, fit: str | None, text_field: str
) -> Embedder:
    """Load the model and count word frequencies from `fit`; each worker calls it."""
    from embedlm.data import Fields, Source, read_texts

    embedder = loading.load(model, heads=heads)
    if fit is not None:
        embedder.fit(list(read_texts(Source(fit, Fields(text_field)))))
    return embedder
