"""Features of sentence-transformers: a rendered batch as tensors, and back.

Shapes: B texts of a batch, L tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from embedlm.prompt.render import RenderedBatch
from embedlm.prompt.segments import SEGMENT_ID

__all__ = ["batch_of", "features_of", "seen_of"]

_TEXT = SEGMENT_ID["text"]


def features_of(batch: RenderedBatch, *, segments: bool, token_types: bool) -> dict[str, Any]:
    """Return a rendered batch as tensors, padded on the right.

    Args:
        batch: the rendered texts.
        segments: whether the readout asks which segment a token belongs to.
        token_types: whether the tokenizer gives `token_type_ids`; all are of the first type.
    """
    rows = [torch.tensor(ids, dtype=torch.long) for ids in batch.ids]
    features: dict[str, Any] = {"modality": "text"}
    features["input_ids"] = pad_sequence(rows, batch_first=True)
    features["attention_mask"] = pad_sequence(
        [torch.ones_like(row) for row in rows], batch_first=True
    )
    if token_types:
        features["token_type_ids"] = torch.zeros_like(features["input_ids"])
    if segments:
        marks = [torch.as_tensor(marks) for marks in batch.segments]
        features["segments"] = pad_sequence(marks, batch_first=True)
    return features


def seen_of(features: Mapping[str, Any]) -> Tensor:
    """Return which tokens are no padding, seen_BL."""
    seen_BL: Tensor = features["attention_mask"].bool()
    return seen_BL


def batch_of(features: Mapping[str, Any]) -> RenderedBatch:
    """Return features as a rendered batch; without segments, every token is of the text."""
    ids_BL, seen_BL = features["input_ids"], seen_of(features)
    segments_BL = features.get("segments")
    if segments_BL is None:
        segments_BL = torch.full_like(ids_BL, _TEXT, dtype=torch.uint8)
    pairs = list(zip(ids_BL, segments_BL, seen_BL, strict=True))
    return RenderedBatch(
        [ids_L[seen_L].tolist() for ids_L, _, seen_L in pairs],
        [marks_L[seen_L].cpu().numpy() for _, marks_L, seen_L in pairs],
        [""] * len(pairs),
    )
