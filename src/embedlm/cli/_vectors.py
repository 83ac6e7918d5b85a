"""Options of the commands that encode: which form vectors have."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from embedlm.cli._options import Heads, MaxLength, whole
from embedlm.cli._values import parse_heads

__all__ = ["AS_ENCODED", "AS_GIVEN", "VectorForm", "VectorOptions"]


@Parameter(name="*", group="Vectors")
@dataclass(frozen=True)
class VectorForm:
    """The width and number format of vectors, and how much of a text they are of."""

    dim: Annotated[
        int | None,
        whole("Keep only the first N dimensions; without it all, or as the recipe says."),
    ] = None
    precision: Annotated[
        str,
        Parameter(
            metavar="TYPE",
            help="Number format of the vectors: float32, float16, int8, uint8, binary or ubinary.",
        ),
    ] = "float32"
    normalize: Annotated[
        bool | None, Parameter(help="Whether vectors have length 1; without it as the recipe says.")
    ] = None
    max_length: MaxLength = None
    batch_tokens: Annotated[
        int | None,
        whole(
            "Run up to N tokens through the model at once; without it 1536 on a CPU, and on a GPU "
            "what its memory holds."
        ),
    ] = None

    def form(self) -> dict[str, Any]:
        """Return the options of `Embedder.encode` that were given."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(VectorForm)}
        given = {name: value for name, value in given.items() if value is not None}
        return {name: value for name, value in given.items() if (name, value) != _PLAIN}


@Parameter(name="*", group="Vectors")
@dataclass(frozen=True)
class VectorOptions(VectorForm):
    """What is computed of each text."""

    heads: Heads = None

    def options(self) -> dict[str, Any]:
        """Return the options of `Embedder.encode`."""
        return {**dataclasses.asdict(self), "heads": parse_heads(self.heads)}


_PLAIN = ("precision", "float32")
AS_GIVEN = VectorForm()
AS_ENCODED = VectorOptions()
