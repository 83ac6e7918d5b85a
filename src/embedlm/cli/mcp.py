"""`embedlm mcp`: search and embedding as tools for agents, on standard input and output."""

from __future__ import annotations

import asyncio
from typing import Annotated

from cyclopts import Parameter

from embedlm.cli._options import AS_LOADED, Loading, Model, paths, repeated
from embedlm.cli.serve import load_models, open_indexes
from embedlm.errors import require

__all__ = ["EXAMPLES", "NAME", "command"]

NAME = "mcp"
EXAMPLES = r"""Examples:
  embedlm mcp docs.index
  embedlm mcp --index law=statutes.index --index docs.index -m builtin"""


def command(
    indexes: Annotated[
        tuple[str, ...],
        Parameter(
            name="INDEX",
            help="Indexes to search, each also as NAME=INDEX.",
            converter=paths,
        ),
    ] = (),
    /,
    *,
    index: Annotated[tuple[str, ...], repeated("The same as INDEX", metavar="INDEX")] = (),
    model: Model = None,
    loading: Loading = AS_LOADED,
) -> None:
    """Answer an agent by the Model Context Protocol: search, fetch, embed, similarity."""
    from embedlm.serving import Models, Service

    require("mcp.server.mcpserver", "mcp")
    from embedlm.serving.mcp import serve_stdio

    names = (*indexes, *index)
    if names and model is None and loading == Loading(device=loading.device):
        mounted = open_indexes(names, Models(), loading.device)
        first = next(iter(mounted.values())).served
        held = Models.of({first.name: first.model})
    else:
        held = load_models(() if model is None else (model,), loading, keep_adapters=False)
        mounted = open_indexes(names, held, loading.device)
    service = Service(held, mounted)
    asyncio.run(serve_stdio(service))
