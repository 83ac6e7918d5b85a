"""Networks of two towers: texts and images in one space, and never in one row (CLIP).

A text's tokens have the states that the shared space's projection makes of them; an image has one
state, which is its vector.

Shapes: B rows, L tokens of the longest, D width of the shared space.
"""

from __future__ import annotations

from typing import Any

import transformers
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from embedlm.errors import UnsupportedError

__all__ = ["TOWERS", "CLIPModel", "towers_of"]


class CLIPModel(transformers.CLIPModel):
    """CLIP, run on texts or on images; named as the class whose weights it has."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
    ) -> BaseModelOutput:
        """Return the projected states of texts, h_BLD, or of images, h_B1D."""
        if pixel_values is not None:
            v_BD = self.get_image_features(pixel_values=pixel_values).pooler_output
            return BaseModelOutput(last_hidden_state=v_BD[:, None])
        given = {"attention_mask": attention_mask, "position_ids": position_ids}
        h_BLD = self.text_model(input_ids=input_ids, **given).last_hidden_state
        return BaseModelOutput(last_hidden_state=self.text_projection(h_BLD))


TOWERS = {"clip": CLIPModel}
"""Networks by the type that their config names."""


def towers_of(config: Any) -> Any:
    """Return the class that opens a network of two towers.

    Raises:
        UnsupportedError: it is none, or one of another kind.
    """
    if config.model_type not in TOWERS:
        raise UnsupportedError(
            f"the recipe reads two towers (backbone.kind: towers), and the network is "
            f"{config.model_type!r}; allowed: {', '.join(TOWERS)}"
        )
    return TOWERS[config.model_type]
