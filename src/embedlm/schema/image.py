"""How a recipe has images read."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from embedlm.schema.base import Part

__all__ = ["Image"]


class Image(Part):
    """How images are read, where the network has a vision part."""

    min_pixels: PositiveInt | None = Field(
        None, description="Smaller images are enlarged to so many. None: as the checkpoint says."
    )
    max_pixels: PositiveInt | None = Field(
        None, description="Larger images are reduced to so many. None: as the checkpoint says."
    )
    positions: Literal["grid", "sequence"] = Field(
        "grid",
        description="grid: an image's tokens are placed by row and column, as the network was "
        "pre-trained; sequence: one after another, as a text's (GME, VLM2Vec).",
    )

    @model_validator(mode="after")
    def _in_order(self) -> Image:
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(
                f"min_pixels is {self.min_pixels} and max_pixels {self.max_pixels}; give a smaller "
                "and a larger number"
            )
        return self
