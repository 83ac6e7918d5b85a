"""Cross-encoders: a network with one output for a pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.backbone import norms
from embedlm.backbone.devices import choose_device, choose_dtype
from embedlm.backbone.positions import (
    configured_positions,
    learns_positions,
    measured_positions,
)
from embedlm.backbone.tokenizer import load_tokenizer
from embedlm.backbone.weights import load_classifier
from embedlm.errors import UnsupportedError
from embedlm.persistence import layout_folder
from embedlm.persistence.layouts import asked_dtype
from embedlm.prompt.special import lower_case
from embedlm.rerank.pairs import joined_pairs, templated_pairs
from embedlm.rerank.passes import PROBE, Passes
from embedlm.schema.rerank import Method

__all__ = ["Classifier"]


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
            UnsupportedError: a network with several outputs, or one that cannot be run on pairs.
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
        norms.quicken(self.network)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.network.config.pad_token_id is None:
            self.network.config.pad_token_id = self.tokenizer.pad_token_id
        if method.lower:
            lower_case(self.tokenizer)
        rows = joined_pairs(self.tokenizer, PROBE, "", None)
        self._passes = Passes(self.network, self.tokenizer)
        self._passes.measure(rows)
        positions = self._positions(config.get_text_config(), rows["input_ids"][0])
        limit = max_length or method.max_length or self._stated()
        self.max_length = min((n for n in (limit, positions) if n), default=None)

    def _positions(self, config: Any, row: list[int]) -> int | None:
        """Return how many tokens the network has positions for.

        Args:
            config: of the network.
            row: some token ids.
        """
        table = configured_positions(config)
        if table is None or table < 0:  # XLNet says -1
            return None
        body = self.network.base_model
        pad = self.tokenizer.pad_token_id
        first, _ = measured_positions(body, [token for token in row if token != pad])
        return table - ((first or 0) if learns_positions(body) else 0)

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
        if method.template is None:
            rows = joined_pairs(self.tokenizer, pairs, prompt, self.max_length)
        else:
            rows = templated_pairs(self.tokenizer, pairs, method, instruction, self.max_length)
        return self._passes.logits(rows)
