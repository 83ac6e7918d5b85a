"""Networks of two towers: texts and images in one space, and never in one row (CLIP, SigLIP).

A text's tokens have the states that the shared space's projection makes of them, or all of them the
text's vector; an image has one state, which is its vector.

Shapes: B rows, L tokens of the longest, D width of the shared space.
"""

from __future__ import annotations

from typing import Any

import transformers
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from embedlm.errors import ModelError, UnsupportedError

__all__ = ["TOWERS", "CLIPModel", "SiglipModel", "fill_with", "towers_of"]


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


class SiglipModel(transformers.SiglipModel):
    """SigLIP, run on texts or on images; named as the class whose weights it has.

    Its texts were padded to one length when it was trained, and its tokens look at the padding
    (Zhai et al., arXiv:2303.15343): a text's vector is read of the last place, whatever stands
    there. So each text is filled up to that length here, alone or in company.
    """

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
    ) -> BaseModelOutput:
        """Return the vectors of texts in the place of each token, h_BLD, or of images, h_B1D."""
        if pixel_values is not None:
            v_BD = self.get_image_features(pixel_values=pixel_values).pooler_output
            return BaseModelOutput(last_hidden_state=v_BD[:, None])
        count, longest = input_ids.shape
        config: Any = self.config.text_config
        if longest > config.max_position_embeddings:
            raise ValueError(f"{longest} tokens, and there are {config.max_position_embeddings}")
        filled_BF = input_ids.new_full((count, config.max_position_embeddings), config.pad_token_id)
        filled_BF[:, :longest] = input_ids
        if attention_mask is not None:
            filled_BF[:, :longest].masked_fill_(attention_mask == 0, config.pad_token_id)
        v_BD = self.text_model(input_ids=filled_BF).pooler_output
        return BaseModelOutput(last_hidden_state=v_BD[:, None].expand(-1, longest, -1))


TOWERS = {"clip": CLIPModel, "siglip": SiglipModel}
"""Networks by the type that their config names."""


def fill_with(network: Any, tokenizer: Any) -> None:
    """Have a network fill texts up with the tokenizer's own padding; its config may name another.

    Raises:
        ModelError: the tokenizer has none.
    """
    if not isinstance(network, SiglipModel):
        return
    if tokenizer.pad_token_id is None:
        raise ModelError(
            "SigLIP reads texts with the padding that it was trained with, and the tokenizer has "
            "no pad_token; add the tokenizer_config.json that was published with the model"
        )
    text_config: Any = network.config.text_config
    text_config.pad_token_id = tokenizer.pad_token_id


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
