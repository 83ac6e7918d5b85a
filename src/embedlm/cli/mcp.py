"""`embedlm mcp`: search and embedding as tools for agents, on standard input and output."""

from __future__ import annotations

import asyncio
from typing import Annotated

from cyclopts import Parameter

from embedlm.cli._options import AS_LOADED, Loading, Model, paths, repeated
from embedlm.cli.serve import load
from embedlm.errors import require

__all__ = ["EXAMPLES", "NAME", "USAGE", "command"]

NAME = "mcp"
USAGE = "Usage: embedlm mcp [OPTIONS] [INDEX...]"
EXAMPLES = r"""Examples:
  embedlm mcp docs.index
  embedlm mcp --index law=statutes.index --index docs.index -m builtin"""


def command(
    indexes: Annotated[
        tuple[str, ...],
        Parameter(
            name="INDEX",
            show_default=False,
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
    from embedlm.serving import Service

    require("mcp.server.mcpserver", "mcp")
    from embedlm.serving.mcp import serve_stdio

    chosen = () if model is None else (model,)
    held, mounted = load(chosen, (*indexes, *index), loading)
    service = Service(held, mounted)
    asyncio.run(serve_stdio(service))
