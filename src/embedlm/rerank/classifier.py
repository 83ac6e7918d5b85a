"""Cross-encoders: a network with one output for a pair.

Shapes: B pairs, L longest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from embedlm.backbone.devices import choose_device, choose_dtype
from embedlm.backbone.tokenizer import load_tokenizer
from embedlm.backbone.weights import load_classifier
from embedlm.errors import UnsupportedError
from embedlm.persistence import layout_folder
from embedlm.persistence.layouts import asked_dtype
from embedlm.rerank.pairs import batches, joined_pairs, lower_case, templated_pairs
from embedlm.schema.rerank import Method

__all__ = ["Classifier"]

BUDGET = 4096
"""Tokens that run at once, padding included."""


class Classifier:
    """A sequence classification network of transformers that scores pairs."""

    def __init__(
        self,
        source: str,
        config: Any,
        method: Method,
        *,
        device: Any,
        dtype: Any,
        max_length: int | None,
    ) -> None:
        """Load it.

        Raises:
            ModelError: files that cannot be read.
            UnsupportedError: a network with several outputs.
        """
        if config.num_labels != 1:
            raise UnsupportedError(
                f"{source!r} has {config.num_labels} outputs; a re-ranker has one (num_labels: 1)"
            )
        self.device = choose_device(device)
        self.tokenizer = load_tokenizer(source)
        stored = asked_dtype(layout_folder(source)) or config.dtype
        network: Any = load_classifier(source, config, choose_dtype(dtype, stored, self.device))
        self.network: Any = network.to(self.device)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.network.config.pad_token_id is None:
            self.network.config.pad_token_id = self.tokenizer.pad_token_id
        if method.lower:
            lower_case(self.tokenizer)
        positions = self._positions(config)
        limit = max_length or method.max_length or self._stated()
        self.max_length = min((n for n in (limit, positions) if n), default=None)

    def _positions(self, config: Any) -> int | None:
        """Return how many tokens the network has positions for."""
        table = getattr(config.get_text_config(), "max_position_embeddings", None)
        if table is not None and config.model_type in ("roberta", "xlm-roberta", "camembert"):
            table -= (config.pad_token_id or 0) + 1  # the first positions stand for the padding
        return table if table and table > 0 else None

    def _stated(self) -> int | None:
        """Return how many tokens the tokenizer's files allow."""
        stated = self.tokenizer.model_max_length
        return stated if stated and stated < 10**9 else None

    def logits(
        self, pairs: Sequence[tuple[str, str]], method: Method, instruction: str, prompt: str
    ) -> npt.NDArray[np.float32]:
        """Return the network's output for each (query, document).

        Args:
            pairs: to be scored.
            method: says how they are written.
            instruction: fills the template's slot.
            prompt: written before the query, where the tokenizer joins the pair.
        """
        scores = np.empty(len(pairs), np.float32)
        self.tokenizer.padding_side = "right"
        if method.template is None:
            rows = joined_pairs(self.tokenizer, pairs, prompt, self.max_length)
        else:
            rows = templated_pairs(self.tokenizer, pairs, method, instruction, self.max_length)
        lengths = np.array([len(ids) for ids in rows["input_ids"]])
        with torch.inference_mode():
            for items in batches(lengths, BUDGET):
                inputs = self.tokenizer.pad(
                    {name: [values[i] for i in items] for name, values in rows.items()},
                    return_tensors="pt",
                ).to(self.device)
                scores[items] = self.network(**inputs).logits[:, 0].float().cpu().numpy()
        return scores
