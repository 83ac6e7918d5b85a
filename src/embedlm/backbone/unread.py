"""Tensors of a checkpoint that its network does not read: which may be left out, and which not.

A checkpoint may hold a head for another task, a buffer that is computed anew or a part that sees
no text. Anything else (a projection after the network, say) made the vectors of whoever published
it, so that a load without it would give other ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto

from embedlm.errors import ModelError

__all__ = ["refuse_unread"]

_HEADS = r"""
    lm_head|embed_out|output_projection|cls|predictions|sop_classifier
    |vocab_(transform|layer_norm|projector)|generator_(predictions|lm_head)
    |discriminator_predictions|lm_predictions|mask_predictions|pred_layer|lm_loss|qa_outputs
    |pooler|mtp|v_head"""
"""Modules after or beside the body that no state of a token passes through."""
_CLASSIFIERS = "classifier|score|classification_head"
_NO_TEXT = r"""
    vision_(tower|model|encoder)|visual|image_newline|(multi_modal|mm)_projector
    |audio_(tower|model)|embed_(vision|audio)"""
_BUFFERS = re.compile(
    r"(^|\.)(inv_freq|position_ids|token_type_ids|masked_bias|cos_cached|sin_cached|_extra_state"
    r"|(k|v|kv)_scale|attn\.bias|attention\.bias)$"
)
"""Buffers of older versions, which are computed anew, and scales of a cache that is not kept."""


def _begins_with(*names: str) -> re.Pattern[str]:
    return re.compile(
        rf"^((model|language_model|transformer|base_model)\.){{0,2}}({'|'.join(names)})(\.|$)", re.X
    )


_OF_BODIES = _begins_with(_HEADS, _CLASSIFIERS, _NO_TEXT)
_OF_CLASSIFIERS = _begins_with(_HEADS, _NO_TEXT)


def refuse_unread(
    source: str, config: Any, unread: Iterable[str], *, classifier: bool = False
) -> None:
    """Refuse a checkpoint whose vectors depend on tensors that its network does not read.

    Args:
        source: folder or hub id.
        config: of the network.
        unread: names of the tensors that the network has no place for.
        classifier: whether the network is a classifier, whose own head may not be left out.

    Raises:
        ModelError: some of them are no known head, buffer or part that sees no text.
    """
    harmless = _OF_CLASSIFIERS if classifier else _OF_BODIES
    left = sorted(x for x in unread if not (harmless.match(x) or _BUFFERS.search(x)))
    if left and not classifier:
        known = _known_tensors(config)
        left = [name for name in left if name not in known]
    if left:
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        raise ModelError(
            f"the weights in {source!r} hold {len(left)} tensor{'s' if len(left) > 1 else ''} that "
            f"nothing reads: {', '.join(left[:5])}{more}. {config.model_type!r} has no place for "
            "them, and vectors made without them would be others than the publisher's. Take a "
            "checkpoint without them, or a config.json that names the network they belong to"
        )


def _known_tensors(config: Any) -> set[str]:
    """Return the names of the tensors of all of transformers' classes for a config."""
    kind = str(config.model_type)
    entries = [
        names[kind]
        for mapping, names in vars(modeling_auto).items()
        if mapping.endswith("_MAPPING_NAMES") and kind in names
    ]
    classes = {name for one in entries for name in ((one,) if isinstance(one, str) else one)}
    return set().union(*(_tensors_of(name, config) for name in sorted(classes)))


def _tensors_of(class_name: str, config: Any) -> set[str]:
    try:
        with torch.device("meta"):
            return set(getattr(transformers, class_name)(config).state_dict())
    except Exception:  # a class that wants another config, or a library that is not there
        return set()
