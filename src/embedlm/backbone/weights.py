"""From a checkpoint's weights to its network, with errors that say what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
)

from embedlm.backbone.config import (
    WRAPPED,
    raw_config,
    token_projection,
    unloadable,
)
from embedlm.backbone.gguf_model import LINK, gguf_tensors
from embedlm.backbone.quiet import quiet
from embedlm.backbone.sizes import check_sizes
from embedlm.backbone.stored import expanded_tensors, is_stored_by_row
from embedlm.backbone.tensors import check_indexes
from embedlm.backbone.towers import towers_of
from embedlm.backbone.unread import refuse_unread
from embedlm.errors import EmbedLMError, InputError, ModelError, UnsupportedError

__all__ = ["head_is_cheap", "load_classifier", "load_network"]

CHEAP_HEAD = 1 << 26
"""Bytes of a head in float32."""
_IGNORED_MISSING = ("pooler.", ".position_ids", "lm_head.bias", "cls.predictions.decoder.bias")


def _key_mapping(source: str) -> dict[str, str] | None:
    """Return how a wrapper's names of weights become those of the network inside it."""
    wrapped = WRAPPED.get(raw_config(source).get("model_type", ""))
    return None if wrapped is None else {f"^{wrapped.prefix}": ""}


def _head_class(config: Any) -> Any:
    if getattr(config, "is_encoder_decoder", False):
        return None  # a causal language model of such a checkpoint is its decoder alone
    names = config.architectures or []
    kind = config.model_type
    masked = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if masked and (not causal or any("Masked" in name for name in names)):
        return AutoModelForMaskedLM
    if masked and kind in ("bert", "roberta", "xlm-roberta", "camembert", "electra"):
        return AutoModelForMaskedLM
    return AutoModelForCausalLM if causal else None


def head_is_cheap(config: Any) -> bool:
    """Tell whether a causal language model's head may be loaded without being asked for.

    It is where the head is the table of embeddings, or is smaller than `CHEAP_HEAD`.
    """
    if _head_class(config) is not AutoModelForCausalLM:
        return False
    text = config.get_text_config()
    values = int(getattr(text, "vocab_size", 0)) * int(getattr(text, "hidden_size", 0))
    return bool(getattr(text, "tie_word_embeddings", False)) or 4 * values <= CHEAP_HEAD


def load_network(
    source: str,
    config: Any,
    dtype: torch.dtype,
    *,
    head: bool,
    implementation: str,
    more: Mapping[str, Any] | None = None,
    towers: bool = False,
) -> tuple[nn.Module, list[str]]:
    """Return the network (with its language-model head if `head`) and its missing head weights.

    `more` holds further arguments of `from_pretrained`; `towers` loads both of two towers.

    Raises:
        ModelError: weights that are missing, truncated, of other shapes, or read by nothing.
        UnsupportedError: a head was asked for and the architecture has none.
    """
    loader: Any = towers_of(config) if towers else AutoModel
    if head:
        loader = _head_class(config)
        if loader is None:
            reason = "have no language-model head"
            if getattr(config, "is_encoder_decoder", False):
                reason = "have a language-model head on their decoder alone, which reads no text"
            raise UnsupportedError(
                f"{config.model_type!r} models {reason}; this recipe's sparse head needs one on "
                "the states of the text. Use a causal or masked language model"
            )
    elif MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES.get(config.model_type, "").endswith("EncoderModel"):
        loader = AutoModelForTextEncoding
    model, missing, mismatched, unread = _opened(
        loader, source, config, dtype, implementation, more
    )
    prefix = f"{model.base_model_prefix}." if head else ""
    body = [key for key in missing if key.startswith(prefix)] + mismatched
    _refuse(source, body)
    refuse_unread(source, config, unread)
    return model.eval().requires_grad_(False), [key for key in missing if key not in body]


