"""`embedlm search`: the documents of an index, or the passages of files, that answer a query."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from embedlm.cli._options import (
    AS_LOADED,
    AS_WRITTEN,
    Json,
    Loading,
    MaxLength,
    Model,
    PassageOptions,
    TopK,
    flag,
    path,
    repeated,
    whole,
)
from embedlm.cli._place import Place
from embedlm.cli._values import counted, emit, parse_changes, show_hits
from embedlm.errors import InputError, closest

if TYPE_CHECKING:
    from embedlm.embedder import Embedder
    from embedlm.search import Found, Index, Passage

__all__ = ["EXAMPLES", "NAME", "USAGE", "command"]

NAME = "search"
USAGE = "Usage: embedlm search [OPTIONS] INDEX_OR_FILE [QUERY]"
EXAMPLES = r"""Examples:
  embedlm search docs/ "how do I resume a job?"
  embedlm search docs.index "how do I resume a job?" --mode hybrid -k 3
  embedlm search corpus.index "tyre pressure" --where "year>=2020" \
      --rerank Qwen/Qwen3-Reranker-0.6B --json
  embedlm search photos.index --image bicycle.jpg
  embedlm search corpus.jsonl "photosynthesis" -m Qwen/Qwen3-0.6B \
      -r promptreps --mode hybrid --json"""


@Parameter(name="*", group="Index")
@dataclass(frozen=True)
class Asking:
    """How an index is searched."""

    where: Annotated[
        tuple[str, ...],
        repeated("Only documents whose metadata fit: year>=2020, lang in en,de", "--where", "TEST"),
    ] = ()
    fusion: Annotated[
        str | None,
        Parameter(
            metavar="NAME",
            help="Of a hybrid search: min_max (the default), dbsf, rrf or weighted.",
        ),
    ] = None
    weight: Annotated[
        tuple[str, ...],
        repeated("Weight of a ranking in a hybrid search: dense=0.7", "--weight", "NAME=X"),
    ] = ()
    rerank: Annotated[
        str | None, path("Re-ranker that orders the best ones anew.", metavar="MODEL")
    ] = None
    rerank_depth: Annotated[
        int | None, whole("Passages that the re-ranker reads; without it 50.")
    ] = None
    exact: Annotated[bool, flag("Compare with every passage's full vector.")] = False
    image: Annotated[
        str | None,
        path("Image to look for, or to look for together with QUERY.", metavar="FILE"),
    ] = None


ASKED_PLAINLY = Asking()


@Parameter(name="*", group="Server")
@dataclass(frozen=True)
class Server(Place):
    """The server that holds the vectors of an index."""

    at: Annotated[
        str | None,
        Parameter(metavar="URL", help="The Qdrant server to which the index was pushed."),
    ] = None


HERE = Server()
Source = Annotated[
    str,
    path(
        "An index, text (.txt, .md, .rst, .html, .pdf) or records (.jsonl, "
        ".csv, .tsv, .parquet), each also with .gz, .xz or .zst; or a folder of these; - reads "
        "text from standard input.",
        "INDEX_OR_FILE",
        None,
        allow_leading_hyphen=True,
    ),
]
"""What is searched."""

Mode = Annotated[
    str | None,
    Parameter(
        metavar="MODE",
        help="dense (the default for files and images), sparse, bm25 (an index only), hybrid "
        "(the default for an index) or late-interaction, as far as the recipe defines these "
        "heads.",
    ),
]


def command(
    source: Source,
    query: Annotated[
        str | None,
        Parameter(
            name="QUERY",
            help="What to look for; without it each line of standard input is asked of an index.",
        ),
    ] = None,
    /,
    *,
    model: Model = None,
    loading: Loading = AS_LOADED,
    max_length: MaxLength = None,
    mode: Mode = None,
    top_k: TopK = 10,
    instruction: Annotated[
        str | None,
        Parameter(metavar="TEXT", help="The query's instruction; without it the recipe's."),
    ] = None,
    reading: PassageOptions = AS_WRITTEN,
    asking: Asking = ASKED_PLAINLY,
    server: Server = HERE,
    json: Json = False,
) -> None:
    """Print the documents of an index, or the passages of files, that answer a query best."""
    from embedlm.search import MODES, is_index

    _check_query(query)
    if source != "-" and is_index(source):
        _refuse_reading(source, reading, max_length)
        asked = _asked(query, asking.image)
        with _opened(source, model, loading, server) as index:
            named = mode
            if named is None:
                named = "hybrid" if asked is None else index.mode_of(asked)
            options = _options(asking, named, loading)
            options |= {"top_k": top_k, "instruction": instruction}
            _ask(index, asked, options, json=json)
        return
    if asking != ASKED_PLAINLY or server != HERE:
        raise _no_index(source)
    if query is None:
        raise InputError("QUERY was not given; only an index is asked line by line")
    _check_passages(source, mode := "dense" if mode is None else mode)
    loaded = loading.load(model, heads=MODES[mode], max_length=max_length)
    passages = reading.read(source, loaded if max_length is None else None)
    _search_passages(loaded, passages, query, mode, top_k, instruction, json=json)


def _check_query(query: str | None) -> None:
    if query is not None and not query.strip():
        raise InputError("the query is empty; say what to look for")


def _asked(query: str | None, image: str | None) -> Any:
    """Return what is looked for; None: each line of standard input."""
    if image is None:
        return query
    from embedlm.search import query_of

    return query_of({"image": image, "text": query})


def _no_index(source: str) -> InputError:
    return InputError(
        f"{source!r} is no index, and --where, --fusion, --weight, --rerank, --exact, --image and "
        f"--at are for one; make it: embedlm index {source} -o INDEX"
    )


def _refuse_reading(source: str, reading: PassageOptions, max_length: int | None) -> None:
    if max_length is not None:
        raise InputError(
            f"{source!r} is an index, which shortens queries as it did its documents; leave "
            "--max-length out, or make a new index with it"
        )
    if reading != AS_WRITTEN:
        raise InputError(
            f"{source!r} is an index, which was cut when it was made; leave --split, --text-field "
            "and --quoting out"
        )


def _check_passages(source: str, mode: str) -> None:
    """Refuse before a model is loaded what would be refused after."""
    from embedlm.search import MODES
    from embedlm.search.passages import files_of

    if mode not in MODES:
        made = f" (bm25 needs an index: embedlm index {source} -o INDEX)" if mode == "bm25" else ""
        raise InputError(
            f"search mode {mode!r} is not known; allowed: {', '.join(MODES)}{made}."
            + closest(mode, list(MODES))
        )
    files_of(source)


def _search_passages(
    loaded: Embedder,
    passages: list[Passage],
    query: str,
    mode: str,
    top_k: int,
    instruction: str | None,
    *,
    json: bool,
) -> None:
    from embedlm.search import SearchIndex

    loaded.render([query], role="query", instruction=instruction)  # refuses what it cannot use
    if loaded.readout.unfitted:
        loaded.fit([passage.text for passage in passages])
    start = time.perf_counter()
    index = SearchIndex(loaded, passages, mode, show_progress="lines")
    files = counted(len({passage.file for passage in passages}), "file")
    print(
        f"embedded {counted(len(passages), 'passage')} of {files} "
        f"in {time.perf_counter() - start:.1f} s",
        file=sys.stderr,
    )
    show_hits(index.search(query, top_k, instruction=instruction), json=json)


def _opened(source: str, model: str | None, loading: Loading, server: Server) -> Index:
    from embedlm.search import Index

    if server.at is None and server != HERE:
        raise InputError("--collection and --api-key-file are of a server; give --at URL")
    own = model is None and loading == Loading(device=loading.device)
    return Index.open(
        source,
        None if own else loading.load(model),
        device=loading.device,
        place=server.at,
        collection=server.collection,
        api_key=None if server.at is None else server.api_key(),
    )


def _options(asking: Asking, mode: str, loading: Loading) -> dict[str, Any]:
    """Return those options of `Index.search` that were given."""
    from embedlm.search import parse_filter

    options: dict[str, Any] = {"mode": mode, "exact": asking.exact, "sentences": True}
    if asking.where:
        filters = [parse_filter(text) for text in asking.where]
        options["where"] = filters[0] if len(filters) == 1 else {"type": "and", "filters": filters}
    if mode != "hybrid" and (asking.fusion or asking.weight):
        raise InputError(
            f"--fusion and --weight are of a hybrid search, and the mode is {mode}; leave them out"
        )
    if asking.fusion is not None:
        options["fusion"] = asking.fusion
    if asking.weight:
        weights = parse_changes(asking.weight)
        if not all(isinstance(one, int | float) for one in weights.values()):
            raise InputError("--weight takes a number: --weight dense=0.7 --weight bm25=0.3")
        options["weights"] = weights
    if asking.rerank is None and asking.rerank_depth is not None:
        raise InputError("--rerank-depth says how many passages a re-ranker reads; give --rerank")
    if asking.rerank is not None:
        from embedlm.rerank import Reranker

        options["rerank"] = Reranker(asking.rerank, device=loading.device)
        options["rerank_depth"] = asking.rerank_depth
    return options


def _ask(index: Index, query: Any, options: dict[str, Any], *, json: bool) -> None:
    """Search once, or for each line of standard input until it ends."""
    if query is not None:
        _show(index.search(query, **options), options, json=json)
        return
    terminal = sys.stdin.isatty()
    if terminal:
        print(f"{counted(len(index), 'passage')}; an empty line ends", file=sys.stderr)
    while True:
        if terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or (terminal and not line.strip()):
            return
        if line.strip():
            _show(index.search(line.strip(), **options), options, json=json)
            if not json:
                print(flush=True)


def _show(hits: list[Found], options: dict[str, Any], *, json: bool) -> None:
    """Print hits with score, id and snippet, the matching sentence marked; or all as JSON."""
    from embedlm.search import snippet

    if json:
        emit({"hits": [hit.as_dict() for hit in hits]})
        return
    if not hits:
        among = " among the documents that --where takes" if "where" in options else ""
        print(f"nothing found{among}", file=sys.stderr)
    marks = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("«", "»")
    for hit in hits:
        words = snippet(hit.text, hit.sentence, *marks) if hit.text else ""
        shown = (one for one in (hit.image, words) if one)
        print(f"{hit.score:.4f}  {hit.id}  {'  '.join(shown)}")
