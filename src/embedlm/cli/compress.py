"""`embedlm compress`: fewer layers, neurons and tokens, fewer bits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from embedlm.cli._options import Device, Json, SaveDtype, path, repeated, whole
from embedlm.cli._values import emit
from embedlm.errors import InputError

__all__ = ["EXAMPLES", "NAME", "command"]

NAME = "compress"
EXAMPLES = """Examples:
  embedlm compress model --dtype int8 -o small
  embedlm compress small --dtype bfloat16 -o whole
  embedlm compress m.gguf --layers 8 --vocabulary 9000 --texts a.txt -o cut
  embedlm compress model --intermediate 1024 --texts a.txt -o narrow"""


def command(
    model: Annotated[str, path("A folder, hub id or GGUF file.", "MODEL", None)],
    /,
    *,
    output: Annotated[str, path("New folder for the model.", ["--output", "-o"], "DIR")],
    layers: Annotated[int | None, whole("Keep the first layers, this many.")] = None,
    vocabulary: Annotated[
        int | None, whole("Keep the tokens that are used most, this many.")
    ] = None,
    intermediate: Annotated[
        int | None, whole("Keep the neurons of each layer that do most, this many.")
    ] = None,
    texts: Annotated[
        tuple[str, ...],
        repeated("Files of texts that tokens are counted in, neurons measured on", metavar="FILE"),
    ] = (),
    dtype: SaveDtype = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Write a smaller model: fewer layers, neurons and tokens, fewer bits."""
    from embedlm.compress import prune
    from embedlm.data import read_records

    by_texts = vocabulary is not None or intermediate is not None
    if layers is None and dtype is None and not by_texts:
        raise InputError(
            "nothing is to be made smaller; give --layers, --vocabulary, --intermediate or --dtype"
        )
    if texts and not by_texts:
        raise InputError(
            "--texts are for --vocabulary, which counts tokens in them, and --intermediate, which "
            "measures neurons on them; give one of these too"
        )
    facts = prune(
        model,
        output,
        layers=layers,
        vocabulary=vocabulary,
        intermediate=intermediate,
        texts=(text for file in texts for text in read_records(file).texts()),
        save_dtype=dtype,
        device=device,
    )
    facts["bytes"] = sum(file.stat().st_size for file in Path(output).rglob("*.safetensors"))
    if json:
        emit({"model": output, **facts})
        return
    print(_figures(facts, vocabulary is not None))
    print(f"the model is in {output}, its weights take {facts['bytes'] / 1e6:,.1f} MB")


def _figures(facts: dict[str, Any], counted: bool) -> str:
    """Return a line for each size, and one for the texts whose tokens were counted."""
    sizes = {name: size for name, size in facts.items() if isinstance(size, list)}
    lines = [
        f"{name}: {before:,}" + (f" -> {after:,}" if after != before else "")
        for name, (before, after) in sizes.items()
    ]
    if counted:
        lines.append(f"texts have {facts['length'] - 1:+.1%} tokens")
    return "\n".join(lines)