def load_classifier(source: str, config: Any, dtype: torch.dtype) -> nn.Module:
    """Return the sequence classification network of a folder or hub id.

    Raises:
        ModelError: weights that are missing, truncated or do not fit the config.
    """
    loader = AutoModelForSequenceClassification
    with quiet():
        model, missing, mismatched, unread = _opened(loader, source, config, dtype, "sdpa")
    # A pooler that a classifier lacks is read by it, so that here it may not be missing.
    lacking = [key for key in missing if not key.endswith("position_ids")]
    _refuse(source, lacking + mismatched)
    refuse_unread(source, config, unread, classifier=True)
    ready: nn.Module = model.eval().requires_grad_(False)
    return ready


def _opened(
    loader: Any,
    source: str,
    config: Any,
    dtype: torch.dtype,
    implementation: str,
    more: Mapping[str, Any] | None = None,
) -> tuple[Any, list[str], list[str], list[str]]:
    """Return a network and which weights the files lack, have in another shape, or have besides."""
    check_indexes(source)
    check_sizes(source, loader, config)
    try:
        opener, place, weights = _opener(loader, source, config, dtype)
        model, info = opener.from_pretrained(
            place,
            config=config,
            state_dict=weights,
            dtype=dtype,
            trust_remote_code=False,
            attn_implementation=implementation,
            output_loading_info=True,
            key_mapping=_key_mapping(source),
            # Tensors of other shapes are told by name, below.
            **{"ignore_mismatched_sizes": True, **(more or {})},
        )
    except EmbedLMError:
        raise
    except Exception as error:  # damaged configs and pickles raise whatever the library meets
        if implementation == "sdpa" and "scaled_dot_product_attention" in str(error):
            return _opened(loader, source, config, dtype, "eager", more)
        unknown = [name for name in more or () if f"'{name}'" in str(error)]
        if unknown and isinstance(error, TypeError):
            raise InputError(
                f"model_kwargs holds {unknown[0]!r}, which transformers does not take for this "
                "model; leave it out"
            ) from error
        raise unloadable(source, "weights", error) from error
    outer = raw_config(source)
    apart = {token_projection(outer)}  # what is read beside the network
    if (wrapper := WRAPPED.get(outer.get("model_type", ""))) is not None:
        model._weight_conversions = []  # it is saved as the network that it is
        apart.add(wrapper.beside)
    unread = [str(key) for key in info.get("unexpected_keys", ())]
    unread = [key for key in unread if not key.startswith(tuple(filter(None, apart)))]
    ignored = () if loader is AutoModelForSequenceClassification else _IGNORED_MISSING
    missing = [key for key in info["missing_keys"] if not any(part in key for part in ignored)]
    return model, missing, [_unfit(key) for key in info.get("mismatched_keys", ())], unread


def _unfit(key: Any) -> str:
    """Return a tensor's name, with its shape and that of the network's, where they are known."""
    if not isinstance(key, tuple) or len(key) != 3:
        return str(key)
    name, stored, wanted = key
    return f"{name} (of {tuple(stored)}, and by the config of {tuple(wanted)})"


def _opener(
    loader: Any, source: str, config: Any, dtype: torch.dtype
) -> tuple[Any, str | None, dict[str, torch.Tensor] | None]:
    """Return the class that opens a network, and its folder or its weights.

    Those of a GGUF file, and those that are stored by row, are expanded here.
    """
    of_gguf = (Path(source) / LINK).is_file()
    if not of_gguf and not is_stored_by_row(source, raw_config(source)):
        return loader, source, None
    with torch.device("meta"):
        unfilled = loader.from_config(config)
    if of_gguf:
        return type(unfilled), None, gguf_tensors(Path(source), unfilled, dtype)
    return type(unfilled), None, expanded_tensors(source, dtype)


def _refuse(source: str, unfit: list[str]) -> None:
    if unfit:
        raise ModelError(
            f"the weights in {source!r} do not fit its config: {len(unfit)} tensors are missing or "
            f"of another shape, e.g. {unfit[0]}. Take the config.json that they were saved with"
        )
