"""`embedlm report`: results as one page of HTML, or as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from embedlm.cli._options import AS_LOADED, Loading, path, whole
from embedlm.errors import InputError

__all__ = ["EXAMPLES", "NAME", "USAGE", "command"]

NAME = "report"
USAGE = "Usage: embedlm report --output FILE [OPTIONS] [RESULTS...]"
EXAMPLES = r"""The page needs no network and no server: one file, with a table behind every
plot.

Examples:
  embedlm report builtin.json minilm.json -o models.html
  embedlm report pooling.json dimensions.json -o studies.md
  embedlm report minilm.json --map corpus.jsonl -m model/ -o corpus.html"""


def command(
    results: Annotated[
        tuple[str, ...],
        Parameter(
            name="RESULTS",
            show_default=False,
            help="Files that embedlm evaluate, study or advise wrote (.json); a model is called by "
            "its file's name.",
        ),
    ] = (),
    /,
    *,
    output: Annotated[str, path("The report: .html or .md.", ["--output", "-o"])],
    title: Annotated[str | None, Parameter(metavar="TEXT", help="The report's heading.")] = None,
    map: Annotated[
        str | None,
        path("Texts to draw as a map by what a model finds similar, with their clusters."),
    ] = None,
    model: Annotated[
        str | None,
        path("The model of --map; without it the built-in.", ["--model", "-m"], "MODEL"),
    ] = None,
    text_field: Annotated[
        str, Parameter(metavar="FIELD", help="Field of --map's records that holds the text.")
    ] = "text",
    clusters: Annotated[int, whole("Clusters of --map.")] = 8,
    loading: Loading = AS_LOADED,
) -> None:
    """Write a report of results, with intervals and plots."""
    from embedlm.studies.report import check_outputs, read_found, write_report
    from embedlm.studies.report.maps import map_panels

    if not results and map is None:
        raise InputError("nothing to report; give files of results, or texts with --map")
    if map is None and (model is not None or loading != AS_LOADED):
        raise InputError("a model is loaded for --map alone; give its texts, or leave it out")
    if map is None and (text_field != "text" or clusters != 8):
        raise InputError("--text-field and --clusters are of --map; give its texts, or leave both")
    check_outputs([output], (".html", ".md"), [*results, map])
    found = [(Path(name).stem, read_found(Path(name))) for name in results]
    more = []
    if map is not None:
        from embedlm.data import field_texts

        texts = [text for text in field_texts(map, text_field) if text.strip()]
        more = map_panels(loading.load(model), texts, clusters=clusters)
    write_report(Path(output), found, title=title, more=more)
    print(f"wrote {output}")
