"""Re-rankers: cross-encoders, and language models asked for a yes or a no."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from embedlm.backbone import gguf_folder
from embedlm.backbone.adapter_files import split_adapters
from embedlm.backbone.builtin import BUILTIN
from embedlm.backbone.config import load_config, raw_config
from embedlm.encode.identity import (
    config_digest,
    identity,
    tokenizer_digest,
    weights_digest,
)
from embedlm.encode.inputs import check_texts
from embedlm.errors import InputError, ModelError, closest
from embedlm.persistence import layout_folder, network_config
from embedlm.rerank.answers import AnswerModel
from embedlm.rerank.chat import chat_method
from embedlm.rerank.classifier import Classifier
from embedlm.rerank.cross_encoder import PairSettings, is_cross_encoder, pair_settings
from embedlm.rerank.method import Method, find_method
from embedlm.rerank.pairs import check_queries, pair_lengths, shortened_parts
from embedlm.rerank.published import check_known, is_published

__all__ = ["Reranker", "is_reranker"]

Scores = npt.NDArray[np.float32]
_WITHOUT_EFFECT = ("batch_size", "show_progress_bar", "convert_to_numpy", "return_documents")
"""Options of sentence-transformers that change no score."""


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
            model: a folder or hub id: a sequence classification network with one output, a folder
                of sentence-transformers' CrossEncoder, any causal language model, or the folder of
                an adapter on one.
            method: a name of `embedlm.rerank.methods()`, fields of a `Method`, or None for the one
                that the model's id and files ask for.
            device: None chooses CUDA, MPS or CPU.
            dtype: as in `embedlm.load`.
            max_length: in tokens; the document is shortened (by a cross-encoder the longer text).
            adapters: adapter folders or hub ids of a language model.

        Raises:
            InputError: a max_length that is no number of tokens.
            ModelError: nothing that can be loaded is there.
            RecipeError: no such method.
            UnsupportedError: a model that cannot score pairs so, or a setting of its files that
                cannot be honoured.
        """
        self.name = str(model)
        if self.name in BUILTIN:
            raise ModelError(
                f"{self.name!r} comes with EmbedLM and is no re-ranker; give the folder or hub id "
                "of one, such as BAAI/bge-reranker-v2-m3"
            )
        place = gguf_folder(self.name)
        source, own = split_adapters(place)
        adapters = [*own, *adapters]
        config = load_config(source)
        self._settings = _settings(method, config, source, place)
        self.method = self._settings.method
        options = {"device": device, "dtype": dtype, "max_length": max_length}
        self._network = _network(source, config, self.method, adapters, options)
        template = getattr(self._network.tokenizer, "chat_template", None)
        self._chat = self._settings.chat if template else None
        self._chats: dict[str, Method] = {}

    load = classmethod(lambda cls, *args, **options: cls(*args, **options))

    def __repr__(self) -> str:
        return f"Reranker({self.name!r}, method={self.method.name!r})"

    @cached_property
    def counting_tokenizer(self) -> Any:
        """The tokenizer in a copy that shortens nothing, for threads beside the one that scores."""
        return deepcopy(self._network.tokenizer)

    @property
    def max_length(self) -> int | None:
        """Tokens that a pair may have, as it is written; None: no limit."""
        return self._network.max_length

    def lengths(
        self, pairs: Sequence[tuple[str, str]], *, instruction: str | None = None
    ) -> list[int]:
        """Return how many tokens each pair would have if it were not shortened."""
        prompt = self._prompt({})
        method = self._method(prompt)
        task = method.instruction if instruction is None else instruction
        return pair_lengths(self.counting_tokenizer, _stripped(pairs, method), method, task, prompt)

    def shortened(
        self, pairs: Sequence[tuple[str, str]], lengths: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """Return the numbers of the pairs whose queries, and whose documents, are shortened.

        Args:
            pairs: of query and document.
            lengths: of each pair, see `lengths`.
        """
        most = self.max_length
        if most is None:
            return [], []
        prompt = self._prompt({})
        method = self._method(prompt)
        places = [place for place, length in enumerate(lengths) if length > most]
        long = _stripped([pairs[place] for place in places], method)
        parts = shortened_parts(self.counting_tokenizer, long, method, prompt, most)
        cut = list(zip(places, parts, strict=True))
        return [place for place, (query, _) in cut if query], [
            place for place, (_, document) in cut if document
        ]

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for two re-rankers to give the same scores."""
        network = self._network
        if isinstance(network, AnswerModel):
            facts = identity(network.model, with_head=True)
        else:
            facts = {
                "weights": weights_digest(network.network),
                "config": config_digest(network.network),
                "limit": network.max_length,
            }
        tokenizer = tokenizer_digest(network.tokenizer)
        return {**facts, "tokenizer": tokenizer, "method": self.method.model_dump_json()}

    def parameters(self) -> list[Any]:
        """Return the tensors of the network."""
        network: Any = self._network
        inner = network.model.backbone if isinstance(network, AnswerModel) else network
        return list(inner.network.parameters())

    def score(
        self,
        query: str,
        documents: Any,
        *,
        instruction: str | None = None,
        probability: bool | None = None,
        **spellings: Any,
    ) -> Scores:
        """Return each document's score for a query, (n,).

        Args:
            query: a string.
            documents: list of strings or of `{"text": ...}`.
            instruction: of the task, where the method's template has a place for it.
            probability: whether scores are given as sigmoid(score); None takes the method's.
            spellings: sentence-transformers' `prompt` or `prompt_name`, for the models that it
                reads: what is written before the query, or as the system's message of a chat.

        Raises:
            InputError: texts or options that cannot be used, or an instruction without a place.
            ModelError: a score that is NaN or infinite.
        """
        checked_query = check_texts([query]).texts[0]
        texts = check_texts(documents).texts
        pairs = [(checked_query, text) for text in texts]
        return self._score(pairs, instruction, probability, spellings)

    def predict(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        instruction: str | None = None,
        probability: bool | None = None,
        **spellings: Any,
    ) -> Scores:
        """Return the score of each (query, document), (n,): sentence-transformers' name.

        One pair alone gives one score. See `score`.
        """
        alone = len(pairs) == 2 and all(isinstance(text, str) for text in pairs)
        checked = [check_texts(list(pair)).texts for pair in ([pairs] if alone else pairs)]
        for index, pair in enumerate(checked):
            if len(pair) != 2:
                raise InputError(f"pair {index} holds {len(pair)} texts; give (query, document)")
        both = [(query, document) for query, document in checked]
        scores = self._score(both, instruction, probability, spellings)
        return scores[0] if alone else scores

    def rank(
        self,
        query: str,
        documents: Any,
        top_k: int | None = None,
        *,
        instruction: str | None = None,
        probability: bool | None = None,
        **spellings: Any,
    ) -> list[dict[str, Any]]:
        """Return the documents, best first: `{"corpus_id": index, "score": ..., "text": ...}`.

        Documents of one score keep their order. `top_k` None gives all; see `score`.
        """
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k is {top_k}; give a number above 0")
        texts = check_texts(documents).texts
        scores = self.score(
            query, texts, instruction=instruction, probability=probability, **spellings
        )
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [{"corpus_id": int(i), "score": float(scores[i]), "text": texts[i]} for i in order]

    def _score(
        self,
        pairs: list[tuple[str, str]],
        instruction: str | None,
        probability: bool | None,
        spellings: Mapping[str, Any],
    ) -> Scores:
        prompt = self._prompt(spellings)
        method = self._method(prompt)
        if instruction is not None and not method.takes_instruction:
            raise InputError(
                f"an instruction was given, but the method {self.method.name!r} has no place for "
                "one; leave it out or choose another method"
            )
        if not pairs:
            return np.empty(0, np.float32)
        pairs = _stripped(pairs, method)
        task = method.instruction if instruction is None else instruction
        try:
            scores = self._network.logits(pairs, method, task, prompt)
        except InputError:
            queries = list(dict.fromkeys(query for query, _ in pairs))
            check_queries(self._network.tokenizer, queries, method, task, self.max_length)
            raise
        for index in np.flatnonzero(~np.isfinite(scores)):
            raise ModelError(
                f"the score of document {pairs[index][1][:60]!r} (number {index}) is "
                f"{scores[index]}: the model's numbers have overflowed; try dtype='float32'"
            )
        squashed = method.probability if probability is None else probability
        return expit(scores) if squashed else scores

    def _prompt(self, spellings: Mapping[str, Any]) -> str:
        """Return what sentence-transformers' options write before the query; refuse others."""
        options = {key: value for key, value in spellings.items() if key not in _WITHOUT_EFFECT}
        allowed = ("prompt", "prompt_name")
        for name, value in options.items():
            if name not in allowed:
                known = ["instruction", "probability", *allowed]
                raise InputError(
                    f"a re-ranker has no option {name!r}.{closest(name, known)} Allowed: "
                    f"{', '.join(known)}"
                )
            if value is not None and self.method.template is not None:
                raise InputError(
                    f"{name} was given, but the method {self.method.name!r} writes the pair by a "
                    "template of its own; give instruction= where it has a place for one"
                )
        return self._settings.prompt(options.get("prompt"), options.get("prompt_name"))

    def _method(self, prompt: str) -> Method:
        """Return the method, with the template that the tokenizer's chat template writes."""
        if self._chat is None:
            return self.method
        if prompt not in self._chats:
            self._chats[prompt] = chat_method(
                self.method, self._network.tokenizer, self._chat, prompt, self.name
            )
        return self._chats[prompt]


def _stripped(pairs: Sequence[tuple[str, str]], method: Method) -> list[tuple[str, str]]:
    """Return pairs as a method reads them."""
    if not method.strip:
        return list(pairs)
    return [(query.strip(), document.strip()) for query, document in pairs]


def is_reranker(source: str | Path) -> bool:
    """Tell whether a model is a re-ranker, by its class or its name; no built-in one is.

    Args:
        source: a folder, a hub id or the name of a built-in model.

    Raises:
        ModelError: nothing that can be loaded is there.
    """
    if str(source) in BUILTIN:
        return False
    folder, _ = split_adapters(gguf_folder(str(source)))
    classes = getattr(network_config(folder), "architectures", None) or ()
    named = any(str(one).endswith("ForSequenceClassification") for one in classes)
    return named or is_published(folder)


def _network(
    source: str, config: Any, method: Method, adapters: Sequence[str], options: dict[str, Any]
) -> Classifier | AnswerModel:
    """Load the network that gives the logits."""
    limit = options["max_length"]
    if limit is not None and (isinstance(limit, bool) or limit < 1):
        raise InputError(f"max_length is {limit!r}; give a number of tokens above 0")
    if method.kind == "answer":
        return AnswerModel(source, method, adapters=adapters, **options)
    if adapters:
        raise InputError("adapters are for language models; merge them into the cross-encoder")
    return Classifier(source, config, method, **options)


def _settings(method: Any, config: Any, source: str, place: str) -> PairSettings:
    """Return how pairs are read: as the caller says, else as the model's id or files say.

    Args:
        method: as the caller says.
        config: of the network.
        source: folder or hub id of the network.
        place: that of the adapter on it, whose folder may hold the settings; else `source` too.
    """
    if method is not None or is_published(source):
        return PairSettings(find_method(method, config, source))
    check_known(config, source)
    folder = layout_folder(place)
    if place != source and not is_cross_encoder(folder):
        folder = layout_folder(source)
    files_say = is_cross_encoder(folder)
    # A CrossEncoder's folder names its modules; what the model is called counts for nothing.
    plain = find_method("cross-encoder" if files_say else None, config, source)
    if not files_say and plain.kind != "classifier":
        return PairSettings(plain)
    return pair_settings(folder, raw_config(source), plain)
