"""The direction of attention is the text's: a part for images keeps its own."""

import pytest
import transformers as tf

from embedlm.backbone.direction import set_direction
from tests.vision_models import CONFIGS, config_of, control_tokenizer


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("causal", [True, False])
def test_patches_see_each_other_whichever_way_texts_are_read(kind, causal):
    network = tf.AutoModel.from_config(config_of(kind, control_tokenizer()))
    set_direction(network, causal=causal)
    assert all(layer.self_attn.is_causal is causal for layer in network.language_model.layers)
    assert not any(block.attn.is_causal for block in network.visual.blocks)
    assert not hasattr(network.config.vision_config, "is_causal")
