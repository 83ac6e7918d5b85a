"""Cross-encoders: a network with one output for a pair.

Shapes: B pairs, L longest of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from embedlm.backbone.devices import choose_device, choose_dtype
from embedlm.backbone.tokenizer import load_tokenizer
from embedlm.backbone.weights import load_classifier
from embedlm.errors import UnsupportedError

__all__ = ["Classifier"]

BUDGET = 4096
"""Tokens that run at once, padding included."""


class Classifier:
    """A sequence classification network of transformers that scores pairs."""

    def __init__(
        self, source: str, config: Any, device: Any, dtype: Any, max_length: int | None
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
        network: Any = load_classifier(source, config, choose_dtype(dtype, config, self.device))
        self.network: Any = network.to(self.device)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.network.config.pad_token_id is None:
            self.network.config.pad_token_id = self.tokenizer.pad_token_id
        self.max_length = max_length or self._own_length(config)

    def _own_length(self, config: Any) -> int | None:
        """Return how many tokens the network and its tokenizer take."""
        table = getattr(config.get_text_config(), "max_position_embeddings", None)
        if table is not None and config.model_type in ("roberta", "xlm-roberta", "camembert"):
            table -= (config.pad_token_id or 0) + 1  # the first positions stand for the padding
        stated = [n for n in (table, self.tokenizer.model_max_length) if n and n < 10**9]
        return min(stated, default=None)

    def scores(self, pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.float32]:
        """Return the network's output for each (query, document), the longer text being cut."""
        scores = np.empty(len(pairs), np.float32)
        self.tokenizer.padding_side = "right"
        limit = {"truncation": "longest_first", "max_length": self.max_length}
        queries, documents = zip(*pairs, strict=True)
        rows = self.tokenizer(
            list(queries), list(documents), **(limit if self.max_length else {"truncation": False})
        )
        lengths = np.array([len(ids) for ids in rows["input_ids"]])
        with torch.inference_mode():
            for items in _batches(lengths):
                inputs = self.tokenizer.pad(
                    {name: [values[i] for i in items] for name, values in rows.items()},
                    return_tensors="pt",
                ).to(self.device)
                scores[items] = self.network(**inputs).logits[:, 0].float().cpu().numpy()
        return scores


def _batches(lengths: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """Yield rows of like length, as many as the budget takes with their padding."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * lengths[order[end]] <= BUDGET:
            end += 1
        yield order[start:end]
        start = end
