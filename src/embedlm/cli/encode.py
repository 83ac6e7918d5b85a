"""`embedlm encode`: a file of texts to a file of vectors."""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from embedlm.cli._options import (
    AS_IS,
    AS_LOADED,
    Encoding,
    Json,
    Loading,
    Model,
    Tables,
    flag,
    path,
    repeated,
    whole,
)
from embedlm.cli._values import counted, emit
from embedlm.cli._vectors import AS_ENCODED, VectorOptions
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


@Parameter(name="*", group="Input")
@dataclass(frozen=True)
class FileOptions(Tables):
    """How the records of the input are read."""

    format: Annotated[
        str | None,
        Parameter(
            metavar="FORMAT",
            help="The input's format, where its name does not tell it: txt, md, html, pdf, jsonl, "
            "csv, tsv or parquet, each also with its compression: jsonl.gz.",
        ),
    ] = None
    image_field: Annotated[
        str | None,
        Parameter(
            metavar="FIELD",
            help="Field or column that holds the path of an image, inside the file's folder, for "
            "models that read images.",
        ),
    ] = None
    id_field: Annotated[
        str,
        Parameter(
            metavar="FIELD",
            help="Field or column that holds the id; without one the line number is the id.",
        ),
    ] = "id"
    keep: Annotated[
        tuple[str, ...],
        repeated("Field to copy into .jsonl or .parquet", metavar="FIELD"),
    ] = ()

    def options(self) -> dict[str, Any]:
        """Return these options under the names that `encode_file` gives them."""
        options = dataclasses.asdict(self)
        return {"input_format": options.pop("format"), **options}


@Parameter(name="*", group="Job")
@dataclass(frozen=True)
class JobOptions:
    """How the job runs, and what it takes besides the input."""

    rejects: Annotated[
        str | None, path("File for bad records; without it the first one stops the job.")
    ] = None
    calibration: Annotated[
        str | None,
        path("Texts that set the ranges of int8 and uint8; without it the model's own ranges do."),
    ] = None
    restart: Annotated[bool, flag("Discard what an earlier run has finished.")] = False
    compile: Annotated[
        bool | None,
        Parameter(
            help="Whether to compile the model first; without it a file that is long enough to "
            "repay it is."
        ),
    ] = None
    block: Annotated[
        int | None,
        whole(
            "Records of a block, which is what a stopped job loses; without it 1024, or 128 where "
            "each token has a vector."
        ),
    ] = None


@Parameter(name="*", group="Job")
@dataclass(frozen=True)
class WorkerOptions:
    """Which processes encode."""

    workers: Annotated[
        int | None,
        whole(
            "Processes that encode, each with the model; they take the GPUs in turn. Without it "
            "one, with --ray one for each GPU."
        ),
    ] = None
    ray: Annotated[
        str | None,
        Parameter(
            metavar="ADDRESS", help="local, or the address of a Ray cluster whose workers encode."
        ),
    ] = None


@dataclass(frozen=True)
class _Loader:
    """Loads the model; each worker calls it."""

    loading: Loading
    model: str | None
    heads: Any
    fit: str | None
    text_field: str

    def __call__(self) -> Embedder:
        """Return the model, with word frequencies counted in the file of --fit."""
        from embedlm.data import field_texts

        embedder = self.loading.load(self.model, heads=self.heads)
        if self.fit is None:
            return embedder
        if not embedder.recipe.pooling.reads_statistics:
            raise InputError(
                f"--fit counts word frequencies, which the recipe {embedder.recipe.name!r} does "
                "not use; take static-tfidf or static-sif, or leave --fit out"
            )
        return embedder.fit(list(field_texts(self.fit, self.text_field)))


def command(
    source: Annotated[
        str,
        path(
            ".txt (each line is a text), .md, .rst, .html or .pdf (each paragraph), .jsonl, .csv, "
            ".tsv or .parquet, each also with .gz, .xz or .zst; or a folder of these; - reads "
            "standard input.",
            "FILE_OR_DIR",
            None,
            allow_leading_hyphen=True,
        ),
    ],
    /,
    *,
    output: Annotated[
        str,
        path(
            "A .npy, .npz, .parquet or .jsonl file; a folder where the input is one.",
            ["--output", "-o"],
            allow_leading_hyphen=True,
        ),
    ],
    reading: FileOptions = FileOptions(),
    model: Model = None,
    loading: Loading = AS_LOADED,
    fit: Annotated[
        str | None,
        path(
            "Texts in which the recipes static-tfidf and static-sif count how frequent words are; "
            "without it their place in the vocabulary tells.",
            group="Model",
        ),
    ] = None,
    prompting: Encoding = AS_IS,
    vectors: VectorOptions = AS_ENCODED,
    job: JobOptions = JobOptions(),
    pool: WorkerOptions = WorkerOptions(),
    json: Json = False,
) -> None:
    """Encode the texts of a file, of any size, into a file of vectors."""
    for name in (source, output):
        if name.startswith("-") and name != "-":
            raise InputError(f"unknown option {name!r}. See: embedlm encode --help")
    options = {**vectors.options(), **prompting.options()}
    load = _Loader(loading, model, options["heads"], fit, reading.text_field)
    chosen = {**reading.options(), **dataclasses.asdict(job), **options}
    for report in _encode(source, output, load, pool, chosen, options):
        _show(report, job.rejects, json=json)


def _encode(
    source: str,
    output: str,
    load: _Loader,
    workers: WorkerOptions,
    chosen: dict[str, Any],
    options: dict[str, Any],
) -> list[Encoded]:
    """Encode a file or a folder.

    Args:
        source: file, folder, or "-".
        output: file or folder.
        load: loads the model.
        workers: which processes encode.
        chosen: the options of `encode_file`.
        options: those among them that are options of `Embedder.encode`.
    """
    from embedlm.bulk import encode_file, encode_folder
    from embedlm.bulk.requests import WorkerSettings
    from embedlm.bulk.workers import open_pool

    embedder = load()
    settings = WorkerSettings(load, options, chosen["rejects"] is not None)
    with open_pool(settings, workers.workers, workers.ray) as pool:
        if os.path.isdir(source):
            return encode_folder(embedder, source, output, pool=pool, **chosen)
        return [encode_file(embedder, source, output, pool=pool, **chosen)]


def _show(report: Encoded, rejects: str | None, *, json: bool) -> None:
    """Print how many texts were encoded, and to which file."""
    if json:
        emit(dataclasses.asdict(report))
        return
    what = counted(report.rows, "text") + (f" x {report.dim}" if report.dim else "")
    aside = f", {report.rejected} set aside in {rejects}" if rejects is not None else ""
    resumed = (
        f", {report.resumed} of {report.blocks} blocks were already there" if report.resumed else ""
    )
    print(f"{what} -> {report.output}{aside}{resumed}", file=sys.stderr)
