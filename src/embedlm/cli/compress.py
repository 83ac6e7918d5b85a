"""`embedlm compress`: fewer layers, fewer tokens, fewer bits."""

from __future__ import annotations

from typing import Annotated, Any

from embedlm.cli._options import Device, Json, SaveDtype, path, repeated, whole
from embedlm.cli._values import emit
from embedlm.errors import InputError

__all__ = ["EXAMPLES", "NAME", "command"]

NAME = "compress"
EXAMPLES = """Examples:
  embedlm compress model --dtype int8 -o small
  embedlm compress small --dtype bfloat16 -o whole
  embedlm compress m.gguf --layers 8 --vocabulary 9000 --texts a.txt -o cut"""


def command(
    model: Annotated[str, path("A folder, hub id or GGUF file.", "MODEL", None)],
    /,
    *,
    output: Annotated[str, path("New folder for the model.", ["--output", "-o"], "DIR")],
    layers: Annotated[int | None, whole("Keep the first layers, this many.")] = None,
    vocabulary: Annotated[
        int | None, whole("Keep the tokens that are used most, this many.")
    ] = None,
    texts: Annotated[
        tuple[str, ...], repeated("Files of texts in which the tokens are counted.", metavar="FILE")
    ] = (),
    dtype: SaveDtype = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Write a smaller model: fewer layers, fewer tokens, fewer bits."""
    from embedlm.compress import prune
    from embedlm.data import read_records

    if layers is None and vocabulary is None and dtype is None:
        raise InputError("nothing is to be made smaller; give --layers, --vocabulary or --dtype")
    if texts and vocabulary is None:
        raise InputError("--texts are for --vocabulary, which counts tokens in them; give both")
    read = (text for file in texts for text in read_records(file).texts())
    options: dict[str, Any] = {"save_dtype": dtype, "device": device}
    facts = prune(model, output, layers=layers, vocabulary=vocabulary, texts=read, **options)
    if json:
        emit({"model": output, **facts})
        return
    for name in ("layers", "tokens", "parameters"):
        before, after = facts[name]
        print(f"{name}: {before:,}" + (f" -> {after:,}" if after != before else ""))
    if vocabulary is not None:
        print(f"texts are {facts['length'] - 1:+.1%} tokens long")
    print(f"the model is in {output}")
