"""Re-rankers: cross-encoders, and language models asked for a yes or a no.

Shapes: B documents, D width of a state, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from embedlm.backbone import gguf_folder
from embedlm.backbone.config import load_config
from embedlm.encode.inputs import check_texts
from embedlm.errors import InputError, UnsupportedError
from embedlm.jobs.json_files import optional_json
from embedlm.persistence import layout_folder
from embedlm.rerank.classifier import Classifier
from embedlm.rerank.method import Method, find_method
from embedlm.schema.recipe import Recipe
from embedlm.schema.template import escape

__all__ = ["Reranker"]

Scores = npt.NDArray[np.float32]
_ROWS = 256
"""Rows of logits held at once."""


class Reranker:
    """Scores documents for a query by reading both together.

    A cross-encoder gives its own output (Nogueira and Cho, arXiv:1901.04085). A language model is
    asked whether the document answers the query, and the score is the logit of its yes (less that
    of its no): Qwen3-Reranker (arXiv:2506.05176), bge-reranker-v2-gemma (arXiv:2402.03216). All
    documents of a query share what the model reads before them, which is computed once.

        reranker = embedlm.Reranker("Qwen/Qwen3-Reranker-0.6B")
        reranker.rank("what do plants make?", documents, top_k=3)
    """

    def __init__(
        self,
        model: str | Path,
        method: str | Mapping[str, Any] | Method | None = None,
        *,
        device: Any = None,
        dtype: Any = "auto",
        max_length: int | None = None,
        adapters: Sequence[str] = (),
    ) -> None:
        """Load a model.

        Args:
            model: a folder or hub id: a sequence classification network with one output, or any
                causal language model.
            method: a name of `embedlm.rerank.methods()`, fields of a `Method`, or None for the one
                that the model's files ask for.
            device: None chooses CUDA, MPS or CPU.
            dtype: as in `embedlm.load`.
            max_length: in tokens; the document is shortened (by a cross-encoder the longer text).
            adapters: adapter folders or hub ids of a language model.

        Raises:
            ModelError: nothing that can be loaded is there.
            RecipeError: no such method.
            UnsupportedError: a model that cannot score pairs so.
        """
        source = str(model)
        self.name, source = source, gguf_folder(source)
        config = load_config(source)
        self.method = find_method(method, config, source)
        limit = max_length or self.method.max_length
        self._classifier = self._model = None
        if self.method.kind == "classifier":
            self._classifier = Classifier(source, config, device, dtype, limit)
            self._identity = _is_identity(source)
            return
        from embedlm.loader import load

        recipe = _recipe(self.method, limit)
        self._model = load(source, recipe, device=device, dtype=dtype, adapters=adapters)
        self._answers = [
            _answer(self._model.tokenizer, word, source)
            for word in (self.method.yes, self.method.no)
            if word is not None
        ]

    load = classmethod(lambda cls, *args, **options: cls(*args, **options))

    def __repr__(self) -> str:
        return f"Reranker({self.name!r}, method={self.method.name!r})"

    def score(
        self,
        query: str,
        documents: Any,
        *,
        instruction: str | None = None,
        probability: bool | None = None,
    ) -> Scores:
        """Return each document's score for a query, (n,).

        Args:
            query: a string.
            documents: list of strings or of `{"text": ...}`.
            instruction: of the task, where the method's template has a place for it.
            probability: whether scores are given as sigmoid(score); None takes the method's.

        Raises:
            InputError: texts that cannot be used, or an instruction without a place for it.
        """
        checked_query = check_texts([query]).texts[0]
        texts = check_texts(documents).texts
        return self._score([(checked_query, text) for text in texts], instruction, probability)

    def predict(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        instruction: str | None = None,
        probability: bool | None = None,
        **_: Any,
    ) -> Scores:
        """Return the score of each (query, document), (n,): sentence-transformers' name."""
        checked = [check_texts(list(pair)).texts for pair in pairs]
        for index, pair in enumerate(checked):
            if len(pair) != 2:
                raise InputError(f"pair {index} holds {len(pair)} texts; give (query, document)")
        return self._score([(a, b) for a, b in checked], instruction, probability)

    def rank(
        self,
        query: str,
        documents: Any,
        top_k: int | None = None,
        *,
        instruction: str | None = None,
        probability: bool | None = None,
    ) -> list[dict[str, Any]]:
        """Return the documents, best first: `{"corpus_id": place, "score": ..., "text": ...}`.

        Documents of one score keep their order. `top_k` None gives all; see `score`.
        """
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k is {top_k}; give a number above 0")
        texts = check_texts(documents).texts
        scores = self.score(query, texts, instruction=instruction, probability=probability)
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [{"corpus_id": int(i), "score": float(scores[i]), "text": texts[i]} for i in order]

    def _score(
        self, pairs: list[tuple[str, str]], instruction: str | None, probability: bool | None
    ) -> Scores:
        if instruction is not None and "{instruction}" not in self.method.template:
            raise InputError(
                f"an instruction was given, but the method {self.method.name!r} has no place for "
                "one; leave it out or choose another method"
            )
        if not pairs:
            return np.empty(0, np.float32)
        if self._classifier is not None:
            scores = self._classifier.scores(pairs)
            squashed = self.method.probability and not self._identity
        else:
            scores, squashed = self._answer_logits(pairs, instruction), self.method.probability
        squashed = squashed if probability is None else probability
        return (1 / (1 + np.exp(-scores))).astype(np.float32) if squashed else scores

    def _answer_logits(self, pairs: list[tuple[str, str]], instruction: str | None) -> Scores:
        """Return the logits of the answers; the documents of a query run together."""
        assert self._model is not None
        task = self.method.instruction if instruction is None else instruction
        rows_of: dict[str, list[int]] = {}
        for row, (query, _) in enumerate(pairs):
            rows_of.setdefault(query, []).append(row)
        logits = np.empty(len(pairs), np.float32)
        for query, rows in rows_of.items():
            # The recipe's one slot before the text takes whatever stands there.
            lead = self.method.template.partition("{text}")[0]
            filled = _filled(lead, {"instruction": task, "query": query})
            states_BD = self._model.encode(
                [pairs[row][1] for row in rows],
                instruction=filled,
                heads=["dense"],
                show_progress=False,
            )
            logits[rows] = self._logits(torch.from_numpy(states_BD))
        return logits

    @torch.inference_mode()
    def _logits(self, h_BD: torch.Tensor) -> Scores:
        assert self._model is not None
        backbone = self._model.backbone
        parts = []
        for h_RD in h_BD.to(backbone.device, backbone.dtype).split(_ROWS):
            answer_RA = backbone.logits(h_RD)[:, self._answers].float()
            no_R = answer_RA[:, 1] if len(self._answers) == 2 else 0.0
            parts.append(answer_RA[:, 0] - no_R)
        scores: Scores = torch.cat(parts).cpu().numpy()
        return scores


