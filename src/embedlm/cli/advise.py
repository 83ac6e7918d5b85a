"""`embedlm advise`: which model, in which form, for a corpus and a budget."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from embedlm.cli._options import (
    Device,
    Dtype,
    Json,
    TextPath,
    flag,
    number,
    path,
    repeated,
    whole,
)
from embedlm.cli._reporting import AS_TOLD, Reporting

if TYPE_CHECKING:
    from embedlm.studies.advise import Candidate, Corpus

__all__ = ["EXAMPLES", "NAME", "command"]

NAME = "advise"
EXAMPLES = r"""Each model is tried with several widths and precisions, alone and with BM25.
Vectors are kept: a run that was stopped goes on where it was, and another
budget is answered soon.

Examples:
  embedlm advise docs/ -m builtin -m model/
  embedlm advise beir/ -m model/ --bytes 128 --latency 50 -o advice.html
  embedlm advise corpus.jsonl --queries asked.jsonl \
      -m model.gguf@prompteol --json"""


@Parameter(name="*", group="Queries")
@dataclass(frozen=True)
class Asking:
    """What the candidates are tried with."""

    queries: Annotated[
        str | None,
        path(
            "Records with query and answers (ids of documents); without it those of a BEIR folder, "
            "else titles and headings."
        ),
    ] = None
    titles: Annotated[
        bool, flag("Take titles and headings for queries, though the folder has some.")
    ] = False
    documents: Annotated[
        int | None,
        whole("Try N documents, drawn by seed, without it all; those that answer queries stay."),
    ] = None
    most_queries: Annotated[
        int, whole("Try N queries at most.", ["--max-queries", "--most-queries"])
    ] = 300
    text_field: Annotated[
        str, Parameter(metavar="FIELD", help="Field or column that holds the text.")
    ] = "text"

    def read(self, path: str) -> Corpus:
        """Return the corpus with its queries."""
        from embedlm.errors import InputError
        from embedlm.studies.advise import read_corpus

        if self.queries is not None and self.titles:
            raise InputError("--queries and --titles both say what is asked; give one of them")
        found = read_corpus(path, self.queries, text_field=self.text_field, derive=self.titles)
        return found.sampled(self.documents, self.most_queries)


@Parameter(name="*", group="Budget")
@dataclass(frozen=True)
class Limits:
    """What may be spent."""

    latency: Annotated[float | None, number("Milliseconds of a query, at most.", "MS")] = None
    memory: Annotated[float | None, number("Megabytes of weights and vectors, at most.", "MB")] = (
        None
    )
    size: Annotated[int | None, whole("Bytes that are kept of a document, at most.", "--bytes")] = (
        None
    )


AS_ASKED, UNLIMITED = Asking(), Limits()


def command(
    corpus: TextPath,
    /,
    *,
    models: Annotated[
        tuple[str, ...],
        repeated(
            "A candidate: a folder, hub id or GGUF file, MODEL@RECIPE for another recipe; without "
            "it the built-in model",
            ["--model", "-m"],
            "MODEL",
        ),
    ] = (),
    asking: Asking = AS_ASKED,
    limits: Limits = UNLIMITED,
    device: Device = None,
    dtype: Dtype = "auto",
    work: Annotated[
        str | None,
        path("Folder of vectors; without it one in EMBEDLM_CACHE.", metavar="DIR"),
    ] = None,
    reporting: Reporting = AS_TOLD,
    json: Json = False,
) -> None:
    """Try models on your corpus, and say which to take within a budget."""
    from embedlm.studies.advise import Budget, advise, check_models

    reporting.check(corpus, asking.queries)
    named = check_models(models or ("builtin",))
    found = asking.read(corpus)
    where = sys.stderr if json else sys.stdout
    asked = f"{len(found.queries):,} queries from {found.source}"
    print(f"{found.name}: {len(found.ids):,} documents, {asked}", file=where)
    advice = advise(
        found,
        named,
        Budget(limits.latency, limits.memory, limits.size),
        path=corpus,
        text_field=asking.text_field,
        work=work,
        device=device,
        dtype=dtype,
        on_candidate=lambda candidate: print(_line(candidate), file=where, flush=True),
    ).as_dict()
    if not json:
        print(f"\ntake {advice['recommendation']['label']}")
        print(advice["recommendation"]["why"])
        print("\n".join(advice["recommendation"]["commands"]))
    reporting.write(found.name, advice, json=json)


def _line(candidate: Candidate) -> str:
    return (
        f"{candidate.label:<40} {candidate.score:.4f}  {candidate.latency_ms:7.1f} ms  "
        f"{candidate.memory_mb:7.1f} MB  {candidate.bytes:6,.0f} bytes"
    )
