"""`embedlm render`: what the model will see."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from embedlm.cli._options import AS_LOADED, AS_RENDERED, Json, Loading, MaxLength, Model, Prompting
from embedlm.cli._values import emit
from embedlm.errors import InputError

__all__ = ["EXAMPLES", "NAME", "USAGE", "command"]

NAME = "render"
USAGE = "Usage: embedlm render [OPTIONS] TEXT..."
EXAMPLES = """Each line of tokens begins with the segment that they belong to; pooling selects
tokens by their segment. What each output is read from stands below.

Examples:
  embedlm render "a river"
  embedlm render "a river" -m Qwen/Qwen3-0.6B -r echo
  embedlm render "what is a river?" -r mine.yaml --role query --json"""


def command(
    *texts: Annotated[str, Parameter(name="TEXT", help="One text or more.")],
    model: Model = None,
    loading: Loading = AS_LOADED,
    prompting: Prompting = AS_RENDERED,
    max_length: MaxLength = None,
    json: Json = False,
) -> None:
    """Print what the model will see of each text: prompt, tokens, segments, and what is pooled."""
    if not texts:
        raise InputError('no text was given; e.g. embedlm render "a river" -r prompteol')
    from embedlm.encode.shown import shown_prompts

    loaded = loading.load(model)
    options = prompting.options()
    role = options.get("role")
    rendered = loaded.render(list(texts), **options, max_length=max_length)
    rows = [
        row
        for prompts in shown_prompts(rendered, loaded.route(role).readout, role)
        for row in prompts
    ]
    if json:
        emit(rows)
        return
    for number, row in enumerate(rows):
        print("\n" if number else "", end="")
        _print(row)


def _print(row: dict[str, Any]) -> None:
    short = ", shortened" if row["truncated"] else ""
    print(f"{row['text']}\n\n{len(row['ids'])} tokens{short}:")
    runs: list[tuple[str, list[str]]] = []
    for segment, token in zip(row["segments"], row["tokens"], strict=True):
        if not runs or runs[-1][0] != segment:
            runs.append((segment, []))
        runs[-1][1].append(str(token))
    for segment, tokens in runs:
        print(f"  {segment:<14} {' '.join(tokens)}")
    for head, shares in row["shares"].items():
        read = [token for token, share in zip(row["tokens"], shares, strict=True) if share]
        print(f"{head} reads {len(read)}:\n  {'':<14} {' '.join(map(str, read))}")
