"""`embedlm index`: documents in, an index that `embedlm search` asks."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from embedlm.cli._options import (
    AS_LOADED,
    AS_TABLES,
    Json,
    Loading,
    MaxLength,
    Model,
    Tables,
    TextPath,
    flag,
    path,
    whole,
)
from embedlm.cli._place import Place
from embedlm.cli._values import counted, emit
from embedlm.errors import InputError

if TYPE_CHECKING:
    from embedlm.search import IndexReport

__all__ = ["app"]

app = App(
    name="index",
    usage="Usage: embedlm index --output INDEX [OPTIONS] FILE_OR_DIR\n       embedlm index COMMAND",
    help="Index documents for search, or what is new among them; push and change an index.",
    help_epilogue=r"""Examples:
  embedlm index docs/ -o docs.index
  embedlm index corpus.jsonl -o corpus.index -m Qwen/Qwen3-Embedding-0.6B \
      --chunk sentences --chunk-size 200 --chunk-overlap 40
  embedlm index photos/ -o photos.index -m openai/clip-vit-base-patch32
  embedlm index delete corpus.index 17 doc-18
  embedlm index push corpus.index --to http://localhost:6333""",
)
IndexPath = Annotated[str, path("Folder of the index.", "INDEX", None)]


@Parameter(name="*", group="Passages")
@dataclass(frozen=True)
class Cutting:
    """How documents are cut."""

    chunk: Annotated[
        str | None,
        Parameter(
            metavar="WAY",
            help="Cut documents: tokens, sentences (whole ones) or headings (of Markdown); without "
            "it a record, or a paragraph of prose, stays whole.",
        ),
    ] = None
    chunk_size: Annotated[
        int | None,
        whole("Tokens of a chunk; without it 256, or as many as the model reads, if fewer."),
    ] = None
    chunk_overlap: Annotated[
        int | None, whole("Tokens that a chunk shares with the one before; without it none.")
    ] = None
    late: Annotated[
        bool, flag("Read each document once and pool each chunk's states (late chunking).")
    ] = False

    def chunking(self) -> Any:
        """Return the `Chunking` that was asked for; None: none was."""
        from embedlm.search import Chunking

        sizes = {
            "size": self.chunk_size,
            "overlap": self.chunk_overlap,
            "late": self.late or None,
        }
        given: dict[str, Any] = {name: value for name, value in sizes.items() if value is not None}
        if self.chunk is not None:
            return Chunking(self.chunk, **given)  # type: ignore[arg-type]
        if given:
            raise InputError(
                "--chunk-size, --chunk-overlap and --late say how documents are cut; give --chunk "
                "tokens, sentences or headings"
            )
        return None


@Parameter(name="*", group="Store")
@dataclass(frozen=True)
class Keeping:
    """How vectors are kept."""

    store: Annotated[
        str | None,
        Parameter(metavar="STORE", help="edge (Qdrant Edge; the default) or exact."),
    ] = None
    first_stage: Annotated[
        str | None,
        Parameter(
            metavar="STAGE",
            help="Find candidates by binary vectors (binary), or by their first numbers "
            "(short:128); without it by full vectors.",
        ),
    ] = None
    analyzer: Annotated[
        str | None,
        Parameter(metavar="NAME", help="Words of BM25: english (the default) or plain."),
    ] = None

    def options(self) -> dict[str, Any]:
        """Return the options of `build_index`."""
        from embedlm.search import FirstStage

        first = None if self.first_stage is None else FirstStage.parse(self.first_stage)
        return {"store": self.store, "first": first, "analyzer": self.analyzer}


UNCUT, PLAIN, ANYWHERE = Cutting(), Keeping(), Place()

IdField = Annotated[
    str | None, Parameter(metavar="FIELD", help="Field with the id; without it id or _id.")
]
ImageField = Annotated[
    str | None,
    Parameter(
        metavar="FIELD",
        help="Field with the path of an image, inside the file's folder, for models that read "
        "images.",
    ),
]


