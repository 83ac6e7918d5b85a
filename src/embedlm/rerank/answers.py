"""Language models that are asked about a pair, and scored by the logits of their answers.

Shapes: B pairs, R of them, D width of a state, A answers, T tokens of a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from embedlm.embedder import Embedder
from embedlm.errors import UnsupportedError
from embedlm.prompt.special import lower_case
from embedlm.rerank.pairs import batches, joined_pairs, shots
from embedlm.schema.recipe import Recipe
from embedlm.schema.rerank import Method

__all__ = ["AnswerModel"]

_ROWS = 256
"""Rows of logits held at once."""


class AnswerModel:
    """A causal language model that answers yes or no."""

    def __init__(
        self,
        source: str,
        method: Method,
        *,
        device: Any,
        dtype: Any,
        max_length: int | None,
        adapters: Sequence[str],
    ) -> None:
        """Load it.

        Raises:
            ModelError: files that cannot be read.
            UnsupportedError: a model without a causal language-model head, or an answer that it
                has no token for.
        """
        from embedlm.loader import load

        self.model = load(
            source,
            _recipe(method, method.max_length),
            device=device,
            dtype=dtype,
            adapters=adapters,
            max_length=max_length,
        )
        self.limit = self.model.recipe.prompt.max_length
        self._written = {method: self.model}
        if method.lower:
            lower_case(self.model.tokenizer)
        size = self.model.backbone.vocab_size
        self.answers = [
            _token(self.model.tokenizer, answer, size, source)
            for answer in (method.yes, method.no)
            if answer is not None
        ]
        if len(set(self.answers)) < len(self.answers):
            raise UnsupportedError(
                f"the tokenizer of {source!r} writes the answers {method.yes!r} and {method.no!r} "
                "with the same first token, so that every score would be 0; give yes and no as "
                "token ids"
            )

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.model.tokenizer

    @property
    def max_length(self) -> int | None:
        """Tokens that a pair may have, as it is written; None: no limit."""
        return self.model.max_length

    def logits(
        self, pairs: Sequence[tuple[str, str]], method: Method, instruction: str, prompt: str
    ) -> npt.NDArray[np.float32]:
        """Return the logit of each pair's yes, less that of its no, divided as the method says.

        Args:
            pairs: to be scored.
            method: says how they are written.
            instruction: fills the template's slot.
            prompt: written before the query, where the tokenizer joins the pair.
        """
        if method.template is None:
            return self._of_joined_pairs(pairs, prompt) / np.float32(method.divisor)
        rows_of: dict[str, list[int]] = {}
        for row, (query, _) in enumerate(pairs):
            rows_of.setdefault(query, []).append(row)
        logits = np.empty(len(pairs), np.float32)
        for query, rows in rows_of.items():
            states_BD = self._by(method).encode(
                [pairs[row][1] for row in rows],
                instruction=query,
                demonstrations=shots(method, instruction) or None,
                heads=["dense"],
                show_progress=False,
            )
            logits[rows] = self._of_states(torch.from_numpy(states_BD))
        return logits / np.float32(method.divisor)

    def _by(self, method: Method) -> Embedder:
        """Return the model with a method's template."""
        if method not in self._written:
            self._written[method] = self.model.with_recipe(_recipe(method, self.limit))
        return self._written[method]

    @torch.inference_mode()
    def _of_joined_pairs(
        self, pairs: Sequence[tuple[str, str]], prompt: str
    ) -> npt.NDArray[np.float32]:
        """Return the logits after the pairs as the tokenizer joins them."""
        executor = self.model.executor
        ids = joined_pairs(self.tokenizer, pairs, prompt, self.model.max_length)["input_ids"]
        logits = np.empty(len(pairs), np.float32)
        lengths = np.array([len(row) for row in ids])
        for items in batches(lengths, executor.budget()):
            h_TD = executor.run([ids[i] for i in items])
            logits[items] = self._of_states(h_TD[np.cumsum(lengths[items]) - 1])
        return logits

    @torch.inference_mode()
    def _of_states(self, h_BD: torch.Tensor) -> npt.NDArray[np.float32]:
        backbone = self.model.backbone
        parts = []
        for h_RD in h_BD.to(backbone.device, backbone.dtype).split(_ROWS):
            answer_RA = backbone.logits(h_RD)[:, self.answers].float()
            no_R = answer_RA[:, 1] if len(self.answers) == 2 else 0.0
            parts.append(answer_RA[:, 0] - no_R)
        scores: npt.NDArray[np.float32] = torch.cat(parts).cpu().numpy()
        return scores


def _recipe(method: Method, limit: Any) -> Recipe:
    """Return the recipe whose pooled states the answers are read from."""
    return Recipe.load(
        {
            "name": "reranker",
            "backbone": {"attention": "causal"},
            "prompt": method.prompt(limit),
            "pooling": {"kind": "last"},
            "heads": ["dense", "sparse"],  # the second loads the language-model head
            "normalize": False,
        }
    )


def _token(tokenizer: Any, answer: str | int, size: int, source: str) -> int:
    """Return the id of an answer: its first token that is more than white space.

    SentencePiece writes "1" as a blank and a 1, so that the first token would be that of all.
    """
    if isinstance(answer, int):
        if answer >= size:
            raise UnsupportedError(
                f"the answer is the token {answer}, but {source!r} has {size} tokens"
            )
        return answer
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UnsupportedError(
            f"the tokenizer of {source!r} has no token for the answer {answer!r}"
        )
    written = (token for token in ids if tokenizer.decode([token]).strip())
    return int(next(written, ids[0]))
