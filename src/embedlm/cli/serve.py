"""`embedlm serve`: models and indexes over HTTP."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from embedlm.cli._options import (
    AS_LOADED,
    Loading,
    flag,
    natural,
    number,
    path,
    paths,
    repeated,
    whole,
)
from embedlm.errors import InputError

if TYPE_CHECKING:
    from embedlm.serving import Limits, Models, Mounted

__all__ = ["EXAMPLES", "NAME", "USAGE", "command", "load"]

NAME = "serve"
USAGE = "Usage: embedlm serve [OPTIONS] [MODEL...]"
EXAMPLES = r"""Examples:
  embedlm serve
  embedlm serve Qwen/Qwen3-Embedding-0.6B BAAI/bge-reranker-v2-m3 --port 8080
  embedlm serve small=builtin docs=models/tuned --index docs.index \
      --host 0.0.0.0 --api-key-file keys.txt
  embedlm serve base -r plain-last --adapter law --adapter news \
      --keep-adapters"""

Served = Annotated[
    tuple[str, ...],
    Parameter(
        name="MODEL",
        show_default=False,
        help="Folders, hub ids or GGUF files of models and re-rankers, each also as NAME=MODEL; "
        "without one the models of the indexes, else the built-in one. The first answers where a "
        "request names none.",
        converter=paths,
    ),
]


@Parameter(name="*", group="Limits")
@dataclass(frozen=True)
class Bounds:
    """How much the server takes at once."""

    timeout: Annotated[float, number("Seconds from a request to its answer.", "S")] = 60.0
    max_body: Annotated[int, whole("Bytes of a request's body.")] = 8 << 20
    max_texts: Annotated[int, whole("Texts of a request.")] = 2048
    max_request_tokens: Annotated[int, whole("Tokens of a request.")] = 300_000
    max_image_pixels: Annotated[int, whole("Pixels of all images of a request.")] = 1 << 25
    max_waiting: Annotated[int, whole("Requests that may wait; more get status 429.")] = 512
    max_waiting_tokens: Annotated[int, whole("Tokens that may wait.")] = 600_000
    batch_tokens: Annotated[
        int | None, whole("Tokens of a batch; without it what four packs hold.")
    ] = None
    prefix_cache: Annotated[
        float, number("Megabytes of prompts' prefixes that each model keeps; 0: none.", "MB")
    ] = 256.0
    workers: Annotated[
        int | None,
        natural(
            "Processes that share the weights and run models under load (Linux, CPU); 0: none. "
            "Without it one a thread, at most 8."
        ),
    ] = None
    drain: Annotated[
        float, number("Seconds for which new connections are taken after SIGTERM.", "S")
    ] = 1.0

    def limits(self) -> Limits:
        """Return them as the server takes them."""
        from embedlm.serving import Limits

        if self.timeout == 0:
            raise InputError("--timeout is 0, in which nothing can be answered; give seconds")
        return Limits(
            timeout=self.timeout,
            body_bytes=self.max_body,
            inputs=self.max_texts,
            request_tokens=self.max_request_tokens,
            image_pixels=self.max_image_pixels,
            queue_requests=self.max_waiting,
            queue_tokens=self.max_waiting_tokens,
            batch_tokens=self.batch_tokens,
            prefix_bytes=int(self.prefix_cache * (1 << 20)),
            drain=self.drain,
        )


AS_BOUND = Bounds()


def command(
    models: Served = (),
    /,
    *,
    index: Annotated[
        tuple[str, ...], repeated("Index to search, also as NAME=INDEX", metavar="INDEX")
    ] = (),
    host: Annotated[
        str, Parameter(metavar="HOST", help="Address to listen at; 0.0.0.0 for all.")
    ] = "127.0.0.1",
    port: Annotated[
        int, Parameter(metavar="PORT", help="Port to listen at; 0 takes a free one.")
    ] = 8080,
    api_key_file: Annotated[
        str | None,
        path("File with a key a line (or sha256: and its digest), of which requests give one."),
    ] = None,
    keep_adapters: Annotated[
        bool, flag("Keep adapters switchable: a request names one as MODEL:ADAPTER.")
    ] = False,
    traces: Annotated[
        bool, flag("Send OpenTelemetry spans by OTLP, as OTEL_ variables say; they hold no text.")
    ] = False,
    loading: Loading = AS_LOADED,
    bounds: Bounds = AS_BOUND,
) -> None:
    """Serve models and indexes over HTTP: OpenAI's, TEI's, Cohere's and Jina's interfaces."""
    from embedlm.serving import Keys, Service, Tracing, create_app, processes
    from embedlm.serving.lines import log_lines
    from embedlm.serving.run import listen, server_of

    if not 0 <= port < 1 << 16:
        raise InputError(f"--port is {port}; give 0 to 65535")
    processes.check_count(bounds.workers)
    limits = bounds.limits()
    keys = Keys() if api_key_file is None else Keys.read(api_key_file)
    tracing = Tracing.to_collector() if traces else None
    opened = listen(host, port)
    log_lines()
    held, mounted = processes.apart(
        lambda: load(models, index, loading, keep_adapters=keep_adapters)
    )
    forked = processes.chosen(held, bounds.workers, limits.prefix_bytes)
    service = Service(held, mounted, keys=keys, limits=limits, processes=forked)
    server = server_of(create_app(service, host=host, tracing=tracing), service)
    server.run(sockets=[opened])
    if server.force_exit:  # the interpreter would wait for what still runs
        logging.shutdown()
        os._exit(0)


def load(
    models: Sequence[str], indexes: Sequence[str], loading: Loading, *, keep_adapters: bool = False
) -> tuple[Models, dict[str, Mounted]]:
    """Return models and opened indexes by name.

    Where no model is named, the indexes' own are served; without an index, the built-in one.
    """
    from embedlm.serving import Models

    own = loading == Loading(device=loading.device) and not keep_adapters
    if indexes and not models and own:
        held = Models()
        mounted = _open_indexes(indexes, held, loading.device)
        return held, mounted
    held = _load_models(models, loading, keep_adapters=keep_adapters)
    return held, _open_indexes(indexes, held, loading.device)


def _load_models(names: Sequence[str], loading: Loading, *, keep_adapters: bool) -> Models:
    """Return models by name; the built-in one where none is named, by a recipe `builtin-base`.

    Recipe, adapters and generator are the embedders'; where there are only re-rankers, they take
    the adapters, and refuse the others.
    """
    from embedlm.rerank.reranker import is_reranker
    from embedlm.serving import Models
    from embedlm.serving.models import check_names, short_name

    own = "builtin" if loading.recipe is None else "builtin-base"
    named = [_named(name, short_name) for name in names or (own,)]
    check_names([name for name, _ in named])
    reranks = {name: loading.recipe is None and is_reranker(source) for name, source in named}
    alone = all(reranks.values())
    if alone and keep_adapters:
        raise InputError("--keep-adapters is for embedders, and only re-rankers are to be served")
    for_rerankers = loading if alone else replace(loading, change=(), generator=None)
    found: dict[str, Any] = {}
    for name, source in named:
        if reranks[name]:
            found[name] = for_rerankers.reranker(source, adapters=alone)
        else:
            found[name] = loading.load(source, merge=False if keep_adapters else None)
    return Models.of(found)


def _open_indexes(names: Sequence[str], models: Models, device: Any) -> dict[str, Mounted]:
    """Return opened indexes by name; where no model is served yet, their own are from now on."""
    from embedlm.serving import Mounted
    from embedlm.serving.models import check_names

    named = [_named(name, lambda path: path.rstrip("/").rpartition("/")[2]) for name in names]
    check_names([name for name, _ in named])
    found: dict[str, Mounted] = {}
    add = not models.names
    for name, source in named:
        found[name] = mounted = Mounted.open(name, source, list(models.embedders.values()), device)
        if add and mounted.served not in models.embedders.values():
            mounted.served = models.add(mounted.served)
    return found


def _named(text: str, shorten: Any) -> tuple[str, str]:
    """Return name and source of NAME=SOURCE, or of a source alone."""
    name, sign, source = text.partition("=")
    if not sign or "/" in name:
        return shorten(text), text
    if not name or not source:
        raise InputError(f"{text!r} is no NAME=PLACE; write both")
    return name, source