def _recipe(method: Method, limit: int | None) -> Recipe:
    """Return the recipe whose pooled states the answers are read from."""
    tail = escape(method.template.partition("{text}")[2])
    return Recipe.load(
        {
            "name": "reranker",
            "backbone": {"attention": "causal"},
            "prompt": {"default": "{instruction}{text}" + tail, "max_length": limit},
            "pooling": {"kind": "last"},
            "heads": ["dense", "sparse"],  # the second loads the language-model head
            "normalize": False,
        }
    )


def _filled(lead: str, values: Mapping[str, str]) -> str:
    """Return the template's part before the document, its slots filled in one pass."""
    return re.sub(r"\{(instruction|query)\}", lambda match: values[match.group(1)], lead)


def _answer(tokenizer: Any, word: str, source: str) -> int:
    """Return the id of an answer: its first token, as it is written after the prompt."""
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UnsupportedError(f"the tokenizer of {source!r} has no token for the answer {word!r}")
    return int(ids[0])


def _is_identity(source: str) -> bool:
    """Tell whether a cross-encoder's files ask for its bare output (sentence-transformers)."""
    stored = optional_json(layout_folder(source) / "config.json")
    named = (stored.get("sentence_transformers") or {}).get("activation_fn") or stored.get(
        "sbert_ce_default_activation_function", ""
    )
    return str(named).endswith("Identity")