@app.default
def make(
    source: TextPath,
    /,
    *,
    output: Annotated[str, path("Folder of the index.", ["--output", "-o"], "INDEX")],
    model: Model = None,
    loading: Loading = AS_LOADED,
    max_length: MaxLength = None,
    cutting: Cutting = UNCUT,
    keeping: Keeping = PLAIN,
    id_field: IdField = None,
    image_field: ImageField = None,
    tables: Tables = AS_TABLES,
    sync: Annotated[bool, flag("Also delete documents that the source does not hold.")] = False,
    restart: Annotated[bool, flag("Forget what an unfinished run has embedded.")] = False,
    rejects: Annotated[
        str | None,
        path("Set aside in this file what cannot be read; without it that stops the run."),
    ] = None,
    json: Json = False,
) -> None:
    """Index a file, a folder or a BEIR folder; of an index that is there, embed what is new.

    A model that reads images indexes those of a folder, and those that records name.

    A run that was stopped goes on where it was when the same command is given again.
    """
    from embedlm.search import build_index, is_index

    kept = model is None and max_length is None and loading == AS_LOADED
    own = kept and is_index(output)
    report = build_index(
        source,
        output,
        None if own else loading.load(model, max_length=max_length),
        chunking=cutting.chunking(),
        **keeping.options(),
        sync=sync,
        restart=restart,
        rejects=rejects,
        load_options={
            "dtype": None if loading.dtype == "auto" else loading.dtype,
            "adapters": list(loading.adapter),
            "generator": loading.generator,
            "max_length": max_length,
        },
        show_progress="lines",
        text_field=tables.text_field,
        quoting=tables.quoting,
        id_field=id_field,
        image_field=image_field,
    )
    _tell(report, source, rejects)
    _show(report, output, json=json)


def _tell(report: IndexReport, source: str, rejects: str | None) -> None:
    """Tell of what was set aside, and of what the source no longer holds."""
    if report.set_aside:
        print(f"set aside in {rejects}: {report.set_aside:,} that cannot be read", file=sys.stderr)
    if report.gone:
        print(
            f"note: {source!r} lacks {counted(report.gone, 'document')} of the index, which "
            "searches still find; --sync takes them out",
            file=sys.stderr,
        )


@app.command(
    name="delete",
    usage="Usage: embedlm index delete [OPTIONS] INDEX ID...",
    help_epilogue="""Examples:
  embedlm index delete docs.index guide.md:3
  embedlm index delete corpus.index 17 '"17"'""",
)
def delete(
    index: IndexPath,
    ids: Annotated[
        tuple[str, ...],
        Parameter(
            name="ID",
            help="Ids of documents. A number stands for itself; the text 17 is written '\"17\"'.",
        ),
    ],
    /,
    *,
    json: Json = False,
) -> None:
    """Take documents out of an index."""
    from embedlm.search import delete_documents

    _show(delete_documents(index, [_id(one) for one in ids]), index, json=json)


@app.command(
    name="push",
    help_epilogue="""Examples:
  embedlm index push docs.index --to http://localhost:6333
  embedlm index push docs.index --to https://cluster.example.com \\
      --collection docs""",
)
def push(
    index: IndexPath,
    /,
    *,
    to: Annotated[
        str, Parameter(metavar="URL", help="The Qdrant server or cluster (a folder: for trials).")
    ],
    place: Place = ANYWHERE,
    replace: Annotated[
        bool, flag("Take out what another index, or anybody else, has put into the collection.")
    ] = False,
    json: Json = False,
) -> None:
    """Copy an index to a Qdrant server without embedding anything again; resumable."""
    from embedlm.search import push_index

    done = push_index(
        index,
        to,
        place.collection,
        api_key=place.api_key(),
        replace=replace,
        show_progress="lines",
    )
    if json:
        emit(done)
        return
    print(
        f"copied {counted(done['copied'], 'passage')} to the collection {done['collection']!r} at "
        f"{done['to']}, deleted {done['deleted']:,}"
    )


def _id(text: str) -> str | int:
    """Return an id as it stood in the documents: a number, or a text, in JSON or bare."""
    from json import loads

    try:
        value = loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | str) and not isinstance(value, bool) else text


def _show(report: Any, index: str, *, json: bool) -> None:
    from dataclasses import asdict

    if json:
        emit({"index": index, **asdict(report)})
        return
    print(
        f"{index}: {counted(report.documents, 'document')} in "
        f"{counted(report.passages, 'passage')}; added "
        f"{report.added:,}, "
        + (f"moved {report.moved:,}, " if report.moved else "")
        + f"deleted {report.deleted:,}"
    )
    print(f"{report.seconds:.1f} s, of which {report.embedding:.1f} s embedding", file=sys.stderr)
